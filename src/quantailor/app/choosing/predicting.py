"""The KLD of a strategy before it is built."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from quantailor.analysis.prediction import predict_kld
from quantailor.errors import StrategyMismatchError
from quantailor.evidence.damages import require_probes
from quantailor.evidence.knowledge import Knowledge
from quantailor.evidence.measurements import measured, measured_for
from quantailor.evidence.strategies import require_fit, strategy_imatrix
from quantailor.ggml import library
from quantailor.making import building
from quantailor.records import Estimate, Prediction, Strategy
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


def predict(workspace: Workspace, base: Path, strategy: Strategy, *, name: str = "") -> PredictResult:
    """Predict what a strategy's file will be worth, with 80 % and 95 % intervals, and where the damage comes from.

    `name` is what the result calls the strategy.

    Raises:
        StrategyError: the model has no probes, or the strategy is another model's or names a type that was not measured.
    """
    with workspace.model(base) as model:
        require_fit(strategy, model)
        imatrix = strategy_imatrix(workspace, model, strategy, AUTO)
        measurement = measured(workspace, model, AUTO) if imatrix is None else measured_for(workspace, model, imatrix)
        known = require_probes(workspace, model, measurement)
        contributions = _contributions(model, known, strategy)
        damage = math.fsum(item.damage.value for item in contributions)
        predicted = predict_kld(known.curve, damage)
        prediction = dataclasses.replace(
            building.predict(model.source, strategy, imatrix=imatrix),
            damage=damage,
            basis="probes",
            kld_nats=predicted.kld_nats,
            kld_interval_nats=predicted.interval(0.95),
        )
        kinds = [point.kind for point in known.curve.points]
        return PredictResult(name, prediction, predicted.interval(0.80), contributions, kinds.count("memory"), kinds.count("file"))


def _contributions(model: OpenedModel, known: Knowledge, strategy: Strategy) -> tuple[Contribution, ...]:
    qtypes, found = library.types(), []
    for tensor in quantizable_tensors(model.source):
        type_name = strategy.types.get(tensor.name, tensor.type_name)
        error = known.errors.get(tensor.name, {}).get(type_name)
        if error is None:
            raise StrategyMismatchError(
                f"{tensor.name} has not been measured at {type_name}", remedy=f"Run `quantailor measure {model.source.location}`"
            )
        found.append((tensor.name, type_name, known.damage(tensor, qtypes[type_name], error)))
    total = math.fsum(damage.value for _, _, damage in found) or 1.0
    rows = [Contribution(name, type_name, damage, damage.value / total) for name, type_name, damage in found]
    return tuple(sorted(rows, key=lambda row: -row.damage.value))
