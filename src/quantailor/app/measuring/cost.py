"""What a study or the whole way to a file will take, before it starts.

Work is counted from the model's header, the text and the store: rows to quantize at every type, chunks to run, scores
that are there already. How fast the machine does such work comes from a short trial (`costs.trial`), corrected by what earlier jobs of this
home took for each kind of work (`costs.paces`), whatever their model was; where none ran a model, a few tokens are run through this one,
if it is not too large. Seconds are ranges: by the trial of products alone the ends lie a factor of four apart, with a trial of the model
about two, with earlier jobs 1.7. Probes stop when they are precise enough, so their low end is the first round, their high end all
rounds with more types for every tensor. A limit of time ends probes and whole mixes; importance matrix and weight errors count in it.

Bytes of disk are what will be written, temporary files included; bytes of memory what is held at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import get_args

from quantailor.analysis.covariances.capture import BUDGET_BYTES, expected_bytes
from quantailor.analysis.scores.fidelity import BLOCK_BYTES, IN_MEMORY_BYTES, NULL_CHUNKS
from quantailor.analysis.sensitivity import groups_of
from quantailor.analysis.weight_errors.measure import MeasureSettings
from quantailor.analysis.weight_errors.weight_error import DEFINITION_VERSION
from quantailor.app.measuring.counted import (
    PROCESS_BYTES,
    TIMED,
    Counted,
    Making,
    Pipeline,
    StageCost,
    StageEstimate,
    middle_of,
    scaled_by,
)
from quantailor.app.measuring.evaluated import EVALS, evaluations, judged_files
from quantailor.app.measuring.gains import expected_gain
from quantailor.app.measuring.passes import (
    NOTHING,
    Scored,
    SwapWork,
    anchor_bits,
    n_base_chunks,
    passes_of_mixes,
    single_work,
    sweep_work,
    whole_work,
)
from quantailor.costs.machine import Range
from quantailor.costs.model_size import QUICK_TYPES
from quantailor.costs.needs import shortfalls
from quantailor.costs.paces import RUNNING
from quantailor.costs.seconds import (
    Seconds,
    added,
    compensation_seconds,
    covariance_seconds,
    measure_seconds,
    quantize_seconds,
    write_seconds,
)
from quantailor.evidence.grounds import CURVE
from quantailor.evidence.knowledge import load_knowledge
from quantailor.ggml import library
from quantailor.jobs import Phase
from quantailor.models.abilities import why_no_predictions
from quantailor.pipeline import LadderStep, MakeStep, StudyStep
from quantailor.qtypes import needs_imatrix
from quantailor.records import EvalName, RoundingWish, TensorInfo
from quantailor.session import AUTO, NONE, Workspace
from quantailor.steps.calibration.calibrate import CalibrateStep
from quantailor.steps.calibration.imatrix import ImatrixStep
from quantailor.steps.conversion.convert import with_known_base
from quantailor.steps.measure import MeasureStep, known_types
from quantailor.steps.options import DEFAULT_N_CTX
from quantailor.steps.plan import PlanOptions
from quantailor.steps.probe import ENOUGH_SHARE, LEAST_CHUNKS, ProbeStep
from quantailor.steps.step import Step, StepResult
from quantailor.steps.sweep import SweepStep
from quantailor.store import MeasurementKey


@dataclass(frozen=True, slots=True)
class CostReport:
    """A job before it starts."""

    level: str
    """Of a study; "make" for the whole way to a file, "ladder" to several."""
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
    gain: str = ""
    """What plans are expected to be worth then, in words."""


CELL_BYTES = 1_000
SCORE_BYTES = 100
"""A row of the database, with its share of the index and the log."""
MEASURED = ("convert", "imatrix", "calibrate", "measure")
"""What counts in a limit of time, too, and comes before."""
PLAN_SECONDS: Range = (0.3, 2.0)
TENSOR_SECONDS: Range = (2e-3, 2e-2)
"""A plan, and each tensor in it."""
_TYPICAL, _SHARING_CODES = "Q4_K", "IQ3_S"
"""Stand for the types of a plan that is still to be made."""


def job_cost(workspace: Workspace, task: Pipeline) -> CostReport:
    """The cost of a study or a make by stages; nothing is started, and no weights are read but for a short trial.

    Raises ModelError where the model cannot be read, TypeUnavailableError for an unknown type, CorpusError for the text.
    """
    task = with_known_base(workspace, task)
    with _counted(workspace, task) as counted:
        estimates = _within(_estimates(counted), task.seconds)
        missing = shortfalls(workspace.home.path, counted.task.needs(workspace))
        basis = counted.basis([estimate.stage.partition(" ")[0] for estimate in estimates])
        n_passes = sum(estimate.passes[0] for estimate in estimates if estimate.stage in ("probes", "sweep")) + counted.n_scored
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
        gain=expected_gain(n_passes),
    )


def outline(workspace: Workspace, step: Step[StepResult]) -> tuple[Phase, ...]:
    """What a job is expected to do, for those whose stages do not tell it: studies, makes, probes, and parts of these; empty for others.

    Raises as `job_cost`.
    """
    if isinstance(step, StudyStep | MakeStep):
        with _counted(workspace, with_known_base(workspace, step)) as counted:
            return _phases(_estimates(counted), counted.task)
    alone = _alone(step)
    if alone is None:
        return ()
    task, stages = alone
    probes = step if isinstance(step, ProbeStep) else None
    with _counted(workspace, task, probes, tries=probes is not None) as counted:
        return _phases([_ESTIMATES[name](counted) for name in stages], task)


def _alone(step: Step[StepResult]) -> tuple[Pipeline, tuple[str, ...]] | None:
    """A study or a make of which a step is a part, and its stages there; None for steps that are no such part."""
    if isinstance(step, ProbeStep):
        task = StudyStep(
            model=step.base,
            text=step.text,
            imatrix=step.imatrix,
            rounding=step.rounding if step.rounding != AUTO else "plain",
            covariances=step.covariances,
            seconds=step.seconds,
            passes=step.passes,
            rest=step.rest,
            compute=step.compute,
        )
        return task, TIMED
    if isinstance(step, MeasureStep) and not step.tensors:
        measuring = MakeStep(
            model=step.base,
            output="",
            types=step.types or known_types(()),
            imatrix=step.imatrix,
            rounding=step.rounding if step.rounding != AUTO else "plain",
            covariances=step.covariances,
            exhaustive=step.exhaustive,
            allow_requantize=step.allow_requantize,
            compute=step.compute,
        )
        return measuring, ("measure",)
    if isinstance(step, ImatrixStep | CalibrateStep) and step.n_ctx == DEFAULT_N_CTX:
        rounding: RoundingWish = "compensated" if isinstance(step, CalibrateStep) else "plain"
        return MakeStep(model=step.base, output="", text=step.text, imatrix_chunks=step.chunks, rounding=rounding, compute=step.compute), (
            step.kind,
        )
    return None


def _phases(estimates: Sequence[StageEstimate], task: Pipeline) -> tuple[Phase, ...]:
    """A limit of time is the job's own affair, which says when it begins."""
    return tuple(_phase(each, is_limited=task.is_limited) for each in estimates)


