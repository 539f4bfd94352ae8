"""The whole way from a model to files and a verdict, in one directory: what one file and a ladder of several share."""

from __future__ import annotations

import dataclasses
import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import ClassVar, Literal, Self

from quantailor.analysis.importance.imatrix_file import read_imatrix, write_imatrix
from quantailor.costs.model_size import ModelSize
from quantailor.costs.needs import Needs, run_layer_by_layer
from quantailor.errors import OptionError, OutputError
from quantailor.evidence.measurements import usual_types
from quantailor.evidence.roundings import measuring_rounding, strategy_rounding
from quantailor.evidence.speed_limits import require_speeds
from quantailor.evidence.written import recipe
from quantailor.ggml import library
from quantailor.ggml.reference import preset_name
from quantailor.making import judging
from quantailor.models import upstream
from quantailor.models.abilities import require_predictions
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.source import ModelSource
from quantailor.models.upstream import ProjectorWish
from quantailor.pipeline.parts import Parts, PipelineStep
from quantailor.pipeline.recipes import write_recipe
from quantailor.present.words import listed
from quantailor.records import Strategy
from quantailor.session import AUTO, CALIBRATION_TEXT, HELDOUT_TEXT, NONE, OpenedModel, Workspace
from quantailor.steps.build import BuildReport, BuildStep
from quantailor.steps.checks.folder import alone_in, refuse_busy, refuse_other_result
from quantailor.steps.checks.inputs import asked_bits, check_plan, check_possible, check_texts, require_long_texts, require_ours
from quantailor.steps.checks.limits import constraints_of
from quantailor.steps.checks.verified import require_apart
from quantailor.steps.conversion.convert import ConvertStep, left_out_words, with_base, with_known_base
from quantailor.steps.conversion.projector import Projector, ProjectorWork, projector_bytes
from quantailor.steps.judged.evaluating import check_evals, check_room, require_askable
from quantailor.steps.measure import known_types
from quantailor.steps.options import COMPUTE, DEFAULT_N_CTX, Evals
from quantailor.steps.plan import PlanOptions, PlanResult, choose, plan_result, target_of
from quantailor.steps.probe import DEFAULT_PROBE_CHUNKS, Grouping, ProbeStep
from quantailor.steps.stages import Stages
from quantailor.steps.step import Answer, Screen
from quantailor.steps.verify import VerifyStep
from quantailor.strategy import file as strategy_file

