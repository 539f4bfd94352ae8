"""How much each tensor matters: its share of the damage if all tensors had one common type."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from quantailor.errors import StrategyError
from quantailor.records import Cell, TensorCells
from quantailor.strategy.constraints import Group

COMMON_BITS = 4.5
"""The common type is the one nearest to this many bits, unless the user names one."""


def with_importance(tables: Sequence[TensorCells], *, type_name: str | None = None) -> tuple[TensorCells, ...]:
    """The same tensors with `importance` set: shares of the total damage at one common type, summing to 1.

    A tensor that cannot take the common type counts with its type of the nearest bits per weight.

    Raises:
        StrategyError: no tensor has the named type.
    """
    bits = _common_bits(tables, type_name)
    damages = [_nearest(tensor.cells, bits, type_name).damage for tensor in tables]
    total = math.fsum(damages)
    return tuple(
        dataclasses.replace(tensor, importance=damage / total if total > 0 else 1 / len(tables))
        for tensor, damage in zip(tables, damages, strict=True)
    )


def normalized(groups: Sequence[Group]) -> list[float]:
    """Each group's importance over the largest, 0 to 1; all 1 where nothing is known."""
    largest = max((group.importance for group in groups), default=0.0)
    return [group.importance / largest if largest > 0 else 1.0 for group in groups]


def _common_bits(tables: Sequence[TensorCells], type_name: str | None) -> float:
    cells = [cell for tensor in tables for cell in tensor.cells]
    if type_name is not None:
        named = [cell.bits_per_weight for cell in cells if cell.type_name == type_name]
        if not named:
            names = ", ".join(sorted({cell.type_name for cell in cells}))
            raise StrategyError(f"no tensor has been measured at {type_name}", remedy=f"Known: {names}")
        return named[0]
    counts = Counter((cell.type_name, cell.bits_per_weight) for cell in cells)
    most = max(counts.values(), default=0)
    return min(
        (bits for (_, bits), count in counts.items() if count == most), key=lambda bits: abs(bits - COMMON_BITS), default=COMMON_BITS
    )


def _nearest(cells: Sequence[Cell], bits: float, type_name: str | None) -> Cell:
    return min(cells, key=lambda cell: (cell.type_name != type_name, abs(cell.bits_per_weight - bits), cell.damage))
