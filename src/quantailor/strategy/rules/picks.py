"""What every rule ends with: one cell per group, made to fit the budgets if need be, and turned into a choice for each tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quantailor.errors import InfeasibleError
from quantailor.records import Cell, TensorChoice
from quantailor.strategy.constraints import ALIGNMENT, Budget, Group, matches
from quantailor.strategy.rules import hull

EVERYTHING = "*"
"""The pattern of the overall budget."""


@dataclass(frozen=True, slots=True)
class Pick:
    """The cell one group gets, and why."""

    group: Group
    cell: Cell
    reason: str
    price_range: tuple[float, float] | None = None


def to_choices(picks: Sequence[Pick], order: Sequence[str]) -> tuple[TensorChoice, ...]:
    """One choice per tensor, in the given order of names."""
    choices = {}
    for pick in picks:
        pins = [pin for pin in pick.group.pins if pin]
        for position, tensor in enumerate(pick.group.tensors):
            choices[tensor.name] = TensorChoice(
                name=tensor.name,
                type_name=pick.cell.type_name,
                reason=_reason(pick, position),
                damage=tensor.cell(pick.cell.type_name).damage,
                pinned=bool(pins),
                price_range=pick.price_range,
            )
    return tuple(choices[name] for name in order)


def _reason(pick: Pick, position: int) -> str:
    group = pick.group
    tie = f" (tied: {group.tie})" if group.tie else ""
    if own := group.pins[position] if group.pins else None:
        return f"pinned by {own}{tie}"
    if pin := next((each for each in group.pins if each), None):
        return f"tied to a tensor that {pin} pins{tie}"
    return f"{pick.reason}{tie}"


def undominated(group: Group) -> list[Cell]:
    """The group's cells that no other cell beats in both bytes and damage, ascending by size."""
    kept = hull.undominated([cell.size_bytes for cell in group.cells], [cell.damage for cell in group.cells])
    return [group.cells[index] for index in kept]


def price_range(group: Group, chosen: Cell) -> tuple[float, float] | None:
    """Prices (damage per byte) at which no other cell is a better buy; None where there is no such price."""
    low, high = 0.0, float("inf")
    for cell in group.cells:
        bytes_more, damage_less = cell.size_bytes - chosen.size_bytes, chosen.damage - cell.damage
        if bytes_more > 0:
            low = max(low, damage_less / bytes_more)
        elif bytes_more < 0:
            high = min(high, damage_less / bytes_more)
        elif damage_less > 0:
            return None
    return (low, high) if low <= high else None


def fit(picks: Sequence[Pick], budgets: Sequence[Budget], *, align: int = ALIGNMENT) -> list[Pick]:
    """Lower types until every budget holds, each time the step that costs the least damage per byte saved.

    Only groups with a part in an exceeded budget are touched. A type that is larger than another and no
    better never comes up.

    Raises:
        InfeasibleError: a budget that not even the smallest types meet.
    """
    fitted = list(picks)
    for budget in budgets:
        check_smallest([pick.group for pick in picks], budget, align)
        uses = [_use(pick, budget, align) for pick in fitted]
        while (excess := sum(uses) - budget.size_bytes) > 0:
            index, cell = _cheapest_step(fitted, uses, budget, align, excess)
            reason = f"lowered from {fitted[index].cell.type_name} to fit the budget{_for(budget)}"
            if fitted[index].reason.startswith("lowered from "):
                reason = fitted[index].reason
            fitted[index] = replace(fitted[index], cell=cell, reason=reason, price_range=None)
            uses[index] = _use(fitted[index], budget, align)
    return fitted


def check_smallest(groups: Sequence[Group], budget: Budget, align: int) -> None:
    """Raise InfeasibleError where a budget cannot be met whatever is chosen."""
    smallest = sum(min(_part(group, cell, budget, align) for cell in group.cells) for group in groups)
    if smallest > budget.size_bytes:
        raise _exceeded(groups, budget, smallest)


def too_small(room: int, smallest: int, fixed_bytes: int = 0) -> InfeasibleError:
    """The error for less room for tensor data, both with padding, than the smallest mix takes."""
    message = f"no strategy fits {room + fixed_bytes:,} bytes: the smallest that the constraints allow takes {smallest + fixed_bytes:,}"
    return InfeasibleError(message, remedy="Allow more bytes or smaller types", smallest_bytes=smallest)


def _exceeded(groups: Sequence[Group], budget: Budget, smallest_bytes: int) -> InfeasibleError:
    if budget.pattern == EVERYTHING:
        return too_small(budget.size_bytes, smallest_bytes)
    pins = {
        f"{pin}={group.cells[0].type_name}": None
        for group in groups
        for tensor, pin in zip(group.tensors, group.pins, strict=False)
        if pin and matches(budget.pattern, tensor.name)
    }
    given = f", with --pin {' --pin '.join(pins)}" if pins else ""
    message = f"the budget {budget.pattern}={budget.size_bytes} is too small: what matches takes at least {smallest_bytes:,} bytes{given}"
    return InfeasibleError(message, remedy=f"Give {budget.pattern}={smallest_bytes}, or allow smaller types")


def _for(budget: Budget) -> str:
    return "" if budget.pattern == EVERYTHING else f" for {budget.pattern}"


def _part(group: Group, cell: Cell, budget: Budget, align: int) -> int:
    return cell.size_bytes if budget.pattern == EVERYTHING else group.bytes_in(budget.pattern, cell, align)


def _use(pick: Pick, budget: Budget, align: int) -> int:
    return _part(pick.group, pick.cell, budget, align)


def _cheapest_step(picks: Sequence[Pick], uses: Sequence[int], budget: Budget, align: int, excess: int) -> tuple[int, Cell]:
    """The group and cell with the least damage per byte saved; bytes beyond the excess count for nothing."""
    best: tuple[float, int, Cell] | None = None
    for index, (pick, use) in enumerate(zip(picks, uses, strict=True)):
        for cell in undominated(pick.group):
            saved = use - _part(pick.group, cell, budget, align)
            if saved > 0:
                price = (cell.damage - pick.cell.damage) / min(saved, excess)
                if best is None or price < best[0]:
                    best = (price, index, cell)
    if best is None:
        raise _exceeded([pick.group for pick in picks], budget, sum(uses))
    return best[1], best[2]