LEAST_SHARE = 0.45
"""Of a file's bits per weight: smaller types are not measured. No plan on probes has been seen to use one below 0.47 (docs/LOG.md)."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What everything that is made of a model rests on, once it was measured."""

    model: str
    """What was asked for, not the base that llama.cpp's converter made of it."""
    base: str | None
    weights: str
    imatrix: str
    """Its file, or "none"."""
    evidence: str | None
    """The name of the probes."""
    parts: Parts
    projector: Projector | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MakingStep(PipelineStep[Answer]):
    """The whole way from a model to files and a verdict, in one directory.

    Of importance matrices "auto" is one that the store has, else one that is computed. Covariances are computed beside it, in
    the same run of the text where both are; where a matrix of the store is taken, so are covariances of the store.
    """

    screen: ClassVar[Screen | None] = "verify"

    output: str
    plan: PlanOptions = field(default_factory=PlanOptions)
    exhaustive: bool = False
    probe_chunks: int = DEFAULT_PROBE_CHUNKS
    group: Grouping | None = None
    """None probes every tensor of a small model, on a GPU, or within a limit (roles first); else roles in quarters of the depth."""
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
    beside: Literal["plain"] | None = None
    """As of `VerifyStep`."""
    evals: Evals = field(default_factory=Evals)
    """As of `VerifyStep`."""
    mmproj: ProjectorWish = "none"
    """What a vision tower or an audio encoder is stored in, which llama.cpp's converter makes a file of; "none" leaves it out."""

    @property
    def wants_projector(self) -> bool:
        return self.mmproj != "none"

    @property
    def takes_turns(self) -> bool:
        """Whether it may run the model, by its options alone."""
        computes = self.imatrix in (COMPUTE, AUTO) or (self.rounding == "compensated" and self.covariances == AUTO)
        return self.verify or self.probed or computes

    def check(self, workspace: Workspace) -> None:
        """What can be read without work: texts, names, the plan. Raises QuantailorError."""
        super(MakingStep, self).check(workspace)
        refuse_busy(self.folder)
        check_texts(self.verify_text)
        check_evals(self.evals)
        if self.mmproj != "none" and self.hub is None:
            upstream.require_tower(Path(self.model))
        claims = self.verify and (self.chunks is None or self.chunks >= judging.MIN_CHUNKS)
        if claims and self.verify_text is not None:
            require_apart(Path(self.text) if self.text else CALIBRATION_TEXT, Path(self.verify_text))
        check_plan(self.plan)
        if self.is_limited and not self.probed:
            limit = "--time" if self.passes is None else "--passes"
            raise OptionError(f"{limit} limits probes, and --basis ranking makes none", remedy="Leave out one of them")
        for name in self.against or ():
            preset_name(name)

    def check_model(self, workspace: Workspace, model: OpenedModel) -> None:
        """Whether any types could meet the plan. Raises StrategyError."""
        self.decided(workspace, model.source).refuse_other_result(model)
        if self.verify:
            check_room(model.source, self.evals)
        for plan in self.plans.values():
            if plan.speed is not None:
                require_speeds(workspace, model)
            check_possible(model, plan, self.candidate_types, has_imatrix=self.imatrix != NONE)

    def refuse_other_result(self, model: OpenedModel) -> None:
        """Raise OutputError where the directory holds the result of something else that may not be replaced."""
        for place, plan in self.plans.items() if not self.overwrite else ():
            asked = target_of(plan)
            if plan.like is not None:
                asked["like"] = preset_name(plan.like)
            limits = constraints_of(plan).as_parameters()
            refuse_other_result(self.folder, place, model.fingerprint, plan.method, asked, limits, rounding=self.rounding)

    def decided(self, workspace: Workspace, source: ModelSource) -> Self:
        """The same with its rounding and its passes decided. Plain rounding goes without covariances, whatever the home has, unless they
        are named.
        """
        step = self.with_usual_limit(source, is_usual=self.probed and self.group is None and self.probe_chunks == DEFAULT_PROBE_CHUNKS)
        if self.compensates(source, runs=self.runs_the_model(workspace)):
            return dataclasses.replace(step, rounding="compensated")
        return dataclasses.replace(step, rounding="plain", covariances=NONE if self.covariances == AUTO else self.covariances)

    @property
    def folder(self) -> Path:
        return Path(self.output)

    @property
    @abstractmethod
    def plans(self) -> Mapping[Path, PlanOptions]:
        """What the plans of all files are asked for, by the places of their strategies."""

    @property
    def plan_options(self) -> PlanOptions:
        """What the plan is asked for: only the types that are measured, where some were named."""
        if self.types and all("=" in text for text in self.plan.allow):
            return dataclasses.replace(self.plan, allow=(*self.plan.allow, ",".join(self.types)))
        return self.plan

    @property
    def candidate_types(self) -> tuple[str, ...]:
        """What is measured: the types asked for; for none all usual ones, and others that pins and limits name.

        Raises TypeUnavailableError for an unknown one, StrategyError for a limit that cannot be read.
        """
        if self.types:
            return known_types(self.types)
        limits = constraints_of(self.plan)
        named = (*usual_types(), *limits.pins.values(), *limits.allowed, *chain(*limits.allowed_by_pattern.values()))
        return tuple(name for name in library.types() if any(fnmatchcase(name, each) for each in named))

    def types_to_measure(self, model: OpenedModel) -> tuple[str, ...]:
        """The candidates; where neither types nor limits are named, without those that are too small for any of the sizes."""
        bits = [asked_bits(model, plan, has_imatrix=self.imatrix != NONE) for plan in self.plans.values()]
        sizes = [each for each in bits if each is not None]
        if self.types or constraints_of(self.plan) != constraints_of(PlanOptions()) or len(sizes) < len(bits):
            return self.candidate_types
        qtypes = library.types()
        return tuple(name for name in self.candidate_types if qtypes[name].bits_per_weight >= LEAST_SHARE * min(sizes))

    @property
    def probed(self) -> bool:
        """Whether it probes."""
        return self.plan.basis != "ranking"

    def run(self, workspace: Workspace, stages: Stages) -> Answer:
        """Convert, calibrate, measure, probe, plan, build, verify. What an earlier run finished is taken as it is.

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

    def make(self, workspace: Workspace, stages: Stages) -> Answer:
        """The parts of `run`, alone in the directory."""
        began = time.monotonic()
        if self.seconds is not None:
            stages.limit(self.seconds)
        for words in self.idle_options():
            stages.warn(words)
        projector = self.make_projector(workspace, stages)
        step = with_base(workspace, self, self.folder / "base.gguf", stages, overwrite=True)
        if step.probed or step.verify:
            with workspace.source(step.model) as source:
                require_predictions(source)
        with workspace.model(step.model, allow_requantize=True) as model:
            step = step.decided(workspace, model.source)
            step.require_usable(workspace, model)
            for words in left_out_words(model.source, has_projector=projector is not None):
                stages.note(f"left out: {words}")
        known, covariances = step.known_imatrix(workspace), step.known_covariances(workspace)
        if (
            step.imatrix == AUTO
            and (passed_over := workspace.imatrices.passed_over(workspace.identity(step.model).fingerprint)) is not None
        ):
            stages.warn(passed_over)
        base = step.find_base(workspace)[0] if step.runs_the_model(workspace) else None
        with workspace.model(step.model, allow_requantize=True) as model:
            parts, types = Parts(step.parts(workspace, model), stages), step.types_to_measure(model)
        weights = base or step.model
        if parts.begin("convert"):
            ConvertStep(model=step.model, output=weights, overwrite=True).run(workspace, stages)
        require_long_texts(workspace, weights, *([step.text] if step.probed else []), *([step.verify_text] if step.verify else []))
        if step.verify:
            require_askable(workspace, weights, step.evals, Path(step.verify_text) if step.verify_text else HELDOUT_TEXT)
        imatrix = known or NONE
        if parts.begin("imatrix"):
            imatrix = step.imatrix_step(weights, step.imatrix_chunks, step.folder / "imatrix.gguf").run(workspace, stages).path
        if parts.begin("calibrate"):
            calibrated = step.calibrate_step(weights, step.imatrix_chunks).run(workspace, stages)
            covariances = calibrated.fingerprint[:16]
            if known is None:
                imatrix = calibrated.imatrix.path
                write_imatrix(read_imatrix(Path(imatrix)), step.folder / "imatrix.gguf", overwrite=True)
        step = dataclasses.replace(step, covariances=covariances or NONE)
        parts.begin("measure")
        step.measure_step(weights, imatrix, types, exhaustive=step.exhaustive).run(workspace, stages)
        probed = None
        if parts.begin("probes") and not step.is_planned:
            step.measure_swapped(workspace, weights, imatrix, stages)
            with workspace.source(weights) as source:
                probes = step.with_time_left(began).probes(weights, imatrix, source)
            probed = probes.run(workspace, stages)
        evidence = None if probed is None else probed.grounds.name
        return step.finish(workspace, stages, Ready(self.model, base, weights, imatrix, evidence, parts, projector))

    def require_usable(self, workspace: Workspace, model: OpenedModel) -> None:
        """Refuse, before any work, what the model, the directory or a named file cannot do for it.

        Raises as `refuse_other_result`, `require_ours`, and the workspace's `require_scored` or `require_runnable`.
        """
        self.refuse_other_result(model)
        require_ours(workspace, model, self.imatrix, self.covariances)
        if self.probed or self.verify:
            workspace.require_scored(model, DEFAULT_N_CTX)
        elif self.runs_the_model(workspace):
            workspace.require_runnable(model)

    def idle_options(self) -> Iterator[str]:
        """Which options this run has no use for, and why: a recipe may hold them, and so they are told and not refused."""
        evals, probes = self.evals, {"--probe-chunks": self.probe_chunks != DEFAULT_PROBE_CHUNKS, "--group": self.group is not None}
        verdict = {
            "--eval": bool(evals.names),
            "--verify-text": self.verify_text is not None,
            "--chunks": self.chunks is not None,
            "--against": self.against is not None,
            "--beside": self.beside is not None,
        }
        unused = {
            "--no-verify makes no verdict": {} if self.verify else verdict,
            "--basis ranking makes no probes": {} if self.probed else probes,
        }
        for why, options in unused.items():
            if named := [option for option, is_given in options.items() if is_given]:
                yield f"no effect of {listed(named)}: {why}"

    def make_projector(self, workspace: Workspace, stages: Stages) -> Projector | None:
        """The projector, where it was asked for; soon done, and so before what is long. Raises as `ProjectorWork.make` does."""
        if self.mmproj == "none":
            return None
        output = self.folder / f"{upstream.MARK}-{self.mmproj.upper()}.gguf"
        return ProjectorWork(Path(self.model), output, self.mmproj, self.conversion, self.overwrite).make(workspace, stages)

    @abstractmethod
    def finish(self, workspace: Workspace, stages: Stages, ready: Ready) -> Answer:
        """Plan, build, verify."""

    def parts(self, workspace: Workspace, model: OpenedModel) -> tuple[str, ...]:
        """The names of its parts, in order, once its rounding is decided."""
        covariances = self.known_covariances(workspace)
        wanted = {
            "convert": self.runs_the_model(workspace) and self.known_base(workspace, model) is None,
            "imatrix": self.known_imatrix(workspace) is None and covariances is not None,
            "calibrate": covariances is None,
            "measure": True,
            "probes": self.probed,
            "plan": True,
            **dict.fromkeys(self.files, True),
            "verify": self.verify,
        }
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def known_base(self, workspace: Workspace, model: OpenedModel) -> Path | None:
        """The model itself where it is a GGUF file, else its conversion in the directory; None where there is none."""
        if isinstance(model.source, GGUFSource):
            return Path(self.model)
        base = self.folder / "base.gguf"
        return base if workspace.holds(base, model.description) else None

    @property
    def calibration_chunks(self) -> int | None:
        """Of the text, for the importance matrix and covariances; None for all."""
        return self.imatrix_chunks

    @property
    def files(self) -> tuple[str, ...]:
        """The parts that each build a file."""
        return ("build",)

    def known_imatrix(self, workspace: Workspace) -> str | None:
        """The importance matrix's file, or "none" where there is to be none; None where it is still to be computed."""
        if self.imatrix == COMPUTE:
            return None
        if self.imatrix != AUTO:
            return self.imatrix
        model = workspace.identity(self.model).fingerprint
        return next((str(workspace.imatrices.path(model, record.fingerprint)) for record in workspace.imatrices.stored(model)), None)

    def known_covariances(self, workspace: Workspace) -> str | None:
        """The covariances to go on with: named ones, "none" for plain rounding, else those that the store has where a matrix of the
        store will do; None where they are still to be computed.
        """
        if self.covariances != AUTO or self.rounding != "compensated":
            return self.covariances
        found = workspace.covariances.default(workspace.identity(self.model).fingerprint) if self.imatrix == AUTO else None
        return None if found is None else found.fingerprint[:16]

    def runs_the_model(self, workspace: Workspace) -> bool:
        """Whether any part needs llama.cpp to run the model."""
        unknown = None in (self.known_imatrix(workspace), self.known_covariances(workspace))
        return self.verify or self.probed or unknown

    def find_base(self, workspace: Workspace) -> tuple[str, bool]:
        """The GGUF to start from, the model itself or its conversion, and whether it is there."""
        with workspace.model(self.model) as model:
            known = self.known_base(workspace, model)
        return (str(self.folder / "base.gguf"), False) if known is None else (str(known), True)

    def probes(self, weights: str, imatrix: str, source: ModelSource) -> ProbeStep:
        """The probes of this model."""
        group = self.group or self.usual_group(source)
        return self.probes_step(weights, imatrix, self.probe_chunks, group, quickly=self.probes_quickly(source))

    @property
    def is_planned(self) -> bool:
        """Whether no plan needs more probes; a limit of time or passes is one of each run, and would allow more every time."""
        return False

    def plan_types(self, workspace: Workspace, ready: Ready, place: Path, plan: PlanOptions, stages: Stages) -> tuple[Strategy, PlanResult]:
        """Plan on its own probes, with the types that were asked for and no others, whatever else was measured; and write the strategy."""
        options = dataclasses.replace(plan, evidence=ready.evidence)
        control = stages.begin("plan")
        with workspace.model(ready.weights) as model:
            matrix = workspace.imatrices.choose(model, ready.imatrix)
            rounding = measuring_rounding(workspace, model, matrix, self.rounding, self.covariances)
            strategy, preset_size, grounds = choose(
                workspace, model, options, imatrix=ready.imatrix, exhaustive=self.exhaustive, rounding=rounding.key
            )
        strategy_file.write(strategy, place, overwrite=True)
        control.advance(1, 1)
        return strategy, plan_result(workspace, strategy, place, preset_size, grounds, base=ready.weights)

    def build(
        self, workspace: Workspace, ready: Ready, strategy: Strategy, planned: PlanResult, output: Path, verdict: Path, stages: Stages
    ) -> BuildReport:
        """Build the file, unless it is there already as that strategy, model and importance matrix gave it.

        `verdict` is where one on an earlier file of that name lies, which goes with that file.
        """
        size, bits = planned.prediction.file_size_bytes, planned.prediction.bits_per_weight
        with workspace.model(ready.weights) as model:
            wanted = recipe(model, strategy, strategy_rounding(workspace, model, strategy))
        if workspace.is_as_written(output, wanted):
            stages.note(f"{output.name} was built before")
            return BuildReport((str(output),), size, bits, size)
        step = BuildStep(
            base=ready.weights,
            strategy=str(planned.path),
            output=str(output),
            overwrite=True,
            allow_requantize=self.allow_requantize,
            verdict=str(verdict),
            compute=self.compute,
        )
        return step.run(workspace, stages)

    def write_recipe(self, workspace: Workspace, ready: Ready, asked: Mapping[str, object]) -> None:
        """Write what the run was told into its directory."""
        with workspace.model(ready.weights, allow_requantize=True) as model:
            write_recipe(self, ready.model, model, asked)

    def verify_step(self, files: Sequence[str], weights: str, imatrix: str, *, output: str = "verdict") -> VerifyStep:
        """The verification of the files, which are all ours."""
        return VerifyStep(
            file=files[0],
            others=tuple(files[1:]),
            is_ladder=len(files) > 1,
            base=weights,
            against=self.against,
            beside=self.beside,
            evals=self.evals,
            text=self.verify_text,
            chunks=self.chunks,
            imatrix=imatrix,
            output=str(self.folder / output),
            overwrite=True,
            compute=self.compute,
        )

    def needs(self, workspace: Workspace) -> Needs:
        """The file to be built counts where its size was asked for and nothing stands in the folder yet."""
        step = with_known_base(workspace, self)
        folder, runs = step.folder, step.runs_the_model(workspace)
        with workspace.model(step.model) as model:
            size, is_checkpoint = ModelSize.of(model.source), not isinstance(model.source, GGUFSource)
            tower = projector_bytes(model.source) if step.wants_projector else 0
            step = step.decided(workspace, model.source)
            calibrates = step.known_covariances(workspace) is None and workspace.covariances.default(model.fingerprint) is None
        needs = step.calibrate_step(step.model, step.imatrix_chunks).needs(workspace) if calibrates else Needs()
        if runs and is_checkpoint and not (folder / "base.gguf").exists():
            needs += Needs(((folder / "base.gguf", size.tensor_bytes),))
        if tower and not any(folder.glob(f"{upstream.MARK}-*.gguf")):
            needs += Needs(((folder / f"{upstream.MARK}.gguf", tower),))
        n_bytes = sum(plan.size_bytes or 0 for plan in step.plans.values())
        if n_bytes and not any(folder.glob("*bpw*.gguf")):
            needs += Needs(((folder / "model.gguf", n_bytes // 2),))
        if step.probed:
            probes = step.probes_step(step.model, AUTO, step.probe_chunks, "tensor")
            needs += dataclasses.replace(probes, mix_chunks=step.probe_chunks, anchors=0).needs(workspace)
        if step.verify:
            likes = tuple(plan.like for plan in step.plans.values() if plan.like)
            named = likes if step.against is None and likes else step.against
            return needs + dataclasses.replace(step, against=named).verify_step([""], step.model, AUTO).needs(workspace)
        return needs + run_layer_by_layer(size, DEFAULT_N_CTX) if runs else needs
