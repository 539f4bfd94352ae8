"""What probes say about tables and strategies."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping

from quantailor.analysis.expected import expected_alphas, expected_damage
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.prediction import Damage, PredictedKld, predict_kld
from quantailor.errors import StrategyError
from quantailor.evidence.grounds import command_line, imatrix_option, rounding_option, what_tells
from quantailor.evidence.knowledge import Knowledge, load_knowledge
from quantailor.evidence.measurements import Measured
from quantailor.ggml import library
from quantailor.models.abilities import require_predictions
from quantailor.models.source import ModelSource
from quantailor.present.words import EARLY, figure, plural
from quantailor.records import Basis, Cell, Prediction, Strategy, TensorCells
from quantailor.session import OpenedModel, Workspace


def require_probes(workspace: Workspace, model: OpenedModel, measurement: Measured, evidence: str | None = None) -> Knowledge:
    """What probes say beside these weight errors.

    Raises StrategyError where nothing was probed or there is no such evidence, UnsupportedModelError where nothing can be.
    """
    require_predictions(model.source)
    known = load_knowledge(workspace, model, measurement.key, measurement.cells, evidence=evidence)
    if known is None:
        require_told(workspace, model, measurement)
        key = measurement.key
        options = (*imatrix_option(workspace, model, key.imatrix), *rounding_option(workspace, model, key.swapped))
        command = command_line(workspace, "probe", model.source.location, *options)
        raise StrategyError(f"{model.source.name} has not been probed", remedy=f"Run `{command}` first")
    return known


def require_told(workspace: Workspace, model: OpenedModel, measurement: Measured) -> None:
    """Raise StrategyError where there are probes, but the errors that they swapped in are not known in the measurement's metric."""
    command = what_tells(workspace, model, measurement.key)
    if command is not None:
        raise StrategyError(
            f"what the probes of {model.source.name} swapped in is not measured with input covariances, so they cannot be used yet",
            remedy=f"Run `{command}`, which runs no model, or plan without probes (--basis ranking)",
        )


def kld_of(known: Knowledge, damage: Damage) -> tuple[PredictedKld | None, str | None]:
    """The KLD that the curve predicts for the damage of a mix, or why it is too early to state one (METHODS 4)."""
    predicted = predict_kld(known.curve, damage)
    if not predicted.is_early:
        return predicted, None
    low, high = predicted.interval(0.95)
    n_mixes = known.grounds.n_mixes
    span = f"after {plural(n_mixes, 'whole mix')} the 95 % interval would span a factor of {figure(high / low, 2)}" if n_mixes else ""
    return None, f"{EARLY}: {span or 'no whole mixes were measured'}"


def why_early(known: Knowledge) -> str | None:
    """Why no KLD can be stated for a mix like those that were measured; None where one can."""
    damages = [point.damage_nats for point in known.curve.points if point.kind == "memory"]
    return kld_of(known, Damage(statistics.median(damages or [1.0])))[1]


def with_kld_of(prediction: Prediction, known: Knowledge | None, types: Mapping[str, str]) -> Prediction:
    """A mix's prediction with the KLD of its damage and the 95 % interval, or why it has none; as it is without probes."""
    if known is None:
        return prediction
    found, reason = kld_of(known, dataclasses.replace(known.mix(types), nats=prediction.damage))
    kld, interval = (None, None) if found is None else (found.kld_nats, found.interval(0.95))
    return dataclasses.replace(prediction, basis="probes", kld_nats=kld, kld_interval_nats=interval, no_prediction=reason)


def probed_tables(source: ModelSource, found: Measured, known: Knowledge) -> list[TensorCells]:
    """The rules' input with the damages that probes give, nats."""
    qtypes = library.types()
    return _with_damages(found, lambda table, cell: known.damage(source.tensor(table.name), qtypes[cell.type_name], cell.error).value)


def expected_tables(source: ModelSource, found: Measured, imatrix: Imatrix | None) -> list[TensorCells]:
    """The rules' input with the damages that are expected where nothing was probed, nats."""
    qtypes, alphas = library.types(), expected_alphas(source, imatrix)
    return _with_damages(found, lambda table, cell: expected_damage(table.role, qtypes[cell.type_name], cell.error, alphas[table.name]))


def _with_damages(found: Measured, damage: Callable[[TensorCells, Cell], float]) -> list[TensorCells]:
    return [
        dataclasses.replace(table, cells=tuple(cell.with_damage(damage(table, cell)) for cell in table.cells)) for table in found.tables
    ]


def with_kld(strategy: Strategy, known: Knowledge | None) -> Strategy:
    """The strategy with its predicted KLD and 95 % interval, where probes tell."""
    if strategy.prediction is None:
        return strategy
    return dataclasses.replace(strategy, prediction=with_kld_of(strategy.prediction, known, strategy.types))


def basis_of(known: Knowledge | None) -> Basis:
    """What damage figures rest on."""
    return "ranking only" if known is None else "probes"


def inputs_of(found: Measured, known: Knowledge | None) -> dict[str, str | int | float | None]:
    """Where a strategy's figures came from, for its record."""
    inputs: dict[str, str | int | float | None] = {"imatrix": found.key.imatrix or None, "measurement": found.key.settings}
    if found.key.rounding:
        inputs["rounding"] = "compensated" if found.key.swapped else "plain"
        inputs["covariances"] = found.key.covariances
    if found.text_sha256 is not None:
        inputs["imatrix_text_sha256"] = found.text_sha256
    if known is not None:
        found_on = known.grounds
        inputs |= {
            "probes": known.key.run,
            "probe_imatrix": found_on.imatrix,
            "probe_text": found_on.text,
            "probe_text_sha256": known.key.corpus,
            "probe_chunks": found_on.n_chunks,
            "probed_tensors": f"{found_on.n_probed} of {found_on.n_tensors}",
            "mixes": found_on.n_mixes,
        }
    return inputs
