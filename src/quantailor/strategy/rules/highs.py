"""The same choice as a mixed-integer program for HiGHS, where several budgets make it more than one knapsack.

HiGHS prints to the C standard output when it repairs a solution, whatever its options say. It therefore runs in a process of its own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantailor.errors import CrashError
from quantailor.numerics import Doubles
from quantailor.processes import apart

logger = logging.getLogger(__name__)

RELATIVE_GAP = 1e-6
TIME_LIMIT_S = 30.0
_SCALED_OBJECTIVE = 1e3
"""HiGHS stops at an absolute gap of 1e-6 too; scaling keeps that far below the relative one."""

_INFEASIBLE = 2


@dataclass(frozen=True, slots=True)
class Program:
    """Pick one option per group; minimise `costs`, keep each row of `uses` within its limit."""

    group_sizes: tuple[int, ...]
    """Options per group, in order."""
    costs: Doubles
    """(n_options,)"""
    uses: Doubles
    """(n_limits, n_options), none negative."""
    limits: Doubles
    """(n_limits,)"""


@dataclass(frozen=True, slots=True)
class Result:
    """Option numbers within each group, and a bound that no choice beats."""

    picks: tuple[int, ...]
    lower_bound: float


def solve(program: Program) -> Result | None:
    """The best choice; None where there is none, or none was found in time."""
    try:
        return apart.call(solve_here, program)
    except CrashError as error:
        logger.error("HiGHS: %s", error)
        return None


def solve_here(program: Program, *, relative_gap: float = RELATIVE_GAP, time_limit_s: float = TIME_LIMIT_S) -> Result | None:
    """As `solve`, in this process.

    HiGHS meets limits only within its tolerance, so a result that oversteps is solved again below the limit.
    """
    limits = program.limits.copy()
    relaxed = _run(program, limits, integral=False, scale=1.0, relative_gap=relative_gap, time_limit_s=time_limit_s)
    if relaxed is None:
        return None
    scale = _SCALED_OBJECTIVE / relaxed[1] if relaxed[1] > 0 else 1.0
    bound = -math.inf
    for _ in range(5):
        solution = _run(program, limits, integral=True, scale=scale, relative_gap=relative_gap, time_limit_s=time_limit_s)
        if solution is None:
            return None
        bound = solution[1] if bound == -math.inf else bound
        picks = _picks(program, solution[0])
        excess = _uses(program, picks) - program.limits
        if (excess <= 0).all():
            return Result(picks, bound)
        limits = limits - 2 * np.maximum(excess, 0)
    return None


def _run(
    program: Program, limits: Doubles, *, integral: bool, scale: float, relative_gap: float, time_limit_s: float
) -> tuple[Doubles, float] | None:
    """Variables and lower bound, unscaled."""
    # scipy.optimize takes half a second to import, and only the process that solves needs it.
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    n_options = len(program.costs)
    owner = np.repeat(np.arange(len(program.group_sizes)), program.group_sizes)
    one_each = csr_array((np.ones(n_options), (owner, np.arange(n_options))), shape=(len(program.group_sizes), n_options))
    unit = np.maximum(
        1.0,
        [
            np.gcd.reduce(row.astype(np.int64)) if (row == np.floor(row)).all() and row.max(initial=0.0) < 2**53 else 1.0
            for row in program.uses
        ],
    )
    rows = csr_array(program.uses / unit[:, None])
    result = milp(
        program.costs * scale,
        integrality=np.full(n_options, int(integral)),
        bounds=Bounds(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(rows, -np.inf, limits / unit)],
        options={"mip_rel_gap": relative_gap, "time_limit": time_limit_s},
    )
    if result.status == _INFEASIBLE or result.x is None:
        return None
    bound = result.mip_dual_bound if integral and result.mip_dual_bound is not None else result.fun
    return result.x, float(bound) / scale


def _picks(program: Program, values: Doubles) -> tuple[int, ...]:
    ends = np.cumsum(program.group_sizes)
    parts: Sequence[Doubles] = np.split(values, ends[:-1])
    return tuple(int(np.argmax(part)) for part in parts)


def _uses(program: Program, picks: Sequence[int]) -> Doubles:
    starts = np.cumsum((0, *program.group_sizes[:-1]))
    used: Doubles = program.uses[:, starts + np.array(picks)].sum(axis=1)
    return used
