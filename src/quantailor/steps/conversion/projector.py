"""A vision tower or an audio encoder as a file of its own, which llama.cpp runs beside the text model: a projector (`--mmproj`).

llama.cpp's converter makes it. One that is there as it was made is not made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantailor.errors import ModelError
from quantailor.evidence.written import converted_by
from quantailor.models import upstream
from quantailor.models.contents import is_projector
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.huggingface import HuggingFaceSource
from quantailor.models.source import ModelSource
from quantailor.models.upstream import ProjectorType
from quantailor.present import cards
from quantailor.session import Workspace
from quantailor.steps.conversion.upstream_run import located, run_converter
from quantailor.steps.options import Conversion
from quantailor.steps.stages import Stages

_FILE_TYPES = {0: "F32", 1: "F16", 7: "Q8_0", 32: "BF16"}
"""`general.file_type` of what llama.cpp's converter writes."""
_ENCODERS = {"images": "vision", "sound": "audio"}


@dataclass(frozen=True, slots=True)
class Projector:
    """A projector's file."""

    path: str
    type_name: str
    """What its matrices are stored in, as it says itself, else what most of its bytes are."""
    size_bytes: int
    takes: tuple[str, ...]
    """"images", "sound"."""
    run: tuple[str, ...] = ()
    """Commands that run it beside the text model."""

    def beside(self, model: str) -> Projector:
        """The same with the commands for a text model's file."""
        return dataclasses.replace(self, run=cards.projector_commands(model, self.path, self.takes))


@dataclass(frozen=True, slots=True)
class ProjectorWork:
    """A projector that is to be made."""

    folder: Path
    """The checkpoint."""
    output: Path
    type_name: ProjectorType
    conversion: Conversion
    overwrite: bool = False

    def refuse(self, workspace: Workspace, stages: Stages) -> upstream.Converter | None:
        """Refuse what can be seen to fail before anything long begins, else the converter; None where the projector is there already.

        Raises:
            UnsupportedModelError: the model has no tower, or one that the converter does not know, or brings code.
            ModelError: the directory is damaged.
            ConverterError: llama.cpp's converter cannot be had.
            OutputError: another file is in the way.
        """
        upstream.require_tower(self.folder)
        if workspace.is_file_as_written(self.output, self._recipe(workspace)):
            return None
        trusted = self.conversion.trust_remote_code
        upstream.check_before(self.folder, self.output, overwrite=self.overwrite, trust_remote_code=trusted)
        converter = located(self.conversion, stages)
        upstream.refuse_unknown_tower(self.folder, converter)
        return converter

    def make(self, workspace: Workspace, stages: Stages) -> Projector:
        """The projector, made where it is not there as it would be made; raises as `refuse` does, and ResourceError."""
        converter = self.refuse(workspace, stages)
        if converter is None:
            stages.note(f"{self.output} is already the projector")
            return opened(self.output)
        stages.note(f"{converter.name} makes the projector")
        recipe = self._recipe(workspace)
        run_converter(
            workspace,
            stages,
            converter,
            self.folder,
            self.output,
            stage="projector",
            trust_remote_code=self.conversion.trust_remote_code,
            overwrite=self.overwrite,
            product=upstream.product(self.type_name),
            on_whole=lambda written: workspace.note_file(self.output, recipe, written),
        )
        return opened(self.output)

    def _recipe(self, workspace: Workspace) -> str:
        return f"projector {self.type_name} {converted_by(workspace.checkpoint(self.folder), self.conversion.converter)}"


def opened(path: Path) -> Projector:
    """What a projector's file says of itself. Raises ModelError where it cannot be read."""
    with contextlib.closing(GGUFSource(path)) as source:
        return _described(source)


def projectors_beside(source: ModelSource, folder: Path) -> Sequence[Projector]:
    """The projectors in a directory, named as llama.cpp looks for them, that give vectors as long as the model's embeddings."""
    found = []
    for path in sorted(folder.glob(f"*{upstream.MARK}*.gguf")):
        with contextlib.suppress(ModelError), contextlib.closing(GGUFSource(path)) as projector:
            if is_projector(projector) and _fits(projector, source):
                found.append(_described(projector))
    return found


def projectors_section(model: str, found: Sequence[Projector]) -> tuple[str, ...]:
    """A card's section on projectors, beside a text model's file of that name; nothing where there are none."""
    rows = [(Path(each.path).name, each.type_name, each.size_bytes, each.takes) for each in found]
    return (cards.projectors(model, rows),) if rows else ()


def projector_bytes(source: ModelSource) -> int:
    """What a projector takes at the least, in Q8_0: half of a directory's arrays in 16 bits that are not in the base."""
    return source.left_out_bytes // 2 if isinstance(source, HuggingFaceSource) else 0


def taken(found: Sequence[Projector]) -> set[str]:
    """What any of them takes."""
    return {what for each in found for what in each.takes}


def _described(source: GGUFSource) -> Projector:
    n_bytes = Counter[str]()
    for tensor in source.tensors:
        n_bytes[tensor.type_name] += tensor.size_bytes
    stated = source.metadata.get("general.file_type")
    named = _FILE_TYPES.get(stated.value) if stated is not None and isinstance(stated.value, int) else None
    said = {what: source.metadata.get(f"clip.has_{encoder}_encoder") for what, encoder in _ENCODERS.items()}
    takes = tuple(what for what, entry in said.items() if entry is not None and entry.value is True)
    type_name = named or next((name for name, _ in n_bytes.most_common(1)), "")
    return Projector(source.location, type_name, source.size_bytes, takes)


def _fits(projector: GGUFSource, model: ModelSource) -> bool:
    """Whether its vectors are as long as the model's embeddings, as far as both say how long these are."""
    width = model.metadata.get(f"{model.architecture}.embedding_length")
    given = [projector.metadata.get(f"clip.{encoder}.projection_dim") for encoder in _ENCODERS.values()]
    widths = {entry.value for entry in given if entry is not None}
    return width is None or not widths or width.value in widths
