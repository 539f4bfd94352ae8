"""Choosing the codes of a block whose scales stand, so that the output errors of its rows become small.

With d the errors of a row, its output error is |carried + d L|^2, where `carried` is what other blocks' errors add to the columns of d L
that are the block's. Compiled, because a code depends on the codes before it, which no product of matrices can say.

In all arrays, columns are in the order of the factor L; weight = offset + step * table[code].
"""

from __future__ import annotations

import numpy as np

from quantailor.analysis.rounding.codes import CodeOf
from quantailor.analysis.rounding.compiling import compiled
from quantailor.numerics import Floats

TOGETHER = 16
"""Columns that are looked at together until one of them changes; it divides every block."""


@compiled
def wanted_code(place: np.float32, middles: Floats, last: np.float32) -> int:
    """The code nearest to a place, in steps from the first: by the middles of the table, (n_codes - 1,), or of 0 to the last."""
    if len(middles):
        code = 0
        for middle in middles:
            code += 1 if place > middle else 0
        return code
    return int(np.floor(min(max(place + np.float32(0.5), np.float32(0)), last)))


@compiled
def last_to_change(
    weights: Floats,
    errors: Floats,
    slopes: Floats,
    own_gram: Floats,
    offset: Floats,
    inverse: Floats,
    low: Floats,
    high: Floats,
    n: int,
) -> np.int32:
    """The last of the first n columns whose code is not the nearest to what is best beside all others as they are; -1 for none.

    All else is as in `improve_codes`, of one row and some columns, (n_together,), with gram's diagonal, the inverse of steps, and the
    places between which each column's code is the nearest.
    """
    found = np.int32(-1)
    for k in range(np.int32(TOGETHER)):
        best = weights[k] + errors[k] - slopes[k] / own_gram[k]
        place = (best - offset[k]) * inverse[k]
        off = (place < low[k]) | (place > high[k])
        found = max(found, np.int32(k) if off & (k < n) else np.int32(-1))
    return found


@compiled
def improve_codes(
    weights: Floats,
    slopes: Floats,
    gram: Floats,
    offset: Floats,
    step: Floats,
    middles: Floats,
    table: Floats,
    n_sweeps: int,
    codes: CodeOf,
    errors: Floats,
    lost: Floats,
) -> None:
    """Look at each code again, beside all others, until none changes: coordinate descent.

    Args:
        weights: (n_rows, size).
        slopes: (carried + d L) L^T, half the slope of the output error over d; changes with d, (n_rows, size).
        gram: L L^T, (size, size).
        offset: (n_rows, size).
        step: (n_rows, size).
        middles: between the values of the table, (n_codes - 1,); empty where table[code] == code.
        table: (n_codes,).
        n_sweeps: how often, at most.
        codes: (n_rows, size), becomes better.
        errors: d, (n_rows, size), becomes better.
        lost: |carried + d L|^2, (n_rows,), becomes less.
    """
    n_rows, size = weights.shape
    one, zero, last = np.float32(1), np.float32(0), np.float32(len(table) - 1)
    inverse, own_gram = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.float32)
    low, high = np.empty(size, dtype=np.float32), np.empty(size, dtype=np.float32)
    ends = np.empty(len(table) + 1, dtype=np.float32)  # of the places where a code is the nearest
    ends[0], ends[-1] = -np.inf, np.inf
    for code in range(1, len(table)):
        ends[code] = middles[code - 1] if len(middles) else np.float32(code) - np.float32(0.5)
    for column in range(size):
        own_gram[column] = gram[column, column]
    for row in range(n_rows):
        own_weights, own_offset, own_step = weights[row], offset[row], step[row]
        own_codes, own_errors, slope = codes[row], errors[row], slopes[row]
        for column in range(size):
            inverse[column] = one / own_step[column] if own_step[column] != zero else zero
            low[column], high[column] = ends[own_codes[column]], ends[own_codes[column] + 1]
        for _ in range(n_sweeps):
            changed = False
            for first in range(size - TOGETHER, -1, -TOGETHER):
                to_do, stop = TOGETHER, first + TOGETHER
                # Slices, whose columns count from 0: a number that might be negative counts from the end, which numba looks up one by one.
                of_columns = (
                    *(own_weights[first:stop], own_errors[first:stop], slope[first:stop], own_gram[first:stop]),
                    *(own_offset[first:stop], inverse[first:stop], low[first:stop], high[first:stop]),
                )
                while to_do > 0:
                    to_do = int(last_to_change(*of_columns, to_do))
                    if to_do >= 0:
                        column = first + to_do
                        best = own_weights[column] + own_errors[column] - slope[column] / own_gram[column]
                        code = wanted_code((best - own_offset[column]) * inverse[column], middles, last)
                        change = own_offset[column] + own_step[column] * table[code] - own_weights[column] - own_errors[column]
                        lost[row] += change * (2 * slope[column] + change * own_gram[column])
                        changed = changed or code != own_codes[column]
                        own_codes[column], low[column], high[column] = code, ends[code], ends[code + 1]
                        own_errors[column] += change
                        for other in range(size):
                            slope[other] += change * gram[column, other]
            if not changed:
                break
