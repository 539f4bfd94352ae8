"""The whole way in one directory, each step only if its result is not there yet.

A base is written where a step runs the model: to compute an importance matrix, to probe, to verify. Without these, weights
are measured and built from the checkpoint itself, row by row, and the result is all that is written.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from quantailor.analysis.importance.imatrix_file import read_imatrix
from quantailor.errors import OutputError
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.opening import open_model
from quantailor.service import tasks
from quantailor.service.converting import convert, with_base
from quantailor.service.planning import plan
from quantailor.service.probing import probe
from quantailor.service.proving import build, embedded_strategy, verify
from quantailor.service.results import BuildReport, MakeResult, PlanResult
from quantailor.service.stages import Stages
from quantailor.service.tasks import AUTO, COMPUTE, NONE
from quantailor.service.work import compute_imatrix, measure
from quantailor.service.workspace import Workspace, fingerprint_of, plain_label
from quantailor.strategy import file as strategy_file

SMALL_MODEL_WEIGHTS = 1_000_000_000
"""Up to here every tensor is probed on a CPU too."""


def make(workspace: Workspace, task: tasks.MakeTask, stages: Stages) -> MakeResult:
    """Convert, importance matrix, measure, probe, plan, build, verify. What an earlier run finished is taken as it is."""
    folder = _folder(task)
    asked, task = task, with_base(workspace, task, folder / "base.gguf", stages, overwrite=True)
    way = _way(workspace, task, folder)

    def begin(part: str) -> bool:
        if part in way.parts:
            stages.part(way.parts.index(part) + 1, len(way.parts))
        return part in way.parts

    if begin("convert"):
        convert(workspace, tasks.ConvertTask(model=task.model, output=way.weights, overwrite=True), stages)
    imatrix = compute_imatrix(workspace, _imatrix_task(task, way, folder), stages).path if begin("imatrix") else way.imatrix
    begin("measure")
    measure(workspace, _measure_task(task, way, imatrix), stages)
    if begin("probes"):
        probe(workspace, _probe_task(task, way, imatrix), stages)
    begin("plan")
    strategy = folder / "strategy.yaml"
    planned = _plan(workspace, task, way, imatrix, strategy, stages)
    begin("build")
    built = _build(workspace, asked, way.weights, strategy, planned, stages)
    verified = verify(workspace, _verify_task(task, way, imatrix, built), stages) if begin("verify") else None
    return MakeResult(way.base, None if imatrix == NONE else imatrix, str(strategy), built, planned, verified)


def _folder(task: tasks.MakeTask) -> Path:
    folder = Path(task.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error.strerror or error}", remedy="Choose another directory with -o") from error
    return folder


# The way


@dataclass(frozen=True, slots=True)
class _Way:
    """What a run works on, and what it goes through."""

    weights: str
    """Where weights are read: the base, or the checkpoint itself where it needs none."""
    base: str | None
    """What llama.cpp runs; None where nothing does."""
    imatrix: str
    """A file or "none" where none is computed."""
    parts: tuple[str, ...]
    """In order."""


def _way(workspace: Workspace, task: tasks.MakeTask, folder: Path) -> _Way:
    imatrix = known_imatrix(workspace, task)
    if imatrix not in (None, NONE):
        read_imatrix(Path(imatrix))  # one that cannot be read is told before anything is written
    base, is_there = _base(task, folder) if runs_the_model(task, imatrix) else (None, True)
    wanted = {
        "convert": not is_there,
        "imatrix": imatrix is None,
        "measure": True,
        "probes": _probes(task),
        "plan": True,
        "build": True,
        "verify": task.verify,
    }
    return _Way(base or task.model, base, imatrix or NONE, tuple(name for name, is_wanted in wanted.items() if is_wanted))


def known_imatrix(workspace: Workspace, task: tasks.MakeTask) -> str | None:
    """The importance matrix's file, or "none" where there is to be none; None where it is still to be computed."""
    if task.imatrix == COMPUTE:
        return None
    if task.imatrix != AUTO:
        return task.imatrix
    model = fingerprint_of(Path(task.model))
    paths = (workspace.imatrix_path(model, record.fingerprint) for record in workspace.store.imatrices(model))
    return next((str(path) for path in paths if path.exists()), None)


def runs_the_model(task: tasks.MakeTask, imatrix: str | None) -> bool:
    """Whether any step needs llama.cpp to run the model; `imatrix` is what `known_imatrix` says."""
    return imatrix is None or task.verify or _probes(task)


def _probes(task: tasks.MakeTask) -> bool:
    return task.plan.basis != "ranking"


