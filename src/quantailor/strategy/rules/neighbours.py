"""Small changes of a strategy: the next type up and down for every tensor, and exchanges of bytes between two tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from quantailor.records import Cell, TensorCells
from quantailor.strategy.rules.hull import lower_hull

SHRINK_SD = 0.3
"""How far a tensor's marginal damage is believed to lie from what single probes say, before it is measured."""
RATIO_RANGE = (0.2, 5.0)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One tensor gets a larger type, another pays for it."""

    raised: str
    raised_to: str
    lowered: str
    lowered_to: str
    gain: float
    """Damage that the tables expect to save; may be negative."""

    def applied(self, types: Mapping[str, str]) -> dict[str, str]:
        """The types after the exchange."""
        return {**types, self.raised: self.raised_to, self.lowered: self.lowered_to}


def hull(table: TensorCells, allowed: Collection[str] | None = None) -> list[Cell]:
    """The cells worth taking at some price, ascending by size: the lower convex hull of damage over bytes."""
    cells = [cell for cell in table.cells if allowed is None or cell.type_name in allowed]
    return [cells[index] for index in lower_hull([cell.size_bytes for cell in cells], [cell.damage for cell in cells])]


def step(table: TensorCells, type_name: str, direction: int, allowed: Collection[str] | None = None) -> Cell | None:
    """The next cell on the hull above (1) or below (-1) the present type in size; None at the end."""
    present = table.cell(type_name)
    cells = [cell for cell in hull(table, allowed) if direction * (cell.size_bytes - present.size_bytes) > 0]
    return min(cells, key=lambda cell: abs(cell.size_bytes - present.size_bytes), default=None)


def rescaled(table: TensorCells, ratio: float, relative_se: float) -> TensorCells:
    """The table with its damages scaled by a measured ratio, drawn towards 1 by the ratio's error."""
    precision, prior = 1 / max(relative_se, 1e-3) ** 2, 1 / SHRINK_SD**2
    factor = (ratio * precision + prior) / (precision + prior)
    factor = min(max(factor, RATIO_RANGE[0]), RATIO_RANGE[1])
    return dataclasses.replace(table, cells=tuple(dataclasses.replace(cell, damage=factor * cell.damage) for cell in table.cells))


def exchanges(
    tables: Sequence[TensorCells],
    types: Mapping[str, str],
    *,
    budget_bytes: int,
    fixed: Collection[str] = (),
    allowed: Collection[str] | None = None,
) -> list[Exchange]:
    """Every exchange of one step up for one step down that keeps the tensors within a budget, the most promising first.

    Args:
        tables: of the tensors that may change.
        types: the present types.
        budget_bytes: of all tensors in `tables` together.
        fixed: tensors that must keep their type.
        allowed: types to choose from; None allows all.
    """
    free = [table for table in tables if table.name not in fixed]
    room = budget_bytes - sum(table.cell(types[table.name]).size_bytes for table in tables)
    ups = [(table, cell) for table in free if (cell := step(table, types[table.name], 1, allowed))]
    downs = [(table, cell) for table in free if (cell := step(table, types[table.name], -1, allowed))]
    possible = []
    for raised, up in ups:
        here = raised.cell(types[raised.name])
        for lowered, down in downs:
            there = lowered.cell(types[lowered.name])
            if raised.name != lowered.name and up.size_bytes - here.size_bytes + down.size_bytes - there.size_bytes <= room:
                gain = here.damage - up.damage + there.damage - down.damage
                possible.append(Exchange(raised.name, up.type_name, lowered.name, down.type_name, gain))
    return sorted(possible, key=lambda exchange: -exchange.gain)
