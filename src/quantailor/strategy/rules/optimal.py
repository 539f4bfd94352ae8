"""The default rule: the least damage that fits the bytes, over all tensors at once.

With one budget the problem is a multiple-choice knapsack, solved by `knapsack` to within 1e-6 of its bound or
exactly. Its multiplier is a common *price*: the damage that one more byte saves, wherever it is spent. Each
tensor's own range of prices shows how firmly its type stands.

Separate budgets (say, tensors on the GPU and those on the CPU) that share no tensor are solved one by one;
anything more tangled goes to HiGHS as a mixed-integer program, to within 1e-6 of its bound.

A limit on time is one more row of that program. Where the optimum without it is fast enough, that is the answer, found as ever.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantailor.errors import InfeasibleError, StrategyError
from quantailor.numerics import Doubles
from quantailor.records import Cell, TensorCells, TensorChoice
from quantailor.strategy.constraints import ALIGNMENT, Budget, Constraints, Group, apply, matches
from quantailor.strategy.pace import TimeLimit
from quantailor.strategy.rules import highs
from quantailor.strategy.rules import picks as rule
from quantailor.strategy.rules.knapsack import Knapsack, Options, Packing
from quantailor.strategy.rules.picks import Pick

QUICK_TOLERANCE = 1e-3
MANY_GROUPS = 400
"""From here on `OptimumBySize` leaves a step's bytes unspent rather than search for what else fits."""


@dataclass(frozen=True, slots=True)
class Solution:
    """The optimum and how good it is known to be."""

    choices: tuple[TensorChoice, ...]
    objective: float
    """The sum of damages."""
    lower_bound: float
    """No strategy within the budgets does less damage; for a damage target, at these bytes."""
    size_bytes: int
    """Tensor data with padding, and the fixed bytes."""
    price: float | None
    """Damage that one more byte would save; None with several budgets."""

    @property
    def gap(self) -> float:
        """How far the objective may be above the true optimum, relative."""
        return (self.objective - self.lower_bound) / self.objective if self.objective > 0 else 0.0


@dataclass(frozen=True, slots=True)
class _Chosen:
    cells: tuple[Cell, ...]
    prices: tuple[float | None, ...]
    lower_bound: float


def solve(
    tables: Sequence[TensorCells],
    *,
    budget_bytes: int | None = None,
    max_damage: float | None = None,
    constraints: Constraints | None = None,
    fixed_bytes: int = 0,
    align: int = ALIGNMENT,
    time: TimeLimit | None = None,
) -> Solution:
    """Choose every tensor's type.

    Args:
        tables: the tensors and their cells.
        budget_bytes: bytes of the whole file, `fixed_bytes` included; None leaves only `constraints.budgets`.
        max_damage: instead of a budget: the fewest bytes with at most this damage.
        constraints: limits of the user; their budgets count tensor data alone.
        fixed_bytes: everything in the file but the tensors of `tables`.
        align: bytes to which each tensor's data is padded.
        time: what a token may take.

    Raises:
        InfeasibleError: nothing meets the budgets, the damage, the time and the constraints; says what would.
        StrategyError: neither or both of a budget and a damage were given.
    """
    return Solver(tables, constraints, align=align, time=time).solve(
        budget_bytes=budget_bytes, max_damage=max_damage, fixed_bytes=fixed_bytes
    )


