"""What a study or the whole way to a file will take, before it starts.

Work is counted from the model's header, the text and the store: rows to quantize at every type, chunks to run, scores
that are there already. How fast the machine does such work comes from a short trial (`calibration`), corrected by runs of the
same kind that ended in this home, where there are any; else a few tokens are run through the model itself, if it is not too large.
Seconds are ranges: by the trial of products alone the ends lie a factor of four apart, with a trial of the model or earlier runs
about two. Probes stop when they are precise enough, so their low end is the first round, their high end all rounds with more types
for every tensor. A limit of time ends probes and whole mixes; importance matrix and weight errors count in it.

Bytes of disk are what will be written, temporary files included; bytes of memory what is held at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from quantailor.analysis.covariances.capture import BUDGET_BYTES, expected_bytes
from quantailor.analysis.scores.fidelity import NULL_CHUNKS
from quantailor.analysis.sensitivity import groups_of
from quantailor.analysis.weight_errors.measure import DEFINITION_VERSION, MeasureSettings
from quantailor.app.measuring.counted import (
    PAST_SPREAD,
    PROCESS_BYTES,
    Counted,
    Pipeline,
    StageCost,
    StageEstimate,
    added,
    corrected,
    middle_of,
    scaled_by,
)
from quantailor.app.measuring.passes import NOTHING, Scored, SwapWork, anchor_bits, n_base_chunks, single_work, sweep_work, whole_work
from quantailor.costs.machine import Range, n_threads
from quantailor.costs.needs import shortfalls
from quantailor.costs.seconds import compensation_seconds, covariance_seconds, measure_seconds, quantize_seconds, write_seconds
from quantailor.evidence.grounds import CURVE
from quantailor.evidence.knowledge import load_knowledge
from quantailor.ggml import library
from quantailor.jobs import Phase
from quantailor.models.abilities import why_no_predictions
from quantailor.pipeline import MakeStep, StudyStep
from quantailor.qtypes import needs_imatrix
from quantailor.records import TensorInfo
from quantailor.session import AUTO, NONE, Workspace
from quantailor.steps.convert import with_known_base
from quantailor.steps.probe import ENOUGH_SHARE, LEAST_CHUNKS, ProbeStep
from quantailor.steps.step import Step, StepResult
from quantailor.steps.sweep import SweepStep
from quantailor.store import MeasurementKey


@dataclass(frozen=True, slots=True)
class CostReport:
    """A job before it starts."""

    level: str
    """Of a study; "make" for the whole way to a file."""
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


CELL_BYTES = 1_000
SCORE_BYTES = 100
"""A row of the database, with its share of the index and the log."""
TIMED = ("probes", "mixes")
"""What a limit of time ends."""
MEASURED = ("convert", "imatrix", "calibrate", "measure")
"""What counts in a limit of time, too, and comes before."""
PLAN_SECONDS: Range = (0.3, 2.0)
TENSOR_SECONDS: Range = (2e-3, 2e-2)
"""A plan, and each tensor in it."""
USUAL_PRESETS = 2
"""Of a verdict: those on either side of the file's size, or the one that has it."""
_TYPICAL = "Q4_K"
"""Stands for the types of a plan that is still to be made."""


def job_cost(workspace: Workspace, task: Pipeline) -> CostReport:
    """The cost of a study or a make by stages; nothing is started, and no weights are read but for a short trial.

    Raises ModelError where the model cannot be read, TypeUnavailableError for an unknown type, CorpusError for the text.
    """
    task = with_known_base(workspace, task)
    with _counted(workspace, task) as counted:
        estimates = _within(_estimates(counted), task.seconds)
        missing = shortfalls(workspace.home.path, counted.task.needs(workspace))
        basis = counted.basis
    stages = tuple(estimate.report for estimate in estimates)
    left, total = (sum(middle_of(seconds) for seconds in ranges) for ranges in zip(*((e.left, e.total) for e in estimates), strict=True))
    return CostReport(
        level=task.level if isinstance(task, StudyStep) else task.kind,
        stages=stages,
        seconds=added(*(stage.seconds for stage in stages)),
        share_done=1.0 - left / total if total > 0 else 1.0,
        disk_bytes=sum(stage.disk_bytes for stage in stages),
        memory_bytes=max(stage.memory_bytes for stage in stages),
        basis=basis,
        shortfalls=missing,
    )


