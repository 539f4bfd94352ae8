"""Greedy: all tensors start high, and the step down with the smallest penalty is taken until the size is met.

Simple to follow and to cap, and usually close to the optimum; the optimum is what it is compared with.
"""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from quantailor.errors import InfeasibleError, StrategyError
from quantailor.present import words
from quantailor.records import Cell, TensorCells, TensorChoice
from quantailor.strategy.constraints import ALIGNMENT, Constraints, Group, apply
from quantailor.strategy.importance import normalized
from quantailor.strategy.rules import picks as rule
from quantailor.strategy.rules.picks import Pick

Penalty = Literal["damage_per_byte", "rmse", "max_abs_error"]

_PENALTIES: dict[Penalty, Callable[[Cell, Cell, float], float]] = {
    "damage_per_byte": lambda now, then, _: (then.damage - now.damage) / (now.size_bytes - then.size_bytes),
    "rmse": lambda now, then, weight: (then.rmse - now.rmse) * weight,
    "max_abs_error": lambda now, then, weight: (then.max_abs_error - now.max_abs_error) * weight,
}


def choose(
    tables: Sequence[TensorCells],
    *,
    budget_bytes: int,
    start: str | None = None,
    penalty: Penalty = "damage_per_byte",
    max_rmse_growth: float | None = None,
    important_percentile: float | None = None,
    important_max_error: float | None = None,
    constraints: Constraints | None = None,
    fixed_bytes: int = 0,
    align: int = ALIGNMENT,
) -> tuple[TensorChoice, ...]:
    """Step down from `start` until the file fits.

    Args:
        tables: the tensors, with `importance` set.
        budget_bytes: bytes of the whole file.
        start: the type all begin at, F16, Q8_0 or "start from Q6_K and go lower"; None begins at each one's largest.
            A tensor that cannot take it begins at its largest type of no more bits.
        penalty: what a step costs: damage per byte saved, or the growth of RMSE or maximum error times importance.
        max_rmse_growth: no tensor's RMSE may exceed this many times that of its start (of its first lossy type where
            the start is lossless).
        important_percentile: with `important_max_error`: tensors above this percentile of importance, 0 to 100,
            may not have a larger maximum error than that, in weight units.
        constraints: limits of the user.
        fixed_bytes: everything in the file but these tensors.
        align: bytes to which each tensor's data is padded.

    Raises:
        InfeasibleError: constraints, caps and size cannot be met together.
        StrategyError: an unknown penalty or type, or half of a cap.
    """
    if penalty not in _PENALTIES:
        raise StrategyError(f"there is no penalty {penalty!r}", remedy=f"Known: {', '.join(get_args(Penalty))}")
    if (important_percentile is None) != (important_max_error is None):
        raise StrategyError("a cap for important tensors needs a percentile and a maximum error", remedy="Give both or none")
    limits = constraints or Constraints()
    groups = apply(tables, limits, align=align)
    groups = _started(groups, _start_bits(tables, start))
    groups = [_capped_growth(group, max_rmse_growth) for group in groups]
    groups = _capped_error(groups, important_percentile, important_max_error)
    picks = _descend(groups, penalty, budget_bytes - fixed_bytes, fixed_bytes)
    fitted = rule.fit(picks, limits.budgets, align=align)
    return rule.to_choices(fitted, [tensor.name for tensor in tables])


def _start_bits(tables: Sequence[TensorCells], start: str | None) -> float:
    if start is None:
        return math.inf
    bits = [cell.bits_per_weight for tensor in tables for cell in tensor.cells if cell.type_name == start]
    if not bits:
        known = sorted({cell.type_name for tensor in tables for cell in tensor.cells})
        raise StrategyError(f"no tensor can start at {start}", remedy=words.nearest(start, known))
    return max(bits)


def _started(groups: Sequence[Group], bits: float) -> list[Group]:
    """Groups without the cells above the start; pinned ones and those that have only larger cells as they are."""
    started = []
    for group in groups:
        below = tuple(cell for cell in group.cells if cell.bits_per_weight <= bits)
        started.append(dataclasses.replace(group, cells=below or group.cells[:1]))
    return started