class Solver:
    """The tables and limits of `solve`, prepared for several targets one after the other."""

    def __init__(
        self,
        tables: Sequence[TensorCells],
        constraints: Constraints | None = None,
        *,
        align: int = ALIGNMENT,
        time: TimeLimit | None = None,
    ) -> None:
        """Arguments and errors as of `solve`."""
        self._tables, self._limits, self._align, self._time = tables, constraints or Constraints(), align, time
        self._groups = apply(tables, self._limits, align=align)
        self._knapsack = None if self._limits.budgets else Knapsack(_options(self._groups))

    def solve(self, *, budget_bytes: int | None = None, max_damage: float | None = None, fixed_bytes: int = 0) -> Solution:
        """The optimum for a target; takes the arguments of the function `solve` and raises as it does.

        Raises:
            InfeasibleError, StrategyError: see there.
        """
        if (budget_bytes is not None) and (max_damage is not None):
            raise StrategyError("both a size and a damage were asked for", remedy="Give one of them")
        if budget_bytes is None and max_damage is None and not self._limits.budgets:
            raise StrategyError("the optimum needs a target", remedy="Give a size, bits per weight or a damage")
        budgets, align = self._limits.budgets, self._align
        chosen = _choose(self._groups, budget_bytes, max_damage, budgets, fixed_bytes, align, knapsack=self._knapsack)
        if self._time is not None and self._time.of_cells(self._groups, chosen.cells) > self._time.seconds:
            room = None if budget_bytes is None else budget_bytes - fixed_bytes
            chosen = _together(self._groups, room, max_damage, budgets, align, self._time)
        return _solution(self._tables, self._groups, chosen, fixed_bytes)

    def roughly(self, budget_bytes: int, fixed_bytes: int) -> Solution | None:
        """A mix within a budget, found without search, for what hardly depends on the mix; None where there is no quick one."""
        answer = None if self._knapsack is None else self._knapsack.before(budget_bytes - fixed_bytes)
        return None if answer is None else _solution(self._tables, self._groups, _of_answer(self._groups, answer), fixed_bytes)


class OptimumBySize:
    """The optimum for any number of sizes in quick succession, as a slider asks for them: to within 1e-3 of its bound."""

    def __init__(self, tables: Sequence[TensorCells], constraints: Constraints) -> None:
        """Budgets of patterns do not count here.

        Raises:
            InfeasibleError: the constraints leave a tensor no type.
        """
        self._groups = apply(tables, constraints)
        self._knapsack = Knapsack(_options(self._groups), tolerance=QUICK_TOLERANCE)

    @property
    def smallest(self) -> int:
        """Bytes of the smallest mix, padding included."""
        return self._knapsack.smallest

    @property
    def largest(self) -> int:
        """Bytes of the largest mix that is of use."""
        return sum(rule.undominated(group)[-1].size_bytes for group in self._groups)

    def types(self, budget_bytes: int) -> dict[str, str]:
        """Tensor -> type within so many bytes of tensor data; the smallest mix where nothing fits. Raises InfeasibleError."""
        wanted = max(budget_bytes, self.smallest)
        answer = self._knapsack.before(wanted) if len(self._groups) > MANY_GROUPS else self._knapsack.within(wanted)
        if answer is None:
            raise rule.too_small(wanted, self.smallest)
        return {
            tensor.name: group.cells[pick].type_name
            for group, pick in zip(self._groups, answer.picks, strict=True)
            for tensor in group.tensors
        }


def cells_of(groups: Sequence[Group], *, budget_bytes: int, budgets: Sequence[Budget], fixed_bytes: int, align: int) -> tuple[Cell, ...]:
    """The optimum for groups that another rule has narrowed; arguments and errors as of `solve`."""
    return _choose(groups, budget_bytes, None, budgets, fixed_bytes, align).cells


def _choose(
    groups: Sequence[Group],
    budget_bytes: int | None,
    max_damage: float | None,
    budgets: Sequence[Budget],
    fixed_bytes: int,
    align: int,
    *,
    knapsack: Knapsack | None = None,
) -> _Chosen:
    room = None if budget_bytes is None else budget_bytes - fixed_bytes
    if budgets:
        return _several(groups, room, max_damage, budgets, align)
    return _one(groups, knapsack or Knapsack(_options(groups)), room, max_damage, fixed_bytes)


def _options(groups: Sequence[Group]) -> list[Options]:
    return [
        Options(
            np.array([cell.size_bytes for cell in group.cells], dtype=np.int64),
            np.array([cell.damage for cell in group.cells], dtype=np.float64),
        )
        for group in groups
    ]


