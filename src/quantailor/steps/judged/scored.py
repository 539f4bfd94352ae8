"""From the scores of files that the store has to the verdict on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantailor.analysis.corpus import Corpus, domains
from quantailor.analysis.scores.fidelity import BASE, NULL_CONTROL
from quantailor.making import judging
from quantailor.making.evals import Evaluated
from quantailor.records import ChunkScore, RowKind, Verdict
from quantailor.session import OpenedModel, Workspace, gguf_path
from quantailor.store import ScoreKey


def judged(
    workspace: Workspace,
    model: OpenedModel,
    keys: Mapping[str, ScoreKey],
    sizes: Mapping[str, tuple[int, float]],
    kinds: Mapping[str, RowKind],
    n_chunks: int,
    *,
    corpus: Corpus,
    n_ctx: int,
    limits: Sequence[str],
    evals: Sequence[Evaluated],
) -> Verdict:
    """The verdict on the files.

    Args:
        workspace: whose store has the scores.
        model: the base.
        keys: label -> what its scores are filed under.
        sizes: label -> bytes and bits per weight, of all files but the base, in the verdict's order.
        kinds: label -> kind, of those that are no references.
        n_chunks: of the text, so many.
        corpus: the text.
        n_ctx: tokens in a chunk.
        limits: what limits its worth, one sentence each.
        evals: what the files answered to evaluations.
    """
    scores: dict[str, Sequence[ChunkScore]] = {
        name: [score for score in workspace.store.chunk_scores(key) if score.index < n_chunks] for name, key in keys.items()
    }
    scored = [judging.ScoredFile(BASE, "base", *judging.file_size(gguf_path(model)), scores[BASE], model.fingerprint)]
    for name, size in sizes.items():
        scored.append(judging.ScoredFile(name, kinds.get(name, "reference"), *size, scores[name], keys[name].candidate))
    return judging.make_verdict(
        scored,
        scores[NULL_CONTROL],
        model_fingerprint=model.fingerprint,
        corpus_name=corpus.name,
        corpus_sha256=corpus.sha256,
        n_ctx=n_ctx,
        domains=domains(corpus, n_ctx, n_chunks),
        reservations=limits,
        evals=evals,
    )
