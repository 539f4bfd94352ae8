"""Which rows of a tensor are measured, and what their errors say about all of them.

Every type is measured on a prefix of one fixed sequence of rows, drawn once from (model, tensor, weights):

1. *Size* of a row: 40 % its share in sum W^2, 40 % its share in the weighted sum, 20 % the same for all rows.
   The first two are equal without an importance matrix; with one, no row's chance falls far below what either
   figure needs. The last keeps rows of little energy in sight, for quantiles and for errors that do not follow
   energy; without it one such row could stand for hundreds.
2. *Certainty stratum*: rows whose size is at least 1 / PILOT_DRAWS of what is left are always measured; of half that where errors
   of outputs are asked for, because these follow size less closely: of a frequent token's row a pilot without it knows nothing.
3. The rest is drawn with replacement, with probability proportional to size (Hansen and Hurwitz 1943), within
   each slice (expert) separately; slices get draws in proportion to their size, at least two each.

The row sums of W^2 are known for all rows, so the error is estimated as a ratio to them (combined ratio
estimator): sum over the certain rows + X_rest x (sum of y / p) / (sum of x / p). Where p is proportional to x
this is exactly the Hansen-Hurwitz estimator; elsewhere the ratio takes out what uneven chances would add to its
variance. Errors of outputs (`output_mse`) are estimated by the weighted row sums too, which they nearly follow.
As a ratio to the sampled rows' own output energies w^T H w they took two to fourteen times the draws: a few rows of
any matrix hold much of that energy, and a sample without them did not know what it lacked. The variance is that
of the residuals y - R x, within slices (Cochran, Sampling Techniques, chapters 6 and 9A), widened by 1 + 5 / (4
df), which makes an interval of two standard errors as wide as Student's t needs for the same coverage.

*When to stop* is decided for each type alone, so adding types later changes nothing for the others. After a pilot
of PILOT_DRAWS the number of draws that the target seems to need is computed and drawn, at most twice as many as so
far, until the target is met. Looking rarely, and never before the pilot, keeps the bias of stopping on an
estimated error below what a test over many seeds can see. A type that would need more draws than the tensor has
rows is measured on all rows.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from quantailor.numerics import Doubles, Integers
from quantailor.records import Estimate

PILOT_DRAWS = 64
"""Draws before anybody asks whether they are enough; also those whose errors are counted in bins."""
LADDER_STEP = 2**0.25
"""Ratio of the numbers of draws of one stage and the next."""
MAX_GROWTH = 2.0
"""Most by which one step grows the draws: a pilot with an unusual row would ask for far too many."""
OUTPUT_CERTAIN_DRAWS = 2 * PILOT_DRAWS
"""Rows that so many draws would be expected to hit are certain where errors of outputs are measured."""
EVEN_SHARE = 0.2
"""Part of the chance that is the same for all rows."""
SAFETY = 1.05
"""How many more draws than the standard error so far asks for."""


@dataclass(frozen=True, slots=True)
class Draws:
    """A prefix of the sequence of rows."""

    rows: Integers
    """Rows drawn, repetitions included, grouped by slice; (n,)."""
    expansion: Doubles
    """1 / (n_h p), so that the sum of expansion x value estimates the total; (n,)."""
    starts: Integers
    """Where each slice's draws start, and the end; (n_strata + 1,)."""


@dataclass(frozen=True, slots=True)
class RowPlan:
    """The sequence of rows of one tensor."""

    n_rows: int
    certain: Integers
    slices: tuple[tuple[Integers, Doubles, float, int], ...]
    """Of each slice with rows to draw: rows, sizes, share of the slice, seed."""

    @property
    def n_open(self) -> int:
        """Rows that are not certain."""
        return self.n_rows - len(self.certain)

    def draws(self, n: int) -> Draws:
        """The first `n` draws (somewhat more where slices need their minimum of two)."""
        rows: list[Integers] = []
        expansion: list[Doubles] = []
        for members, sizes, share, seed in self.slices:
            n_slice = max(2, round(n * share))
            cumulative = np.cumsum(sizes)
            picked = np.searchsorted(cumulative, _uniforms(seed, n_slice) * cumulative[-1], side="right")
            picked = np.minimum(picked, len(members) - 1)
            rows.append(members[picked])
            expansion.append(cumulative[-1] / (n_slice * sizes[picked]))
        starts = np.cumsum([0, *(len(part) for part in rows)], dtype=np.int64)
        none = np.empty(0)
        return Draws(
            np.concatenate([none.astype(np.int64), *rows]),
            np.concatenate([none, *expansion]),
            starts,
        )

    def measured(self, n: int) -> Integers:
        """The distinct rows that `n` draws need, certain ones included, ascending: (n_distinct,)."""
        return np.union1d(self.certain, self.draws(n).rows)


