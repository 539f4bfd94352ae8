"""Each tensor by itself: go down the types and stop just before the error jumps.

No target and no trade between tensors. The types walked are those on the lower convex hull of (bits, error):
a type off it is never a good use of bits and would only make the steps uneven. A step from e0 at b0 bits to
e1 at b1 bits is a jump when one of these exceeds the threshold:

    relative           100 ((e1 / e0)^(1 / (b0 - b1)) - 1)     per cent per bit given up; not counted from e0 = 0
    absolute           e1 - e0                                 in the error's own unit
    statistical        z of ln(e1 / e0) / (b0 - b1)            standard deviations above this tensor's earlier steps

and two rules look at the whole curve instead of one step:

    second_difference  the type where the slope of error over bits changes most
    fitted             a + b / bits^c is fitted; its knee is where its slope reaches the chord's, times the threshold

Thresholds tighten with importance: `threshold = base / (normalized importance + epsilon)`, the importance
being the tensor's over the largest. (The second difference has none.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from quantailor.errors import StrategyError
from quantailor.numerics import Doubles
from quantailor.records import Cell, TensorCells, TensorChoice
from quantailor.strategy.constraints import ALIGNMENT, Budget, Constraints, Group, apply
from quantailor.strategy.importance import normalized
from quantailor.strategy.rules import picks as rule
from quantailor.strategy.rules.hull import lower_hull
from quantailor.strategy.rules.picks import Pick

Test = Literal["relative", "absolute", "statistical", "second_difference", "fitted"]
ErrorName = Literal["relative_rmse", "rmse", "max_abs_error", "weighted_mse", "output_mse", "relative_mse", "damage"]

BASES: dict[Test, float] = {"relative": 310.0, "absolute": 0.2, "statistical": 6.0, "second_difference": 0.0, "fitted": 3.0}
"""Default bases; with the default epsilon a tensor of no importance has a third of it as threshold, the most important a quarter."""
EPSILON = 3.0
DEFAULT_TEST: Test = "statistical"
"""Every tensor is its own measure here, so the default suits models of any error level."""
MIN_EARLIER_STEPS = 2
"""Steps that the statistical test needs before it can speak."""
_POWERS = (0.25, 8.0)
_MIN_SPREAD = 0.05
"""Least standard deviation assumed of earlier steps, relative to their mean: few steps can look too even."""

_ERRORS: dict[ErrorName, Callable[[Cell], float]] = {
    "relative_rmse": lambda cell: math.sqrt(cell.relative_mse),
    "rmse": lambda cell: cell.rmse,
    "max_abs_error": lambda cell: cell.max_abs_error,
    "weighted_mse": lambda cell: cell.weighted_mse,
    "output_mse": lambda cell: cell.error,
    "relative_mse": lambda cell: cell.relative_mse,
    "damage": lambda cell: cell.damage,
}


@dataclass(frozen=True, slots=True)
class Knee:
    """The type just above the jump, and how that was seen."""

    cell: Cell
    reason: str


@dataclass(frozen=True, slots=True)
class _Walk:
    """Types from high to low bits; errors never fall."""

    cells: tuple[Cell, ...]
    bits: Doubles
    errors: Doubles


def choose(
    tables: Sequence[TensorCells],
    *,
    test: Test = DEFAULT_TEST,
    base: float | None = None,
    epsilon: float = EPSILON,
    error: ErrorName = "relative_rmse",
    constraints: Constraints | None = None,
    budget_bytes: int | None = None,
    fixed_bytes: int = 0,
    align: int = ALIGNMENT,
) -> tuple[TensorChoice, ...]:
    """Every tensor at its knee; see the module docstring for the tests.

    Args:
        tables: the tensors, with `importance` set.
        test: how a jump is recognised.
        base: the threshold's base in the test's unit; None takes `BASES`.
        epsilon: how little importance matters; above 0.
        error: what is walked along; `relative_rmse` is the root of `relative_mse`.
        constraints: limits of the user.
        budget_bytes: bytes of the whole file; where the knees exceed it, types are lowered, cheapest damage first.
        fixed_bytes: everything in the file but these tensors.
        align: bytes to which each tensor's data is padded.

    Raises:
        InfeasibleError: the constraints or budgets cannot be met.
        StrategyError: an unknown test or error, or a number out of range.
    """
    limits = constraints or Constraints()
    groups = apply(tables, limits, align=align)
    picks = []
    for group, importance in zip(groups, normalized(groups), strict=True):
        knee = find(group.cells, importance=importance, test=test, base=base, epsilon=epsilon, error=error)
        picks.append(Pick(group, knee.cell, knee.reason, rule.price_range(group, knee.cell)))
    overall = () if budget_bytes is None else (Budget(rule.EVERYTHING, budget_bytes - fixed_bytes),)
    fitted = rule.fit(picks, (*limits.budgets, *overall), align=align)
    return rule.to_choices(fitted, [tensor.name for tensor in tables])


def find(
    cells: Sequence[Cell],
    *,
    importance: float = 0.0,
    test: Test = "fitted",
    base: float | None = None,
    epsilon: float = EPSILON,
    error: ErrorName = "relative_rmse",
) -> Knee:
    """The knee of one tensor's cells; `importance` is normalized, 0 to 1. Always returns a type.

    Raises:
        StrategyError: an unknown test or error, or a number out of range.
    """
    if test not in get_args(Test):
        raise StrategyError(f"there is no knee test {test!r}", remedy=f"Known: {', '.join(get_args(Test))}")
    if error not in _ERRORS:
        raise StrategyError(f"there is no error {error!r} to walk along", remedy=f"Known: {', '.join(_ERRORS)}")
    start = BASES[test] if base is None else base
    if not math.isfinite(start) or start < 0:
        raise StrategyError(f"the knee's threshold (base) is {start:g}", remedy="Give a number from 0 on, such as 300")
    if not epsilon > 0 or not math.isfinite(epsilon):
        raise StrategyError(f"the knee's epsilon is {epsilon:g}", remedy="Give a number above 0, such as 3")
    walk = _walk(cells, _ERRORS[error])
    if len(walk.cells) == 1:
        return Knee(walk.cells[0], "the only type allowed here" if len(cells) == 1 else "smaller than every other type and no worse")
    threshold = start / (importance + epsilon)
    if test == "second_difference":
        return _second_difference(walk)
    if test == "fitted":
        return _fitted(walk, threshold)
    return _first_jump(walk, test, threshold)


def _walk(cells: Sequence[Cell], error_of: Callable[[Cell], float]) -> _Walk:
    """The lower convex hull of (bits, error), from high to low bits."""
    bits, errors = [cell.bits_per_weight for cell in cells], [max(0.0, error_of(cell)) for cell in cells]
    points = lower_hull(bits, errors)[::-1]
    return _Walk(tuple(cells[index] for index in points), np.array(bits)[points], np.array(errors)[points])


def _first_jump(walk: _Walk, test: Test, threshold: float) -> Knee:
    growth: list[float] = []
    for index in range(len(walk.cells) - 1):
        bits = float(walk.bits[index] - walk.bits[index + 1])
        before, after = float(walk.errors[index]), float(walk.errors[index + 1])
        if test == "absolute":
            size, unit = after - before, ""
        elif before <= 0:
            continue
        else:
            rate = math.log(after / before) / bits
            size, unit = (
                (100 * math.expm1(rate), " % per bit") if test == "relative" else (_deviation(growth, rate), " standard deviations")
            )
            growth.append(rate)
        if size > threshold:
            below = walk.cells[index + 1].type_name
            return Knee(
                walk.cells[index],
                f"the last type before the error jumps by {size:.3g}{unit} (to {below}; the threshold is {threshold:.3g})",
            )
    return Knee(walk.cells[-1], f"the error jumps nowhere by more than {threshold:.3g}, so the smallest type")


def _deviation(earlier: Sequence[float], value: float) -> float:
    """Standard deviations by which a value is above earlier ones; -inf where they are too few."""
    if len(earlier) < MIN_EARLIER_STEPS:
        return -math.inf
    mean = float(np.mean(earlier))
    spread = max(float(np.std(earlier, ddof=1)), _MIN_SPREAD * abs(mean))
    return (value - mean) / spread if spread > 0 else 0.0


def _second_difference(walk: _Walk) -> Knee:
    if len(walk.cells) == 2:
        return Knee(walk.cells[0], "of two types the larger; there is no second difference")
    slopes = np.diff(walk.errors) / -np.diff(walk.bits)
    index = int(np.argmax(np.diff(slopes))) + 1
    return Knee(walk.cells[index], f"below it the error's slope changes most, from {slopes[index - 1]:.3g} to {slopes[index]:.3g} per bit")


def _fitted(walk: _Walk, threshold: float) -> Knee:
    """The smallest type at or above the fitted curve's knee."""
    if len(walk.cells) == 2:
        return Knee(walk.cells[0], "of two types the larger; there is no curve to fit")
    bits = float(_fitted_bits(walk.bits[None], walk.errors[None], threshold)[0])
    return Knee(_at_or_above(walk, bits), f"the type above the knee of the fitted curve at {bits:.2f} bits")


