"""Bins: the more important a tensor, the larger its minimum type.

`((10, "Q6_K"), (50, "Q5_K"), (100, "Q4_K"))` gives the most important 10 % of the tensors at least Q6_K, those
up to 50 % at least Q5_K and the rest at least Q4_K. Without a size every tensor gets its minimum, so that bins must then
reach 100 %; with one, the optimum spends what is left above the minimums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from quantailor.errors import StrategyError
from quantailor.present import words
from quantailor.records import Cell, TensorCells, TensorChoice
from quantailor.strategy.constraints import ALIGNMENT, Constraints, Group, apply
from quantailor.strategy.rules import optimal
from quantailor.strategy.rules import picks as rule
from quantailor.strategy.rules.picks import Pick

Bins = Sequence[tuple[float, str]]

DEFAULT_BINS: Bins = ((10.0, "Q6_K"), (50.0, "Q5_K"), (100.0, "Q4_K"))


def parse_bins(text: str) -> tuple[tuple[float, str], ...]:
    """`10=Q6_K,50=Q5_K,100=Q4_K` -> bins. Raises StrategyError for other forms."""
    pairs = []
    for part in text.split(","):
        percent, separator, type_name = part.partition("=")
        try:
            pairs.append((float(percent), type_name.strip().upper()))
        except ValueError:
            separator = ""
        if not separator or not type_name.strip():
            raise StrategyError(f"{part!r} is not a bin", remedy="Write PERCENT=TYPE,PERCENT=TYPE, for example 10=Q6_K,100=Q4_K")
    return tuple(pairs)


def choose(
    tables: Sequence[TensorCells],
    *,
    bins: Bins = DEFAULT_BINS,
    constraints: Constraints | None = None,
    budget_bytes: int | None = None,
    fixed_bytes: int = 0,
    align: int = ALIGNMENT,
) -> tuple[TensorChoice, ...]:
    """Every tensor at its bin's minimum type, or above it where `budget_bytes` leaves room.

    Args:
        tables: the tensors, with `importance` set.
        bins: (upper percentile from the top, type), rising; tensors below the last one get their smallest type.
            A tensor that lacks a bin's type gets its smallest type of at least as many bits, else its largest.
        constraints: limits of the user; they beat the bins.
        budget_bytes: bytes of the whole file.
        fixed_bytes: everything in the file but these tensors.
        align: bytes to which each tensor's data is padded.

    Raises:
        InfeasibleError: the minimums or the constraints exceed a budget.
        StrategyError: bins out of order, of a type that no tensor has, or that leave tensors out where no budget lifts these.
    """
    limits = constraints or Constraints()
    bits = _check(bins, tables)
    last = bins[-1][0]
    if budget_bytes is None and last < 100:
        raise StrategyError(
            f"the bins end at {last:g} %, and without a size the other {100 - last:g} % of the tensors would get their smallest types",
            remedy="Add a bin for the rest, such as 100=Q4_K, or ask for a size",
        )
    groups = apply(tables, limits, align=align)
    order = sorted(range(len(groups)), key=lambda index: (-groups[index].importance, index))
    lifted, reasons = list(groups), [""] * len(groups)
    for rank, index in enumerate(order):
        percent = 100 * (rank + 1) / len(groups)
        lifted[index], reasons[index] = _lift(groups[index], percent, bins, bits)
    chosen: Sequence[Cell] = [group.cells[0] for group in lifted]
    if budget_bytes is not None:
        chosen = optimal.cells_of(lifted, budget_bytes=budget_bytes, budgets=limits.budgets, fixed_bytes=fixed_bytes, align=align)
    picks = [
        Pick(low, cell, reason if cell.type_name == low.cells[0].type_name else f"{reason}; lifted with the bytes left over")
        for low, cell, reason in zip(lifted, chosen, reasons, strict=True)
    ]
    fitted = rule.fit(picks, limits.budgets, align=align)
    return rule.to_choices(fitted, [tensor.name for tensor in tables])


def _check(bins: Bins, tables: Sequence[TensorCells]) -> list[float]:
    """Bits of the bins' types."""
    percents = [percent for percent, _ in bins]
    if not bins or percents != sorted(set(percents)) or not 0 < percents[0] <= percents[-1] <= 100:
        raise StrategyError("bins need rising percentiles above 0 and up to 100", remedy="Write for example 10=Q6_K,50=Q5_K,100=Q4_K")
    bits_of = {cell.type_name: cell.bits_per_weight for tensor in tables for cell in tensor.cells}
    for _, type_name in bins:
        if type_name not in bits_of:
            raise StrategyError(f"no tensor can take the bin's type {type_name}", remedy=words.nearest(type_name, sorted(bits_of)))
    return [bits_of[type_name] for _, type_name in bins]


def _lift(group: Group, percent: float, bins: Bins, bits: Sequence[float]) -> tuple[Group, str]:
    """The group with the cells of at least its bin's bits, the bin's own type first, and the reason."""
    number = next((index for index, (upper, _) in enumerate(bins) if percent <= upper + 1e-9), None)
    useful = sorted(group.cells, key=lambda cell: (cell.size_bytes, cell.damage))
    if number is None:
        return dataclasses.replace(group, cells=tuple(useful)), "in no bin, so the smallest type"
    upper, type_name = bins[number]
    reason = f"among the {upper:g} % most important, so at least {type_name}"
    above = [cell for cell in useful if cell.bits_per_weight >= bits[number] - 1e-9]
    if not above:
        return dataclasses.replace(group, cells=(useful[-1],)), f"{reason}, which it cannot take; its largest"
    above.sort(key=lambda cell: cell.type_name != type_name)
    return dataclasses.replace(group, cells=tuple(above)), reason