def _phase(estimate: StageEstimate, *, is_limited: bool) -> Phase:
    is_timed = estimate.stage in TIMED
    counted = estimate.counted / max(1e-9, estimate.passes[1]) if estimate.counted else 1.0
    return Phase(
        estimate.stage,
        estimate.left,
        units=(counted * estimate.passes[0], counted * estimate.passes[1]) if is_timed else (0.0, 0.0),
        stages=_PHASE_STAGES.get(estimate.stage, ()),
        is_limited=is_timed and is_limited,
        least=estimate.first * estimate.passes[0],
        kind="running the model" if estimate.stage in RUNNING else "",
        pace=estimate.pace,
        trial_seconds=estimate.trial_seconds,
        counted=estimate.counted,
    )


@contextmanager
def _counted(workspace: Workspace, task: Pipeline, probes: ProbeStep | None = None, *, tries: bool = True) -> Iterator[Counted]:
    with workspace.model(task.model, allow_requantize=task.allow_requantize) as model:
        decided = task.decided(model.source) if isinstance(task, StudyStep) else task.decided(workspace, model.source)
        yield Counted(workspace, decided, model, probes, tries)


def _estimates(at: Counted) -> list[StageEstimate]:
    names = [stage for part in at.task.parts(at.workspace, at.model) for stage in _STAGES_OF.get(part, (part,))]
    if isinstance(at.task, Making) and at.task.evals.names and "verify" in names:
        names.insert(names.index("verify") + 1, EVALS)
    plans = at.task.asked if isinstance(at.task, LadderStep) else {}
    sizes = {f"build {label}": plan for label, plan in plans.items()}
    return [replace(_build(at, sizes[name]), stage=name) if name in sizes else _ESTIMATES[name](at) for name in names]


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
    seconds = Seconds(beside=write_seconds(at.size.tensor_bytes))
    return at.estimate("convert", seconds, seconds, 0.0, at.size.tensor_bytes, PROCESS_BYTES)


