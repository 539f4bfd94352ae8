"""The whole way, as lists of steps in one job: `study` measures everything, `make` goes on to a file and its verdict.

Every part takes what is there already, so that a stopped run goes on where it was. A base is written where a part runs the
model: to compute an importance matrix, to probe, to verify. Without these, weights are measured and built from the checkpoint
itself, row by row, and the result is all that `make` writes.

The levels of a study:

    quick        importance matrix of a few chunks, weight errors of sampled rows; ranks mixes, predicts no KLD
    balanced     importance matrix of much of the text, the same weight errors, probes
    thorough     importance matrix of the whole text, weight errors of every row, probes of every tensor with more chunks
    exhaustive   the same, and every tensor through every type in the model
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from quantailor.analysis.corpus import chunk_length, chunks
from quantailor.analysis.importance.imatrix_file import read_imatrix
from quantailor.costs.model_size import ModelSize
from quantailor.costs.needs import Needs, run_as_it_is
from quantailor.errors import OutputError, UnsupportedModelError
from quantailor.evidence.measurements import usual_types
from quantailor.evidence.strategies import strategy_imatrix
from quantailor.evidence.written import recipe
from quantailor.ggml.reference import preset_name
from quantailor.models.abilities import require_predictions
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.opening import require_unquantized
from quantailor.records import Strategy
from quantailor.session import AUTO, CALIBRATION_TEXT, NONE, OpenedModel, Workspace, plain_label
from quantailor.steps.build import BuildReport, BuildStep
from quantailor.steps.checks.folder import alone_in, refuse_busy, refuse_other_result
from quantailor.steps.checks.inputs import check_imatrix, check_plan, check_possible, check_texts
from quantailor.steps.checks.limits import constraints_of
from quantailor.steps.convert import ConvertStep, WholeStep, with_base, with_known_base
from quantailor.steps.imatrix import ImatrixStep, use_imatrix
from quantailor.steps.measure import MeasureResult, MeasureStep, known_types
from quantailor.steps.options import COMPUTE, DEFAULT_N_CTX
from quantailor.steps.plan import PlanOptions, PlanResult, choose, plan_result, target_of
from quantailor.steps.probe import DEFAULT_PROBE_CHUNKS, Grouping, ProbeResult, ProbeStep
from quantailor.steps.stages import Stages
from quantailor.steps.step import Answer, Screen, StepResult
from quantailor.steps.sweep import SweepResult, SweepStep
from quantailor.steps.verify import VerifyResult, VerifyStep
from quantailor.store import ImatrixRecord
from quantailor.strategy import file as strategy_file

Level = Literal["quick", "balanced", "thorough", "exhaustive"]
LEVELS: tuple[Level, ...] = ("quick", "balanced", "thorough", "exhaustive")
SMALL_MODEL_WEIGHTS = 1_000_000_000
"""Up to here every tensor is probed on a CPU too."""
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


def grouping_of(n_weights: int, n_gpu_layers: int) -> Grouping:
    """Every tensor of a model of so many weights where that takes minutes, groups where it would take days."""
    return "tensor" if n_weights <= SMALL_MODEL_WEIGHTS or n_gpu_layers else "role-depth"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineStep(WholeStep[Answer]):
    """What `study` and `make` have in common: the parts that measure."""

    measures: ClassVar[bool] = True

    types: tuple[str, ...] = ()
    """Candidate types; empty means all usual ones."""
    text: str | None = None
    """None means the calibration text that ships with Quantailor."""
    allow_requantize: bool = False

    def check(self, workspace: Workspace) -> None:
        """What can be read without work. Raises QuantailorError."""
        super(PipelineStep, self).check(workspace)
        check_texts(self.text)
        check_imatrix(self.imatrix)
        known_types(self.types)
        if self.hub is None:
            with contextlib.suppress(UnsupportedModelError), workspace.model(self.model, allow_requantize=True) as model:
                require_unquantized(model.source, allow_requantize=self.allow_requantize)
                self.check_model(model)

    def check_model(self, model: OpenedModel) -> None:
        """The same of a model that is here. Raises QuantailorError."""

    def imatrix_step(self, base: str, n_chunks: int | None, output: Path | None = None) -> ImatrixStep:
        """The computation of its importance matrix."""
        place = None if output is None else str(output)
        return ImatrixStep(base=base, text=self.text, chunks=n_chunks, output=place, overwrite=True, compute=self.compute)

    def measure_step(self, base: str, imatrix: str, types: Sequence[str], *, exhaustive: bool) -> MeasureStep:
        """The measurement of weight errors."""
        return MeasureStep(
            base=base,
            types=tuple(types),
            exhaustive=exhaustive,
            imatrix=imatrix,
            allow_requantize=self.allow_requantize,
            compute=self.compute,
        )

    def probes_step(self, base: str, imatrix: str, n_chunks: int, group: Grouping) -> ProbeStep:
        """The probes, with whole mixes on three times their chunks."""
        return ProbeStep(
            base=base,
            text=self.text,
            chunks=n_chunks,
            mix_chunks=MIX_CHUNKS_PER_PROBE_CHUNK * n_chunks,
            group=group,
            imatrix=imatrix,
            compute=self.compute,
        )


class _Parts:
    """The parts that a run has, in order; tells which of how many begins."""

    def __init__(self, names: Sequence[str], stages: Stages) -> None:
        self._names, self._stages = tuple(names), stages

    def begin(self, name: str) -> bool:
        """Whether the run has this part, which then begins."""
        if name in self._names:
            self._stages.part(self._names.index(name) + 1, len(self._names))
        return name in self._names


# Study


@dataclass(frozen=True, slots=True)
class StudyResult(StepResult):
    """What one job measured of a model."""

    base: str
    """The GGUF that everything else starts from."""
    model_fingerprint: str
    level: str
    imatrix_fingerprint: str | None
    imatrix_chunks: int
    """Chunks that the importance matrix saw; 0 without one."""
    settings: str
    """How weight errors were measured."""
    n_tensors: int
    n_types: int
    n_cells: int
    n_unavailable: int
    basis: str
    """"ranking only" where nothing was probed, else "probes"."""
    n_probed: int
    """Tensors whose sensitivity was measured."""
    n_scored: int
    """(mix, chunk) pairs that the store has for these probes."""
    n_swept: int
    """Cells measured in the model by the sweep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStep(PipelineStep[StudyResult], kind="study", result=StudyResult):
    """Everything that measuring needs, in one job.

    Of importance matrices "auto" is what the store has, where it is as good as the level asks for, else one that is computed.
    """

    screen: ClassVar[Screen | None] = "measure"

    level: Level = "balanced"
    output: str | None = None
    """Where the base of a Hugging Face directory goes; None is a place in the home."""

    @property
    def settings(self) -> LevelSettings:
        """What its level measures."""
        return LEVEL_SETTINGS[self.level]

    @property
    def candidate_types(self) -> tuple[str, ...]:
        """The types asked for; all usual ones for none. Raises TypeUnavailableError for an unknown one."""
        return known_types(self.types) if self.types else usual_types()

    def run(self, workspace: Workspace, stages: Stages) -> StudyResult:
        """Convert, importance matrix, weight errors, probes, sweep, as far as the level goes. What is found is kept."""
        step = with_base(workspace, self, None if self.output is None else Path(self.output), stages, overwrite=False)
        with workspace.model(step.model, allow_requantize=step.allow_requantize) as model:
            if step.settings.probe_chunks:
                require_predictions(model.source)
            parts = _Parts(step.parts(workspace, model), stages)
            n_weights = sum(tensor.n_elements for tensor in model.source.tensors)
            base = str(step.known_base(workspace, model) or step.base_place(workspace, model))
        if parts.begin("convert"):
            ConvertStep(model=step.model, output=base).run(workspace, stages)
        imatrix = step.take_imatrix(workspace, base, stages) if parts.begin("imatrix") else NONE
        parts.begin("measure")
        weight_errors = step.measure_step(base, imatrix, step.candidate_types, exhaustive=step.settings.exhaustive)
        measured = weight_errors.run(workspace, stages)
        probed = step.probes(base, imatrix, n_weights).run(workspace, stages) if parts.begin("probes") else None
        swept = step.sweep(base, imatrix).run(workspace, stages) if parts.begin("sweep") else None
        return _study_result(workspace, step, base, measured, probed, swept)

    def needs(self, workspace: Workspace) -> Needs:
        """The base where there is none, a model that runs, and what probes keep."""
        step = with_known_base(workspace, self)
        with workspace.model(step.model) as model:
            return step.needs_of(workspace, model, ModelSize.of(model.source))

    def needs_of(self, workspace: Workspace, model: OpenedModel, size: ModelSize) -> Needs:
        """The same for a model that is open."""
        base = self.known_base(workspace, model)
        needs = Needs() if base else Needs(((self.base_place(workspace, model), size.tensor_bytes),))
        if self.imatrix != NONE:
            needs += run_as_it_is(size, DEFAULT_N_CTX, self.compute.n_gpu_layers)
        if self.settings.probe_chunks:
            needs += self.probes_step(self.model, AUTO, self.settings.probe_chunks, "tensor").needs(workspace)
        return needs

    def parts(self, workspace: Workspace, model: OpenedModel) -> tuple[str, ...]:
        """The names of the parts that a study of this model has, in order."""
        wanted = {
            "convert": self.known_base(workspace, model) is None,
            "imatrix": self.imatrix != NONE,
            "measure": True,
            "probes": self.settings.probe_chunks > 0,
            "sweep": self.settings.sweep,
        }
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def probes(self, base: str, imatrix: str, n_weights: int) -> ProbeStep:
        """The probes of a level that has some, for a model of so many weights."""
        group = "tensor" if self.settings.every_tensor else grouping_of(n_weights, self.compute.n_gpu_layers)
        return self.probes_step(base, imatrix, self.settings.probe_chunks, group)

    def sweep(self, base: str, imatrix: str) -> SweepStep:
        """Every tensor through every candidate type."""
        return SweepStep(base=base, text=self.text, types=self.candidate_types, imatrix=imatrix, compute=self.compute)

    def known_base(self, workspace: Workspace, model: OpenedModel) -> Path | None:
        """The model itself where it is a GGUF file, else an earlier conversion of it; None where there is none."""
        if isinstance(model.source, GGUFSource):
            return Path(self.model)
        places = workspace.store.locations("model", model.fingerprint) if self.output is None else [Path(self.output)]
        return next((path for path in places if workspace.holds(path, model.description)), None)

    def base_place(self, workspace: Workspace, model: OpenedModel) -> Path:
        """Where the conversion goes: `output`, else a file in the home that is named after the directory and the model."""
        return workspace.base_path(model.path, model.description) if self.output is None else Path(self.output)

    def take_imatrix(self, workspace: Workspace, base: str, stages: Stages) -> str:
        """The path of the importance matrix to go on with: the file that was named, one that is ready, or a computed one."""
        if self.imatrix not in (AUTO, COMPUTE):
            return use_imatrix(workspace, Path(base), import_file=Path(self.imatrix)).path
        with workspace.model(base) as model:
            ready = self.ready_imatrix(workspace, model)
        if ready is None:
            return self.imatrix_step(base, self.settings.imatrix_chunks).run(workspace, stages).path
        stages.note(f"an importance matrix of {ready.chunk_count} chunks is there already")
        workspace.store.record_imatrix(ready)  # now the newest, which later commands take
        return str(workspace.imatrix_path(ready.model, ready.fingerprint))

    def ready_imatrix(self, workspace: Workspace, model: OpenedModel) -> ImatrixRecord | None:
        """What "auto" takes: the newest one that was imported, or that saw as many tokens as the level asks for.

        Where the study names a text, a computed one must be of a text of that name.
        """
        records = workspace.stored_imatrices(model.fingerprint) if self.imatrix == AUTO else []
        if not records:
            return None
        text = Path(self.text) if self.text else CALIBRATION_TEXT
        n_tokens = chunks(workspace.corpus(model, text), chunk_length(model.source, DEFAULT_N_CTX), limit=self.settings.imatrix_chunks).size

        def is_enough(record: ImatrixRecord) -> bool:
            is_right_text = self.text is None or text.name in record.datasets
            return record.origin == "imported" or (is_right_text and record.chunk_count * record.chunk_size >= n_tokens)

        return next((record for record in records if is_enough(record)), None)


