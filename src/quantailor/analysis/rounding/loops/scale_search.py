"""Choosing scales of blocks together with their codes, so that the output errors of rows become small.

Every sub-block is fitted by itself (`scale_fits`), and the scales of the block are the float16 whose whole multiples come nearest to all of
the fits. These and some multiples of them are tried: codes are chosen from the last column to the first, each the nearest to what makes up
for those behind it, and what loses least stays. Later each sub-block's scales are looked at again beside their neighbours, with the codes
that go with them.

Rows stand one beside the other, as in `scale_fits`.
"""

from __future__ import annotations

import numpy as np

from quantailor.analysis.rounding.compiling import Compiled, compiled
from quantailor.analysis.rounding.loops.lanes import LANES, TILE, Grid, add_lower, add_products, columns_of, products_of, settle, to_halves
from quantailor.analysis.rounding.loops.scale_fits import fit_lines, fit_scales, fit_steps
from quantailor.numerics import Floats, Integers

FACTORS = np.array([1.0, 0.94, 0.97, 1.03, 1.06, 1.09, 1.12], dtype=np.float32)
"""Multiples of a block's scales that are tried with the codes that go with them, all beside each other."""
TRIED = len(FACTORS) * LANES
"""Lanes of all trials: each factor's follow those of the factor before."""
add_tried = products_of(TRIED)


def choice_of(lanes: int) -> Compiled[[Floats, Floats, Integers, Floats, Floats, Grid, Floats, Floats, Floats], None]:
    """`choose_values` for `LANES` or `TRIED` lanes, (n_columns, lanes)."""

    def choose_values(
        weights: Floats,
        upper: Floats,
        sub_of: Integers,
        step: Floats,
        offset: Floats,
        grid: Grid,
        carried: Floats,
        values: Floats,
        errors: Floats,
    ) -> None:
        """Choose the codes of a block whose scales stand.

        Args:
            weights: (block_size, lanes).
            upper: the block's part of L, turned, (block_size, block_size).
            sub_of: sub-block of each column, (block_size,).
            step: of each sub-block, (n_sub, lanes).
            offset: (n_sub, lanes).
            grid: of the type.
            carried: what other errors add to the columns of d L; becomes carried + d L, (block_size, lanes).
            values: of the table, are written, (block_size, lanes).
            errors: d, is written, (block_size, lanes).
        """
        nought, one, zero = np.float32(0), np.float32(1), grid.zero
        place, inverse = columns_of(1, lanes)[0], columns_of(len(step), lanes)
        for sub in range(len(step)):
            for lane in range(lanes):
                inverse[sub, lane] = one / step[sub, lane] if step[sub, lane] != nought else nought
        size = len(weights)
        for start in range(size - TILE, -1, -TILE):
            if lanes == TRIED:
                add_tried(errors, size - 1, -1, size - start - TILE, upper, carried, start, start + TILE)
            else:
                add_products(errors, size - 1, -1, size - start - TILE, upper, carried, start, start + TILE)
            for column in range(start + TILE - 1, start - 1, -1):
                share, sub = one / upper[column, column], sub_of[column]
                own, behind, error, value = weights[column], carried[column], errors[column], values[column]
                own_step, own_offset, own_inverse = step[sub], offset[sub], inverse[sub]
                for lane in range(lanes):
                    place[lane] = (own[lane] - behind[lane] * share - own_offset[lane]) * own_inverse[lane] - zero
                settle(place, grid, value)
                for lane in range(lanes):
                    error[lane] = own_offset[lane] + own_step[lane] * (zero + value[lane]) - own[lane]
                for other in range(start, column + 1):
                    share, target = upper[other, column], carried[other]
                    for lane in range(lanes):
                        target[lane] += error[lane] * share

    return compiled(choose_values)


choose_values, choose_tried = choice_of(LANES), choice_of(TRIED)


