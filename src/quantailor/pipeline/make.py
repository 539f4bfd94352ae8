"""`make`: the whole way from a model to one file and its verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantailor.pipeline.whole_way import MakingStep, Ready
from quantailor.session import NONE, Workspace, plain_label
from quantailor.steps.build import BuildReport
from quantailor.steps.conversion.projector import Projector
from quantailor.steps.plan import PlanOptions, PlanResult, target_of
from quantailor.steps.stages import Stages
from quantailor.steps.step import StepResult
from quantailor.steps.verify import VerifyResult

_TARGET_OPTIONS = {"size_bytes": "size", "bits_per_weight": "bpw", "like": "like", "kld_nats": "kld"}


@dataclass(frozen=True, slots=True)
class MakeResult(StepResult):
    """Everything `make` left in its directory."""

    base: str | None
    """None where nothing ran the model: weights were measured and built from the checkpoint itself."""
    imatrix: str | None
    rounding: str
    """"plain" or "compensated"."""
    covariances: str | None
    """Those that errors are compensated with: the beginning of their fingerprint, or their file; None for plain rounding."""
    strategy: str
    build: BuildReport
    plan: PlanResult
    verify: VerifyResult | None
    mmproj: Projector | None = None
    """The vision tower or audio encoder as a file of its own, where it was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeStep(MakingStep[MakeResult], kind="make", result=MakeResult):
    """One file."""

    @property
    def plans(self) -> Mapping[Path, PlanOptions]:
        """The one plan."""
        return {self.folder / "strategy.yaml": self.plan_options}

    def finish(self, workspace: Workspace, stages: Stages, ready: Ready) -> MakeResult:
        """Plan, build, verify."""
        ready.parts.begin("plan")
        ((place, plan),) = self.plans.items()
        strategy, planned = self.plan_types(workspace, ready, place, plan, stages)
        ready.parts.begin("build")
        name = f"{plain_label(ready.model)}-{planned.prediction.bits_per_weight:.2f}bpw.gguf"
        built = self.build(workspace, ready, strategy, planned, self.folder / name, self.folder / "verdict", stages)
        verified = None
        if ready.parts.begin("verify"):
            verified = self.verify_step(built.paths[:1], ready.weights, ready.imatrix).run(workspace, stages)
        self.write_recipe(
            workspace, ready, {_TARGET_OPTIONS[key]: value for key, value in target_of(self.plan).items() if key in _TARGET_OPTIONS}
        )
        return MakeResult(
            base=ready.base,
            imatrix=None if ready.imatrix == NONE else ready.imatrix,
            rounding=self.rounding,
            covariances=self.covariances if self.rounding == "compensated" else None,
            strategy=str(place),
            build=built,
            plan=planned,
            verify=verified,
            mmproj=ready.projector and ready.projector.beside(built.paths[0]),
        )
