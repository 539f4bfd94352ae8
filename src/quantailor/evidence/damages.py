"""What probes say about tables and strategies."""

from __future__ import annotations

import dataclasses

from quantailor.analysis.prediction import predict_kld
from quantailor.errors import StrategyError
from quantailor.evidence.knowledge import Knowledge, load_knowledge
from quantailor.evidence.measurements import Measured
from quantailor.ggml import library
from quantailor.models.abilities import require_predictions
from quantailor.models.source import ModelSource
from quantailor.records import Basis, Strategy, TensorCells
from quantailor.session import OpenedModel, Workspace


def require_probes(workspace: Workspace, model: OpenedModel, measurement: Measured) -> Knowledge:
    """What probes say beside these weight errors.

    Raises StrategyError where nothing was probed, UnsupportedModelError where nothing can be.
    """
    require_predictions(model.source)
    known = load_knowledge(workspace, model, measurement.key.imatrix, measurement.cells)
    if known is None:
        raise StrategyError(f"{model.source.name} has not been probed", remedy=f"Run `quantailor probe {model.source.location}` first")
    return known


def probed_tables(source: ModelSource, found: Measured, known: Knowledge) -> list[TensorCells]:
    """The rules' input with the damages that probes give, nats."""
    qtypes = library.types()
    return [
        dataclasses.replace(
            table,
            cells=tuple(
                dataclasses.replace(cell, damage=known.damage(source.tensor(table.name), qtypes[cell.type_name], cell.weighted_mse).value)
                for cell in table.cells
            ),
        )
        for table in found.tables
    ]


def with_kld(strategy: Strategy, known: Knowledge | None) -> Strategy:
    """The strategy with its predicted KLD and 95 % interval, where probes tell."""
    if known is None or strategy.prediction is None:
        return strategy
    predicted = predict_kld(known.curve, strategy.prediction.damage)
    prediction = dataclasses.replace(
        strategy.prediction, kld_nats=predicted.kld_nats, kld_interval_nats=predicted.interval(0.95), basis="probes"
    )
    return dataclasses.replace(strategy, prediction=prediction)


def basis_of(known: Knowledge | None) -> Basis:
    """What damage figures rest on."""
    return "ranking only" if known is None else "probes"


def inputs_of(found: Measured, known: Knowledge | None) -> dict[str, str | int | float | None]:
    """Where a strategy's figures came from, for its record."""
    inputs: dict[str, str | int | float | None] = {"imatrix": found.key.imatrix or None, "measurement": found.key.settings}
    if known is not None:
        inputs |= {"probes": known.key.run, "probe_chunks": known.n_chunks}
    return inputs