def _study_result(
    workspace: Workspace, step: StudyStep, base: str, measured: MeasureResult, probed: ProbeResult | None, swept: SweepResult | None
) -> StudyResult:
    fingerprint = measured.imatrix_fingerprint
    record = None if fingerprint is None else workspace.store.imatrix(measured.model_fingerprint, fingerprint)
    return StudyResult(
        base=base,
        model_fingerprint=measured.model_fingerprint,
        level=step.level,
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


# Make


@dataclass(frozen=True, slots=True)
class MakeResult(StepResult):
    """Everything `make` left in its directory."""

    base: str | None
    """None where nothing ran the model: weights were measured and built from the checkpoint itself."""
    imatrix: str | None
    strategy: str
    build: BuildReport
    plan: PlanResult
    verify: VerifyResult | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeStep(PipelineStep[MakeResult], kind="make", result=MakeResult):
    """The whole way from a model to a verdict, in one directory.

    Of importance matrices "auto" is one that the store has, else one that is computed.
    """

    screen: ClassVar[Screen | None] = "verify"

    output: str
    plan: PlanOptions = field(default_factory=PlanOptions)
    exhaustive: bool = False
    probe_chunks: int = DEFAULT_PROBE_CHUNKS
    group: Grouping | None = None
    """None probes every tensor of a small model or on a GPU, else roles in quarters of the depth."""
    imatrix: str = COMPUTE
    imatrix_chunks: int | None = None
    verify: bool = True
    """Without it, and where nothing else runs the model, a checkpoint needs no base."""
    verify_text: str | None = None
    overwrite: bool = False
    """Replace the result of another make in the directory."""
    chunks: int | None = None
    against: tuple[str, ...] | None = None
    """As of `VerifyStep`."""

    def check(self, workspace: Workspace) -> None:
        """What can be read without work: texts, names, the plan. Raises QuantailorError."""
        super(MakeStep, self).check(workspace)
        refuse_busy(self.folder)
        check_texts(self.verify_text)
        check_plan(self.plan)
        for name in self.against or ():
            preset_name(name)

    def check_model(self, model: OpenedModel) -> None:
        """Whether any types could meet the plan. Raises StrategyError."""
        self.refuse_other_result(model)
        check_possible(model, self.plan_options, known_types(self.types), has_imatrix=self.imatrix != NONE)

    def refuse_other_result(self, model: OpenedModel) -> None:
        """Raise OutputError where the directory holds the result of something else that may not be replaced."""
        if self.overwrite:
            return
        asked = target_of(self.plan)
        if self.plan.like is not None:
            asked["like"] = preset_name(self.plan.like)
        limits = constraints_of(self.plan_options).as_parameters()
        refuse_other_result(self.strategy_path, model.fingerprint, self.plan.method, asked, limits)

    @property
    def folder(self) -> Path:
        return Path(self.output)

    @property
    def plan_options(self) -> PlanOptions:
        """What the plan is asked for: only the types that are measured, where some were named."""
        if self.types and all("=" in text for text in self.plan.allow):
            return dataclasses.replace(self.plan, allow=(*self.plan.allow, ",".join(self.types)))
        return self.plan

    @property
    def probed(self) -> bool:
        """Whether it probes."""
        return self.plan.basis != "ranking"

    def run(self, workspace: Workspace, stages: Stages) -> MakeResult:
        """Convert, importance matrix, measure, probe, plan, build, verify. What an earlier run finished is taken as it is.

        Raises OutputError where the directory cannot be made, and what the parts raise.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot create {self.folder}: {error.strerror or error}", remedy="Choose another directory with -o"
            ) from error
        with alone_in(self.folder, workspace):
            return self.make(workspace, stages)

    def make(self, workspace: Workspace, stages: Stages) -> MakeResult:
        """The parts of `run`, alone in the directory."""
        step = with_base(workspace, self, self.folder / "base.gguf", stages, overwrite=True)
        if step.probed or step.verify:
            with workspace.source(step.model) as source:
                require_predictions(source)
        with workspace.model(step.model, allow_requantize=True) as model:
            step.refuse_other_result(model)
        known = step.known_imatrix(workspace)
        if known not in (None, NONE):
            read_imatrix(Path(known))  # one that cannot be read stops the run before anything is written
        base, base_is_there = step.find_base(workspace) if step.runs_the_model(workspace) else (None, True)
        wanted = {
            "convert": not base_is_there,
            "imatrix": known is None,
            "measure": True,
            "probes": step.probed,
            "plan": True,
            "build": True,
            "verify": step.verify,
        }
        parts = _Parts([name for name, is_wanted in wanted.items() if is_wanted], stages)
        weights = base or step.model
        if parts.begin("convert"):
            ConvertStep(model=step.model, output=weights, overwrite=True).run(workspace, stages)
        imatrix = known or NONE
        if parts.begin("imatrix"):
            imatrix = step.imatrix_step(weights, step.imatrix_chunks, step.folder / "imatrix.gguf").run(workspace, stages).path
        parts.begin("measure")
        step.measure_step(weights, imatrix, step.types, exhaustive=step.exhaustive).run(workspace, stages)
        probed = step.probes(workspace, weights, imatrix).run(workspace, stages) if parts.begin("probes") else None
        parts.begin("plan")
        strategy, planned = step.plan_types(workspace, weights, imatrix, None if probed is None else probed.grounds.name, stages)
        parts.begin("build")
        # The file is named after what was asked for, not after the base that llama.cpp's converter made of it.
        name = f"{plain_label(self.model)}-{planned.prediction.bits_per_weight:.2f}bpw.gguf"
        built = step.build(workspace, weights, strategy, planned, step.folder / name, stages)
        verified = None
        if parts.begin("verify"):
            verified = step.verify_step(built.paths[0], weights, imatrix).run(workspace, stages)
        return MakeResult(base, None if imatrix == NONE else imatrix, str(step.strategy_path), built, planned, verified)

    @property
    def strategy_path(self) -> Path:
        return self.folder / "strategy.yaml"

    def known_imatrix(self, workspace: Workspace) -> str | None:
        """The importance matrix's file, or "none" where there is to be none; None where it is still to be computed."""
        if self.imatrix == COMPUTE:
            return None
        if self.imatrix != AUTO:
            return self.imatrix
        model = workspace.identity(self.model).fingerprint
        return next((str(workspace.imatrix_path(model, record.fingerprint)) for record in workspace.stored_imatrices(model)), None)

    def runs_the_model(self, workspace: Workspace) -> bool:
        """Whether any part needs llama.cpp to run the model."""
        return self.verify or self.probed or self.known_imatrix(workspace) is None

    def find_base(self, workspace: Workspace) -> tuple[str, bool]:
        """The GGUF to start from, the model itself or its conversion, and whether it is there."""
        with workspace.model(self.model) as model:
            if isinstance(model.source, GGUFSource):
                return self.model, True
            base = self.folder / "base.gguf"
            return str(base), workspace.holds(base, model.description)

    def probes(self, workspace: Workspace, weights: str, imatrix: str) -> ProbeStep:
        """The probes of this model."""
        with workspace.source(weights) as source:
            n_weights = sum(tensor.n_elements for tensor in source.tensors)
        group = self.group or grouping_of(n_weights, self.compute.n_gpu_layers)
        return self.probes_step(weights, imatrix, self.probe_chunks, group)

    def plan_types(
        self, workspace: Workspace, weights: str, imatrix: str, evidence: str | None, stages: Stages
    ) -> tuple[Strategy, PlanResult]:
        """Plan on its own probes, with the types that were asked for and no others, whatever else was measured; and write the strategy."""
        options = dataclasses.replace(self.plan_options, evidence=evidence)
        control = stages.begin("plan")
        with workspace.model(weights) as model:
            strategy, preset_size, grounds = choose(workspace, model, options, imatrix=imatrix, exhaustive=self.exhaustive)
        strategy_file.write(strategy, self.strategy_path, overwrite=True)
        control.advance(1, 1)
        return strategy, plan_result(workspace, strategy, self.strategy_path, preset_size, grounds, base=weights)

    def build(
        self, workspace: Workspace, weights: str, strategy: Strategy, planned: PlanResult, output: Path, stages: Stages
    ) -> BuildReport:
        """Build the file, unless it is there already as that strategy, model and importance matrix gave it."""
        size, bits = planned.prediction.file_size_bytes, planned.prediction.bits_per_weight
        with workspace.model(weights) as model:
            wanted = recipe(model, strategy, strategy_imatrix(workspace, model, strategy, AUTO))
        if workspace.is_as_written(output, wanted):
            stages.note(f"{output.name} was built before")
            return BuildReport((str(output),), size, bits, size)
        step = BuildStep(
            base=weights,
            strategy=str(self.strategy_path),
            output=str(output),
            overwrite=True,
            allow_requantize=self.allow_requantize,
            verdict=str(self.folder / "verdict"),
            compute=self.compute,
        )
        return step.run(workspace, stages)

    def verify_step(self, file: str, weights: str, imatrix: str) -> VerifyStep:
        """The verification of the file."""
        return VerifyStep(
            file=file,
            base=weights,
            against=self.against,
            text=self.verify_text,
            chunks=self.chunks,
            imatrix=imatrix,
            output=str(self.folder / "verdict"),
            overwrite=True,
            compute=self.compute,
        )

    def needs(self, workspace: Workspace) -> Needs:
        """The file to be built counts where its size was asked for and nothing stands in the folder yet."""
        step = with_known_base(workspace, self)
        folder, runs = step.folder, step.runs_the_model(workspace)
        with workspace.model(step.model) as model:
            size, is_checkpoint = ModelSize.of(model.source), not isinstance(model.source, GGUFSource)
        needs = Needs()
        if runs and is_checkpoint and not (folder / "base.gguf").exists():
            needs += Needs(((folder / "base.gguf", size.tensor_bytes),))
        if step.plan.size_bytes and not any(folder.glob("*bpw.gguf")):
            needs += Needs(((folder / "model.gguf", step.plan.size_bytes // 2),))
        if step.probed:
            probes = step.probes_step(step.model, AUTO, step.probe_chunks, "tensor")
            needs += dataclasses.replace(probes, mix_chunks=step.probe_chunks, anchors=0).needs(workspace)
        if step.verify:
            named = (step.plan.like,) if step.against is None and step.plan.like else step.against
            return needs + dataclasses.replace(step, against=named).verify_step("", step.model, AUTO).needs(workspace)
        return needs + run_as_it_is(size, DEFAULT_N_CTX, step.compute.n_gpu_layers) if runs else needs