def outline(workspace: Workspace, step: Step[StepResult]) -> tuple[Phase, ...]:
    """What a job is expected to do, for those whose stages do not tell it: studies, makes, probes; empty for others.

    Raises as `job_cost`.
    """
    if isinstance(step, ProbeStep):
        task = StudyStep(
            model=step.base,
            text=step.text,
            imatrix=step.imatrix,
            rounding=step.rounding if step.rounding != AUTO else "plain",
            covariances=step.covariances,
            seconds=step.seconds,
            passes=step.passes,
            compute=step.compute,
        )
        with _counted(workspace, task, step) as counted:
            return _phases([_ESTIMATES[name](counted) for name in TIMED], task)
    if not isinstance(step, StudyStep | MakeStep):
        return ()
    with _counted(workspace, with_known_base(workspace, step)) as counted:
        return _phases(_estimates(counted), counted.task)


def _phases(estimates: Sequence[StageEstimate], task: Pipeline) -> tuple[Phase, ...]:
    """A limit of time is the job's own affair, which says when it begins."""
    is_limited = task.seconds is not None or task.passes is not None
    return tuple(_phase(each, is_limited=is_limited) for each in estimates)


def _phase(estimate: StageEstimate, *, is_limited: bool) -> Phase:
    stages, is_timed = _PHASE_STAGES.get(estimate.stage, ()), estimate.stage in TIMED
    units = (_UNCOUNTED.get(estimate.stage, 1.0) * estimate.passes[0], estimate.passes[1]) if is_timed else (0.0, 0.0)
    return Phase(
        estimate.stage, estimate.left, units, stages, is_limited=is_timed and is_limited, least=estimate.first * estimate.passes[0]
    )


@contextmanager
def _counted(workspace: Workspace, task: Pipeline, probes: ProbeStep | None = None) -> Iterator[Counted]:
    with workspace.model(task.model, allow_requantize=task.allow_requantize) as model:
        yield Counted(
            workspace, task.decided(model.source) if isinstance(task, StudyStep) else task.decided(workspace, model.source), model, probes
        )


def _estimates(at: Counted) -> list[StageEstimate]:
    names = [stage for part in at.task.parts(at.workspace, at.model) for stage in _STAGES_OF.get(part, (part,))]
    return [_ESTIMATES[name](at) for name in names]


def _within(estimates: Sequence[StageEstimate], seconds: float | None) -> list[StageEstimate]:
    """The same where probes and whole mixes end after so many seconds of measuring, but for the first round of probes."""
    timed = [estimate for estimate in estimates if estimate.stage in TIMED]
    if seconds is None or not timed:
        return list(estimates)
    before = added(*(estimate.left for estimate in estimates if estimate.stage in MEASURED))
    least = added(*(scaled_by(estimate.left, estimate.first) for estimate in timed))
    more = added(*(scaled_by(estimate.left, 1.0 - estimate.first) for estimate in timed))
    room = seconds - before[1] - least[1], seconds - before[0] - least[0]
    low, high = (min(1.0, max(0.0, limit) / most) if most else 1.0 for limit, most in zip(room, more, strict=True))
    return [estimate.scaled(low, max(low, high)) if estimate in timed else estimate for estimate in estimates]


def why_plain(workspace: Workspace, model: str) -> str:
    """Why a model's rounding stays plain, in words; empty where it can be compensated. Raises ModelError where it cannot be read."""
    with workspace.source(model) as source:
        why = why_no_predictions(source)
    return f"Rounding stays plain: this model predicts no next token ({why})." if why else ""


# Stages


def _convert(at: Counted) -> StageEstimate:
    seconds = write_seconds(at.size.tensor_bytes)
    return StageEstimate("convert", seconds, seconds, 0.0, at.size.tensor_bytes, PROCESS_BYTES)


