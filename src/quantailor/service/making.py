"""The whole way in one directory, each step only if its result is not there yet."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from quantailor.errors import OutputError
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.opening import open_model
from quantailor.service import tasks
from quantailor.service.planning import plan
from quantailor.service.probing import probe
from quantailor.service.proving import build, embedded_strategy, verify
from quantailor.service.results import BuildReport, MakeResult, PlanResult
from quantailor.service.stages import Stages
from quantailor.service.work import compute_imatrix, convert, measure
from quantailor.service.workspace import Workspace, fingerprint_of
from quantailor.strategy import file as strategy_file

SMALL_MODEL_WEIGHTS = 1_000_000_000
"""Up to here every tensor is probed on a CPU too."""


def make(workspace: Workspace, task: tasks.MakeTask, stages: Stages) -> MakeResult:
    """Convert, importance matrix, measure, probe, plan, build, verify. What an earlier run finished is taken as it is."""
    folder = Path(task.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot create {folder}: {error.strerror or error}", remedy="Choose another directory with -o") from error
    base, is_there = _base(task, folder)
    parts = _parts(task, is_there)

    def enter(part: str) -> None:
        stages.part(parts.index(part) + 1, len(parts))

    if not is_there:
        enter("convert")
        convert(workspace, tasks.ConvertTask(model=task.model, output=base, overwrite=True), stages)
    enter("imatrix")
    imatrix = compute_imatrix(
        workspace,
        tasks.ImatrixTask(
            base=base,
            text=task.text,
            chunks=task.imatrix_chunks,
            output=str(folder / "imatrix.gguf"),
            overwrite=True,
            n_gpu_layers=task.n_gpu_layers,
            n_threads=task.n_threads,
        ),
        stages,
    )
    enter("measure")
    measure(
        workspace,
        tasks.MeasureTask(
            base=base,
            types=task.types,
            exhaustive=task.exhaustive,
            imatrix=imatrix.path,
            allow_requantize=task.allow_requantize,
            n_threads=task.n_threads,
        ),
        stages,
    )
    if "probes" in parts:
        enter("probes")
        probe(
            workspace,
            tasks.ProbeTask(
                base=base,
                text=task.text,
                chunks=task.probe_chunks,
                mix_chunks=3 * task.probe_chunks,
                group=task.group or grouping(base, task.n_gpu_layers),
                imatrix=imatrix.path,
                n_gpu_layers=task.n_gpu_layers,
                n_threads=task.n_threads,
            ),
            stages,
        )
    strategy = folder / "strategy.yaml"
    enter("plan")
    planned = plan(
        workspace,
        Path(base),
        _plan_options(task),
        imatrix=imatrix.path,
        exhaustive=task.exhaustive,
        output=strategy,
        overwrite=True,
        control=stages.begin("plan"),
    )
    enter("build")
    built = _build(workspace, task, base, strategy, planned, stages)
    enter("verify")
    verified = verify(
        workspace,
        tasks.VerifyTask(
            file=built.paths[0],
            base=base,
            against=task.against,
            text=task.verify_text,
            chunks=task.chunks,
            imatrix=imatrix.path,
            output=str(folder / "verdict"),
            n_gpu_layers=task.n_gpu_layers,
            n_threads=task.n_threads,
        ),
        stages,
    )
    return MakeResult(base, imatrix.path, str(strategy), built, planned, verified)


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


def _parts(task: tasks.MakeTask, base_is_there: bool) -> tuple[str, ...]:
    """What this run goes through, in order."""
    wanted = {"convert": not base_is_there, "imatrix": True, "measure": True, "probes": task.plan.basis != "ranking"}
    return (*(name for name, is_wanted in wanted.items() if is_wanted), "plan", "build", "verify")


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
    name = Path(task.model).stem if Path(task.model).is_file() else Path(task.model).name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"
    return f"{plain}-{planned.prediction.bits_per_weight:.2f}bpw"
