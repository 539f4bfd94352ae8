"""What a vision tower or an audio encoder beside a model needs of memory, and on which side it runs.

Its weights and compute buffers are libmtmd's own account, see `ggml.memory.projector`. Beside these, while a picture (or sound) is encoded:

    work      where the processor multiplies, ggml rounds the inputs of a product, to 16 bits at most: the longest rows of a matrix, one
              for each patch (frame).
    inputs    the picture as three 32-bit floats a pixel, three times: prepared, in a batch, and what the graph reads.

llama.cpp puts a projector on the GPU; `--no-mmproj-offload` leaves it to the processor.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantailor.app.products.builds import list_builds
from quantailor.errors import InferenceError, NativeLibraryError, OptionError
from quantailor.ggml.memory.projector import ProjectorMemory, projector_memory
from quantailor.models import upstream
from quantailor.models.contents import is_projector
from quantailor.models.gguf_file import GGUFSource
from quantailor.records import MetadataValue
from quantailor.session import OpenedModel, Workspace
from quantailor.steps.conversion.projector import Projector, opened, projectors_beside

AUTO, NONE = "auto", "none"
_N_COPIES = 3
_CHANNELS = 3
_FLOAT_BYTES = 4
_ROUNDED_BYTES = 2
_PATCH, _MELS = "clip.vision.patch_size", "clip.audio.num_mel_bins"


@dataclass(frozen=True, slots=True)
class ProjectorNeeds:
    """A projector's bytes."""

    path: str
    type_name: str
    takes: tuple[str, ...]
    """"images", "sound"."""
    weights_bytes: int
    compute_bytes: int
    work_bytes: int
    """For inputs of products, an upper bound; 0 on the GPU."""
    inputs_bytes: int
    """For what is encoded."""
    program_bytes: int
    picture: tuple[int, int] | None
    """(width, height) in pixels that this counts; None where it takes sound alone."""
    on_gpu: bool

    @property
    def gpu_bytes(self) -> int:
        """What the GPU needs."""
        return self.weights_bytes + self.compute_bytes if self.on_gpu else 0

    @property
    def host_bytes(self) -> int:
        """What is needed beside the GPU, or in all."""
        beside = self.work_bytes + self.inputs_bytes + self.program_bytes
        return beside if self.on_gpu else self.weights_bytes + self.compute_bytes + beside


@dataclass(frozen=True, slots=True)
class ChosenProjector:
    """The projector that is to count, and what there is to say of it."""

    projector: Projector | None = None
    is_named: bool = False
    """Rather than found beside the model."""
    notes: tuple[str, ...] = ()


def choose_projector(workspace: Workspace, model: OpenedModel, choice: str | Path) -> ChosenProjector:
    """The projector of a model: "auto" takes the one beside it or beside a file that was built from it, "none" none; else its file.

    Raises OptionError where the file is no projector, ModelError where it cannot be read.
    """
    if str(choice) == NONE:
        return ChosenProjector()
    if str(choice) != AUTO:
        return ChosenProjector(_given(Path(choice)), is_named=True)
    found = _beside(workspace, model)
    if not found:
        return ChosenProjector(notes=_tower_notes(model))
    others = ", ".join(Path(each.path).name for each in found[1:])
    return ChosenProjector(found[0], notes=(f"Beside it: {others}. --mmproj FILE counts another projector.",) if others else ())


def projector_needs(
    choice: ChosenProjector, header: Path, *, gpu_memory_bytes: int | None, offloads: bool
) -> tuple[ProjectorNeeds | None, tuple[str, ...]]:
    """What a projector needs, and what there is to say of it.

    Args:
        choice: the projector. One that was only found, and that llama.cpp cannot load, does not count.
        header: a GGUF file with the text model's header.
        gpu_memory_bytes: what a GPU has; None without one. A projector that needs more is left to the processor.
        offloads: False leaves it to the processor in any case.

    Raises:
        InferenceError: llama.cpp cannot load it, or not beside this model.
        NativeLibraryError: llama.cpp was built without libmtmd.
    """
    if choice.projector is None:
        return None, choice.notes
    try:
        needs = _counted(choice.projector, header, gpu_memory_bytes if offloads else None)
    except (InferenceError, NativeLibraryError) as error:
        if choice.is_named:
            raise
        return None, (f"{choice.projector.path} is not counted. {error}.",)
    if gpu_memory_bytes is not None and offloads and not needs.on_gpu:
        return needs, (*choice.notes, "The projector does not fit the GPU: the processor runs it.")
    return needs, choice.notes


def _given(path: Path) -> Projector:
    with contextlib.closing(GGUFSource(path)) as source:
        if not is_projector(source):
            raise OptionError(
                f"{path} is not a projector", remedy="Give --mmproj the file that `--mmproj` of convert or make wrote, or none"
            )
    return opened(path)


def _beside(workspace: Workspace, model: OpenedModel) -> Sequence[Projector]:
    """Those in the first folder that has any."""
    place = model.path if model.path.is_dir() else model.path.parent
    built = (Path(item.path).parent for item in list_builds(workspace, model.fingerprint))
    folders = dict.fromkeys((place, *built))
    return next((found for folder in folders if (found := projectors_beside(model.source, folder))), ())


def _tower_notes(model: OpenedModel) -> tuple[str, ...]:
    if not model.path.is_dir() or not upstream.has_tower(model.path):
        return ()
    command = shlex.join(("quantailor", "convert", str(model.path), "-o", "base.gguf", "--mmproj", f"{upstream.MARK}.gguf"))
    return (f"The model's tower for images or sound is not counted: `{command}` makes the file that it needs.",)


def _counted(projector: Projector, header: Path, gpu_memory_bytes: int | None) -> ProjectorNeeds:
    path = Path(projector.path)
    with contextlib.closing(GGUFSource(path)) as source:
        weights = sum(tensor.size_bytes for tensor in source.tensors)
        found = projector_memory(header, path, weights_bytes=weights)
        work, inputs = _work_bytes(source, found), _inputs_bytes(source, found)
    on_gpu = gpu_memory_bytes is not None and weights + found.compute_bytes <= gpu_memory_bytes
    return ProjectorNeeds(
        path=projector.path,
        type_name=projector.type_name,
        takes=projector.takes,
        weights_bytes=weights,
        compute_bytes=found.compute_bytes,
        work_bytes=0 if on_gpu else work,
        inputs_bytes=inputs,
        program_bytes=found.program_bytes,
        picture=found.picture,
        on_gpu=on_gpu,
    )


def _work_bytes(source: GGUFSource, memory: ProjectorMemory) -> int:
    rows = [tensor.n_cols for tensor in source.tensors if len(tensor.shape) == 2 and tensor.type_name != "F32"]
    patch = _number(source.metadata.get(_PATCH)) or 1
    n_patches = 0 if memory.picture is None else (memory.picture[0] // patch) * (memory.picture[1] // patch)
    return max(n_patches, memory.n_frames or 0) * max(rows, default=0) * _ROUNDED_BYTES


def _inputs_bytes(source: GGUFSource, memory: ProjectorMemory) -> int:
    n_pixels = 0 if memory.picture is None else memory.picture[0] * memory.picture[1]
    n_sounds = (memory.n_frames or 0) * _number(source.metadata.get(_MELS))
    return _N_COPIES * max(_CHANNELS * n_pixels, n_sounds) * _FLOAT_BYTES


def _number(entry: MetadataValue | None) -> int:
    return entry.value if entry is not None and isinstance(entry.value, int) else 0
