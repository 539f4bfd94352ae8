"""Whole mixes, in memory and as files: what the curve from damages to KLD is fitted to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from quantailor import build as building
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.control import Control
from quantailor.errors import InfeasibleError
from quantailor.ggml import library
from quantailor.records import Mix, Strategy, TensorCells, TensorChoice
from quantailor.service import tasks
from quantailor.service.knowledge import ANCHOR, CURVE
from quantailor.service.planning import UNUSUAL_TYPES, Measured
from quantailor.service.scoring import Scoring
from quantailor.service.stages import Stages
from quantailor.service.workspace import OpenedModel
from quantailor.strategy.random_mixes import random_mix

MIX_BITS = (2.4, 6.0)
"""Bits per weight between which random mixes are drawn."""
ANCHOR_SHARES = (0.25, 0.6)
"""Where between the smallest and the largest random mix those lie that are built as files, beside one all Q8_0."""
_ROOM = 0.05
"""How far random mixes stay from the smallest and the largest size there is, as a share of it."""


def score_whole_mixes(
    at: Scoring, model: OpenedModel, imatrix: Imatrix | None, found: Measured, task: tasks.ProbeTask, stages: Stages
) -> None:
    """Draw random mixes, score them in memory; build a few as files and score those."""
    tables = [usual(table) for table in found.tables if table.name in at.scorer.weights]
    mixes = curve_mixes(tables, task.mixes)
    store, indexes = at.workspace.store, at.first(task.mix_chunks)
    store.record_mixes(model.fingerprint, CURVE, mixes)
    at.run(mixes, indexes, stages.begin("whole mixes"))
    anchors = _anchors(tables, mixes, task.anchors)
    store.record_mixes(model.fingerprint, ANCHOR, anchors)
    for number, mix in enumerate(anchors):
        control = stages.begin(f"anchor {number + 1} of {len(anchors)}")
        at.run_file(mix, builder(at, model, imatrix, mix, control, task.n_threads), indexes, control)


def usual(table: TensorCells) -> TensorCells:
    """A tensor with the types that plans use unless the user says otherwise; all where that leaves none."""
    qtypes = library.types()
    kept = tuple(cell for cell in table.cells if cell.type_name not in UNUSUAL_TYPES and qtypes[cell.type_name].is_quantized)
    return TensorCells(table.name, table.n_elements, kept or table.cells, table.importance)


def curve_mixes(tables: Sequence[TensorCells], n_mixes: int) -> list[Mix]:
    """Random mixes of sizes from `MIX_BITS`, evenly apart in logarithm; equal tables give equal mixes.

    Sizes that a model of few tensors cannot hit are left out.
    """
    n_weights = sum(table.n_elements for table in tables)
    smallest, largest = (sum(pick(cell.size_bytes for cell in table.cells) for table in tables) for pick in (min, max))
    low = max(MIX_BITS[0] * n_weights / 8, smallest * (1 + _ROOM))
    high = max(low, min(MIX_BITS[1] * n_weights / 8, largest * (1 - _ROOM)))
    ratio = (high / low) ** (1 / max(1, n_mixes - 1))
    found: dict[str, Mix] = {}
    for number in range(n_mixes):
        with contextlib.suppress(InfeasibleError):
            mix = Mix.of(random_mix(tables, int(low * ratio**number), seed=number, tolerance=_ROOM / 5))
            found[mix.id] = mix
    return list(found.values())


def _anchors(tables: Sequence[TensorCells], mixes: Sequence[Mix], n_anchors: int) -> list[Mix]:
    nearest = {table.name: min(table.cells, key=lambda cell: abs(cell.bits_per_weight - 8.5)).type_name for table in tables}
    picked = [mixes[number] for number in sorted({int(share * (len(mixes) - 1)) for share in ANCHOR_SHARES if mixes})]
    return [Mix.of(nearest), *picked][:n_anchors] if tables else []


def builder(
    at: Scoring, model: OpenedModel, imatrix: Imatrix | None, mix: Mix, control: Control, n_threads: int | None
) -> Callable[[], Path]:
    """What builds a mix as a file in the home, to be deleted after use."""

    def build() -> Path:
        strategy = Strategy(
            model_fingerprint=model.fingerprint,
            model_name=model.source.name,
            architecture=model.source.architecture,
            method="manual",
            tensors=tuple(TensorChoice(name, type_name, "a random mix") for name, type_name in mix.types.items()),
        )
        output = at.workspace.home.references / f"anchor-{at.key.run}-{mix.id[-12:]}.gguf"
        building.build(model.source, strategy, output, imatrix=imatrix, n_threads=n_threads, control=control, overwrite=True)
        return output

    return build