def _imatrix(at: Counted) -> StageEstimate:
    running = at.running_seconds(at.n_imatrix_chunks * at.size.decode_flops(at.n_ctx))
    total = added(running, write_seconds(at.size.tensor_bytes))
    progress = None if at.imatrix is not None else at.workspace.store.imatrix_progress(at.imatrix_key)
    share = 1.0 if at.imatrix is not None else progress.n_chunks_done / at.n_imatrix_chunks if progress else 0.0
    disk = 0 if share == 1.0 else 3 * 4 * at.size.n_inputs  # the file, and the state it is made from
    memory = at.running_bytes() + 2 * 8 * at.size.n_inputs
    left = max(0.0, 1.0 - share)
    passes = 2 * (left * at.n_imatrix_chunks,)
    return StageEstimate("imatrix", scaled_by(total, left), total, 1.0 - left, disk, memory, passes)


def _calibrate(at: Counted) -> StageEstimate:
    """The text runs through the model once for each share of the sums that fits the memory."""
    in_memory, in_file = expected_bytes(at.size.tensors)
    n_passes = max(1, math.ceil(in_memory / BUDGET_BYTES))
    running = at.running_seconds(n_passes * at.n_imatrix_chunks * at.size.decode_flops(at.n_ctx))
    sums = covariance_seconds(at.n_imatrix_chunks * at.n_ctx, in_memory, n_threads=at.task.compute.n_threads)
    loading = write_seconds(n_passes * at.size.tensor_bytes + in_file)
    total = added(running, sums, loading)
    share = 0.0 if at.covariances is None or at.imatrix is None else 1.0
    held = min(in_memory, BUDGET_BYTES)
    disk = 0 if share else in_file + 2 * held + 4 * at.size.n_inputs
    passes = 2 * ((1.0 - share) * n_passes * at.n_imatrix_chunks,)
    return StageEstimate("calibrate", scaled_by(total, 1.0 - share), total, share, disk, at.running_bytes() + held, passes)


def _measurement(at: Counted, imatrix: str, settings: MeasureSettings) -> MeasurementKey:
    return MeasurementKey(at.model.fingerprint, imatrix, settings.key, DEFINITION_VERSION, rounding=at.rounding or "")


def _measure(at: Counted) -> StageEstimate:
    settings = MeasureSettings(exhaustive=at.task.exhaustive)
    done: Collection[tuple[str, str]] = ()
    if at.imatrix is not None and at.rounding is not None:
        done = at.workspace.store.recorded_cells(_measurement(at, at.imatrix, settings))
    everything = {tensor: [name for name in at.types if _can_take(at, tensor, name)] for tensor in at.size.tensors}
    missing = {tensor: [name for name in names if (tensor.name, name) not in done] for tensor, names in everything.items()}
    left, total = (_measure_seconds(at, cells, settings) for cells in (missing, everything))
    n_left, n_total = (sum(map(len, cells.values())) for cells in (missing, everything))
    largest = max((tensor.n_rows for tensor in at.size.tensors), default=0)
    memory = PROCESS_BYTES + 8 * 16 * largest  # sums of every row
    return StageEstimate("measure", left, total, 1.0 - n_left / max(1, n_total), n_left * CELL_BYTES, memory)


def _can_take(at: Counted, tensor: TensorInfo, type_name: str) -> bool:
    qtype = library.types()[type_name]
    return (at.task.imatrix != NONE or not needs_imatrix(tensor.name, qtype)) and qtype.divides(tensor.n_cols)


def _measure_seconds(at: Counted, cells: Mapping[TensorInfo, Sequence[str]], settings: MeasureSettings) -> Range:
    if not any(cells.values()):
        return 0.0, 0.0
    threads = at.task.compute.n_threads
    is_compensated = at.task.rounding == "compensated"
    seconds = measure_seconds(cells, exhaustive=settings.exhaustive, n_threads=threads, compensated=is_compensated)
    plain = corrected(seconds, at.measure_ratio, PAST_SPREAD)
    if not is_compensated:
        return plain
    return added(plain, compensation_seconds(cells, exhaustive=settings.exhaustive, n_threads=threads))


def _probe_step(at: Counted) -> ProbeStep:
    return at.probes or at.task.probes(at.task.model, AUTO, at.size.n_all_weights)


