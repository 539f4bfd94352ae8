"""From a Hugging Face directory to its 16-bit base: our own conversion where it knows the model, else llama.cpp's converter.

A directory that we cannot read ourselves has no fingerprint of its own. Its conversion is found again by a digest of its
files, kept with the fingerprint of the base that it became.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar

from quantailor.costs.needs import Needs
from quantailor.errors import ConverterNeededError, OptionError
from quantailor.evidence.written import converted_by, home_place, known_conversion
from quantailor.models import upstream
from quantailor.models.convert.base import write_base
from quantailor.models.convert.families.family import TOWER_WHY
from quantailor.models.huggingface import HuggingFaceSource, refuse_unconvertible
from quantailor.models.source import ModelSource
from quantailor.models.upstream import ProjectorType
from quantailor.present.words import plural
from quantailor.session import Workspace
from quantailor.steps.conversion.projector import Projector, ProjectorWork, projector_bytes
from quantailor.steps.conversion.upstream_run import located, run_converter
from quantailor.steps.options import Conversion, Way
from quantailor.steps.stages import Stages
from quantailor.steps.step import Answer, ModelStep, Screen, StepResult, WeightedStep

OWN, UPSTREAM = "native", "llama.cpp"


@dataclass(frozen=True, slots=True)
class ConvertResult(StepResult):
    """A 16-bit base that was written."""

    path: str
    fingerprint: str
    size_bytes: int
    n_tensors: int
    left_out: tuple[str, ...] = ()
    """Arrays of the checkpoint that are not in the base, such as a vision tower's; unknown of llama.cpp's converter."""
    way: str = "native"
    """"native", or "llama.cpp" where its own converter ran."""
    why: str = ""
    """Which conversion that was and why, in words."""
    left_out_why: tuple[str, ...] = ()
    """What the arrays that are in no file are, and why they are left out."""
    mmproj: Projector | None = None
    """The vision tower or audio encoder, where it was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertStep(ModelStep[ConvertResult], kind="convert", result=ConvertResult):
    """Write the 16-bit base of a Hugging Face directory."""

    model_option: ClassVar[str] = "model"
    units: ClassVar[Mapping[str, str]] = {"convert": "bytes", "projector": "bytes"}
    measures: ClassVar[bool] = True
    screen: ClassVar[Screen | None] = "structure"

    model: str
    output: str
    overwrite: bool = False
    conversion: Conversion = field(default_factory=Conversion)
    mmproj: str | None = None
    """Where the vision tower or audio encoder goes, which llama.cpp's converter makes a file of; None leaves it out."""
    mmproj_type: ProjectorType = "f16"

    @property
    def wants_projector(self) -> bool:
        """Whether the tower is to be converted."""
        return self.mmproj is not None

    def check(self, workspace: Workspace) -> None:
        """Whether there is a tower to convert. Raises QuantailorError."""
        super(ConvertStep, self).check(workspace)
        if self.mmproj is not None and Path(self.mmproj) == Path(self.output):
            raise OptionError("the base and the projector would be one file", remedy="Give --output and --mmproj different names")
        if self.mmproj is not None and self.hub is None:
            upstream.require_tower(Path(self.model))

    def run(self, workspace: Workspace, stages: Stages) -> ConvertResult:
        """Convert by the way that was asked for, and then the tower, if that was.

        Raises:
            ModelError: the directory is damaged or lacks something, or neither way knows it.
            ConverterError: llama.cpp's converter cannot be had or fails.
            OutputError: the base or the projector cannot be written.
        """
        folder = Path(self.model)
        refusal = native_refusal(workspace, folder, self.conversion.way)
        if self.mmproj is None:
            return self.base(workspace, refusal, stages)
        tower = ProjectorWork(folder, Path(self.mmproj), self.mmproj_type, self.conversion, self.overwrite)
        tower.refuse(workspace, stages)
        found = self.base(workspace, refusal, stages)
        return dataclasses.replace(found, mmproj=tower.make(workspace, stages).beside(found.path))

    def base(self, workspace: Workspace, refusal: str | None, stages: Stages) -> ConvertResult:
        """Convert the text model: with llama.cpp's converter where a `refusal` says why ours does not."""
        return _natively(workspace, self, stages) if refusal is None else _upstream(workspace, self, refusal, stages)

    def needs(self, workspace: Workspace) -> Needs:
        """Room for the base; of one that llama.cpp's converter writes, half of the weight files, which may hold 32 bits."""
        folder = Path(self.model)
        if native_refusal(workspace, folder, self.conversion.way) is not None:
            return Needs(((Path(self.output), sum(path.stat().st_size for path in folder.glob("*.safetensors")) // 2),))
        with workspace.source(folder) as source:
            n_bytes = sum(tensor.size_bytes for tensor in source.tensors)
            tower = () if self.mmproj is None else ((Path(self.mmproj), projector_bytes(source)),)
        return Needs(((Path(self.output), n_bytes), *tower))


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeStep(WeightedStep[Answer]):
    """A step that converts its model first where that is necessary."""

    model_option: ClassVar[str] = "model"

    model: str
    conversion: Conversion = field(default_factory=Conversion)

    @property
    def wants_projector(self) -> bool:
        """Whether a tower is to be converted, too."""
        return False


@dataclass(frozen=True, slots=True)
class ConversionOffer:
    """A directory that llama.cpp's converter is to take before anything else can be done with it."""

    folder: str
    why: str
    """What our own conversion does not know."""
    place: str
    """Where the base would go."""


Whole = TypeVar("Whole", bound=WholeStep[StepResult])


def native_refusal(workspace: Workspace, model: Path, way: Way = "auto") -> str | None:
    """Why llama.cpp's converter is to take a directory; None where our own conversion can, and for GGUF files.

    Raises ModelError where the model is damaged, where only ours was allowed and cannot, and where neither can.
    """
    if way == UPSTREAM and model.is_dir():
        refuse_unconvertible(model)
        return "it was asked for"
    try:
        with workspace.source(model):
            return None
    except ConverterNeededError as error:
        if way == OWN:
            raise ConverterNeededError(error.message, remedy="Without `--way native`, llama.cpp's own converter takes it") from error
        return error.message


def _natively(workspace: Workspace, step: ConvertStep, stages: Stages) -> ConvertResult:
    with workspace.model(step.model) as model:
        source = model.source
        reservations = workspace.reservations(model)
        said = [f"the {source.family} family", *source.notes] if isinstance(source, HuggingFaceSource) else ["it is GGUF already"]
        why = f"native: {'; '.join(said)}"
        stages.note(why)
        for words in reservations:
            stages.warn(words)
        left_out_why = left_out_words(source, has_projector=step.mmproj is not None)
        path = Path(step.output)
        if not step.overwrite and workspace.holds(path, model.description):
            stages.note(f"{path} is already its conversion")  # by a run that was killed before it could say so, or by hand
        else:
            write_base(model.source, path, control=stages.begin("convert"), overwrite=step.overwrite)
            workspace.remember(path, model)
        workspace.store.record_location("model", model.fingerprint, path)
        size, n_tensors = path.stat().st_size, len(source.tensors)
        return ConvertResult(str(path), model.fingerprint, size, n_tensors, source.left_out, OWN, why, left_out_why)


def left_out_words(source: ModelSource, *, has_projector: bool) -> tuple[str, ...]:
    """For each reason which arrays of a directory are in no file; with a projector none of the tower that it holds."""
    found = list[str]()
    if not isinstance(source, HuggingFaceSource):
        return ()
    for why in dict.fromkeys(each.why for each in source.left_out_why):
        where = {each.where: n for each, n in source.left_out_why.items() if each.why == why}
        if not (has_projector and why == TOWER_WHY):
            found.append(f"{plural(sum(where.values()), 'array')} ({', '.join(where)}): {why}")
    return tuple(found)


def _upstream(workspace: Workspace, step: ConvertStep, refusal: str, stages: Stages) -> ConvertResult:
    folder, output = Path(step.model), Path(step.output)
    upstream.check_before(folder, output, overwrite=step.overwrite, trust_remote_code=step.conversion.trust_remote_code)
    checkpoint = workspace.checkpoint(folder)
    converter = located(step.conversion, stages)
    upstream.refuse_unknown(folder, converter)
    why = f"{converter.name}: {refusal}"
    stages.note(why)
    trusted = step.conversion.trust_remote_code
    run_converter(workspace, stages, converter, folder, output, stage="convert", trust_remote_code=trusted, overwrite=step.overwrite)
    with workspace.model(output) as model:
        for known in sorted({converted_by(checkpoint, None), converted_by(checkpoint, step.conversion.converter)}):
            workspace.store.record_location("conversion", f"{known}:{model.description}", output)
        left_out_why = (f"arrays of a tower: {TOWER_WHY}",) if step.mmproj is None and upstream.has_tower(folder) else ()
        size, n_tensors = output.stat().st_size, len(model.source.tensors)
        return ConvertResult(str(output), model.fingerprint, size, n_tensors, (), UPSTREAM, why, left_out_why)


def conversion_offer(workspace: Workspace, model: Path) -> ConversionOffer | None:
    """What is to be done before a directory can be opened; None where it can be. Raises ModelError for a damaged one."""
    refusal = native_refusal(workspace, model)
    if refusal is None or known_conversion(workspace, model) is not None:
        return None
    return ConversionOffer(str(model), refusal, str(home_place(workspace, model)))


def openable(workspace: Workspace, model: Path) -> Path:
    """The model itself, or the base that llama.cpp's converter made of a directory that we do not know."""
    known = None if native_refusal(workspace, model) is None else known_conversion(workspace, model)
    return known or model


def with_known_base(workspace: Workspace, step: Whole) -> Whole:
    """The step with an earlier base in place of a directory that llama.cpp's converter took; other steps stay as they are.

    Raises UnsupportedModelError where there is none yet: it says what to run.
    """
    folder = Path(step.model)
    if native_refusal(workspace, folder, step.conversion.way) is None:
        return step
    known = known_conversion(workspace, folder, step.conversion.converter)
    if known is None:
        with workspace.source(folder):  # which says what is wrong with it
            return step
    return dataclasses.replace(step, model=str(known))


def with_base(workspace: Workspace, step: Whole, place: Path | None, stages: Stages, *, overwrite: bool) -> Whole:
    """The step with a base in place of a directory that llama.cpp's converter is to take, converted where there is none yet.

    `place` is where it goes, None for the home; `overwrite` replaces what stands there. Other steps stay as they are.
    Raises as `ConvertStep.run` does.
    """
    folder = Path(step.model)
    if native_refusal(workspace, folder, step.conversion.way) is None:
        return step
    if (known := known_conversion(workspace, folder, step.conversion.converter)) is not None:
        stages.note(f"{known} is its conversion by llama.cpp's converter, made before")
        return dataclasses.replace(step, model=str(known))
    output = place or home_place(workspace, folder)
    wanted = ConvertStep(
        model=step.model,
        output=str(output),
        overwrite=overwrite or place is None,
        conversion=step.conversion,
    )
    return dataclasses.replace(step, model=wanted.run(workspace, stages).path)