def _one(groups: Sequence[Group], knapsack: Knapsack, room: int | None, max_damage: float | None, fixed_bytes: int) -> _Chosen:
    if max_damage is not None:
        answer = knapsack.down_to(max_damage)
        if answer is None:
            raise _too_little_damage(max_damage, knapsack.least_damage)
    else:
        size = knapsack.smallest if room is None else room
        answer = knapsack.within(size)
        if answer is None:
            raise rule.too_small(size, knapsack.smallest, fixed_bytes)
    return _of_answer(groups, answer)


def _of_answer(groups: Sequence[Group], answer: Packing) -> _Chosen:
    cells = tuple(group.cells[pick] for group, pick in zip(groups, answer.picks, strict=True))
    return _Chosen(cells, (answer.price,) * len(groups), answer.lower_bound)


def _several(groups: Sequence[Group], room: int | None, max_damage: float | None, budgets: Sequence[Budget], align: int) -> _Chosen:
    for budget in budgets:
        rule.check_smallest(groups, budget, align)
    if room is not None:
        rule.check_smallest(groups, Budget(rule.EVERYTHING, room), align)
    if max_damage is None and (chosen := _separately(groups, room, budgets)):
        return chosen
    return _together(groups, room, max_damage, budgets, align)


def _separately(groups: Sequence[Group], room: int | None, budgets: Sequence[Budget]) -> _Chosen | None:
    """Each budget by itself and the rest without a limit, where no group is in two and the sum fits; else None."""
    owners = [_owner(group, budgets) for group in groups]
    if None in owners:
        return None
    cells: list[Cell] = [group.cells[0] for group in groups]
    prices: list[float | None] = [None] * len(groups)
    bounds = []
    for number in range(-1, len(budgets)):
        members = [index for index, owner in enumerate(owners) if owner == number]
        knapsack = Knapsack(_options([groups[index] for index in members]))
        answer = knapsack.within(budgets[number].size_bytes if number >= 0 else 2**62)
        if answer is None:
            return None
        bounds.append(answer.lower_bound)
        for index, pick in zip(members, answer.picks, strict=True):
            cells[index], prices[index] = groups[index].cells[pick], answer.price
    if room is not None and sum(cell.size_bytes for cell in cells) > room:
        return None
    return _Chosen(tuple(cells), tuple(prices), math.fsum(bounds))


def _owner(group: Group, budgets: Sequence[Budget]) -> int | None:
    """The one budget that all of a group's tensors are in, -1 for none; None where they are in several."""
    owners = {
        tuple(number for number, budget in enumerate(budgets) if matches(budget.pattern, tensor.name)) or (-1,) for tensor in group.tensors
    }
    first = next(iter(owners))
    return first[0] if len(owners) == 1 and len(first) == 1 else None


def _together(
    groups: Sequence[Group],
    room: int | None,
    max_damage: float | None,
    budgets: Sequence[Budget],
    align: int,
    time: TimeLimit | None = None,
) -> _Chosen:
    cells = [list(group.cells) for group in groups]
    damages = np.array([cell.damage for group in cells for cell in group])
    sizes = np.array([float(cell.size_bytes) for group in cells for cell in group])
    rows = [
        np.array([float(group.bytes_in(budget.pattern, cell, align)) for group in groups for cell in group.cells]) for budget in budgets
    ]
    limits = [float(budget.size_bytes) for budget in budgets]
    if room is not None:
        rows, limits = [*rows, sizes], [*limits, float(room)]
    if max_damage is not None:
        rows, limits = [*rows, damages], [*limits, max_damage]
    if time is not None:
        times, most = time.row(groups)
        rows, limits = [*rows, times], [*limits, most]
    costs = damages if max_damage is None else sizes
    result = highs.solve(highs.Program(tuple(len(group) for group in cells), costs, np.array(rows), np.array(limits)))
    # Every budget holds the smallest types, as was checked: where the search finds nothing in time, they are the answer.
    picks: Sequence[int] = [0] * len(cells) if result is None else result.picks
    if result is None and time is not None:
        picks = _fast_enough(groups, time, rows[:-1], limits[:-1])
    elif result is None and max_damage is not None:
        least = math.fsum(cell.damage for cell in _together(groups, room, None, budgets, align).cells)
        raise _too_little_damage(max_damage, least)
    bound = -math.inf if result is None or max_damage is not None else result.lower_bound
    return _Chosen(tuple(group[pick] for group, pick in zip(cells, picks, strict=True)), (None,) * len(groups), bound)


