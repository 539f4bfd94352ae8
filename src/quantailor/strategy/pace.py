"""A limit on the time that a token takes, which holds beside a size: the same kind of sum over tensors, of seconds instead of bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantailor.numerics import Doubles
from quantailor.records import Cell
from quantailor.strategy.constraints import Group

_SCALE = 1e6
"""What the limit becomes, so that a solver's tolerances are small beside it."""


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """Seconds per token that all tensors may take together, over what a reference takes; some types take less than it does."""

    seconds: float
    parts: Mapping[str, Mapping[str, float]]
    """Tensor -> type -> its seconds; tensors that are not there take none."""

    def of_cell(self, group: Group, cell: Cell) -> float:
        """What a group takes at a cell's type."""
        return math.fsum(self.parts[tensor.name][cell.type_name] for tensor in group.tensors if tensor.name in self.parts)

    def of_cells(self, groups: Sequence[Group], cells: Sequence[Cell]) -> float:
        """What all groups take, each at its cell's type."""
        return math.fsum(self.of_cell(group, cell) for group, cell in zip(groups, cells, strict=True))

    def row(self, groups: Sequence[Group]) -> tuple[Doubles, float]:
        """The limit as whoever solves it wants it: (n_cells,) of all groups, none negative, and the most that they may sum to.

        Each group counts from its fastest cell. The most is negative where not even those are fast enough.
        """
        times = [np.array([self.of_cell(group, cell) for cell in group.cells]) for group in groups]
        room = self.seconds - math.fsum(float(each.min()) for each in times)
        spread = max(float(each.max() - each.min()) for each in times)
        unit = _SCALE / max(abs(room), spread, 1e-30)
        return unit * np.concatenate([each - each.min() for each in times]), unit * room