def _imatrix(at: Counted) -> StageEstimate:
    total = at.running(at.n_imatrix_chunks * at.size.decode_flops(at.n_ctx)) + Seconds(beside=write_seconds(at.size.tensor_bytes))
    progress = None if at.imatrix is not None else at.workspace.store.imatrix_progress(at.imatrix_key)
    share = 1.0 if at.imatrix is not None else progress.n_chunks_done / at.n_imatrix_chunks if progress else 0.0
    disk = 0 if share == 1.0 else 3 * 4 * at.size.n_inputs  # the file, and the state it is made from
    memory = at.running_bytes() + 2 * 8 * at.size.n_inputs
    left = max(0.0, 1.0 - share)
    n_chunks = left * at.n_imatrix_chunks
    return at.estimate("imatrix", total.times(left), total, 1.0 - left, disk, memory, passes=(n_chunks, n_chunks), counted=n_chunks)


def _calibrate(at: Counted) -> StageEstimate:
    """The text runs through the model once for each share of the sums that fits the memory."""
    in_memory, in_file = expected_bytes(at.size.tensors)
    n_passes = max(1, math.ceil(in_memory / BUDGET_BYTES))
    running = at.running(n_passes * at.n_imatrix_chunks * at.size.decode_flops(at.n_ctx))
    sums = covariance_seconds(at.n_imatrix_chunks * at.n_ctx, in_memory, n_threads=at.task.compute.n_threads)
    loading = write_seconds(n_passes * at.size.tensor_bytes + in_file)
    total = running + Seconds(beside=added(sums, loading))
    share = 0.0 if at.covariances is None or at.imatrix is None else 1.0
    held = min(in_memory, BUDGET_BYTES)
    disk = 0 if share else in_file + 2 * held + 4 * at.size.n_inputs
    n_chunks, memory = (1.0 - share) * n_passes * at.n_imatrix_chunks, at.running_bytes() + held
    return at.estimate("calibrate", total.times(1.0 - share), total, share, disk, memory, passes=(n_chunks, n_chunks), counted=n_chunks)


def _measurement(at: Counted, imatrix: str, settings: MeasureSettings) -> MeasurementKey:
    rounding = at.rounding or ""
    return MeasurementKey(at.model.fingerprint, imatrix, settings.key_with(rounding), DEFINITION_VERSION, rounding=rounding)


def _measure(at: Counted) -> StageEstimate:
    settings = MeasureSettings(exhaustive=at.task.exhaustive)
    done: Collection[tuple[str, str]] = ()
    if at.imatrix is not None and at.rounding is not None:
        done = at.workspace.store.recorded_cells(_measurement(at, at.imatrix, settings))
    everything = {tensor: [name for name in at.types if _can_take(at, tensor, name)] for tensor in at.size.tensors}
    missing = {tensor: [name for name in names if (tensor.name, name) not in done] for tensor, names in everything.items()}
    left, total = (Seconds(beside=_measure_seconds(at, cells, settings)) for cells in (missing, everything))
    n_left, n_total = (sum(map(len, cells.values())) for cells in (missing, everything))
    largest = max((tensor.n_rows for tensor in at.size.tensors), default=0)
    memory = PROCESS_BYTES + 8 * 16 * largest  # sums of every row
    return at.estimate("measure", left, total, 1.0 - n_left / max(1, n_total), n_left * CELL_BYTES, memory)


def _can_take(at: Counted, tensor: TensorInfo, type_name: str) -> bool:
    qtype = library.types()[type_name]
    return (at.task.imatrix != NONE or not needs_imatrix(tensor.name, qtype)) and qtype.divides(tensor.n_cols)