def _fast_enough(groups: Sequence[Group], time: TimeLimit, rows: Sequence[Doubles], limits: Sequence[float]) -> Sequence[int]:
    """The picks of the fastest mix within other limits. Raises InfeasibleError where even that takes too long."""
    sizes, (times, _) = tuple(len(group.cells) for group in groups), time.row(groups)
    if rows:
        result = highs.solve(highs.Program(sizes, times, np.array(rows), np.array(limits)))
        if result is None:
            raise InfeasibleError("no strategy holds these limits and the time together", remedy="Give up one of them")
        picks: Sequence[int] = result.picks
    else:
        picks = [int(np.argmin(part)) for part in np.split(times, np.cumsum(sizes)[:-1])]
    least = time.of_cells(groups, [group.cells[pick] for group, pick in zip(groups, picks, strict=True)])
    if least > time.seconds:
        message = f"no strategy takes as little time as {time.seconds:g} s a token: the fastest that the constraints allow takes {least:g}"
        raise InfeasibleError(message, remedy="Accept more time, fewer bytes or faster types", least_seconds=least)
    return picks


def _too_little_damage(max_damage: float, least_damage: float) -> InfeasibleError:
    message = f"no strategy does as little damage as {max_damage:g}: the least that the constraints allow is {least_damage:g}"
    return InfeasibleError(message, remedy="Accept more damage or allow larger types", least_damage=least_damage)


def _solution(tables: Sequence[TensorCells], groups: Sequence[Group], chosen: _Chosen, fixed_bytes: int) -> Solution:
    picks = [
        Pick(group, cell, _reason(group, cell, price), rule.price_range(group, cell))
        for group, cell, price in zip(groups, chosen.cells, chosen.prices, strict=True)
    ]
    objective = math.fsum(pick.cell.damage for pick in picks)
    return Solution(
        choices=rule.to_choices(picks, [tensor.name for tensor in tables]),
        objective=objective,
        lower_bound=min(objective, chosen.lower_bound),
        size_bytes=sum(pick.cell.size_bytes for pick in picks) + fixed_bytes,
        price=chosen.prices[0] if chosen.prices and len(set(chosen.prices)) == 1 else None,
    )


def _reason(group: Group, cell: Cell, price: float | None) -> str:
    useful = rule.undominated(group)
    if len(useful) == 1 and cell in useful:
        return "the only type that is worth its bytes here" if len(group.cells) > 1 else "the only type allowed here"
    if price is None:
        return "the optimum under several limits"
    alone = min(useful, key=lambda each: (each.damage + price * each.size_bytes, each.size_bytes))
    here = cell.damage + price * cell.size_bytes
    if here > (alone.damage + price * alone.size_bytes) * (1 + 1e-12):
        what = "takes bytes that are left over" if cell.size_bytes > alone.size_bytes else "gives up bytes that others use better"
        return f"{what}; at the common price it would be {alone.type_name}"
    position = next((index for index, each in enumerate(useful) if each.type_name == cell.type_name), 0)
    parts = []
    if position + 1 < len(useful):
        parts.append(f"{useful[position + 1].type_name} would save too little damage for its bytes")
    if position > 0:
        parts.append(f"{useful[position - 1].type_name} would do more damage than its bytes are worth")
    return ", ".join(parts)
