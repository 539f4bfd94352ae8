"""Build: the file that a strategy describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.costs.needs import Needs
from quantailor.errors import StrategyError, StrategyMismatchError
from quantailor.ggml import library
from quantailor.making import building
from quantailor.records import Strategy
from quantailor.session import AUTO, OpenedModel, Workspace
from quantailor.steps.stages import Stages
from quantailor.steps.step import Screen, StepResult, WeightedStep
from quantailor.store import StrategyRecord
from quantailor.strategy import file as strategy_file

STORED = "stored:"


@dataclass(frozen=True, slots=True)
class BuildReport(StepResult):
    """A file that was written."""

    paths: tuple[str, ...]
    size_bytes: int
    bits_per_weight: float
    predicted_size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildStep(WeightedStep[BuildReport], kind="build", result=BuildReport):
    """Write the file that a strategy describes. "auto" is the importance matrix that the strategy was made with."""

    units: ClassVar[Mapping[str, str]] = {"build": "bytes"}
    screen: ClassVar[Screen | None] = "build"

    base: str
    strategy: str
    """A file, or "stored:FINGERPRINT" of one that the store has."""
    output: str
    split_max_bytes: int | None = None
    overwrite: bool = False
    allow_requantize: bool = False

    def run(self, workspace: Workspace, stages: Stages) -> BuildReport:
        """Write it, and record which strategy it was built from."""
        strategy = strategy_of(workspace, self.strategy)
        with workspace.model(self.base, allow_requantize=self.allow_requantize) as model:
            imatrix = strategy_imatrix(workspace, model, strategy, self.imatrix)
            predicted = building.predict(model.source, strategy, imatrix=imatrix, split_max_bytes=self.split_max_bytes)
            result = building.build(
                model.source,
                strategy,
                Path(self.output),
                imatrix=imatrix,
                split_max_bytes=self.split_max_bytes,
                n_threads=self.compute.n_threads,
                control=stages.begin("build"),
                overwrite=self.overwrite,
            )
            record = StrategyRecord.of(model.fingerprint, strategy.method, strategy_file.dumps(strategy))
            workspace.store.record_strategy(record)
            for path in result.paths:
                workspace.store.record_location("build", record.fingerprint, path)
            return BuildReport(
                paths=tuple(str(path) for path in result.paths),
                size_bytes=result.size_bytes,
                bits_per_weight=result.bits_per_weight,
                predicted_size_bytes=predicted.file_size_bytes,
            )

    def needs(self, workspace: Workspace) -> Needs:
        """Room for the file."""
        strategy = strategy_of(workspace, self.strategy)
        with workspace.model(self.base) as model:
            imatrix = strategy_imatrix(workspace, model, strategy, self.imatrix)
            predicted = building.predict(model.source, strategy, imatrix=imatrix, split_max_bytes=self.split_max_bytes)
        return Needs(((Path(self.output), predicted.file_size_bytes),))


def strategy_of(workspace: Workspace, reference: str) -> Strategy:
    """The strategy that a step names: a file, or "stored:FINGERPRINT". Raises StrategyError where there is none."""
    if not reference.startswith(STORED):
        return strategy_file.read(reference, known_types=library.types())
    record = workspace.store.strategy(reference.removeprefix(STORED))
    if record is None:
        raise StrategyError(f"the store has no strategy {reference.removeprefix(STORED)[:12]}", remedy="Give its file")
    return strategy_file.loads(record.document, name="a stored strategy")


def store_strategy(workspace: Workspace, strategy: Strategy) -> str:
    """Record a strategy; what steps call it."""
    record = StrategyRecord.of(strategy.model_fingerprint, strategy.method, strategy_file.dumps(strategy))
    workspace.store.record_strategy(record)
    return f"{STORED}{record.fingerprint}"


def strategy_imatrix(workspace: Workspace, model: OpenedModel, strategy: Strategy, wanted: str) -> Imatrix | None:
    """The importance matrix to build with: "auto" is the one the strategy was made with, if any."""
    recorded = strategy.inputs.get("imatrix")
    if wanted == AUTO:
        return workspace.imatrix(model.fingerprint, str(recorded)) if recorded else None
    return workspace.choose_imatrix(model, wanted)


def require_fit(strategy: Strategy, model: OpenedModel) -> None:
    """Raise StrategyMismatchError where a strategy was made for another model."""
    if strategy.model_fingerprint != model.fingerprint:
        raise StrategyMismatchError(
            f"the strategy was made for {strategy.model_name or strategy.model_fingerprint[:12]}, not for {model.source.name}",
            remedy="Give the base it was made for",
        )


def embedded_strategy(workspace: Workspace, path: Path) -> Strategy | None:
    """The strategy that a file we built carries; None in other files. Raises ModelError where the file cannot be read."""
    with workspace.source(path) as source:
        text = source.metadata.get("quantailor.strategy")
        return None if text is None else strategy_file.loads(str(text.value), name=f"the strategy in {path.name}")