def _uniforms(seed: int, n: int) -> Doubles:
    """The first `n` numbers of a stream in [0, 1); raw output of PCG64, which numpy keeps stable."""
    return (np.random.PCG64(seed).random_raw(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def plan_rows(plain: Doubles, weighted: Doubles, rows_per_slice: int, seed: str, *, certain_draws: int = PILOT_DRAWS) -> RowPlan:
    """Plan the sequence of rows from every row's plain and weighted energy, each (n_rows,).

    `seed` is any text; the same text and energies give the same sequence. Rows that so many draws would be expected to hit are certain.
    """
    energy = (_shares(plain) + _shares(weighted)) / 2
    size = EVEN_SHARE / len(energy) + (1 - EVEN_SHARE) * energy
    certain = _certainty_rows(size, certain_draws)
    open_rows = np.ones(len(size), dtype=np.bool_)
    open_rows[certain] = False
    left = float(size[open_rows].sum())
    slices = []
    for index in range(len(size) // rows_per_slice):
        start = index * rows_per_slice
        members = start + np.flatnonzero(open_rows[start : start + rows_per_slice])
        if len(members):
            digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
            slices.append((members, size[members], float(size[members].sum()) / left, int.from_bytes(digest[:16], "little")))
    return RowPlan(len(size), certain, tuple(slices))


def _shares(values: Doubles) -> Doubles:
    total = values.sum()
    return values / total if total > 0 else np.zeros_like(values)


def _certainty_rows(size: Doubles, n_draws: int) -> Integers:
    """Rows of at least 1 / n_draws of the size that larger rows leave, ascending."""
    order = np.argsort(-size, kind="stable")[:n_draws]
    left = float(size.sum())
    n_certain = 0
    for row in order:
        if size[row] * n_draws < left:
            break
        left -= float(size[row])
        n_certain += 1
    return np.sort(order[:n_certain])


def next_stage(n_draws: int, relative_se: float, target: float) -> int:
    """How many draws to try after `n_draws` gave `relative_se`: the first rung of the ladder that should do."""
    needed = n_draws * min(MAX_GROWTH, SAFETY * (relative_se / target) ** 2)
    rung = max(1, math.floor(math.log(max(n_draws, needed) / PILOT_DRAWS, LADDER_STEP)))
    while (n := math.ceil(PILOT_DRAWS * LADDER_STEP**rung)) <= n_draws or n < needed:
        rung += 1
    return n


def estimate_total(plan: RowPlan, draws: Draws, y: Doubles, x: Doubles, x_total: float) -> Estimate:
    """Estimate the sum of `y` over all rows, with its standard error.

    `y` and the auxiliary `x` are (n_certain + n_draws,): values of the certain rows, then of the draws in their
    order. `x_total` is the known sum of x over all rows.
    """
    n = len(plan.certain)
    certain = float(y[:n].sum())
    if not len(draws.rows):
        return Estimate(certain)
    x_rest = max(0.0, x_total - float(x[:n].sum()))
    x_drawn = float((draws.expansion * x[n:]).sum())
    y_drawn = float((draws.expansion * y[n:]).sum())
    if x_drawn <= 0:
        return Estimate(certain + y_drawn, _se_of_sum(draws.expansion * y[n:], draws.starts))
    ratio = y_drawn / x_drawn
    residual = draws.expansion * (y[n:] - ratio * x[n:])
    return Estimate(certain + ratio * x_rest, _se_of_sum(residual, draws.starts) * x_rest / x_drawn)


def _se_of_sum(values: Doubles, starts: Integers) -> float:
    """Standard error of the sum of independent draws, from their scatter within each slice."""
    sizes = np.diff(starts)
    means = np.add.reduceat(values, starts[:-1]) / sizes
    scatter = np.add.reduceat((values - np.repeat(means, sizes)) ** 2, starts[:-1])
    degrees = max(1, len(values) - len(sizes))
    return math.sqrt(float((scatter * sizes / np.maximum(1, sizes - 1)).sum())) * (1 + 1.25 / degrees)


def estimate_shares(plan: RowPlan, draws: Draws, fractions: Doubles) -> Doubles:
    """Estimate which share of all weights falls into each bin.

    `fractions` is (n_certain + n_draws, n_bins): the shares within those rows, which add up to 1.
    """
    n = len(plan.certain)
    total = fractions[:n].sum(axis=0)
    if len(draws.rows):
        total += plan.n_open * np.einsum("i,ij->j", draws.expansion, fractions[n:]) / draws.expansion.sum()
    return np.asarray(total / plan.n_rows, dtype=np.float64)


def share_below_se(plan: RowPlan, draws: Draws, below: Doubles) -> float:
    """Standard error of the share of all weights below a value; `below` is that share in every draw, (n_draws,)."""
    if not len(draws.rows):
        return 0.0
    mean = float((draws.expansion * below).sum() / draws.expansion.sum())
    se = _se_of_sum(draws.expansion * (below - mean), draws.starts)
    return se / float(draws.expansion.sum()) * plan.n_open / plan.n_rows
