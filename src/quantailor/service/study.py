"""Everything that measuring needs, in one job; each stage takes what is there already.

    quick        importance matrix of a few chunks, weight errors of sampled rows; ranks mixes, tells no KLD
    balanced     importance matrix of much of the text, the same weight errors, probes
    thorough     importance matrix of the whole text, weight errors of every row, probes of every tensor with more chunks
    exhaustive   the same, and every tensor through every type in the model

A stopped study goes on where it was: every stage keeps what it finds, unit by unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantailor.analysis.corpus import chunks, load_corpus
from quantailor.ggml import library
from quantailor.models.gguf_file import GGUFSource
from quantailor.service import tasks
from quantailor.service.converting import convert, with_base
from quantailor.service.making import grouping_of
from quantailor.service.planning import UNUSUAL_TYPES
from quantailor.service.probing import probe
from quantailor.service.results import MeasureResult, ProbeResult, StudyResult, SweepResult
from quantailor.service.stages import Stages
from quantailor.service.sweeping import sweep
from quantailor.service.tasks import AUTO, COMPUTE, DEFAULT_N_CTX, DEFAULT_PROBE_CHUNKS, NONE, Level
from quantailor.service.work import compute_imatrix, known_types, measure, use_imatrix
from quantailor.service.workspace import CALIBRATION_TEXT, OpenedModel, Workspace, gguf_path, is_model
from quantailor.store import ImatrixRecord

MIX_CHUNKS_PER_PROBE_CHUNK = 3


@dataclass(frozen=True, slots=True)
class LevelSettings:
    """What a level measures."""

    imatrix_chunks: int | None
    """At most so many; None is the whole text."""
    exhaustive: bool = False
    probe_chunks: int = 0
    """0 for no probes."""
    every_tensor: bool = False
    """Probe each tensor by itself, whatever the model's size."""
    sweep: bool = False


LEVEL_SETTINGS: dict[Level, LevelSettings] = {
    "quick": LevelSettings(50),
    "balanced": LevelSettings(200, probe_chunks=DEFAULT_PROBE_CHUNKS),
    "thorough": LevelSettings(None, exhaustive=True, probe_chunks=2 * DEFAULT_PROBE_CHUNKS, every_tensor=True),
    "exhaustive": LevelSettings(None, exhaustive=True, probe_chunks=2 * DEFAULT_PROBE_CHUNKS, every_tensor=True, sweep=True),
}


def study(workspace: Workspace, task: tasks.StudyTask, stages: Stages) -> StudyResult:
    """Convert, importance matrix, weight errors, probes, sweep, as far as the level goes.

    Raises what the steps raise; what is found until then is kept.
    """
    task = with_base(workspace, task, None if task.output is None else Path(task.output), stages, overwrite=False)
    with workspace.model(task.model, allow_requantize=task.allow_requantize) as model:
        names = stage_names(workspace, task, model)
        n_weights = sum(tensor.n_elements for tensor in model.source.tensors)
        base = str(known_base(workspace, task, model) or base_place(workspace, task, model))

    def begin(name: str) -> bool:
        if name in names:
            stages.part(names.index(name) + 1, len(names))
        return name in names

    if begin("convert"):
        convert(workspace, tasks.ConvertTask(model=task.model, output=base), stages)
    imatrix = _imatrix(workspace, task, base, stages) if begin("imatrix") else NONE
    begin("measure")
    measured = measure(workspace, measure_task(task, base, imatrix), stages)
    group = grouping_of(n_weights, task.n_gpu_layers)
    probed = probe(workspace, probe_task(task, base, imatrix, group), stages) if begin("probes") else None
    swept = sweep(workspace, sweep_task(task, base, imatrix), stages) if begin("sweep") else None
    return _result(workspace, task, base, measured, probed, swept)


def stage_names(workspace: Workspace, task: tasks.StudyTask, model: OpenedModel) -> tuple[str, ...]:
    """The stages that a study of this model has, in order."""
    settings = LEVEL_SETTINGS[task.level]
    wanted = {
        "convert": known_base(workspace, task, model) is None,
        "imatrix": task.imatrix != NONE,
        "measure": True,
        "probes": settings.probe_chunks > 0,
        "sweep": settings.sweep,
    }
    return tuple(name for name, is_wanted in wanted.items() if is_wanted)


# The base


def known_base(workspace: Workspace, task: tasks.StudyTask, model: OpenedModel) -> Path | None:
    """The model itself where it is a GGUF file, else an earlier conversion of it; None where there is none."""
    if isinstance(model.source, GGUFSource):
        return Path(task.model)
    places = workspace.store.locations("model", model.fingerprint) if task.output is None else [Path(task.output)]
    return next((path for path in places if is_model(path, model.fingerprint)), None)


def base_place(workspace: Workspace, task: tasks.StudyTask, model: OpenedModel) -> Path:
    """Where the conversion goes: `output`, else a file in the home that is named after the directory and the model."""
    return workspace.base_path(model.path, model.fingerprint) if task.output is None else Path(task.output)


# The stages' own tasks


