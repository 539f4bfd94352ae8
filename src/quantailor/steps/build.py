"""Build: the file that a strategy describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quantailor import files
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.costs.needs import Needs
from quantailor.evidence.recipes import is_recipe, recipe_of
from quantailor.evidence.roundings import strategy_rounding
from quantailor.evidence.strategies import require_whole, strategy_of
from quantailor.evidence.written import recipe
from quantailor.making import building
from quantailor.records import Strategy
from quantailor.session import AUTO, OpenedModel, Workspace
from quantailor.steps.stages import Stages
from quantailor.steps.step import Screen, StepResult, WeightedStep
from quantailor.store import StrategyRecord
from quantailor.strategy import file as strategy_file


@dataclass(frozen=True, slots=True)
class BuildReport(StepResult):
    """A file that was written."""

    paths: tuple[str, ...]
    size_bytes: int
    bits_per_weight: float
    predicted_size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildStep(WeightedStep[BuildReport], kind="build", result=BuildReport):
    """Write the file that a strategy describes. "auto" is the importance matrix and the rounding that the strategy was made with."""

    units: ClassVar[Mapping[str, str]] = {"build": "bytes"}
    screen: ClassVar[Screen | None] = "build"

    base: str
    strategy: str
    """A file (a strategy's, GGUF, or llama-quantize's tensor types), "stored:FINGERPRINT" of one that the store has, or "preset:NAME"."""
    output: str
    split_max_bytes: int | None = None
    overwrite: bool = False
    allow_requantize: bool = False
    verdict: str | None = None
    """Where a verdict on an earlier file lies, if not beside it: it goes with that file."""

    def check(self, workspace: Workspace) -> None:
        """The strategy, and that the output may be written. Raises StrategyError, OutputError, ModelError."""
        super(BuildStep, self).check(workspace)
        if self.hub is not None:
            return  # what the hub says of the model comes first
        if not is_recipe(self.strategy):
            strategy_of(workspace, self.strategy)
        if self.split_max_bytes is None:
            files.refuse_existing(Path(self.output), overwrite=self.overwrite)
        with workspace.model(self.base, allow_requantize=self.allow_requantize) as model:
            self._planned(workspace, model)

    def run(self, workspace: Workspace, stages: Stages) -> BuildReport:
        """Write it, and record which strategy it was built from."""
        with workspace.model(self.base, allow_requantize=self.allow_requantize) as model:
            strategy, rounding = self._planned(workspace, model)
            for words in (
                *([] if self.imatrix == AUTO else workspace.imatrices.remarks(model, self.imatrix)),
                *workspace.reservations(model),
            ):
                stages.warn(words)
            predicted = building.predict(model.source, strategy, imatrix=rounding.imatrix, split_max_bytes=self.split_max_bytes)
            result = building.build(
                model.source,
                strategy,
                Path(self.output),
                rounding=rounding,
                split_max_bytes=self.split_max_bytes,
                n_threads=self.compute.n_threads,
                control=stages.begin("build"),
                overwrite=self.overwrite,
                fingerprint=model.fingerprint,
                verdict=None if self.verdict is None else Path(self.verdict),
                executor=stages.executor,
            )
            record = StrategyRecord.of(model.fingerprint, strategy.method, strategy_file.dumps(strategy))
            workspace.store.record_strategy(record)
            for path in result.paths:
                workspace.store.record_location("build", record.fingerprint, path)
            workspace.note_written(result.paths[0], recipe(model, strategy, rounding))
            return BuildReport(
                paths=tuple(str(path) for path in result.paths),
                size_bytes=result.size_bytes,
                bits_per_weight=result.bits_per_weight,
                predicted_size_bytes=predicted.file_size_bytes,
            )

    def _planned(self, workspace: Workspace, model: OpenedModel) -> tuple[Strategy, Rounding]:
        """What is written, and how its weights become codes. Raises StrategyError, CovarianceError, ImatrixError, ModelError."""
        workspace.require_intact(model)
        strategy = recipe_of(workspace, model, self.strategy, self.imatrix)
        require_whole(strategy, model)
        rounding = strategy_rounding(workspace, model, strategy, imatrix=self.imatrix, wish=self.rounding, covariances=self.covariances)
        return building.as_rounded(strategy, rounding), rounding

    def needs(self, workspace: Workspace) -> Needs:
        """Room for the file."""
        with workspace.model(self.base) as model:
            strategy, rounding = self._planned(workspace, model)
            predicted = building.predict(model.source, strategy, imatrix=rounding.imatrix, split_max_bytes=self.split_max_bytes)
        return Needs(((Path(self.output), predicted.file_size_bytes),))