def _capped_growth(group: Group, growth: float | None) -> Group:
    lossy = [cell.rmse for cell in sorted(group.cells, key=lambda cell: -cell.size_bytes) if cell.rmse > 0]
    if growth is None or not lossy or len(group.cells) == 1:
        return group
    kept = tuple(cell for cell in group.cells if cell.rmse <= growth * lossy[0])
    if not kept:
        raise InfeasibleError(f"{group.name} has no type whose RMSE grows at most {growth:g} times", remedy="Allow a growth of 1 or more")
    return dataclasses.replace(group, cells=kept)


def _capped_error(groups: Sequence[Group], percentile: float | None, max_error: float | None) -> list[Group]:
    if percentile is None or max_error is None:
        return list(groups)
    if not 0 <= percentile <= 100:
        raise StrategyError(f"{percentile:g} is not a percentile", remedy="Give a number from 0 to 100")
    bar = float(np.percentile([group.importance for group in groups], percentile))
    capped = []
    for group in groups:
        kept = tuple(cell for cell in group.cells if cell.max_abs_error <= max_error)
        if group.importance <= bar or len(group.cells) == 1:
            kept = group.cells
        if not kept:
            least = min(cell.max_abs_error for cell in group.cells)
            raise InfeasibleError(f"{group.name} has no type with a maximum error of {max_error:g}", remedy=f"Its least is {least:g}")
        capped.append(dataclasses.replace(group, cells=kept))
    return capped


def _descend(groups: Sequence[Group], penalty: Penalty, room: int, fixed_bytes: int) -> list[Pick]:
    """Step down from every group's largest useful cell until the sum of bytes is at most `room`."""
    useful = [rule.undominated(group) for group in groups]
    weights = normalized(groups)
    positions = [len(cells) - 1 for cells in useful]
    size = sum(cells[-1].size_bytes for cells in useful)
    heap = [step for index, cells in enumerate(useful) if (step := _step(index, cells, positions[index], penalty, weights[index]))]
    heapq.heapify(heap)
    while size > room:
        if not heap:
            raise rule.too_small(room, size, fixed_bytes)
        _, index, below = heapq.heappop(heap)
        size -= useful[index][positions[index]].size_bytes - useful[index][below].size_bytes
        positions[index] = below
        if step := _step(index, useful[index], below, penalty, weights[index]):
            heapq.heappush(heap, step)
    raised = _refill(useful, positions, room - size)
    return [
        _pick(group, cells, positions[index], raised=index in raised)
        for index, (group, cells) in enumerate(zip(groups, useful, strict=True))
    ]


def _refill(useful: Sequence[Sequence[Cell]], positions: list[int], left: int) -> set[int]:
    """Step up again where the last steps saved more bytes than needed, most damage per byte first; returns the groups."""
    raised: set[int] = set()
    while True:
        steps = [
            ((cells[now].damage - cells[up].damage) / (cells[up].size_bytes - cells[now].size_bytes), -index, up)
            for index, (cells, now) in enumerate(zip(useful, positions, strict=True))
            for up in range(now + 1, len(cells))
            if cells[up].size_bytes - cells[now].size_bytes <= left
        ]
        if not steps:
            return raised
        _, negative, up = max(steps)
        left -= useful[-negative][up].size_bytes - useful[-negative][positions[-negative]].size_bytes
        positions[-negative] = up
        raised.add(-negative)


def _step(index: int, cells: Sequence[Cell], position: int, penalty: Penalty, weight: float) -> tuple[float, int, int] | None:
    """(penalty, group, cell) of a group's next step down: to the next cell, or for damage per byte to the best one below."""
    if position == 0:
        return None
    below = range(position) if penalty == "damage_per_byte" else (position - 1,)
    cost, to = min((_PENALTIES[penalty](cells[position], cells[each], weight), -each) for each in below)
    return cost, index, -to


def _pick(group: Group, cells: Sequence[Cell], position: int, *, raised: bool) -> Pick:
    if len(cells) == 1:
        reason = "the only type within the constraints and caps"
    elif position == len(cells) - 1:
        reason = "kept at its start: steps of other tensors cost less"
    elif raised:
        reason = "stepped up again with bytes left over"
    elif position == 0:
        reason = f"lowered from {cells[-1].type_name} to the smallest type allowed"
    else:
        reason = f"stepped down from {cells[-1].type_name}; {cells[position - 1].type_name} was not needed to meet the size"
    return Pick(group, cells[position], reason, rule.price_range(group, cells[position]))
