"""A strategy improved with measurements around it: damages linearized anew, and exchanges judged by their true KLD."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from quantailor import files, numerics
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.sensitivity import mean_kld
from quantailor.control import Control
from quantailor.costs.model_size import ModelSize
from quantailor.costs.needs import Needs, run_with_swaps
from quantailor.errors import StrategyError
from quantailor.evidence.damages import probed_tables, require_probes, with_kld
from quantailor.evidence.knowledge import Knowledge
from quantailor.evidence.measurements import Measured, measured_for, model_facts, usual_types
from quantailor.evidence.roundings import strategy_rounding
from quantailor.evidence.strategies import store_strategy, strategy_of
from quantailor.ggml import library
from quantailor.making import building
from quantailor.records import ChunkScore, Estimate, Grounds, Mix, Prediction, Strategy, TensorCells
from quantailor.session import OpenedModel, Workspace
from quantailor.steps.scoring import Scoring, ScoringStep, scoring
from quantailor.steps.stages import Stages
from quantailor.steps.step import Screen, StepResult
from quantailor.strategy import file as strategy_file
from quantailor.strategy.choose import select
from quantailor.strategy.constraints import Constraints
from quantailor.strategy.rules import neighbours

T = TypeVar("T")
GIVE_UP_AFTER = 24
"""Exchanges in a row that gain nothing before the search ends."""


@dataclass(frozen=True, slots=True)
class RefineResult(StepResult):
    """A strategy improved with measurements around it, and what that gained on the texts' chunks."""

    path: str
    prediction: Prediction
    n_chunks: int
    kld_before: Estimate
    kld_after: Estimate
    ln_kld_ratio: Estimate
    """ln(after / before), paired by chunk."""
    n_changed: int
    n_swaps_tried: int
    n_swaps_kept: int
    type_counts: Mapping[str, int]
    grounds: Grounds
    """What the damages that it began with stand on."""


DEFAULT_REFINE_CHUNKS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineStep(ScoringStep[RefineResult], kind="refine", result=RefineResult):
    """Improve a strategy with measurements around it, at the same size."""

    measures: ClassVar[bool] = False
    screen: ClassVar[Screen | None] = "choose"

    strategy: str
    output: str
    chunks: int = DEFAULT_REFINE_CHUNKS
    relinearize: bool = True
    """Probe again with all other tensors at their chosen types, and solve once more."""
    swaps: int = 0
    """Exchanges of bytes between tensors to try, judged by their true KLD; 0 for none."""
    overwrite: bool = False
    evidence: str | None = None
    """The name of the probes to stand on; None takes those that cover most."""

    def run(self, workspace: Workspace, stages: Stages) -> RefineResult:
        """Improve a strategy at its size; the better of old and new is written, by what was measured.

        Raises:
            StrategyError: the model has no probes, or the strategy is another model's.
            OutputError: the output exists and may not be replaced.
        """
        output = Path(self.output)
        files.refuse_existing(output, overwrite=self.overwrite)
        strategy = strategy_of(workspace, self.strategy)
        with workspace.model(self.base) as model:
            rounding = strategy_rounding(workspace, model, strategy, imatrix=self.imatrix, wish=self.rounding, covariances=self.covariances)
            strategy, imatrix = building.as_rounded(strategy, rounding), rounding.imatrix
            measurement = measured_for(workspace, model, rounding)
            known = require_probes(workspace, model, measurement, self.evidence)
            size = building.predict_layout(model.source, strategy, imatrix=imatrix).size_bytes
            with scoring(workspace, model, rounding, self, stages) as at:
                scene = _Scene(at, model, imatrix, measurement, known, _limits(strategy), at.first(self.chunks), size)
                return _refined(scene, strategy, self, stages, output)

    def needs(self, workspace: Workspace) -> Needs:
        """Memory for weights that change."""
        with workspace.source(self.base) as source:
            return run_with_swaps(ModelSize.of(source), self.n_ctx, self.compute.n_gpu_layers)