def _measure_seconds(at: Counted, cells: Mapping[TensorInfo, Sequence[str]], settings: MeasureSettings) -> Range:
    if not any(cells.values()):
        return 0.0, 0.0
    threads = at.task.compute.n_threads
    is_compensated = at.task.rounding == "compensated"
    plain = measure_seconds(cells, exhaustive=settings.exhaustive, n_threads=threads, compensated=is_compensated)
    if not is_compensated:
        return plain
    if at.task.probes_quickly(at.model.source):
        swapped = dict.fromkeys(at.size.tensors, QUICK_TYPES)
        plain = added(plain, measure_seconds(swapped, exhaustive=False, n_threads=threads))
    return added(plain, compensation_seconds(cells, exhaustive=settings.exhaustive, n_threads=threads))


def _probes(at: Counted) -> StageEstimate:
    task, compensated = at.probing, at.compensates("probes")
    left, total = (
        single_work(at.size, task, at.n_text_chunks, scored, at.types, compensated=compensated)
        for scored in (Scored(at.scored, (), _is_precise(at, task)), NOTHING)
    )
    if (limit := _passes_left(at)) is not None:
        of_mixes = _passes_of_mixes(at, limit)
        left, total = left.within(limit[0] - of_mixes[0]), total.within(limit[1] - of_mixes[1])
    found = _swapping(at, "probes", task, left, total, 0, 1)
    n_first = len(groups_of(at.size.tensors, "role"))
    return replace(found, first=min(1.0, n_first / left.n_chunks[0]) if left.n_chunks[0] else 0.0)


def _passes_left(at: Counted) -> tuple[int, int] | None:
    """Passes that probes and whole mixes may still make, and may make in all; None where nothing limits them."""
    task = at.probing
    if task.passes is not None or task.total_passes is None:
        return None if task.passes is None else (task.passes, task.passes)
    return max(0, task.total_passes - at.n_scored), task.total_passes


def _passes_of_mixes(at: Counted, limit: tuple[int, int]) -> tuple[int, int]:
    """Of so many passes, left and in all, those of whole mixes."""
    tensors = at.size.tensors
    total = passes_of_mixes(tensors, at.probing, limit[1])
    return total - passes_of_mixes(tensors, at.probing, limit[1] - limit[0]), total


def _mixes(at: Counted) -> StageEstimate:
    task, compensated = at.probing, at.compensates("mixes")
    whole = at.workspace.store.mixes(at.model.fingerprint, CURVE)
    left, total = (
        whole_work(at.size, task, at.n_text_chunks, scored, compensated=compensated) for scored in (Scored(at.scored, whole), NOTHING)
    )
    if (limit := _passes_left(at)) is not None:
        of_mixes = _passes_of_mixes(at, limit)
        left, total = left.within(of_mixes[0]), total.within(of_mixes[1])
    anchor = 0 if at.scored else at.size.bytes_at(anchor_bits())
    n_copies = 2 if at.size.is_bfloat and task.anchors else 1  # anchors are compared with the base as it is stored
    return _swapping(at, "mixes", task, left, total, anchor, n_copies - 1)


def _compensation(at: Counted) -> Range:
    """Compensated codes of all weights, once: half of them at types whose weights share codes, which take longer."""
    cells = {
        tensor: [name for name in (_TYPICAL, _SHARING_CODES) if library.types()[name].divides(tensor.n_cols)] for tensor in at.size.tensors
    }
    low, high = compensation_seconds(cells, exhaustive=True, n_threads=at.task.compute.n_threads)
    return low / 2, high / 2


def _writing(at: Counted) -> Range:
    """All weights quantized once at types of a usual plan."""
    one = quantize_seconds({_TYPICAL: at.size.n_weights}, n_threads=at.task.compute.n_threads)
    return one / 1.5, 2.5 * one


def _plan(at: Counted) -> StageEstimate:
    n = len(at.size.tensors)
    n_plans = len(at.task.sizes) if isinstance(at.task, LadderStep) else 1
    seconds = Seconds(beside=(PLAN_SECONDS[0] + n * TENSOR_SECONDS[0], PLAN_SECONDS[1] + n * TENSOR_SECONDS[1])).times(n_plans)
    return at.estimate("plan", seconds, seconds, 0.0, 0, PROCESS_BYTES)


def _build(at: Counted, plan: PlanOptions | None = None) -> StageEstimate:
    n_bytes = _file_bytes(at, plan)
    beside = added(_writing(at), write_seconds(n_bytes))
    if at.task.rounding == "compensated":
        beside = added(beside, _compensation(at))
    largest = max((tensor.n_elements for tensor in at.size.tensors), default=0)
    return at.estimate("build", Seconds(beside=beside), Seconds(beside=beside), 0.0, n_bytes, PROCESS_BYTES + 4 * largest)


