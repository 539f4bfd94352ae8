"""The KLD of a strategy before it is built."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from quantailor.errors import StrategyMismatchError
from quantailor.evidence.damages import kld_of, require_probes, with_kld_of
from quantailor.evidence.grounds import measure_command
from quantailor.evidence.knowledge import Knowledge
from quantailor.evidence.measurements import Measured, measured, measured_for
from quantailor.evidence.roundings import strategy_rounding
from quantailor.evidence.speeds import known_speeds, predicted_speed
from quantailor.evidence.strategies import require_whole
from quantailor.ggml import library
from quantailor.making import building
from quantailor.records import Estimate, Grounds, PredictedSpeed, Prediction, RoundingWish, Strategy
from quantailor.session import AUTO, OpenedModel, Workspace, quantizable_tensors


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one tensor adds to a strategy's sum of damages, nats."""

    tensor: str
    type_name: str
    damage: Estimate
    share: float


@dataclass(frozen=True, slots=True)
class PredictResult:
    """A strategy's KLD before it is built."""

    strategy: str
    prediction: Prediction
    kld_interval_80_nats: tuple[float, float] | None
    contributions: tuple[Contribution, ...]
    """The largest first."""
    n_mixes: int
    n_anchors: int
    grounds: Grounds
    speed: PredictedSpeed | None = None
    """On this machine; None where its types were not timed."""


def predict(
    workspace: Workspace,
    base: Path,
    strategy: Strategy,
    *,
    name: str = "",
    evidence: str | None = None,
    rounding: RoundingWish = "auto",
    covariances: str = AUTO,
) -> PredictResult:
    """Predict what a strategy's file will be worth, with 80 % and 95 % intervals, and where the damage comes from.

    Args:
        workspace: the probes.
        base: the model.
        strategy: what is to be built.
        name: what the result calls the strategy.
        evidence: the name of the probes to stand on; None takes those that cover most.
        rounding: how its file is rounded; "auto" as the strategy records.
        covariances: of the inputs, for compensated rounding: "auto", "none", or a file.

    Raises:
        StrategyError: the model has no probes or not this evidence, or the strategy is another model's or names a type that was
            not measured.
    """
    with workspace.model(base) as model:
        require_whole(strategy, model)
        how = strategy_rounding(workspace, model, strategy, wish=rounding, covariances=covariances)
        strategy, imatrix = building.as_rounded(strategy, how), how.imatrix
        # A strategy that tells nothing of its importance matrix was written by hand or by another program.
        is_told = imatrix is not None or "imatrix" in strategy.inputs
        which = how.bytes_key or "plain"
        measurement = measured_for(workspace, model, how) if is_told else measured(workspace, model, AUTO, rounding=which)
        known = require_probes(workspace, model, measurement, evidence)
        prediction = building.predict(model.source, strategy, imatrix=imatrix)  # and a type that a tensor cannot take is refused
        contributions = _contributions(workspace, model, measurement, known, strategy)
        damage = math.fsum(item.damage.value for item in contributions)
        prediction = dataclasses.replace(prediction, damage=damage)
        found, _ = kld_of(known, known.mix(strategy.types))
        kinds = [point.kind for point in known.curve.points]
        return PredictResult(
            strategy=name,
            prediction=with_kld_of(prediction, known, strategy.types),
            kld_interval_80_nats=None if found is None else found.interval(0.80),
            contributions=contributions,
            n_mixes=kinds.count("memory"),
            n_anchors=kinds.count("file"),
            grounds=known.grounds,
            speed=predicted_speed(known_speeds(workspace, model.source), model.source, strategy.types),
        )


def _contributions(
    workspace: Workspace, model: OpenedModel, measurement: Measured, known: Knowledge, strategy: Strategy
) -> tuple[Contribution, ...]:
    qtypes, found = library.types(), []
    for tensor in quantizable_tensors(model.source):
        type_name = strategy.types.get(tensor.name, tensor.type_name)
        error = known.errors.get(tensor.name, {}).get(type_name)
        if error is None:
            command = measure_command(workspace, model, measurement.key)
            raise StrategyMismatchError(f"{tensor.name} has not been measured at {type_name}", remedy=f"Run `{command}`")
        found.append((tensor.name, type_name, known.damage(tensor, qtypes[type_name], error)))
    total = math.fsum(damage.value for _, _, damage in found) or 1.0
    rows = [Contribution(name, type_name, damage, damage.value / total) for name, type_name, damage in found]
    return tuple(sorted(rows, key=lambda row: -row.damage.value))
