"""Tables without the knowledge of which tensor matters: what measured damages are compared with."""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Sequence

from quantailor.records import TensorCells


def with_shuffled_damage(tables: Sequence[TensorCells], *, seed: int) -> tuple[TensorCells, ...]:
    """The same tables with each tensor's damage per weighted error given to another tensor of its role, at random.

    Keeps what a role is worth on average and forgets which tensor of it matters.
    """
    generator = random.Random(seed)
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