def _file_bytes(at: Counted, plan: PlanOptions | None = None) -> int:
    """As large as was asked for, by a plan of its own or the task's, but not larger than the base; else as a usual plan."""
    if plan is None and isinstance(at.task, MakeStep):
        plan = at.task.plan
    if plan is not None and plan.size_bytes:
        return min(plan.size_bytes, at.size.tensor_bytes)
    preset = (plan.like if plan else None) or _TYPICAL
    usual = max((name for name in library.types() if preset.startswith(name)), key=len, default=_TYPICAL)
    return at.size.bytes_at((plan.bits_per_weight if plan else None) or library.types()[usual].bits_per_weight)


def _verify(at: Counted) -> StageEstimate:
    """The base, our files and presets on the held-out text; presets are quantized by llama.cpp first."""
    plans, n_presets, n_others = judged_files(at.task)
    n_files = 1 + n_others
    n_chunks = n_files * at.n_heldout_chunks + min(NULL_CHUNKS, at.n_heldout_chunks)
    loading = scaled_by(write_seconds(at.size.tensor_bytes), n_files)
    seconds = at.scoring(n_chunks, base_is_held=True) + Seconds(beside=added(scaled_by(_writing(at), n_presets), loading))
    held = at.size.logits_bytes(at.n_ctx)
    if held <= IN_MEMORY_BYTES:
        held = max(held, min(BLOCK_BYTES, at.n_heldout_chunks * held))
    memory = at.running_bytes() + 3 * at.size.part_bytes(at.n_ctx) + held
    disk = n_presets * max(_file_bytes(at, plan) for plan in plans or [PlanOptions()])
    return at.estimate("verify", seconds, seconds, 0.0, disk, memory, passes=(n_chunks, n_chunks), counted=n_chunks)


def _sweep(at: Counted) -> StageEstimate:
    if not isinstance(at.task, StudyStep):
        raise TypeError(f"a {at.task.kind} has no sweep")
    task, compensated = at.task.sweep(at.task.model, AUTO), at.task.rounding == "compensated"
    left, total = (sweep_work(at.size, task, at.n_text_chunks, scored, compensated=compensated) for scored in (Scored(at.scored), NOTHING))
    return _swapping(at, "sweep", task, left, total, 0, 0)


def _swapping(
    at: Counted, stage: str, task: ProbeStep | SweepStep, left: SwapWork, total: SwapWork, file_bytes: int, n_copies: int
) -> StageEstimate:
    share = 1.0 - left.n_chunks[0] / total.n_chunks[0] if total.n_chunks[0] else 1.0
    folder = at.workspace.home.base_logp
    n_files = sum(1 for _ in folder.glob(f"{at.model.fingerprint[:16]}-{at.corpus[:16]}-{at.n_ctx}*/*/*.npy"))
    n_missing = max(0, n_copies * n_base_chunks(task, at.n_text_chunks) - n_files) if left.n_chunks[1] else 0
    disk = n_missing * at.size.base_logp_bytes(at.n_ctx) + round(left.n_chunks[1]) * SCORE_BYTES + file_bytes
    return at.estimate(
        stage,
        _swap_seconds(at, left),
        _swap_seconds(at, total),
        max(0.0, share),
        disk + (at.size.resting_bytes if at.rests_at_8_bits and left.n_chunks[1] else 0),
        at.running_bytes(resting=at.rests_at_8_bits) + at.size.scoring_bytes(at.n_ctx),
        passes=left.n_chunks,
        counted=(sum(left.n_chunks) / 2 - left.n_base),
    )


def _swap_seconds(at: Counted, work: SwapWork) -> Seconds:
    if not work.n_chunks[1]:
        return Seconds()
    fewest, most = work.exchange_seconds
    put = Seconds(beside=(fewest / at.n_threads, most / at.n_threads))
    return at.scoring(1.0).times(*work.n_chunks) + put + Seconds(beside=write_seconds(at.size.tensor_bytes))


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
    EVALS: evaluations,
}
_PHASE_STAGES = {
    "probes": ("null control", "probes", "weighing"),
    "mixes": ("whole mixes", "anchor"),
    "verify": ("reference", "plain"),
    EVALS: get_args(EvalName),
}
_STAGES_OF = {"probes": TIMED}
"""Parts of a job that are told as several stages."""
