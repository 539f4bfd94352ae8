"""What any answer is compared with, and what predictions are tested on: random mixes.

A random mix draws a type for every tensor, all alike, and then changes single tensors at random until the size is
right. Nothing measured takes part, so that predictions are tested where no optimiser has been.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Sequence

from quantailor.errors import InfeasibleError
from quantailor.records import Cell, Mix, TensorCells

TOLERANCE = 0.001
"""Mixes whose sizes differ by no more than this share count as equally large."""
MIX_BITS = (2.4, 6.0)
"""Bits per weight between which random mixes are drawn."""
_ROOM = 0.05
"""How far random mixes stay from the smallest and the largest size there is, as a share of it."""
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
    """Change one tensor at a time, never away from the wanted size; whether it was reached. It ends where no change brings it nearer."""
    excess, n_idle, enough = sum(cell.size_bytes for cell in cells) - wanted, 0, sum(len(table.cells) for table in tables)
    for _ in range(_STEPS_PER_TENSOR * len(cells)):
        if abs(excess) <= tolerance * wanted:
            return True
        index = generator.randrange(len(cells))
        cell = generator.choice(tables[index].cells)
        changed = excess + cell.size_bytes - cells[index].size_bytes
        if abs(changed) < abs(excess):
            cells[index], excess, n_idle = cell, changed, 0
            continue
        n_idle += 1
        if n_idle % enough == 0 and _is_nearest(cells, tables, excess):
            return False
    return False


def _is_nearest(cells: list[Cell], tables: Sequence[TensorCells], excess: int) -> bool:
    """Whether no other type of any one tensor comes nearer to the wanted size."""
    others = ((cell, other) for cell, table in zip(cells, tables, strict=True) for other in table.cells)
    return all(abs(excess + other.size_bytes - cell.size_bytes) >= abs(excess) for cell, other in others)


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
