"""What a study will take, before it starts.

Work is counted from the model's header, the text and the store: rows to quantize at every type, chunks to run, scores
that are there already. How fast the machine does such work comes from a short trial (`calibration`), corrected by runs of the
same kind that ended in this home, where there are any. Seconds are ranges: by the trial alone the ends lie a factor of three
to ten apart, with earlier runs about two and a half. Probes stop when they are precise enough, so their low end is the first
round, their high end all rounds with two more types for every tensor.

Bytes of disk are what will be written, temporary files included; bytes of memory what is held at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from quantailor.analysis.corpus import chunk_length, load_corpus
from quantailor.analysis.covariances.capture import BUDGET_BYTES, expected_bytes
from quantailor.analysis.covariances.covariance_file import CovarianceFile
from quantailor.analysis.importance.imatrix_file import read_imatrix
from quantailor.analysis.rounding.rounding import COMPENSATED, PLAIN_MEASURED
from quantailor.analysis.weight_errors.measure import DEFINITION_VERSION, MeasureSettings
from quantailor.app.measuring import past_runs
from quantailor.app.measuring.passes import NOTHING, Scored, SwapWork, anchor_bits, n_base_chunks, probe_work, sweep_work
from quantailor.costs import seconds as seconds_module
from quantailor.costs.machine import Range, n_threads
from quantailor.costs.model_size import ModelSize
from quantailor.costs.needs import shortfalls
from quantailor.costs.seconds import compensation_seconds, covariance_seconds, measure_seconds, write_seconds
from quantailor.costs.trial import inference_seconds, middle
from quantailor.errors import CorpusError
from quantailor.evidence.grounds import CURVE
from quantailor.evidence.knowledge import load_knowledge
from quantailor.ggml import library
from quantailor.models.abilities import why_no_predictions
from quantailor.pipeline import StudyStep
from quantailor.qtypes import needs_imatrix
from quantailor.records import TensorInfo
from quantailor.session import AUTO, CALIBRATION_TEXT, NONE, OpenedModel, Workspace
from quantailor.steps.convert import with_known_base
from quantailor.steps.options import COMPUTE, DEFAULT_N_CTX
from quantailor.steps.probe import ENOUGH_SHARE, LEAST_CHUNKS, ProbeStep
from quantailor.steps.sweep import SweepStep
from quantailor.store import ImatrixKey, MeasurementKey, SwapKey


@dataclass(frozen=True, slots=True)
class StageCost:
    """What one stage of a study will take."""

    stage: str
    seconds: tuple[float, float]
    """What is left of it, as a range; (0, 0) where all is there."""
    share_done: float
    """0 to 1, from what the store has."""
    disk_bytes: int
    """Still to be written, files that are deleted afterwards included."""
    memory_bytes: int
    """The most that it holds at once."""


@dataclass(frozen=True, slots=True)
class CostReport:
    """A study before it starts."""

    level: str
    stages: tuple[StageCost, ...]
    seconds: tuple[float, float]
    share_done: float
    """Of the time that all stages take together, 0 to 1."""
    disk_bytes: int
    memory_bytes: int
    basis: str
    """What the seconds rest on, in words."""
    shortfalls: tuple[str, ...]
    """Why it cannot start, one sentence each; empty where it can."""


PAST_SPREAD = 1.6
"""Where earlier runs tell the speed, the ends of a range lie this factor from its middle."""
PROBE_PAST_SPREAD = 2.0
"""The same for probes and sweeps, whose speed is taken from importance matrices."""
BYTES_PER_TOKEN = 4
"""Of a text, where there is no vocabulary to cut it with yet."""
CELL_BYTES = 1_000
SCORE_BYTES = 100
"""A row of the database, with its share of the index and the log."""
PROCESS_BYTES = 150 << 20
"""The program itself, with numpy and llama.cpp."""


def study_cost(workspace: Workspace, task: StudyStep) -> CostReport:
    """The cost of a study by stages; nothing is started, and no weights are read but a few sample rows.

    Raises ModelError where the model cannot be read, TypeUnavailableError for an unknown type, CorpusError for the text.
    """
    task = with_known_base(workspace, task)
    with workspace.model(task.model, allow_requantize=task.allow_requantize) as model:
        task = task.decided(model.source)
        counted = _Counted(workspace, task, model)
        estimates = [_ESTIMATES[name](counted) for name in task.parts(workspace, model)]
        missing = shortfalls(workspace.home.path, task.needs_of(workspace, model, counted.size))
    stages = tuple(estimate.report for estimate in estimates)
    left, total = (sum(middle_of(seconds) for seconds in ranges) for ranges in zip(*((e.left, e.total) for e in estimates), strict=True))
    return CostReport(
        level=task.level,
        stages=stages,
        seconds=(sum(stage.seconds[0] for stage in stages), sum(stage.seconds[1] for stage in stages)),
        share_done=1.0 - left / total if total > 0 else 1.0,
        disk_bytes=sum(stage.disk_bytes for stage in stages),
        memory_bytes=max(stage.memory_bytes for stage in stages),
        basis=counted.basis,
        shortfalls=missing,
    )


def why_plain(workspace: Workspace, model: str) -> str:
    """Why a model's rounding stays plain, in words; empty where it can be compensated. Raises ModelError where it cannot be read."""
    with workspace.source(model) as source:
        why = why_no_predictions(source)
    return f"Rounding stays plain: this model predicts no next token ({why})." if why else ""


