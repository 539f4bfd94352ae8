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
    last, one, zero = len(table) - 1, np.float32(1), np.float32(0)
    rounded = zero if len(middles) else np.float32(0.5)
    inverse = np.empty(size, dtype=np.float32)
    for row in range(n_rows):
        own_codes, own_errors, own_step, slope = codes[row], errors[row], step[row], slopes[row]
        for column in range(size):
            inverse[column] = one / own_step[column] if own_step[column] != zero else zero
        for _ in range(n_sweeps):
            changed = False
            for column in range(size - 1, -1, -1):
                best = weights[row, column] + own_errors[column] - slope[column] / gram[column, column]
                place = (best - offset[row, column]) * inverse[column] + rounded
                code = min(max(int(place), 0), last)
                if len(middles):
                    code = 0
                    for middle in middles:
                        code += place > middle
                if code != own_codes[column]:
                    change = offset[row, column] + own_step[column] * table[code] - weights[row, column] - own_errors[column]
                    lost[row] += change * (2 * slope[column] + change * gram[column, column])
                    own_codes[column] = code
                    own_errors[column] += change
                    for other in range(size):
                        slope[other] += change * gram[column, other]
                    changed = True
            if not changed:
                break
