"""Whether a task can start: disk and memory that it needs at the least, against what the machine has.

Every figure is a lower bound, so that nothing is refused that would run: small files, the database and llama.cpp's own
buffers are left out, what an earlier run may have left counts as there, and where something cannot be known nothing is said.

    memory    importance matrices and verdicts map the model's file: its pages can give way, but a model larger than all memory
              would be read from disk again for every chunk, which is refused. Probes, sweeps and refinements write into the
              weights, so these must fit beside the rest. Measuring and building stream rows and need next to nothing.
    disk      what goes to one filesystem is added up. A download asks the hub for its sizes and looks for room by itself; what
              comes after it is looked at once the model is here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from quantailor import build as building
from quantailor.errors import QuantailorError
from quantailor.ggml import library
from quantailor.ggml.reference import preset_name
from quantailor.models.opening import open_model
from quantailor.present import words
from quantailor.service import machine, tasks
from quantailor.service.converting import native_refusal, with_known_base
from quantailor.service.making import known_imatrix, runs_the_model
from quantailor.service.model_size import ModelSize
from quantailor.service.proving import strategy_imatrix
from quantailor.service.study import LEVEL_SETTINGS, base_place, known_base, probe_task
from quantailor.service.workspace import CALIBRATION_TEXT, OpenedModel, Workspace, fingerprint_of
from quantailor.strategy import file as strategy_file

BYTES_PER_TOKEN = 8
"""No vocabulary we know has longer tokens on average: a text has at least so many chunks."""
PRESET_SHARE = 0.8
"""A preset's file is hardly smaller than this share of all weights at its main type."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What a task needs at the least."""

    disk: tuple[tuple[Path, int], ...] = ()
    """(place, bytes) of what will be written and is not there."""
    memory_bytes: int = 0
    """What cannot give way."""
    mapped_bytes: int = 0
    """Files that are mapped and read again and again."""

    def __add__(self, other: Needs) -> Needs:
        """One after the other: what is written stays, memory is given back."""
        memory, mapped = max(self.memory_bytes, other.memory_bytes), max(self.mapped_bytes, other.mapped_bytes)
        return Needs((*self.disk, *other.disk), memory, mapped)


def preflight(workspace: Workspace, task: tasks.Task) -> tuple[str, ...]:
    """What is missing for a task, one sentence each; empty where it can start, or where that cannot be known."""
    if getattr(task, "hub", None) is not None:
        return ()
    try:
        needs = _needs(workspace, task)
    except QuantailorError:
        return ()  # the task itself tells what is wrong
    return _shortfalls(workspace, needs)


def study_shortfalls(workspace: Workspace, task: tasks.StudyTask, model: OpenedModel, size: ModelSize) -> tuple[str, ...]:
    """The same for a study of a model that is open."""
    return _shortfalls(workspace, _study_needs(workspace, task, model, size))


def _shortfalls(workspace: Workspace, needs: Needs) -> tuple[str, ...]:
    return (*_disk_shortfalls(workspace, needs), *_memory_shortfalls(needs))


def _disk_shortfalls(workspace: Workspace, needs: Needs) -> Iterator[str]:
    by_filesystem: dict[int | None, list[tuple[Path, int]]] = defaultdict(list)
    for place, n_bytes in needs.disk:
        by_filesystem[machine.filesystem(place)].append((place, n_bytes))
    for filesystem, rows in by_filesystem.items():
        needed, free = sum(n_bytes for _, n_bytes in rows), machine.free_disk_bytes(rows[0][0])
        if filesystem is None or free is None or needed <= free:
            continue
        place = max(rows, key=lambda row: row[1])[0]
        at_home = place.is_relative_to(workspace.home.path)
        elsewhere = "set QUANTAILOR_HOME" if at_home else "write it elsewhere"
        where = workspace.home.path if at_home else place.parent
        yield (f"needs {words.size(needed)} on {where}, {words.size(free)} free: free {words.size(needed - free)} or {elsewhere}")


def _memory_shortfalls(needs: Needs) -> Iterator[str]:
    free, total = machine.free_memory_bytes(), machine.total_memory_bytes()
    if free is not None and needs.memory_bytes > free:
        missing = words.size(needs.memory_bytes - free)
        yield (
            f"needs {words.size(needs.memory_bytes)} of memory, {words.size(free)} free: "
            f"free {missing} (close other programs) or take a smaller model"
        )
    elif total is not None and needs.mapped_bytes + needs.memory_bytes > total:
        needed = words.size(needs.mapped_bytes + needs.memory_bytes)
        yield f"needs {needed} of memory, this machine has {words.size(total)}: take a smaller model or a larger machine"


def _needs(workspace: Workspace, task: tasks.Task) -> Needs:
    match task:
        case tasks.ConvertTask():
            return Needs(((Path(task.output), _base_bytes(task)),))
        case tasks.ImatrixTask():
            return _mapped(_size(task.base), task.n_ctx, task.n_gpu_layers)
        case tasks.ProbeTask() | tasks.SweepTask():
            return _swapping(workspace, task, _size(task.base), fingerprint_of(Path(task.base)))
        case tasks.RefineTask():
            return _written(_size(task.base), task.n_ctx, task.n_gpu_layers)
        case tasks.BuildTask():
            return _building(workspace, task)
        case tasks.VerifyTask():
            return _verifying(workspace, task, _size(task.base), fingerprint_of(Path(task.base)))
        case tasks.StudyTask():
            return _studying(workspace, with_known_base(workspace, task))
        case tasks.MakeTask():
            return _making(workspace, with_known_base(workspace, task))
        case _:
            return Needs()


