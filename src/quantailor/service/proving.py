"""The second half of the way: build a strategy, prove what it is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from quantailor import build as building
from quantailor import files, plots
from quantailor import verify as proving
from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.scores import fidelity
from quantailor.ggml import library
from quantailor.ggml.reference import preset_name
from quantailor.models.opening import open_model
from quantailor.records import ChunkScore, Strategy, Verdict
from quantailor.service import tasks
from quantailor.service.results import BuildReport, VerifyResult
from quantailor.service.stages import Stages
from quantailor.service.workspace import HELDOUT_TEXT, OpenedModel, Workspace, fingerprint_of, gguf_path
from quantailor.store import ScoreKey, StrategyRecord
from quantailor.strategy import file as strategy_file

BASE = "base"
NULL_CONTROL = "null control"


def build(workspace: Workspace, task: tasks.BuildTask, stages: Stages) -> BuildReport:
    """Write the file that a strategy describes."""
    strategy = strategy_file.read(task.strategy, known_types=library.types())
    with workspace.model(task.base, allow_requantize=task.allow_requantize) as model:
        imatrix = strategy_imatrix(workspace, model, strategy, task.imatrix)
        predicted = building.predict(model.source, strategy, imatrix=imatrix, split_max_bytes=task.split_max_bytes)
        result = building.build(
            model.source,
            strategy,
            Path(task.output),
            imatrix=imatrix,
            split_max_bytes=task.split_max_bytes,
            n_threads=task.n_threads,
            control=stages.begin("build"),
            overwrite=task.overwrite,
        )
        record = StrategyRecord.of(model.fingerprint, strategy.method, strategy_file.dumps(strategy))
        workspace.store.record_strategy(record)
        for path in result.paths:
            workspace.store.record_location("build", record.fingerprint, path)
        return BuildReport(
            paths=tuple(str(path) for path in result.paths),
            size_bytes=result.size_bytes,
            bits_per_weight=result.bits_per_weight,
            predicted_size_bytes=predicted.file_size_bytes,
        )


def strategy_imatrix(workspace: Workspace, model: OpenedModel, strategy: Strategy, wanted: str) -> Imatrix | None:
    """The importance matrix to build with: "auto" is the one the strategy was made with, if any."""
    recorded = strategy.inputs.get("imatrix")
    if wanted == tasks.AUTO:
        return workspace.imatrix(model.fingerprint, str(recorded)) if recorded else None
    return workspace.choose_imatrix(model, wanted)


# Verification


def verify(workspace: Workspace, task: tasks.VerifyTask, stages: Stages) -> VerifyResult:
    """Score a file and its references against the base, chunk by chunk, and judge. Stored chunks are not scored again."""
    with workspace.model(task.base) as model:
        imatrix = verify_imatrix(workspace, model, task)
        base, ours = gguf_path(model), Path(task.file)
        presets = tuple(dict.fromkeys(preset_name(name) for name in task.against))
        label = f"{ours.stem} (ours)" if ours.stem in (BASE, NULL_CONTROL, *presets) else ours.stem
        candidates = {label: ours}
        for preset in presets:
            control = stages.begin(f"reference {preset}")
            candidates[preset] = proving.ensure_reference(
                base, preset, imatrix=imatrix, folder=workspace.home.references, n_threads=task.n_threads, control=control
            )
        text = Path(task.text) if task.text else HELDOUT_TEXT
        corpus = load_corpus(base, text)
        tokens = chunks(corpus, task.n_ctx, limit=task.chunks)
        keys = _score_keys(model, corpus.sha256, task.n_ctx, candidates)
        scores = fidelity.score_chunks(
            base,
            candidates,
            tokens,
            done={name: workspace.store.scored_chunks(key) for name, key in keys.items()},
            control=stages.begin("verify"),
            n_threads=task.n_threads,
            n_gpu_layers=task.n_gpu_layers,
        )
        for name, score in scores:
            workspace.store.record_chunk_scores(keys[name], [score])
        verdict = _judge(workspace, model, keys, candidates, label, len(tokens), corpus_name=corpus.name, n_ctx=task.n_ctx)
        workspace.store.record_verdict(verdict)
        return VerifyResult(verdict, _write_files(verdict, Path(task.output) if task.output else ours.with_suffix(".verdict")))


def verify_imatrix(workspace: Workspace, model: OpenedModel, task: tasks.VerifyTask) -> Imatrix | None:
    """The importance matrix for the references: by default the one that our file was made with."""
    if task.imatrix != tasks.AUTO:
        return workspace.choose_imatrix(model, task.imatrix)
    embedded = embedded_strategy(Path(task.file))
    if embedded is not None:
        recorded = embedded.inputs.get("imatrix")
        return workspace.imatrix(model.fingerprint, str(recorded)) if recorded else None
    return workspace.newest_imatrix(model.fingerprint)


def embedded_strategy(path: Path) -> Strategy | None:
    """The strategy that a file we built carries; None in other files."""
    source = open_model(path)
    try:
        text = source.metadata.get("quantailor.strategy")
        return None if text is None else strategy_file.loads(str(text.value), name=f"the strategy in {path.name}")
    finally:
        source.close()


def _score_keys(model: OpenedModel, corpus: str, n_ctx: int, candidates: Mapping[str, Path]) -> dict[str, ScoreKey]:
    keys = {name: ScoreKey(model.fingerprint, corpus, n_ctx, name) for name in (BASE, NULL_CONTROL)}
    for label, path in candidates.items():
        keys[label] = ScoreKey(model.fingerprint, corpus, n_ctx, fingerprint_of(path))
    return keys


def _judge(
    workspace: Workspace,
    model: OpenedModel,
    keys: Mapping[str, ScoreKey],
    candidates: Mapping[str, Path],
    label: str,
    n_chunks: int,
    *,
    corpus_name: str,
    n_ctx: int,
) -> Verdict:
    scores: dict[str, Sequence[ChunkScore]] = {
        name: [score for score in workspace.store.chunk_scores(key) if score.index < n_chunks] for name, key in keys.items()
    }
    scored = [_scored(BASE, "base", gguf_path(model), scores[BASE])]
    scored += [_scored(name, "ours" if name == label else "reference", path, scores[name]) for name, path in candidates.items()]
    return proving.make_verdict(
        scored,
        scores[NULL_CONTROL],
        model_fingerprint=model.fingerprint,
        corpus_name=corpus_name,
        corpus_sha256=keys[BASE].corpus,
        n_ctx=n_ctx,
    )


def _scored(label: str, kind: Literal["base", "ours", "reference"], path: Path, scores: Sequence[ChunkScore]) -> proving.ScoredFile:
    size_bytes, bits = proving.file_size(path)
    return proving.ScoredFile(label, kind, size_bytes, bits, scores)


def _write_files(verdict: Verdict, stem: Path) -> tuple[str, ...]:
    """The verdict beside the file: JSON, CSV and the graph as PNG and SVG."""
    document = json.dumps(asdict(verdict), indent=2, allow_nan=False) + "\n"
    as_json = files.write_text(stem.with_name(f"{stem.name}.json"), document)
    table = proving.write_csv(verdict, stem.with_name(f"{stem.name}.csv"))
    figures = plots.size_against_kld(verdict, stem)
    return tuple(str(path) for path in (as_json, table, *figures))