def imatrix_task(task: tasks.StudyTask, base: str) -> tasks.ImatrixTask:
    """The computation that the level asks for."""
    return tasks.ImatrixTask(
        base=base,
        text=task.text,
        chunks=LEVEL_SETTINGS[task.level].imatrix_chunks,
        n_gpu_layers=task.n_gpu_layers,
        n_threads=task.n_threads,
    )


def measure_task(task: tasks.StudyTask, base: str, imatrix: str) -> tasks.MeasureTask:
    """Weight errors of the candidate types."""
    return tasks.MeasureTask(
        base=base,
        types=candidate_types(task),
        exhaustive=LEVEL_SETTINGS[task.level].exhaustive,
        imatrix=imatrix,
        allow_requantize=task.allow_requantize,
        n_threads=task.n_threads,
    )


def probe_task(task: tasks.StudyTask, base: str, imatrix: str, group: tasks.Grouping) -> tasks.ProbeTask:
    """The probes of a level that has some; `group` counts where the level leaves it open."""
    settings = LEVEL_SETTINGS[task.level]
    return tasks.ProbeTask(
        base=base,
        text=task.text,
        chunks=settings.probe_chunks,
        mix_chunks=MIX_CHUNKS_PER_PROBE_CHUNK * settings.probe_chunks,
        group="tensor" if settings.every_tensor else group,
        imatrix=imatrix,
        n_gpu_layers=task.n_gpu_layers,
        n_threads=task.n_threads,
    )


def sweep_task(task: tasks.StudyTask, base: str, imatrix: str) -> tasks.SweepTask:
    """Every tensor through every candidate type."""
    return tasks.SweepTask(
        base=base,
        text=task.text,
        types=candidate_types(task),
        imatrix=imatrix,
        n_gpu_layers=task.n_gpu_layers,
        n_threads=task.n_threads,
    )


def candidate_types(task: tasks.StudyTask) -> tuple[str, ...]:
    """The types asked for; all usual ones for none. Raises TypeUnavailableError for an unknown one."""
    return known_types(task.types) if task.types else tuple(name for name in library.types() if name not in UNUSUAL_TYPES)


# The importance matrix


def _imatrix(workspace: Workspace, task: tasks.StudyTask, base: str, stages: Stages) -> str:
    """The path of the importance matrix to go on with."""
    if task.imatrix not in (AUTO, COMPUTE):
        return use_imatrix(workspace, Path(base), import_file=Path(task.imatrix)).path
    with workspace.model(base) as model:
        ready = ready_imatrix(workspace, task, model)
    if ready is None:
        return compute_imatrix(workspace, imatrix_task(task, base), stages).path
    stages.note(f"an importance matrix of {ready.chunk_count} chunks is there already")
    workspace.store.record_imatrix(ready)  # now the newest, which later commands take
    return str(workspace.imatrix_path(ready.model, ready.fingerprint))


def ready_imatrix(workspace: Workspace, task: tasks.StudyTask, model: OpenedModel) -> ImatrixRecord | None:
    """What "auto" takes: the newest one that was imported, or that saw as many tokens as the level asks for.

    Where the task names a text, a computed one must be of a text of that name.
    """
    if task.imatrix != AUTO:
        return None
    records = workspace.store.imatrices(model.fingerprint)
    there = [record for record in records if workspace.imatrix_path(model.fingerprint, record.fingerprint).exists()]
    if not there:
        return None
    text = Path(task.text) if task.text else CALIBRATION_TEXT
    n_tokens = chunks(load_corpus(gguf_path(model), text), DEFAULT_N_CTX, limit=LEVEL_SETTINGS[task.level].imatrix_chunks).size
    return next((record for record in there if _is_enough(record, n_tokens, text.name if task.text else None)), None)


def _is_enough(record: ImatrixRecord, n_tokens: int, text_name: str | None) -> bool:
    right_text = text_name is None or text_name in record.datasets
    return record.origin == "imported" or (right_text and record.chunk_count * record.chunk_size >= n_tokens)


def _result(
    workspace: Workspace, task: tasks.StudyTask, base: str, measured: MeasureResult, probed: ProbeResult | None, swept: SweepResult | None
) -> StudyResult:
    fingerprint = measured.imatrix_fingerprint
    record = None if fingerprint is None else workspace.store.imatrix(measured.model_fingerprint, fingerprint)
    return StudyResult(
        base=base,
        model_fingerprint=measured.model_fingerprint,
        level=task.level,
        imatrix_fingerprint=fingerprint,
        imatrix_chunks=0 if record is None else record.chunk_count,
        settings=measured.settings,
        n_tensors=measured.n_tensors,
        n_types=measured.n_types,
        n_cells=measured.n_cells,
        n_unavailable=measured.n_unavailable,
        basis="ranking only" if probed is None else "probes",
        n_probed=0 if probed is None else sum(item.status == "measured" for item in probed.sensitivities),
        n_scored=0 if probed is None else probed.n_scored,
        n_swept=0 if swept is None else sum(cell.measured is not None for cell in swept.cells),
    )