def _base_bytes(task: tasks.ConvertTask) -> int:
    """Of a base that llama.cpp's converter writes: half of the weight files, which may hold 32 bits."""
    folder = Path(task.model)
    if native_refusal(folder, task.way) is None:
        return _size(folder).tensor_bytes
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 2


def _size(path: str | Path) -> ModelSize:
    source = open_model(path)
    try:
        return ModelSize.of(source)
    finally:
        source.close()


def _mapped(size: ModelSize, n_ctx: int, n_gpu_layers: int) -> Needs:
    """A model that is run as it is."""
    return Needs(memory_bytes=size.context_bytes(n_ctx), mapped_bytes=0 if n_gpu_layers else size.tensor_bytes)


def _written(size: ModelSize, n_ctx: int, n_gpu_layers: int) -> Needs:
    """A model whose weights are exchanged; on a GPU they need no memory here."""
    return Needs(memory_bytes=size.context_bytes(n_ctx) + (0 if n_gpu_layers else size.tensor_bytes))


def _swapping(workspace: Workspace, task: tasks.ProbeTask | tasks.SweepTask, size: ModelSize, fingerprint: str) -> Needs:
    needs = _written(size, task.n_ctx, task.n_gpu_layers)
    counts = workspace.store.counts(fingerprint)
    if counts.n_swept or counts.n_mixes:
        return needs  # an earlier run wrote the base's log-probabilities
    wanted, anchor = task.chunks, 0
    if isinstance(task, tasks.ProbeTask):
        wanted = max(1, task.mix_chunks if task.mixes or task.anchors else 0)
        anchor = size.bytes_at(_ANCHOR_BITS) if task.anchors and "Q8_0" in task.types else 0
    n_chunks = min(wanted, max(1, _text_bytes(task.text) // (BYTES_PER_TOKEN * task.n_ctx)))
    home = workspace.home
    return needs + Needs(((home.base_logp, n_chunks * size.base_logp_bytes(task.n_ctx)), (home.references, anchor)))


def _text_bytes(text: str | None) -> int:
    path = Path(text) if text else CALIBRATION_TEXT
    return path.stat().st_size if path.is_file() else 0


def _building(workspace: Workspace, task: tasks.BuildTask) -> Needs:
    strategy = strategy_file.read(task.strategy, known_types=library.types())
    with workspace.model(task.base) as model:
        imatrix = strategy_imatrix(workspace, model, strategy, task.imatrix)
        predicted = building.predict(model.source, strategy, imatrix=imatrix, split_max_bytes=task.split_max_bytes)
    return Needs(((Path(task.output), predicted.file_size_bytes),))


def _verifying(workspace: Workspace, task: tasks.VerifyTask | tasks.MakeTask, size: ModelSize, fingerprint: str) -> Needs:
    """References that no earlier run made, whatever the importance matrix; and the base in memory."""
    folder, made = workspace.home.references, 0
    for preset in {preset_name(name) for name in task.against}:
        if not any(folder.glob(f"{fingerprint[:12]}-*-{preset}.gguf")):
            made += _least_preset_bytes(size, preset)
    n_ctx = task.n_ctx if isinstance(task, tasks.VerifyTask) else tasks.DEFAULT_N_CTX
    return Needs(((folder, made),)) + _mapped(size, n_ctx, task.n_gpu_layers)


def _least_preset_bytes(size: ModelSize, preset: str) -> int:
    names = [name for name in library.types() if preset.startswith(name)]
    return size.bytes_at(PRESET_SHARE * library.types()[max(names, key=len)].bits_per_weight) if names else 0


def _studying(workspace: Workspace, task: tasks.StudyTask) -> Needs:
    with workspace.model(task.model) as model:
        return _study_needs(workspace, task, model, ModelSize.of(model.source))


def _study_needs(workspace: Workspace, task: tasks.StudyTask, model: OpenedModel, size: ModelSize) -> Needs:
    place = None if known_base(workspace, task, model) else base_place(workspace, task, model)
    needs = Needs() if place is None else Needs(((place, size.tensor_bytes),))
    if task.imatrix != tasks.NONE:
        needs += _mapped(size, tasks.DEFAULT_N_CTX, task.n_gpu_layers)
    if LEVEL_SETTINGS[task.level].probe_chunks:
        needs += _swapping(workspace, probe_task(task, task.model, tasks.AUTO, "tensor"), size, model.fingerprint)
    return needs


def _making(workspace: Workspace, task: tasks.MakeTask) -> Needs:
    """The file to be built counts where its size was asked for and nothing stands in the folder yet."""
    folder, model = Path(task.output), Path(task.model)
    size, fingerprint = _size(model), fingerprint_of(model)
    needs, runs = Needs(), runs_the_model(task, known_imatrix(workspace, task))
    if runs and model.is_dir() and not (folder / "base.gguf").exists():
        needs += Needs(((folder / "base.gguf", size.tensor_bytes),))
    if task.plan.size_bytes and not any(folder.glob("*bpw.gguf")):
        needs += Needs(((folder / "model.gguf", task.plan.size_bytes // 2),))
    if task.plan.basis != "ranking":
        probes = tasks.ProbeTask(
            base=task.model,
            text=task.text,
            chunks=task.probe_chunks,
            mix_chunks=task.probe_chunks,
            anchors=0,
            n_gpu_layers=task.n_gpu_layers,
        )
        needs += _swapping(workspace, probes, size, fingerprint)
    if task.verify:
        return needs + _verifying(workspace, task, size, fingerprint)
    return needs + _mapped(size, tasks.DEFAULT_N_CTX, task.n_gpu_layers) if runs else needs


_ANCHOR_BITS = 8.5
"""The first anchor is all Q8_0."""
