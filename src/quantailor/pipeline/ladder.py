"""`make --sizes`: several sizes of one model from one measurement, with one verdict, one graph and one card."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantailor.errors import ModelError, OptionError, OutputError, StrategyError, TypeUnavailableError
from quantailor.evidence.presets import preset_of
from quantailor.evidence.strategies import embedded_strategy
from quantailor.files import write_text
from quantailor.ggml.reference import preset_name
from quantailor.pipeline.ladder_card import CARD, Shown, is_as_written, ladder_card
from quantailor.pipeline.whole_way import MakingStep, Ready
from quantailor.present import words
from quantailor.records import Strategy
from quantailor.session import NONE, Workspace, plain_label
from quantailor.steps.build import BuildReport
from quantailor.steps.conversion.projector import Projector, projectors_beside
from quantailor.steps.plan import PlanOptions, PlanResult, Target, plan_result
from quantailor.steps.stages import Stages
from quantailor.steps.step import StepResult
from quantailor.steps.verify import VerifyResult
from quantailor.strategy import file as strategy_file

_BITS = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*bpw\s*", re.IGNORECASE)
NAME = "{model}-{size}"
VERDICT = "ladder"
"""The stem of the table and the graph of all files."""


@dataclass(frozen=True, slots=True)
class Rung:
    """One file of a ladder."""

    size: str
    """As it was asked for."""
    file: str
    build: BuildReport
    plan: PlanResult


@dataclass(frozen=True, slots=True)
class LadderResult(StepResult):
    """Everything that `make --sizes` left in its directory."""

    base: str | None
    """None where nothing ran the model."""
    imatrix: str | None
    rounding: str
    """"plain" or "compensated"."""
    rungs: tuple[Rung, ...]
    """The smallest file first."""
    verify: VerifyResult | None
    """One verdict on all files."""
    card: str
    """The README.md of the directory."""
    mmproj: Projector | None = None
    """The vision tower or audio encoder as a file of its own, where it was asked for."""


def size_asked(text: str) -> tuple[str, Target]:
    """A size of a ladder and how it is called: a preset's name, bits such as 4.0bpw, or bytes such as 6.5GiB. Raises OptionError."""
    nothing = Target(size_bytes=None, bits_per_weight=None, like=None, kld_nats=None)
    if match := _BITS.fullmatch(text):
        return f"{float(match[1]):g}bpw", {**nothing, "bits_per_weight": float(match[1])}
    try:
        preset = preset_name(text.strip())
        return preset, {**nothing, "like": preset}
    except TypeUnavailableError as error:
        if not text.strip()[:1].isdigit():
            remedy = f"Write a preset, bits such as 4.0bpw, or bytes such as 6.5GiB. {error.remedy or ''}".strip()
            raise OptionError(f"{text!r} is not a size for --sizes", remedy=remedy) from None
    return re.sub(r"\s", "", text), {**nothing, "size_bytes": words.parse_size(text)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderStep(MakingStep[LadderResult], kind="ladder", result=LadderResult):
    """Several files."""

    sizes: tuple[str, ...]
    name: str = NAME
    """What files are called: {model}, {size} (a preset's name; else bits and the preset of the type that most weights have), {bits}."""
    base_model: str | None = None
    """The original model's name on the hub for the card, ORG/NAME; None takes what the model's own metadata say."""

    @property
    def asked(self) -> Mapping[str, PlanOptions]:
        """What the plan of each size is asked for. Raises OptionError."""
        found: dict[str, PlanOptions] = {}
        for text in self.sizes:
            label, target = size_asked(text)
            plan = dataclasses.replace(self.plan_options, **target)
            if plan in found.values():
                raise OptionError(f"the size {label} is given twice", remedy="Name every size once")
            found[label] = plan
        return found

    @property
    def plans(self) -> Mapping[Path, PlanOptions]:
        """The plans of all sizes."""
        return {self.folder / "strategies" / f"{label}.yaml": plan for label, plan in self.asked.items()}

    @property
    def files(self) -> tuple[str, ...]:
        """The parts that each build a file."""
        return tuple(f"build {label}" for label in self.asked)

    def check(self, workspace: Workspace) -> None:
        """The sizes and the names. Raises QuantailorError."""
        if not self.sizes or any(getattr(self.plan, key) is not None for key in Target.__annotations__):
            raise OptionError("a ladder takes its sizes from --sizes alone", remedy="Leave out --size, --bpw, --like and --kld")
        if self.beside is not None:
            raise OptionError("--beside plain is about one file", remedy="Run `quantailor verify FILE --base BASE --beside plain`")
        names = {self.file_name("model", each, 1.0 + number, "Q4_K_M") for number, each in enumerate(self.asked.values())}
        if len(names) < len(self.sizes):
            raise OptionError(f"--name {self.name} gives several files the same name", remedy="Use {size} or {bits} in it")
        super(LadderStep, self).check(workspace)

    def file_name(self, model: str, plan: PlanOptions, bits_per_weight: float, preset: str) -> str:
        """What a file is called. Raises OptionError for a pattern that cannot be filled in."""
        bits = f"{bits_per_weight:.2f}bpw"
        try:
            found = self.name.format_map({"model": model, "size": plan.like or f"{bits}-{preset}", "bits": bits})
        except (LookupError, ValueError, AttributeError):
            found = ""
        if not found or "/" in found or "\\" in found:
            raise OptionError(
                f"--name {self.name!r} is not a pattern for a file name", remedy="Write for example {model}-{size} or {model}-{bits}"
            )
        return f"{found.removesuffix('.gguf')}.gguf"

    def finish(self, workspace: Workspace, stages: Stages, ready: Ready) -> LadderResult:
        """Plan and build every size, then judge all of them at once. Raises OutputError for a file that is somebody else's."""
        ready.parts.begin("plan")
        (self.folder / "strategies").mkdir(exist_ok=True)
        planned = [
            (label, *self.planned(workspace, ready, self.folder / "strategies" / f"{label}.yaml", plan, stages))
            for label, plan in self.asked.items()
        ]
        places = self.places(workspace, ready, {label: (strategy, found) for label, strategy, found in planned})
        rungs = []
        for label, strategy, found in planned:
            ready.parts.begin(f"build {label}")
            place = places[label]
            built = self.build(workspace, ready, strategy, found, place, self.verdict_of(place), stages)
            rungs.append(Rung(label, str(place), built, found))
        rungs.sort(key=lambda rung: rung.build.size_bytes)
        verified = None
        if ready.parts.begin("verify"):
            paths = [rung.file for rung in rungs]
            verified = self.verify_step(paths, ready.weights, ready.imatrix, output=VERDICT).run(workspace, stages)
            if len(paths) > 1:
                for path in paths:  # one on each file, for whoever looks at that file alone; all chunks are scored already
                    (self.folder / "verdicts").mkdir(exist_ok=True)
                    one = self.verify_step([path], ready.weights, ready.imatrix, output=str(self.verdict_of(Path(path))))
                    one.run(workspace, stages)
        self.write_recipe(workspace, ready, {"sizes": list(self.sizes), "name": self.name, "base-model": self.base_model})
        return LadderResult(
            base=ready.base,
            imatrix=None if ready.imatrix == NONE else ready.imatrix,
            rounding=self.rounding,
            rungs=tuple(rungs),
            verify=verified,
            card=self.write_card(workspace, ready, rungs, verified, stages),
            mmproj=ready.projector and ready.projector.beside(rungs[len(rungs) // 2].file),
        )

    @property
    def is_planned(self) -> bool:
        """Whether earlier runs within a limit planned all sizes."""
        return self.is_limited and not self.overwrite and all(place.exists() for place in self.plans)

    def planned(self, workspace: Workspace, ready: Ready, place: Path, plan: PlanOptions, stages: Stages) -> tuple[Strategy, PlanResult]:
        """What an earlier run planned with the same importance matrix and covariances, else a new plan.

        More probes than there were then change nothing: a file that is there, and its name, stay.
        """
        if place.exists() and not self.overwrite:
            there = strategy_file.read(place)
            with workspace.model(ready.weights) as model:
                matrix = workspace.imatrices.choose(model, ready.imatrix)
            seen = (None if matrix is None else matrix.fingerprint, self.covariances if self.rounding == "compensated" else None)
            recorded = (there.inputs.get("imatrix"), there.inputs.get("covariances") if self.rounding == "compensated" else None)
            if there.prediction is not None and seen == recorded:
                stages.note(f"{place.name} was planned before")
                preset_size = there.target.get("size_bytes") if "like" in there.target else None
                size = preset_size if isinstance(preset_size, int) else None
                return there, plan_result(workspace, there, place, size, None, base=ready.weights)
        return self.plan_types(workspace, ready, place, plan, stages)

    def verdict_of(self, file: Path) -> Path:
        """The stem of the verdict on one file."""
        return self.folder / "verdicts" / file.stem

    def places(self, workspace: Workspace, ready: Ready, planned: Mapping[str, tuple[Strategy, PlanResult]]) -> Mapping[str, Path]:
        """Where each file goes. Raises OutputError where another file has that name, OptionError where two sizes have one name."""
        found, asked = dict[str, Path](), self.asked
        with workspace.model(ready.weights) as model:
            stem = re.sub(r"[^\w.-]+", "-", model.source.name, flags=re.ASCII).strip("-.") or plain_label(ready.model)
            for label, (strategy, result) in planned.items():
                name = self.file_name(stem, asked[label], result.prediction.bits_per_weight, preset_of(model.source, strategy.types))
                place = found[label] = self.folder / name
                if place in [path for other, path in found.items() if other != label]:
                    raise OptionError(f"two sizes of the ladder are both {name}", remedy="Ask for sizes that lie further apart")
                if place.exists() and not self.overwrite and not _is_of(workspace, place, strategy):
                    raise OutputError(
                        f"{place} already exists and is not a file of this ladder", remedy="Move it away, or give --force to replace it"
                    )
        return found

    def write_card(self, workspace: Workspace, ready: Ready, rungs: list[Rung], verified: VerifyResult | None, stages: Stages) -> str:
        """The card of all files; one that was edited stays, unless it may be replaced."""
        place = self.folder / CARD
        with workspace.model(ready.weights, allow_requantize=True) as model:
            shown = [Shown(rung.size, Path(rung.file).name, rung.build.size_bytes, rung.plan.prediction) for rung in rungs]
            text = ladder_card(
                model.source,
                shown,
                None if verified is None else verified.verdict,
                graph=f"{VERDICT}.png",
                rounding=self.rounding,
                uses_imatrix=ready.imatrix != NONE,
                repo_id=self.base_model,
                projectors=projectors_beside(model.source, self.folder),
            )
        if place.exists() and not self.overwrite and not is_as_written(place):
            stages.warn(f"{place} was changed after it was written and is left as it is; --force replaces it.")
        else:
            write_text(place, text)
        return str(place)


def _is_of(workspace: Workspace, file: Path, strategy: Strategy) -> bool:
    """Whether a file was built for the same model and size, by this plan or by one that rested on less."""
    try:
        there = embedded_strategy(workspace, file)
    except (ModelError, StrategyError):
        return False
    return there is not None and (there.model_fingerprint, there.target) == (strategy.model_fingerprint, strategy.target)