def middle_of(seconds: Range) -> float:
    """The geometric middle; 0 where nothing is left."""
    return middle(seconds) if seconds[0] > 0 else seconds[1] / 2


@dataclass(frozen=True)
class _Estimate:
    """One stage: what is left and what all of it takes."""

    stage: str
    left: Range
    total: Range
    share_done: float
    disk_bytes: int
    memory_bytes: int

    def within(self, seconds: float) -> _Estimate:
        """The same where the stage ends after so many seconds at the latest."""
        left, total = ((min(low, seconds), min(high, seconds)) for low, high in (self.left, self.total))
        return replace(self, left=left, total=total)

    @property
    def report(self) -> StageCost:
        return StageCost(self.stage, self.left, self.share_done, self.disk_bytes, self.memory_bytes)


@dataclass(frozen=True)
class _Counted:
    """What the counts of several stages rest on, each found when it is first asked for."""

    workspace: Workspace
    task: StudyStep
    model: OpenedModel

    @cached_property
    def size(self) -> ModelSize:
        return ModelSize.of(self.model.source)

    @cached_property
    def n_ctx(self) -> int:
        return chunk_length(self.model.source, DEFAULT_N_CTX)

    @cached_property
    def types(self) -> tuple[str, ...]:
        return self.task.candidate_types

    @cached_property
    def base(self) -> Path | None:
        return self.task.known_base(self.workspace, self.model)

    @cached_property
    def text(self) -> Path:
        return Path(self.task.text) if self.task.text else CALIBRATION_TEXT

    @cached_property
    def corpus(self) -> str:
        """SHA-256 of the text."""
        try:
            return hashlib.sha256(self.text.read_bytes()).hexdigest()
        except OSError as error:
            raise CorpusError(f"cannot read {self.text}: {error.strerror or error}") from error

    @cached_property
    def n_text_chunks(self) -> int:
        """By the model's vocabulary, or by `BYTES_PER_TOKEN` where there is no file that llama.cpp could load."""
        if self.base is None:
            return max(1, len(self.corpus) and self.text.stat().st_size // (BYTES_PER_TOKEN * self.n_ctx))
        return max(1, load_corpus(self.base, self.text).tokens.size // self.n_ctx)

    @cached_property
    def n_imatrix_chunks(self) -> int:
        return min(self.n_text_chunks, self.task.settings.imatrix_chunks or self.n_text_chunks)

    @cached_property
    def imatrix(self) -> str | None:
        """The fingerprint of the importance matrix that the study will use; "" for none, None where it is still to be made."""
        if self.task.imatrix == NONE:
            return ""
        if self.task.imatrix not in (AUTO, COMPUTE):
            return read_imatrix(Path(self.task.imatrix)).fingerprint
        if self.base is None:
            return None
        with self.workspace.model(self.base) as model:
            ready = self.task.ready_imatrix(self.workspace, model)
        found = ready or self.workspace.store.computed_imatrix(self.imatrix_key)
        there = found is not None and self.workspace.imatrices.path(found.model, found.fingerprint).exists()
        return found.fingerprint if found is not None and there else None

    @cached_property
    def imatrix_key(self) -> ImatrixKey:
        chunks = self.task.settings.imatrix_chunks or "all"
        engine = library.engine(on_gpu=self.task.compute.n_gpu_layers != 0)
        return ImatrixKey(self.model.fingerprint, self.corpus, self.n_ctx, f"chunks={chunks} output=0", engine)

    @cached_property
    def measure_ratio(self) -> float | None:
        return past_runs.measure_ratio(self.workspace)

    @cached_property
    def inference_ratio(self) -> float | None:
        return past_runs.inference_ratio(self.workspace, on_gpu=bool(self.task.compute.n_gpu_layers))

    @property
    def basis(self) -> str:
        known = [name for name, ratio in (("measuring", self.measure_ratio), ("inference", self.inference_ratio)) if ratio is not None]
        trial = "a short trial of this machine"
        return f"{trial}, corrected by earlier runs ({' and '.join(known)})" if known else trial

    @cached_property
    def scored(self) -> Mapping[str, int]:
        """Mix -> chunks that are scored with this importance matrix and text."""
        key = self.swap_key
        return {} if key is None else self.workspace.store.scored_mixes(key)

    @cached_property
    def swap_key(self) -> SwapKey | None:
        runs = self.workspace.store.swap_runs(self.model.fingerprint)
        rounding = self.rounding or ""
        wanted = (self.imatrix, self.corpus, self.n_ctx, "as built", rounding if rounding.startswith(COMPENSATED) else "")
        return next((key for key in runs if (key.imatrix, key.corpus, key.n_ctx, key.kernels, key.rounding) == wanted), None)

    @cached_property
    def covariances(self) -> str | None:
        """The beginning of the fingerprint of those that the study will use; "" for none, None where they are still to be made."""
        if self.task.covariances == NONE:
            return ""
        if self.task.covariances != AUTO:
            with CovarianceFile(Path(self.task.covariances)) as found:
                return found.fingerprint[:16]
        if self.task.rounding != "compensated":
            newest = self.workspace.covariances.default(self.model.fingerprint)
            return "" if newest is None else newest.fingerprint[:16]
        if self.base is None:
            return None
        with self.workspace.model(self.base) as model:
            ready = self.task.ready_covariances(self.workspace, model)
        record = ready or self.workspace.store.computed_covariances(self.imatrix_key)
        there = record is not None and self.workspace.covariances.path(record.model, record.fingerprint).exists()
        return record.fingerprint[:16] if record is not None and there else None

    @property
    def rounding(self) -> str | None:
        """What weight errors will be filed under, beside the importance matrix (`Rounding.key`); None where it cannot be known yet."""
        if self.covariances is None:
            return None
        version = COMPENSATED if self.task.rounding == "compensated" else PLAIN_MEASURED
        return f"{version}:{self.covariances}" if self.covariances else ""

    def running_bytes(self) -> int:
        """A loaded model with its context; weights on a GPU are not here."""
        weights = 0 if self.task.compute.n_gpu_layers else self.size.tensor_bytes
        return PROCESS_BYTES + weights + self.size.context_bytes(self.n_ctx)

    def score_seconds(self, n_chunks: float) -> Range:
        threads, layers = self.task.compute.n_threads, self.task.compute.n_gpu_layers
        seconds = seconds_module.score_seconds(self.size, n_chunks, self.n_ctx, n_threads=threads, n_gpu_layers=layers)
        return corrected(seconds, self.inference_ratio, PROBE_PAST_SPREAD)


def corrected(seconds: Range, ratio: float | None, spread: float) -> Range:
    """The range as it is, or around its middle times what earlier runs say."""
    if ratio is None:
        return seconds
    return middle_of(seconds) * ratio / spread, middle_of(seconds) * ratio * spread


def _scaled(seconds: Range, factor: float) -> Range:
    return seconds[0] * factor, seconds[1] * factor


def _added(*ranges: Range) -> Range:
    return sum(one for one, _ in ranges), sum(other for _, other in ranges)


# Stages


def _convert(at: _Counted) -> _Estimate:
    seconds = write_seconds(at.size.tensor_bytes)
    return _Estimate("convert", seconds, seconds, 0.0, at.size.tensor_bytes, PROCESS_BYTES)


def _imatrix(at: _Counted) -> _Estimate:
    flops = at.n_imatrix_chunks * at.size.decode_flops(at.n_ctx)
    running = corrected(
        inference_seconds(flops, n_threads=at.task.compute.n_threads, n_gpu_layers=at.task.compute.n_gpu_layers),
        at.inference_ratio,
        PAST_SPREAD,
    )
    total = _added(running, write_seconds(at.size.tensor_bytes))
    progress = None if at.imatrix is not None else at.workspace.store.imatrix_progress(at.imatrix_key)
    share = 1.0 if at.imatrix is not None else progress.n_chunks_done / at.n_imatrix_chunks if progress else 0.0
    disk = 0 if share == 1.0 else 3 * 4 * at.size.n_inputs  # the file, and the state it is made from
    memory = at.running_bytes() + 2 * 8 * at.size.n_inputs
    return _Estimate("imatrix", _scaled(total, max(0.0, 1.0 - share)), total, min(share, 1.0), disk, memory)


def _calibrate(at: _Counted) -> _Estimate:
    """The text runs through the model once for each share of the sums that fits the memory."""
    in_memory, in_file = expected_bytes(at.size.tensors)
    n_passes = max(1, math.ceil(in_memory / BUDGET_BYTES))
    flops = n_passes * at.n_imatrix_chunks * at.size.decode_flops(at.n_ctx)
    machine = at.task.compute
    running = inference_seconds(flops, n_threads=machine.n_threads, n_gpu_layers=machine.n_gpu_layers)
    sums = covariance_seconds(at.n_imatrix_chunks * at.n_ctx, in_memory, n_threads=machine.n_threads)
    loading = write_seconds(n_passes * at.size.tensor_bytes + in_file)
    total = _added(corrected(running, at.inference_ratio, PAST_SPREAD), sums, loading)
    share = 0.0 if at.covariances is None or at.imatrix is None else 1.0
    held = min(in_memory, BUDGET_BYTES)
    disk = 0 if share else in_file + 2 * held + 4 * at.size.n_inputs
    return _Estimate("calibrate", _scaled(total, 1.0 - share), total, share, disk, at.running_bytes() + held)


def _measurement(at: _Counted, imatrix: str, settings: MeasureSettings) -> MeasurementKey:
    return MeasurementKey(at.model.fingerprint, imatrix, settings.key, DEFINITION_VERSION, rounding=at.rounding or "")


def _measure(at: _Counted) -> _Estimate:
    settings = MeasureSettings(exhaustive=at.task.settings.exhaustive)
    done: Collection[tuple[str, str]] = ()
    if at.imatrix is not None and at.rounding is not None:
        done = at.workspace.store.recorded_cells(_measurement(at, at.imatrix, settings))
    everything = {tensor: [name for name in at.types if _can_take(at, tensor, name)] for tensor in at.size.tensors}
    missing = {tensor: [name for name in names if (tensor.name, name) not in done] for tensor, names in everything.items()}
    left, total = (_measure_seconds(at, cells, settings) for cells in (missing, everything))
    n_left, n_total = (sum(map(len, cells.values())) for cells in (missing, everything))
    largest = max((tensor.n_rows for tensor in at.size.tensors), default=0)
    memory = PROCESS_BYTES + 8 * 16 * largest  # sums of every row
    return _Estimate("measure", left, total, 1.0 - n_left / max(1, n_total), n_left * CELL_BYTES, memory)


def _can_take(at: _Counted, tensor: TensorInfo, type_name: str) -> bool:
    qtype = library.types()[type_name]
    return (at.task.imatrix != NONE or not needs_imatrix(tensor.name, qtype)) and qtype.divides(tensor.n_cols)


def _measure_seconds(at: _Counted, cells: Mapping[TensorInfo, Sequence[str]], settings: MeasureSettings) -> Range:
    if not any(cells.values()):
        return 0.0, 0.0
    threads = at.task.compute.n_threads
    seconds = measure_seconds(cells, exhaustive=settings.exhaustive, n_threads=threads)
    plain = corrected(seconds, at.measure_ratio, PAST_SPREAD)
    if at.task.rounding != "compensated":
        return plain
    return _added(plain, compensation_seconds(cells, exhaustive=settings.exhaustive, n_threads=threads))


def _probes(at: _Counted) -> _Estimate:
    task = at.task.probes(at.task.model, AUTO, at.size.n_all_weights)
    whole = at.workspace.store.mixes(at.model.fingerprint, CURVE)
    left, total = (
        probe_work(at.size, task, at.n_text_chunks, scored, at.types)
        for scored in (Scored(at.scored, whole, _is_precise(at, task)), NOTHING)
    )
    anchor = 0 if at.scored else at.size.bytes_at(anchor_bits())
    n_copies = 2 if at.size.is_bfloat and task.anchors else 1  # anchors are compared with the base as it is stored
    found = _swapping(at, "probes", task, left, total, anchor, n_copies)
    return found if task.seconds is None else found.within(task.seconds)


def _sweep(at: _Counted) -> _Estimate:
    task = at.task.sweep(at.task.model, AUTO)
    left = sweep_work(at.size, task, at.n_text_chunks, Scored(at.scored))
    return _swapping(at, "sweep", task, left, sweep_work(at.size, task, at.n_text_chunks, NOTHING), 0, 0)


def _swapping(
    at: _Counted, stage: str, task: ProbeStep | SweepStep, left: SwapWork, total: SwapWork, file_bytes: int, n_copies: int
) -> _Estimate:
    seconds, in_all = (_swap_seconds(at, work) for work in (left, total))
    share = 1.0 - left.n_chunks[0] / total.n_chunks[0] if total.n_chunks[0] else 1.0
    folder = at.workspace.home.base_logp
    n_files = sum(1 for _ in folder.glob(f"{at.model.fingerprint[:16]}-{at.corpus[:16]}-{at.n_ctx}*/*/*.npy"))
    n_missing = max(0, n_copies * n_base_chunks(task, at.n_text_chunks) - n_files) if left.n_chunks[1] else 0
    disk = n_missing * at.size.base_logp_bytes(at.n_ctx) + round(left.n_chunks[1]) * SCORE_BYTES + file_bytes
    memory = at.running_bytes() + at.size.scoring_bytes(at.n_ctx)
    return _Estimate(stage, seconds, in_all, max(0.0, share), disk, memory)


def _swap_seconds(at: _Counted, work: SwapWork) -> Range:
    if not work.n_chunks[1]:
        return 0.0, 0.0
    threads = min(at.task.compute.n_threads or n_threads(), n_threads())
    fewest, most = (at.score_seconds(n_chunks) for n_chunks in work.n_chunks)
    load = write_seconds(at.size.tensor_bytes)
    return (
        fewest[0] + work.exchange_seconds[0] / threads + load[0],
        most[1] + work.exchange_seconds[1] / threads + load[1],
    )


def _is_precise(at: _Counted, task: ProbeStep) -> bool:
    """Whether the probes that the store has would end at once (`probing`): nine tensors in ten are as precise as was asked for."""
    if at.swap_key is None or at.base is None:
        return False
    with at.workspace.model(at.base) as model:
        settings = MeasureSettings(exhaustive=at.task.settings.exhaustive)
        key = _measurement(at, at.imatrix or "", settings)
        cells = at.workspace.store.cells(key, distributions=False)
        known = load_knowledge(at.workspace, model, key, cells, evidence=at.swap_key)
    found = [item for item in (known.sensitivities.values() if known else ()) if item.status == "measured" and item.alpha.value > 0]
    precise = [item for item in found if item.alpha.se <= task.target_error * item.alpha.value]
    return known is not None and known.n_chunks >= LEAST_CHUNKS and bool(found) and len(precise) >= math.ceil(ENOUGH_SHARE * len(found))


_ESTIMATES: Mapping[str, Callable[[_Counted], _Estimate]] = {
    "convert": _convert,
    "imatrix": _imatrix,
    "calibrate": _calibrate,
    "measure": _measure,
    "probes": _probes,
    "sweep": _sweep,
}