@dataclass(frozen=True)
class _Scene:
    """What one refinement works with."""

    at: Scoring
    model: OpenedModel
    imatrix: Imatrix | None
    found: Measured
    known: Knowledge
    limits: Constraints
    indexes: Sequence[int]
    size_bytes: int
    """The whole file's, which must not grow."""

    def scores(self, types: Mapping[str, str], control: Control) -> list[ChunkScore]:
        mix = self.mix(types)
        self.at.run([mix], self.indexes, control)
        return [score for score in self.at.workspace.store.mix_scores(self.at.key)[mix.id] if score.index in self.indexes]

    def mix(self, types: Mapping[str, str]) -> Mix:
        return Mix.of({name: type_name for name, type_name in types.items() if name in self.at.scorer.weights})

    def file_size(self, strategy: Strategy) -> int:
        return building.predict_layout(self.model.source, strategy, imatrix=self.imatrix).size_bytes


def _limits(strategy: Strategy) -> Constraints:
    recorded = strategy.parameters.get("constraints", {})
    limits = Constraints.from_parameters(recorded if isinstance(recorded, Mapping) else {})
    pins = {choice.name: choice.type_name for choice in strategy.tensors if choice.pinned}
    # What was set by hand afterwards is an exception to the limits that the plan had.
    bits = {name: library.types()[type_name].bits_per_weight for name, type_name in pins.items()}
    return dataclasses.replace(
        limits,
        pins={**pins, **limits.pins},
        allowed=limits.allowed or usual_types(),
        allowed_by_pattern=_with_exceptions(limits.allowed_by_pattern, {name: (type_name,) for name, type_name in pins.items()}),
        min_bits_by_pattern=_with_exceptions(limits.min_bits_by_pattern, bits, overall=limits.min_bits),
        max_bits_by_pattern=_with_exceptions(limits.max_bits_by_pattern, bits, overall=limits.max_bits),
    )


def _with_exceptions(rules: Mapping[str, T], exceptions: Mapping[str, T], *, overall: T | None = None) -> Mapping[str, T]:
    return {**rules, **exceptions} if rules or overall is not None else rules


def _refined(scene: _Scene, strategy: Strategy, step: RefineStep, stages: Stages, output: Path) -> RefineResult:
    tables = probed_tables(scene.model.source, scene.found, scene.known)
    control = stages.begin("the strategy as it is")
    before = scene.scores(strategy.types, control)
    best, best_scores = strategy, before
    if step.relinearize:
        control = stages.begin("probes around the strategy")
        tables = _relinearized(scene, tables, strategy.types, before, control)
        again = _solved(scene, tables, strategy)
        scores = scene.scores(again.types, control)
        if _ln_ratio(scores, best_scores).value < 0:
            best, best_scores = again, scores
    tried = kept = 0
    if step.swaps:
        best, best_scores, tried, kept = _search(scene, tables, best, best_scores, step.swaps, stages.begin("exchanges"))
    best = _predicted(scene, best)
    store_strategy(scene.at.workspace, best)
    strategy_file.write(best, output, overwrite=step.overwrite)
    if best.prediction is None:
        raise StrategyError("the strategy has no prediction")
    return RefineResult(
        path=str(output),
        prediction=best.prediction,
        n_chunks=len(scene.indexes),
        kld_before=mean_kld(before),
        kld_after=mean_kld(best_scores),
        ln_kld_ratio=_ln_ratio(best_scores, before),
        n_changed=sum(best.types[name] != type_name for name, type_name in strategy.types.items()),
        n_swaps_tried=tried,
        n_swaps_kept=kept,
        type_counts=dict(Counter(best.types.values()).most_common()),
        grounds=scene.known.grounds,
    )


# Linearized anew


def _relinearized(
    scene: _Scene, tables: Sequence[TensorCells], types: Mapping[str, str], here: Sequence[ChunkScore], control: Control
) -> list[TensorCells]:
    """Damages scaled by what one step down costs with all other tensors at their chosen types."""
    steps = {table.name: neighbours.step(table, types[table.name], -1) for table in tables if table.name in scene.at.scorer.weights}
    mixes = {name: scene.mix({**types, name: cell.type_name}) for name, cell in steps.items() if cell}
    scene.at.run(list(mixes.values()), scene.indexes, control)
    scores = scene.at.workspace.store.mix_scores(scene.at.key)
    found = []
    for table in tables:
        cell = steps.get(table.name)
        expected = cell.damage - table.cell(types[table.name]).damage if cell else 0.0
        if cell is None or expected <= 0:
            found.append(table)
            continue
        rows = [score for score in scores[mixes[table.name].id] if score.index in scene.indexes]
        cost = _difference(rows, here)
        # The curve's slope at this mix is common to all tensors and does not change the optimum.
        found.append(neighbours.rescaled(table, max(cost.value, 0.0) / expected, cost.se / expected))
    return found