@compiled
def choose_blocks(
    weights: Floats,
    carried: Floats,
    upper: Floats,
    inverse: Floats,
    importance: Floats,
    members: Integers,
    grid: Grid,
    reaches: Floats,
    n_tries: int,
    scales: Floats,
    numbers: Floats,
    values: Floats,
    errors: Floats,
) -> None:
    """Choose scales and codes of blocks beside each other, from the last to the first.

    Args:
        weights: (n_cols, LANES).
        carried: see `choose_values`, (n_cols, LANES).
        upper: L, turned, (n_cols, n_cols).
        inverse: of each block's part of L, turned, (n_blocks, block_size, block_size).
        importance: of each column where all before it can still make up for it, (n_cols,).
        members: columns of each sub-block within each block, (n_blocks, n_sub, width).
        grid: of the type.
        reaches: see `fit_steps` and `fit_lines`, (n_tries,).
        n_tries: see `fit_scales`.
        scales: (n_blocks, 2, LANES), written as by `fit_scales`, as are the numbers.
        numbers: (n_blocks, n_sub, 2, LANES).
        values: of the table, are written, (n_cols, LANES).
        errors: d, is written, (n_cols, LANES).
    """
    size, n_sub, sub_of = inverse.shape[1], members.shape[1], np.empty(inverse.shape[1], np.int64)
    found, x = np.empty((n_sub, 6, LANES), np.float32), columns_of(size, LANES)
    tried_weights, tried_carried = columns_of(size, TRIED), columns_of(size, TRIED)
    tried_values, tried_errors = columns_of(size, TRIED), columns_of(size, TRIED)
    scaled, step, offset = np.zeros((2, TRIED), np.float32), columns_of(n_sub, TRIED), columns_of(n_sub, TRIED)
    lost, chosen = np.empty(TRIED, np.float32), np.empty(LANES, np.int64)
    for number in range(len(inverse) - 1, -1, -1):
        first, stop = number * size, (number + 1) * size
        x[:] = weights[first:stop]
        add_lower(carried[first:stop], -inverse[number], x)
        if grid.has_offsets:
            fit_lines(x, importance[first:stop], members[number], grid, reaches, found)
        else:
            fit_steps(x, importance[first:stop], members[number], grid, reaches, found)
        fit_scales(found, grid, n_tries, scales[number], numbers[number])
        for sub in range(n_sub):
            for column in members[number, sub]:
                sub_of[column] = sub
        scale_all(scales[number], numbers[number], grid, scaled, step, offset)
        repeat(weights[first:stop], tried_weights)
        repeat(carried[first:stop], tried_carried)
        own_upper = upper[first:stop, first:stop].copy()
        choose_tried(tried_weights, own_upper, sub_of, step, offset, grid, tried_carried, tried_values, tried_errors)
        square_sums(tried_carried, lost)
        choose_trial(lost, chosen)
        take(tried_values, chosen, values[first:stop])
        take(tried_errors, chosen, errors[first:stop])
        take(tried_carried, chosen, carried[first:stop])
        take(scaled, chosen, scales[number])
        add_products(errors[first:stop], 0, 1, size, upper[:first, first:stop].copy(), carried, 0, first)


@compiled
def repeat(x: Floats, trials: Floats) -> None:
    """Give each trial, of (n, TRIED), the columns, (n, LANES)."""
    for row in range(len(x)):
        for trial in range(len(FACTORS)):
            for lane in range(LANES):
                trials[row, trial * LANES + lane] = x[row, lane]


@compiled
def take(trials: Floats, chosen: Integers, x: Floats) -> None:
    """Of trials, (n, TRIED), those at the places that were chosen, (LANES,), into x, (n, LANES)."""
    for row in range(len(x)):
        for lane in range(LANES):
            x[row, lane] = trials[row, chosen[lane]]


@compiled
def choose_trial(lost: Floats, chosen: Integers) -> None:
    """Where among trials, (n_tried,), each lane loses least, (n_lanes,); the first trial's where nothing can be compared."""
    for lane in range(LANES):
        chosen[lane] = lane
        for trial in range(1, len(FACTORS)):
            place = trial * LANES + lane
            chosen[lane] = place if lost[place] < lost[chosen[lane]] else chosen[lane]


@compiled
def square_sums(x: Floats, sums: Floats) -> None:
    """Sums of the squares of columns, (n, TRIED), into sums, (TRIED,)."""
    squares = np.empty(TRIED, np.float32)
    sums[:] = np.float32(0)
    for row in range(len(x)):
        for lane in range(TRIED):
            squares[lane] = x[row, lane] * x[row, lane]
        for lane in range(TRIED):
            sums[lane] += squares[lane]


@compiled
def scale_all(scales: Floats, numbers: Floats, grid: Grid, scaled: Floats, step: Floats, offset: Floats) -> None:
    """Scales of a block, (2, LANES), times each factor, (2, TRIED), and what sub-blocks then have, (n_sub, TRIED) both."""
    for what in range(2 if grid.has_offsets else 1):
        for trial in range(len(FACTORS)):
            own = scaled[what, trial * LANES : (trial + 1) * LANES]
            for lane in range(LANES):
                own[lane] = scales[what, lane] * FACTORS[trial]
            to_halves(own)
    for sub in range(len(numbers)):
        for trial in range(len(FACTORS)):
            for lane in range(LANES):
                place = trial * LANES + lane
                step[sub, place] = grid.unit * scaled[0, place] * numbers[sub, 0, lane]
                offset[sub, place] = grid.sign * scaled[1, place] * numbers[sub, 1, lane]