def _base(task: tasks.MakeTask, folder: Path) -> tuple[str, bool]:
    """The GGUF to start from, the model itself or its conversion, and whether it is there."""
    source = open_model(task.model)
    try:
        if isinstance(source, GGUFSource):
            return task.model, True
    finally:
        source.close()
    base = folder / "base.gguf"
    return str(base), base.exists() and fingerprint_of(base) == fingerprint_of(Path(task.model))


# The steps' own tasks


def _imatrix_task(task: tasks.MakeTask, way: _Way, folder: Path) -> tasks.ImatrixTask:
    return tasks.ImatrixTask(
        base=way.weights,
        text=task.text,
        chunks=task.imatrix_chunks,
        output=str(folder / "imatrix.gguf"),
        overwrite=True,
        n_gpu_layers=task.n_gpu_layers,
        n_threads=task.n_threads,
    )


def _measure_task(task: tasks.MakeTask, way: _Way, imatrix: str) -> tasks.MeasureTask:
    return tasks.MeasureTask(
        base=way.weights,
        types=task.types,
        exhaustive=task.exhaustive,
        imatrix=imatrix,
        allow_requantize=task.allow_requantize,
        n_threads=task.n_threads,
    )


def _probe_task(task: tasks.MakeTask, way: _Way, imatrix: str) -> tasks.ProbeTask:
    return tasks.ProbeTask(
        base=way.weights,
        text=task.text,
        chunks=task.probe_chunks,
        mix_chunks=3 * task.probe_chunks,
        group=task.group or grouping(way.weights, task.n_gpu_layers),
        imatrix=imatrix,
        n_gpu_layers=task.n_gpu_layers,
        n_threads=task.n_threads,
    )


def _verify_task(task: tasks.MakeTask, way: _Way, imatrix: str, built: BuildReport) -> tasks.VerifyTask:
    return tasks.VerifyTask(
        file=built.paths[0],
        base=way.weights,
        against=task.against,
        text=task.verify_text,
        chunks=task.chunks,
        imatrix=imatrix,
        output=str(Path(task.output) / "verdict"),
        n_gpu_layers=task.n_gpu_layers,
        n_threads=task.n_threads,
    )


def _plan(workspace: Workspace, task: tasks.MakeTask, way: _Way, imatrix: str, output: Path, stages: Stages) -> PlanResult:
    return plan(
        workspace,
        Path(way.weights),
        _plan_options(task),
        imatrix=imatrix,
        exhaustive=task.exhaustive,
        output=output,
        overwrite=True,
        control=stages.begin("plan"),
    )


def _plan_options(task: tasks.MakeTask) -> tasks.PlanOptions:
    """With the types that were asked for and no others, also where probes measured more."""
    if not task.types or any("=" not in text for text in task.plan.allow):
        return task.plan
    return dataclasses.replace(task.plan, allow=(*task.plan.allow, ",".join(task.types)))


def grouping(base: str, n_gpu_layers: int) -> tasks.Grouping:
    """Every tensor where that takes minutes, groups where it would take days."""
    source = open_model(base)
    try:
        return grouping_of(sum(tensor.n_elements for tensor in source.tensors), n_gpu_layers)
    finally:
        source.close()


def grouping_of(n_weights: int, n_gpu_layers: int) -> tasks.Grouping:
    """The same for a model of so many weights."""
    return "tensor" if n_weights <= SMALL_MODEL_WEIGHTS or n_gpu_layers else "role-depth"


def _build(workspace: Workspace, task: tasks.MakeTask, base: str, strategy: Path, planned: PlanResult, stages: Stages) -> BuildReport:
    output = Path(task.output) / f"{_file_stem(task, planned)}.gguf"
    wanted = strategy_file.dumps(strategy_file.read(strategy), format="json", include_prediction=False)
    prediction = planned.prediction
    if output.exists() and output.stat().st_size == prediction.file_size_bytes:
        embedded = embedded_strategy(output)
        if embedded is not None and strategy_file.dumps(embedded, format="json", include_prediction=False) == wanted:
            stages.note(f"{output.name} was built before")
            size = prediction.file_size_bytes
            return BuildReport((str(output),), size, prediction.bits_per_weight, size)
    return build(
        workspace,
        tasks.BuildTask(
            base=base,
            strategy=str(strategy),
            output=str(output),
            overwrite=True,
            allow_requantize=task.allow_requantize,
            n_threads=task.n_threads,
        ),
        stages,
    )


def _file_stem(task: tasks.MakeTask, planned: PlanResult) -> str:
    """A name that says model and size: "books-llama-4.85bpw"."""
    return f"{plain_label(task.model)}-{planned.prediction.bits_per_weight:.2f}bpw"