def _difference(scores: Sequence[ChunkScore], others: Sequence[ChunkScore]) -> Estimate:
    """Mean KLD of one mix less another's, paired by chunk, nats."""
    pairs = list(zip(scores, others, strict=True))
    return numerics.ratio_over_chunks([ours.kld_sum - theirs.kld_sum for ours, theirs in pairs], [ours.n_tokens for ours, _ in pairs])


def _ln_ratio(scores: Sequence[ChunkScore], others: Sequence[ChunkScore]) -> Estimate:
    """ln(KLD / other KLD), paired by chunk."""
    difference, other = _difference(scores, others), mean_kld(others)
    if other.value <= 0:
        return Estimate(0.0)
    ratio = 1 + difference.value / other.value
    return Estimate(math.log(max(ratio, 1e-9)), difference.se / other.value)


def _solved(scene: _Scene, tables: Sequence[TensorCells], strategy: Strategy) -> Strategy:
    """The optimum for these tables at the strategy's size."""
    return select(
        tables,
        model=model_facts(scene.model, tables),
        method="optimal",
        target={"size_bytes": scene.size_bytes},
        constraints=scene.limits,
        inputs=strategy.inputs,
        basis="probes",
        exact_size=scene.file_size,
    )


# Exchanges


def _search(
    scene: _Scene, tables: Sequence[TensorCells], strategy: Strategy, scores: list[ChunkScore], limit: int, control: Control
) -> tuple[Strategy, list[ChunkScore], int, int]:
    """Try exchanges, the most promising first; keep one that gains more than its error. Ends when none does any more."""
    fixed = {choice.name for choice in strategy.tensors if choice.pinned} | _restricted(scene, tables)
    budget = sum(table.cell(strategy.types[table.name]).size_bytes for table in tables)
    tried = kept = in_vain = 0
    seen: set[str] = set()
    allowed = frozenset(scene.limits.allowed) or None
    while tried < limit and in_vain < GIVE_UP_AFTER:
        options = neighbours.exchanges(tables, strategy.types, budget_bytes=budget, fixed=fixed, allowed=allowed)
        fresh = [option for option in options if scene.mix(option.applied(strategy.types)).id not in seen]
        if not fresh:
            break
        types = fresh[0].applied(strategy.types)
        seen.add(scene.mix(types).id)
        found = scene.scores(types, control)
        gain, tried, in_vain = _difference(scores, found), tried + 1, in_vain + 1
        changed = _with_types(strategy, types)
        if gain.value > gain.se and scene.file_size(changed) <= scene.size_bytes:
            strategy, scores, kept, in_vain = changed, found, kept + 1, 0
    return strategy, scores, tried, kept


def _restricted(scene: _Scene, tables: Sequence[TensorCells]) -> set[str]:
    """Tensors that exchanges leave alone: all where constraints speak of several tensors at once or of some by pattern."""
    limits = scene.limits
    complex_limits = limits.ties or limits.budgets or limits.allowed_by_pattern or limits.min_bits_by_pattern or limits.max_bits_by_pattern
    if complex_limits or limits.min_bits is not None or limits.max_bits is not None:
        raise StrategyError(
            "exchanges respect pins and allowed types, but not ties, budgets or limits in bits",
            remedy="Leave out --swaps for this strategy",
        )
    return {table.name for table in tables if table.name not in scene.at.scorer.weights}


def _with_types(strategy: Strategy, types: Mapping[str, str]) -> Strategy:
    return dataclasses.replace(
        strategy,
        tensors=tuple(
            choice
            if choice.type_name == types[choice.name]
            else dataclasses.replace(
                choice, type_name=types[choice.name], reason=f"exchanged from {choice.type_name}: measured KLD is lower", price_range=None
            )
            for choice in strategy.tensors
        ),
    )


def _predicted(scene: _Scene, strategy: Strategy) -> Strategy:
    """With damages from the probes alone, whatever the search worked with, and the exact size."""
    tables = {table.name: table for table in probed_tables(scene.model.source, scene.found, scene.known)}
    tensors = tuple(dataclasses.replace(choice, damage=tables[choice.name].cell(choice.type_name).damage) for choice in strategy.tensors)
    strategy = dataclasses.replace(strategy, tensors=tensors, basis="probes")
    prediction = building.predict(scene.model.source, strategy, imatrix=scene.imatrix)
    return with_kld(dataclasses.replace(strategy, prediction=prediction), scene.known)