def _fitted_bits(bits: Doubles, errors: Doubles, threshold: float) -> Doubles:
    """Bits at which fitted curves have their knees; `bits` and `errors` are (n_curves, n_types), the result (n_curves,).

    The slope b c / bits^(c + 1) falls with bits; the knee is where it equals threshold x chord.
    """
    _, scales, powers = fit_curves(bits, errors)
    chords = (errors[:, -1] - errors[:, 0]) / (bits[:, 0] - bits[:, -1])
    with np.errstate(over="ignore", invalid="ignore"):
        knees = (np.maximum(scales, 0.0) * powers / np.maximum(threshold * chords, 1e-300)) ** (1 / (powers + 1))
    return np.where(scales > 0, knees, bits[:, -1])


def _at_or_above(walk: _Walk, bits: float) -> Cell:
    above = [index for index in range(len(walk.cells)) if walk.bits[index] >= bits]
    return walk.cells[above[-1] if above else 0]


def fit_curves(bits: Doubles, errors: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    """Least squares of errors = a + b / bits^c: a, b, c with c from 0.25 to 8, found to 1e-3.

    For a given c the fit is linear; c is narrowed down on three grids. `bits` and `errors` are (n_curves, n_types).
    """
    low, high = (np.full(len(bits), end) for end in _POWERS)
    for _ in range(3):
        powers = np.linspace(low, high, 33, axis=1)  # (n_curves, n_powers)
        best = _best_fits(bits, errors, powers)
        step = powers[:, 1] - powers[:, 0]
        low, high = np.maximum(_POWERS[0], best[2] - step), np.minimum(_POWERS[1], best[2] + step)
    return best


def _best_fits(bits: Doubles, errors: Doubles, powers: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    least = bits.min(axis=1, keepdims=True)
    scaled = (bits / least)[:, None, :] ** -powers[:, :, None]  # (n_curves, n_powers, n_types)
    spread = scaled - scaled.mean(axis=2, keepdims=True)
    mean = errors.mean(axis=1, keepdims=True)
    slopes = (spread @ (errors - mean)[:, :, None])[:, :, 0] / (spread**2).sum(axis=2)
    offsets = mean - slopes * scaled.mean(axis=2)
    residuals = ((errors[:, None, :] - offsets[:, :, None] - slopes[:, :, None] * scaled) ** 2).sum(axis=2)
    rows, best = np.arange(len(bits)), residuals.argmin(axis=1)
    power = powers[rows, best]
    return offsets[rows, best], slopes[rows, best] * least[:, 0] ** power, power


def diagnostics(tables: Sequence[TensorCells], groups: Sequence[Group] = ()) -> dict[str, str]:
    """Every tensor's own knee (fitted curve, importance left out), among the types that `groups` allow it.

    The same as `find` for each of them, with all curves of one length fitted at once.
    """
    allowed = {tensor.name: tensor.cells for group in groups for tensor in group.tensors if not any(group.pins)}
    walks = {tensor.name: _walk(allowed.get(tensor.name, tensor.cells), _ERRORS["relative_rmse"]) for tensor in tables}
    knees = {name: walk.cells[0].type_name for name, walk in walks.items() if len(walk.cells) <= 2}
    threshold = BASES["fitted"] / EPSILON
    for length in {len(walk.cells) for walk in walks.values() if len(walk.cells) > 2}:
        names = [name for name, walk in walks.items() if len(walk.cells) == length]
        bits = _fitted_bits(np.array([walks[name].bits for name in names]), np.array([walks[name].errors for name in names]), threshold)
        knees |= {name: _at_or_above(walks[name], float(knee_bits)).type_name for name, knee_bits in zip(names, bits, strict=True)}
    return {tensor.name: knees[tensor.name] for tensor in tables}