def _probes(at: Counted) -> StageEstimate:
    task = _probe_step(at)
    left, total = (
        single_work(at.size, task, at.n_text_chunks, scored, at.types) for scored in (Scored(at.scored, (), _is_precise(at, task)), NOTHING)
    )
    if task.passes is not None:
        left, total = left.within(task.passes), total.within(task.passes)
    found = _swapping(at, "probes", task, left, total, 0, 1)
    n_first = len(groups_of(at.size.tensors, "role"))
    return replace(found, first=min(1.0, n_first / left.n_chunks[0]) if left.n_chunks[0] else 0.0)


def _mixes(at: Counted) -> StageEstimate:
    task = _probe_step(at)
    whole = at.workspace.store.mixes(at.model.fingerprint, CURVE)
    left, total = (whole_work(at.size, task, at.n_text_chunks, scored) for scored in (Scored(at.scored, whole), NOTHING))
    if task.passes is not None:  # they come when the tensors were probed on two chunks
        room = max(0, task.passes - 2 * len(groups_of(at.size.tensors, task.group)))
        left, total = left.within(room), total.within(room)
    anchor = 0 if at.scored else at.size.bytes_at(anchor_bits())
    n_copies = 2 if at.size.is_bfloat and task.anchors else 1  # anchors are compared with the base as it is stored
    found = _swapping(at, "mixes", task, left, total, anchor, n_copies - 1)
    if at.task.rounding != "compensated" or not left.n_chunks[1]:
        return found
    n_mixes = left.n_chunks[1] / max(1, min(task.mix_chunks, at.n_text_chunks))
    one = _compensation(at, _TYPICAL)
    return replace(found, left=added(found.left, scaled_by(one, n_mixes)), total=added(found.total, scaled_by(one, n_mixes)))


def _compensation(at: Counted, type_name: str) -> Range:
    """Compensated codes of all weights, once."""
    cells = {tensor: [type_name] for tensor in at.size.tensors if library.types()[type_name].divides(tensor.n_cols)}
    return compensation_seconds(cells, exhaustive=True, n_threads=at.task.compute.n_threads)


def _writing(at: Counted) -> Range:
    """All weights quantized once at types of a usual plan."""
    one = quantize_seconds({_TYPICAL: at.size.n_weights}, n_threads=at.task.compute.n_threads)
    return corrected((one / 1.5, 2.5 * one), at.measure_ratio, PAST_SPREAD)


def _plan(at: Counted) -> StageEstimate:
    n = len(at.size.tensors)
    seconds = PLAN_SECONDS[0] + n * TENSOR_SECONDS[0], PLAN_SECONDS[1] + n * TENSOR_SECONDS[1]
    return StageEstimate("plan", seconds, seconds, 0.0, 0, PROCESS_BYTES)


def _build(at: Counted) -> StageEstimate:
    n_bytes = _file_bytes(at)
    seconds = added(_writing(at), write_seconds(n_bytes))
    if at.task.rounding == "compensated":
        seconds = added(seconds, _compensation(at, _TYPICAL))
    largest = max((tensor.n_elements for tensor in at.size.tensors), default=0)
    return StageEstimate("build", seconds, seconds, 0.0, n_bytes, PROCESS_BYTES + 4 * largest)


def _file_bytes(at: Counted) -> int:
    """As large as was asked for; where that is not known, as a usual plan."""
    plan = at.task.plan if isinstance(at.task, MakeStep) else None
    if plan is not None and plan.size_bytes:
        return plan.size_bytes
    return at.size.bytes_at((plan.bits_per_weight if plan else None) or library.types()[_TYPICAL].bits_per_weight)


def _verify(at: Counted) -> StageEstimate:
    """The base, our file and presets on the held-out text; presets are quantized by llama.cpp first."""
    task = at.task
    against = task.against if isinstance(task, MakeStep) else None
    like = task.plan.like if isinstance(task, MakeStep) else None
    n_presets = len(against) if against is not None else 1 if like else USUAL_PRESETS
    n_files = 2 + n_presets + (isinstance(task, MakeStep) and task.beside is not None)
    n_chunks = n_files * at.n_heldout_chunks + min(NULL_CHUNKS, at.n_heldout_chunks)
    seconds = added(at.score_seconds(n_chunks), scaled_by(_writing(at), n_presets), scaled_by(write_seconds(at.size.tensor_bytes), n_files))
    memory = at.running_bytes() + at.size.scoring_bytes(at.n_ctx)
    return StageEstimate("verify", seconds, seconds, 0.0, n_presets * _file_bytes(at), memory, (n_chunks, n_chunks))


