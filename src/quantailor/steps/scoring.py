"""Mixes of a base scored and stored: what probes, sweeps and refinements have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from quantailor.analysis.corpus import Corpus, chunk_length, chunks, spread
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.scores.mix_scores import CrewScorer, FileScorer, MixWork, scoring_mixes
from quantailor.analysis.scores.resting import RESTING, RESTS, Rest
from quantailor.analysis.sensitivity import NULL_MIX, is_readable
from quantailor.control import QUIET, Control, Passes, TimeUp
from quantailor.costs.model_size import ModelSize
from quantailor.costs.needs import Needs, run_with_swaps
from quantailor.errors import StrategyError
from quantailor.evidence.grounds import file_key
from quantailor.evidence.measurements import Measured, measured
from quantailor.evidence.written import resting_base
from quantailor.processes.crews import HERE, ModelFiles
from quantailor.records import ChunkScore, Mix
from quantailor.session import AUTO, CALIBRATION_TEXT, NONE, OpenedModel, Workspace, gguf_path, quantizable_tensors
from quantailor.steps.checks.inputs import check_texts
from quantailor.steps.measure import MeasureStep
from quantailor.steps.options import DEFAULT_N_CTX, Compute
from quantailor.steps.stages import Stages
from quantailor.steps.step import Answer, Screen, StepResult, WeightedStep
from quantailor.store import SwapKey

LOOK_AT = 4
"""So many times the chunks that are wanted are looked at for ones that the base can read."""
CHECKPOINT_CHUNKS = 4
"""Chunks of one mix after which its scores are stored; a mix that is finished is stored at once."""


USED_UP = "the passes are used up"
BYTES_PER_TOKEN = 8
"""No vocabulary we know has longer tokens on average: a text has at least so many chunks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringStep(WeightedStep[Answer]):
    """A step that scores mixes of a base on a text."""

    units: ClassVar[Mapping[str, str]] = {"null control": "chunks", RESTS: "bytes"}
    runs_model: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    screen: ClassVar[Screen | None] = "measure"

    base: str
    text: str | None = None
    """None means the calibration text that ships with Quantailor."""
    n_ctx: int = DEFAULT_N_CTX
    rest: Rest = "16"
    """What the base rests in meanwhile: as stored, or at 8 bits, which takes half the memory (METHODS 4)."""

    def check(self, workspace: Workspace) -> None:
        """The text. Raises CorpusError."""
        super(ScoringStep, self).check(workspace)
        check_texts(self.text)

    @property
    def text_path(self) -> Path:
        return Path(self.text) if self.text else CALIBRATION_TEXT

    def needs_on(self, workspace: Workspace, n_chunks: int, anchor_bits: float = 0.0) -> Needs:
        """Memory for weights that change; disk for what scoring so many chunks keeps, and for a file of so many bits per weight."""
        with workspace.model(self.base) as model:
            size, fingerprint = ModelSize.of(model.source), model.fingerprint
        needs = run_with_swaps(size, self.n_ctx, self.compute.n_gpu_layers, rests_at_8_bits=self.rest != "16")
        counts = workspace.store.counts(fingerprint)
        if counts.n_swept or counts.n_mixes:
            return needs  # an earlier run wrote the base's log-probabilities
        n_text_bytes = self.text_path.stat().st_size if self.text_path.is_file() else 0
        n_kept = min(n_chunks, max(1, n_text_bytes // (BYTES_PER_TOKEN * self.n_ctx)))
        home = workspace.home
        file_bytes = size.resting_bytes if self.rest != "16" else size.bytes_at(anchor_bits)
        disk = ((home.base_logp, n_kept * size.base_logp_bytes(self.n_ctx)), (home.references, file_bytes))
        return needs + Needs(disk)


@dataclass(frozen=True)
class Scoring:
    """A base in memory, a text, and where the scores go."""

    workspace: Workspace
    key: SwapKey
    scorer: CrewScorer
    files: FileScorer
    corpus: Corpus
    order: tuple[int, ...]
    """All chunks, spread over the text."""

    n_vocab: int
    passes: Passes = field(default_factory=Passes)
    """What may still be run; the base itself is not counted."""

    def first(self, n_chunks: int) -> list[int]:
        """The chunks to use when so many are asked for: the first that the base can read (METHODS 4); if none is, the first."""
        n_looked_at, readable = 0, list[int]()
        while len(readable) < n_chunks and n_looked_at < min(len(self.order), LOOK_AT * n_chunks):
            n_looked_at += n_chunks - len(readable)
            self.run([NULL_MIX], self.order[:n_looked_at], QUIET)
            base = {score.index: score for score in self.workspace.store.mix_scores(self.key)[NULL_MIX.id]}
            readable = [index for index in self.order[:n_looked_at] if is_readable(base[index], self.n_vocab)]
        return sorted(readable or self.order[:n_chunks])

    def run(self, mixes: Sequence[Mix], indexes: Sequence[int], control: Control) -> None:
        """Score every mix on these chunks; what the store has is not scored again. Raises TimeUp where passes run out."""
        known = self.workspace.store.mix_scores(self.key)
        done = {mix: {score.index for score in scores} for mix, scores in known.items()}
        changed = dict.fromkeys(mix.id for mix in mixes if mix.types)
        missing = [(name, index) for name in changed for index in indexes if index not in done.get(name, ())]
        too_many = missing[self.passes.take(len(missing)) :]
        for name, index in too_many:
            done.setdefault(name, set()).add(index)
        waiting: list[tuple[str, ChunkScore]] = []
        try:
            for mix, score in self.scorer.score(mixes, indexes, done=done, control=control):
                if waiting and (len(waiting) >= CHECKPOINT_CHUNKS or waiting[-1][0] != mix.id):
                    self._keep(waiting)
                waiting.append((mix.id, score))
        finally:
            self._keep(waiting)
        if too_many:
            raise TimeUp(USED_UP)

    def run_file(self, mix: Mix, build: Callable[[], Path], indexes: Sequence[int], begin: Callable[[], Control]) -> None:
        """Score a mix as a file; `build` is called where a chunk is missing, and its file deleted afterwards; scoring begins a stage.

        Raises TimeUp as `run`.
        """
        key = self.file_key
        known = {score.index for score in self.workspace.store.mix_scores(key).get(mix.id, ())}
        wanted = [index for index in indexes if index not in known]
        missing = wanted[: self.passes.take(len(wanted))]
        if not missing:
            if wanted:
                raise TimeUp(USED_UP)
            return
        self.scorer.make_way()
        file = build()
        try:
            for score in self.files.score(file, missing, control=begin()):
                self.workspace.store.record_mix_scores(key, [(mix.id, score)])
        finally:
            file.unlink(missing_ok=True)
        if len(missing) < len(wanted):
            raise TimeUp(USED_UP)

    @property
    def file_key(self) -> SwapKey:
        """What scores of built files are filed under."""
        return file_key(self.key)

    def _keep(self, waiting: list[tuple[str, ChunkScore]]) -> None:
        if waiting:
            self.workspace.store.record_mix_scores(self.key, waiting)
            waiting.clear()


@contextmanager
def scoring(
    workspace: Workspace, model: OpenedModel, rounding: Rounding, step: ScoringStep[StepResult], stages: Stages | None
) -> Iterator[Scoring]:
    """Load a base to score mixes of it on the step's text.

    Raises:
        InferenceError, CorpusError: the model or the text cannot be used.
    """
    workspace.require_runnable(model)
    path = gguf_path(model)
    corpus = workspace.seen_corpus(model, step.text_path)
    n_ctx = chunk_length(model.source, step.n_ctx, None if stages is None else stages.warn)
    tokens: npt.NDArray[np.int32] = chunks(corpus, n_ctx)
    threads, devices, size = step.compute.n_threads, step.compute.devices, ModelSize.of(model.source)
    engine = devices.engine  # another one rounds otherwise
    in_parts = not devices.is_used and size.part_bytes(n_ctx) < size.logits_bytes(n_ctx)  # kernels round a little differently then
    how = f"{n_ctx}-{engine.replace(' ', '-')}{'-in-parts' if in_parts else ''}"
    folder = workspace.home.base_logp / f"{model.fingerprint[:16]}-{corpus.sha256[:16]}-{how}"
    files = FileScorer(path, tokens, folder, n_threads=threads, devices=devices)
    at_8_bits = None
    executor = HERE if stages is None else stages.executor
    if step.rest != "16":
        control = QUIET if stages is None else stages.begin(RESTS)
        at_8_bits = resting_base(workspace, model, n_threads=threads, control=control, executor=executor)
    names = frozenset(tensor.name for tensor in quantizable_tensors(model.source))
    files_of_base = ModelFiles(path, model.fingerprint, model.files)
    work = MixWork(files_of_base, names, tokens, folder, rounding, threads, devices, at_8_bits)
    with scoring_mixes(work, executor) as scorer:
        fingerprint = rounding.imatrix.fingerprint if rounding.imatrix else ""
        last = (engine, rounding.bytes_key, "" if at_8_bits is None else RESTING)
        key = SwapKey(model.fingerprint, fingerprint, corpus.sha256, n_ctx, "as built", scorer.base_kernels, *last)
        yield Scoring(workspace, key, scorer, files, corpus, tuple(spread(len(tokens))), size.n_vocab)


def measured_with(
    workspace: Workspace, model: OpenedModel, step: ScoringStep[StepResult], rounding: Rounding, types: Sequence[str], stages: Stages
) -> Measured:
    """The weight errors to work with. Where nothing is measured yet all types are, else those of `types` that are missing."""
    which, covariances = rounding.bytes_key or "plain", step.covariances
    if rounding.covariances is not None:
        covariances = rounding.covariances.fingerprint[:16] if covariances == AUTO else covariances
    try:
        before = measured(workspace, model, step.imatrix, rounding=which)
        known, exhaustive = {cell.type_name for cell in before.cells}, before.is_exhaustive
        covariances = covariances if before.key.covariances else NONE
    except StrategyError:
        known, exhaustive = set(), False
    more = MeasureStep(
        base=step.base,
        types=tuple(sorted(known | set(types))) if known else (),
        exhaustive=exhaustive,
        imatrix=step.imatrix,
        rounding="compensated" if rounding.compensated else "plain",
        covariances=covariances,
        allow_requantize=bool(known),  # whoever measured it allowed that
        compute=Compute(n_threads=step.compute.n_threads),
    )
    more.run(workspace, stages)
    return measured(workspace, model, step.imatrix, exhaustive if known else None, rounding=which)
