"""What any answer is compared with, and what predictions are tested on: random mixes, and damages without knowledge.

A random mix draws a type for every tensor, all alike, and then changes single tensors at random until the size is
right. Nothing measured takes part, so that predictions are tested where no optimiser has been.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Sequence

from quantailor.errors import InfeasibleError
from quantailor.records import Cell, TensorCells

TOLERANCE = 0.001
"""Mixes whose sizes differ by no more than this share count as equally large."""
_ATTEMPTS, _STEPS_PER_TENSOR = 50, 400


def random_mix(tables: Sequence[TensorCells], tensor_bytes: int, *, seed: int, tolerance: float = TOLERANCE) -> dict[str, str]:
    """A type for every tensor, at random, with sizes that sum to about `tensor_bytes`.

    Args:
        tables: the tensors and the types to draw from.
        tensor_bytes: the sum to come near, of the tensors in `tables`.
        seed: equal seeds give equal mixes.
        tolerance: how near, as a share of `tensor_bytes`.

    Raises:
        InfeasibleError: no mix of about that size was found.
    """
    generator = random.Random(seed)  # noqa: S311 (statistics, not secrets)
    for _ in range(_ATTEMPTS):
        cells = [generator.choice(table.cells) for table in tables]
        if _steer(cells, tables, tensor_bytes, tolerance, generator):
            return {table.name: cell.type_name for table, cell in zip(tables, cells, strict=True)}
    raise InfeasibleError(
        f"no random mix of {tensor_bytes} bytes was found", remedy="Ask for a size between the smallest and the largest type"
    )


def _steer(cells: list[Cell], tables: Sequence[TensorCells], wanted: int, tolerance: float, generator: random.Random) -> bool:
    """Change one tensor at a time, never away from the wanted size; whether it was reached."""
    excess = sum(cell.size_bytes for cell in cells) - wanted
    for _ in range(_STEPS_PER_TENSOR * len(cells)):
        if abs(excess) <= tolerance * wanted:
            return True
        index = generator.randrange(len(cells))
        cell = generator.choice(tables[index].cells)
        changed = excess + cell.size_bytes - cells[index].size_bytes
        if abs(changed) < abs(excess):
            cells[index], excess = cell, changed
    return False


def with_shuffled_damage(tables: Sequence[TensorCells], *, seed: int) -> tuple[TensorCells, ...]:
    """The same tables with each tensor's damage per weighted error given to another tensor of its role, at random.

    Keeps what a role is worth on average and forgets which tensor of it matters.
    """
    generator = random.Random(seed)  # noqa: S311
    by_role: dict[str, list[TensorCells]] = defaultdict(list)
    for table in tables:
        by_role[table.role].append(table)
    donors: dict[str, TensorCells] = {}
    for members in by_role.values():
        shuffled = list(members)
        generator.shuffle(shuffled)
        donors |= {member.name: donor for member, donor in zip(members, shuffled, strict=True)}
    return tuple(_at_rate(table, _rate(donors[table.name])) for table in tables)


def _rate(table: TensorCells) -> float:
    """Damage per weighted error over all of a tensor's cells."""
    error = sum(cell.weighted_mse for cell in table.cells)
    return sum(cell.damage for cell in table.cells) / error if error > 0 else 0.0


def _at_rate(table: TensorCells, rate: float) -> TensorCells:
    # A tensor that did no damage at all has no shape of its own to scale.
    own = _rate(table)
    damages = [cell.damage * rate / own if own > 0 else cell.weighted_mse * rate for cell in table.cells]
    cells = (dataclasses.replace(cell, damage=damage) for cell, damage in zip(table.cells, damages, strict=True))
    return dataclasses.replace(table, cells=tuple(cells))