def _sweep(at: Counted) -> StageEstimate:
    if not isinstance(at.task, StudyStep):
        raise TypeError(f"a {at.task.kind} has no sweep")
    task = at.task.sweep(at.task.model, AUTO)
    left = sweep_work(at.size, task, at.n_text_chunks, Scored(at.scored))
    return _swapping(at, "sweep", task, left, sweep_work(at.size, task, at.n_text_chunks, NOTHING), 0, 0)


def _swapping(
    at: Counted, stage: str, task: ProbeStep | SweepStep, left: SwapWork, total: SwapWork, file_bytes: int, n_copies: int
) -> StageEstimate:
    seconds, in_all = (_swap_seconds(at, work) for work in (left, total))
    share = 1.0 - left.n_chunks[0] / total.n_chunks[0] if total.n_chunks[0] else 1.0
    folder = at.workspace.home.base_logp
    n_files = sum(1 for _ in folder.glob(f"{at.model.fingerprint[:16]}-{at.corpus[:16]}-{at.n_ctx}*/*/*.npy"))
    n_missing = max(0, n_copies * n_base_chunks(task, at.n_text_chunks) - n_files) if left.n_chunks[1] else 0
    disk = n_missing * at.size.base_logp_bytes(at.n_ctx) + round(left.n_chunks[1]) * SCORE_BYTES + file_bytes
    memory = at.running_bytes() + at.size.scoring_bytes(at.n_ctx)
    return StageEstimate(stage, seconds, in_all, max(0.0, share), disk, memory, left.n_chunks)


def _swap_seconds(at: Counted, work: SwapWork) -> Range:
    if not work.n_chunks[1]:
        return 0.0, 0.0
    threads = min(at.task.compute.n_threads or n_threads(), n_threads())
    fewest, most = (at.score_seconds(n_chunks) for n_chunks in work.n_chunks)
    load = write_seconds(at.size.tensor_bytes)
    return (
        fewest[0] + work.exchange_seconds[0] / threads + load[0],
        most[1] + work.exchange_seconds[1] / threads + load[1],
    )


def _is_precise(at: Counted, task: ProbeStep) -> bool:
    """Whether the probes that the store has would end at once (`probing`): nine tensors in ten are as precise as was asked for."""
    if at.swap_key is None or at.base is None:
        return False
    with at.workspace.model(at.base) as model:
        settings = MeasureSettings(exhaustive=at.task.exhaustive)
        key = _measurement(at, at.imatrix or "", settings)
        cells = at.workspace.store.cells(key, distributions=False)
        known = load_knowledge(at.workspace, model, key, cells, evidence=at.swap_key)
    found = [item for item in (known.sensitivities.values() if known else ()) if item.status == "measured" and item.alpha.value > 0]
    precise = [item for item in found if item.alpha.se <= task.target_error * item.alpha.value]
    return known is not None and known.n_chunks >= LEAST_CHUNKS and bool(found) and len(precise) >= math.ceil(ENOUGH_SHARE * len(found))


_ESTIMATES: Mapping[str, Callable[[Counted], StageEstimate]] = {
    "convert": _convert,
    "imatrix": _imatrix,
    "calibrate": _calibrate,
    "measure": _measure,
    "probes": _probes,
    "mixes": _mixes,
    "sweep": _sweep,
    "plan": _plan,
    "build": _build,
    "verify": _verify,
}
_PHASE_STAGES = {"probes": ("null control", "probes", "weighing"), "mixes": ("whole mixes", "anchor"), "verify": ("reference", "plain")}
_UNCOUNTED = {"mixes": 0.8}
"""The share of passes that stages count: files are built and scored beside them."""
_STAGES_OF = {"probes": TIMED}
"""Parts of a job that are told as several stages."""
