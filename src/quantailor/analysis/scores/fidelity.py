"""Fidelity of a model against its base: perplexity, KL divergence, agreement, with the protocol of llama-perplexity.

Of every chunk of n_ctx tokens the second half is scored: the predictions at positions n_ctx // 2 to n_ctx - 2. KL
divergence is of the whole distribution, KL(base || model) in nats. (llama-perplexity keeps the base's
log-probabilities in 16 bits over a range of 16 nats and skips what is below; ours are exact to float32.)

The base's log-probabilities are kept in memory for a block of chunks at a time and the candidates are loaded one after
the other for every block, so memory is one model and one block whatever the number of candidates.

Standard errors are over chunks, because the tokens of one chunk are not independent. The null control is the base
loaded again and sent down the same way: its divergence is the floor of all figures.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from quantailor import numerics
from quantailor.control import QUIET, Control, ProgressCounter
from quantailor.errors import InferenceError
from quantailor.ggml.runtime import LoadedModel
from quantailor.numerics import Doubles, Floats, Tokens
from quantailor.processes import apart
from quantailor.processes.messages import doing
from quantailor.records import ChunkScore, Comparison, Estimate, FidelityStatistics, Standing

BASE = "base"
NULL_CONTROL = "null control"
NULL_CHUNKS = 8
"""Enough to see whether the same model gives the same figures twice; more would cost as much as another file."""
BLOCK_BYTES = 512 * 2**20
MIN_KLD_NATS = 1e-12
"""Divergences below this count as this in comparisons, so that a file equal to the base can be compared."""
EQUAL_SIZE = 0.001
"""Sizes that differ by no more than this share count as equal."""
_QUANTILES = (0.5, 0.99, 0.999)


def first_scored(n_ctx: int) -> int:
    """The first position whose prediction is scored, as llama-perplexity takes it."""
    return n_ctx // 2


def wanted_chunks(label: str, n_chunks: int) -> set[int]:
    """The chunks that a file is scored on, of so many."""
    return set(range(min(n_chunks, NULL_CHUNKS) if label == NULL_CONTROL else n_chunks))


def score_chunks(
    base_path: Path,
    candidates: Mapping[str, Path],
    chunks: Tokens,
    *,
    done: Mapping[str, Collection[int]] | None = None,
    control: Control = QUIET,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[tuple[str, ChunkScore]]:
    """Score every candidate and the base on every chunk that is not done yet, the null control on the first `NULL_CHUNKS`.

    Args:
        base_path: the unquantized model.
        candidates: label -> file. The labels "base" and "null control" are the base's own.
        chunks: (n_chunks, n_ctx) from `corpus.chunks`.
        done: label -> indexes of chunks that are stored already.
        control: asked before every chunk whether to go on; progress counts chunks of all files.
        n_threads: None takes all processors.
        n_gpu_layers: layers on a GPU, -1 for all.
        block_bytes: memory for the base's log-probabilities; at least one chunk's are held.

    Yields:
        (label, score), each as soon as it is known. A chunk's score does not depend on what else is scored.

    Raises:
        InferenceError: llama.cpp cannot load or run a file, or a file has another vocabulary than the base.
    """
    if taken := {BASE, NULL_CONTROL} & set(candidates):
        raise InferenceError(f"no file can be called {min(taken)!r} in a comparison", remedy="Rename it")
    missing = {
        label: wanted_chunks(label, len(chunks)).difference((done or {}).get(label, ())) for label in (BASE, NULL_CONTROL, *candidates)
    }
    wanted = sorted(set().union(*missing.values()))
    if wanted:
        control.check()
        yield from apart.stream(_scores, base_path, candidates, chunks, missing, block_bytes, n_threads, n_gpu_layers, control=control)


def _scores(
    base_path: Path,
    candidates: Mapping[str, Path],
    chunks: Tokens,
    missing: Mapping[str, Collection[int]],
    block_bytes: int,
    n_threads: int | None,
    n_gpu_layers: int,
    *,
    control: Control,
) -> Iterator[tuple[str, ChunkScore]]:
    """As `score_chunks`; `missing` is label -> indexes."""
    wanted = sorted(set().union(*missing.values()))
    progress = ProgressCounter(control, sum(map(len, missing.values())))
    load = functools.partial(LoadedModel, n_ctx=chunks.shape[1], n_threads=n_threads, n_gpu_layers=n_gpu_layers)
    targets = chunks[:, first_scored(chunks.shape[1]) + 1 :]  # (n_chunks, n_scored)
    while wanted:
        base_logp: dict[int, Floats] = {}
        with load(base_path) as base:
            n_vocab = base.n_vocab
            n_held = max(1, block_bytes // (4 * n_vocab * targets.shape[1]))
            block, wanted = wanted[:n_held], wanted[n_held:]
            for index in block:
                doing(f"running chunk {index + 1} through {base_path}")
                base_logp[index] = _log_probabilities(base, chunks[index])
                if index in missing[BASE]:
                    observed = base_logp[index][np.arange(targets.shape[1]), targets[index]]
                    yield BASE, chunk_score(index, observed, observed, np.zeros(len(observed)), len(observed))
                    progress.add(1, f"base, chunk {index + 1}")
        for label, path in {NULL_CONTROL: base_path, **candidates}.items():
            if indexes := [index for index in block if index in missing[label]]:
                with load(path) as model:
                    if model.n_vocab != n_vocab:
                        said = f"{path} has {model.n_vocab} tokens, the base has {n_vocab}"
                        raise InferenceError(said, remedy="Compare files of the same model")
                    for index in indexes:
                        doing(f"running chunk {index + 1} through {path}")
                        logp = _log_probabilities(model, chunks[index])
                        yield label, score(index, base_logp[index], logp, targets[index], n_threads=model.n_threads)
                        progress.add(1, f"{label}, chunk {index + 1}")


def _log_probabilities(model: LoadedModel, chunk: Tokens) -> Floats:
    """(n_scored, n_vocab): the last position has no target and is left out."""
    return numerics.log_softmax(model.logits(chunk, first=first_scored(len(chunk)), view=True)[:-1], n_threads=model.n_threads)


def chunk_score(index: int, observed: Floats | Doubles, base_observed: Floats, klds: Doubles, n_same_top: int) -> ChunkScore:
    """One chunk's sums, without the divergences of single tokens.

    Args:
        index: the chunk's number.
        observed: the model's ln p of the tokens that followed, (n_scored,).
        base_observed: the base's, (n_scored,).
        klds: KL(base || model) of every token, nats, (n_scored,).
        n_same_top: tokens whose most likely successor is the same in both.
    """
    logp, base_logp = observed.astype(np.float64), base_observed.astype(np.float64)
    dp_square_sum = float(np.square(np.exp(logp) - np.exp(base_logp)).sum())
    return ChunkScore(index, len(logp), float(-logp.sum()), float(klds.sum()), n_same_top, dp_square_sum)


def score(index: int, base_logp: Floats, logp: Floats, targets: Tokens, *, n_threads: int = 1) -> ChunkScore:
    """One chunk's sums, and the divergence of every token.

    Args:
        index: the chunk's number.
        base_logp: the base's log-probabilities, (n_scored, n_vocab).
        logp: the model's, the same shape.
        targets: the tokens that followed, (n_scored,).
        n_threads: that share the positions.
    """
    rows, klds = np.arange(len(targets)), numerics.kl_divergence(base_logp, logp, n_threads=n_threads)
    n_same_top = int(np.count_nonzero(base_logp.argmax(axis=1) == logp.argmax(axis=1)))
    sums = chunk_score(index, logp[rows, targets], base_logp[rows, targets], klds, n_same_top)
    return replace(sums, klds=tuple(klds.tolist()))


# Statistics


def paired_chunks(scores: Sequence[ChunkScore], base: Sequence[ChunkScore]) -> list[tuple[ChunkScore, ChunkScore]]:
    """What two files scored on the chunks that both have, in the text's order.

    Raises:
        InferenceError: they have none in common.
    """
    by_index = {chunk.index: chunk for chunk in base}
    pairs = [(chunk, by_index[chunk.index]) for chunk in sorted(scores, key=lambda chunk: chunk.index) if chunk.index in by_index]
    if not pairs:
        message = "there are no scored chunks to compare: the two have no chunk in common"
        raise InferenceError(message, remedy="Score both on the same text")
    return pairs


def perplexity_of(pairs: Sequence[tuple[ChunkScore, ChunkScore]]) -> tuple[Estimate, Estimate]:
    """The perplexity of the first of each pair, and ln(PPL / PPL_base) paired by chunk."""
    tokens = [ours.n_tokens for ours, _ in pairs]
    nll = numerics.ratio_over_chunks([ours.nll_sum for ours, _ in pairs], tokens)
    perplexity = math.exp(nll.value)
    return Estimate(perplexity, perplexity * nll.se), numerics.ratio_over_chunks(
        [ours.nll_sum - theirs.nll_sum for ours, theirs in pairs], tokens
    )


def statistics_of(scores: Sequence[ChunkScore], base: Sequence[ChunkScore]) -> FidelityStatistics:
    """Figures over the chunks that both a file and the base have; standard errors are over chunks.

    Raises:
        InferenceError: they have no chunk in common.
    """
    pairs = paired_chunks(scores, base)
    tokens = [ours.n_tokens for ours, _ in pairs]
    perplexity, ln_ppl_ratio = perplexity_of(pairs)
    rms = _root(numerics.ratio_over_chunks([ours.dp_square_sum for ours, _ in pairs], tokens))
    klds = np.concatenate([np.asarray(ours.klds or (0.0,) * ours.n_tokens) for ours, _ in pairs])
    median, p99, p999 = (float(value) for value in np.quantile(klds, _QUANTILES))
    return FidelityStatistics(
        n_chunks=len(pairs),
        n_tokens=sum(tokens),
        perplexity=perplexity,
        ln_ppl_ratio=ln_ppl_ratio,
        kld_mean=numerics.ratio_over_chunks([ours.kld_sum for ours, _ in pairs], tokens),
        kld_median=median,
        kld_p99=p99,
        kld_p999=p999,
        kld_max=float(klds.max()),
        top_agreement=numerics.ratio_over_chunks([ours.top_agreement for ours, _ in pairs], tokens),
        rms_dp=rms,
    )


def _root(square: Estimate) -> Estimate:
    """The square root of an estimate: se(sqrt(v)) = se(v) / (2 sqrt(v))."""
    root = float(np.sqrt(square.value))
    return Estimate(root, square.se / (2 * root) if root else 0.0)


def compare(
    ours: Sequence[ChunkScore],
    theirs: Sequence[ChunkScore],
    *,
    reference: str,
    size_ratio: float,
    file: str = "",
) -> Comparison:
    """ln(KLD_ours / KLD_theirs) over the chunks both have, with a paired bootstrap (METHODS 3).

    Better or worse where the 95 % interval leaves out 0, else no better. How many chunks a claim
    needs is decided where it is made.

    Raises:
        InferenceError: they have no chunk in common.
    """
    pairs = paired_chunks(ours, theirs)
    least = MIN_KLD_NATS * sum(chunk.n_tokens for chunk, _ in pairs)
    columns = [(chunk.kld_sum, other.kld_sum) for chunk, other in pairs]
    ratio, (low, high) = numerics.bootstrap_ln_product(columns, (1.0, -1.0), floor=least)
    outcome: Literal["better", "no better", "worse"] = "better" if high < 0 else "worse" if low > 0 else "no better"
    return Comparison(reference, ratio, (low, high), size_ratio, outcome, file)


def stand(
    file: str, scores: Sequence[ChunkScore], size_bytes: int, presets: Sequence[tuple[str, int, Sequence[ChunkScore]]]
) -> Standing | None:
    """How a file stands to the presets' line, by the same bootstrap; None outside its ends.

    Args:
        file: its name.
        scores: its chunks, the same as every preset has.
        size_bytes: its size.
        presets: name, size and chunks of each.
    """
    equal = min(presets, key=lambda each: abs(each[1] - size_bytes), default=None)
    if equal is not None and abs(equal[1] / size_bytes - 1) <= EQUAL_SIZE:
        presets, size_bytes = [equal], equal[1]
    below = max((each for each in presets if each[1] <= size_bytes), key=lambda each: each[1], default=None)
    above = min((each for each in presets if each[1] >= size_bytes), key=lambda each: each[1], default=None)
    if below is None or above is None:
        return None
    span = math.log(above[1] / below[1])
    share = math.log(size_bytes / below[1]) / span if span else 0.0
    columns = [[score.kld_sum for score in each] for each in (scores, below[2], above[2])]
    least = MIN_KLD_NATS * sum(score.n_tokens for score in scores)
    ratio, (low, high) = numerics.bootstrap_ln_product(np.transpose(columns), (1.0, share - 1.0, -share), floor=least)
    outcome: Literal["below", "on", "above"] = "below" if high < 0 else "above" if low > 0 else "on"
    return Standing(file, tuple(dict.fromkeys((below[0], above[0]))), ratio, (low, high), outcome)
