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
def wanted_codes(
    weights: Floats,
    errors: Floats,
    slopes: Floats,
    own_gram: Floats,
    offset: Floats,
    inverse: Floats,
    middles: Floats,
    last: np.float32,
    first: int,
    wanted: Floats,
) -> None:
    """The best codes of the columns from the first, each beside all others as they are, into wanted, (n_together,).

    All else is as in `improve_codes`, of one row, (size,), with gram's diagonal, the inverse of steps, and the last code.
    """
    zero, one = np.float32(0), np.float32(1)
    half_step, places = zero if len(middles) else np.float32(0.5), np.empty(TOGETHER, dtype=np.float32)
    for k in range(TOGETHER):
        column = first + k
        best = weights[column] + errors[column] - slopes[column] / own_gram[column]
        places[k] = (best - offset[column]) * inverse[column] + half_step
    if len(middles):
        wanted[:] = zero
        for middle in middles:
            for k in range(TOGETHER):
                wanted[k] += one if places[k] > middle else zero
    else:
        for k in range(TOGETHER):
            wanted[k] = np.floor(min(max(places[k], zero), last))


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
    wanted = np.empty(TOGETHER, dtype=np.float32)
    for column in range(size):
        own_gram[column] = gram[column, column]
    for row in range(n_rows):
        own_weights, own_offset, own_step = weights[row], offset[row], step[row]
        own_codes, own_errors, slope = codes[row], errors[row], slopes[row]
        for column in range(size):
            inverse[column] = one / own_step[column] if own_step[column] != zero else zero
        for _ in range(n_sweeps):
            changed = False
            for first in range(size - TOGETHER, -1, -TOGETHER):
                to_do = TOGETHER
                while to_do > 0:
                    wanted_codes(own_weights, own_errors, slope, own_gram, own_offset, inverse, middles, last, first, wanted)
                    to_change = -1
                    for k in range(TOGETHER):
                        to_change = k if k < to_do and wanted[k] != np.float32(own_codes[first + k]) else to_change
                    to_do = to_change
                    if to_change >= 0:
                        column, code, changed = first + to_change, int(wanted[to_change]), True
                        change = own_offset[column] + own_step[column] * table[code] - own_weights[column] - own_errors[column]
                        lost[row] += change * (2 * slope[column] + change * own_gram[column])
                        own_codes[column] = code
                        own_errors[column] += change
                        for other in range(size):
                            slope[other] += change * gram[column, other]
            if not changed:
                break
