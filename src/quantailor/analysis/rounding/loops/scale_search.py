"""Choosing scales of blocks together with their codes, so that the output errors of rows become small.

Every sub-block is fitted by itself (`scale_fits`), and the scales of the block are the float16 whose whole multiples come nearest to all of
the fits. These and some multiples of them are tried: codes are chosen from the last column to the first, each the nearest to what makes up
for those behind it, and what loses least stays. Later each sub-block's scales are looked at again beside their neighbours, with the codes
that go with them.

Rows stand one beside the other, as in `scale_fits`.
"""

from __future__ import annotations

import numpy as np

from quantailor.analysis.rounding.compiling import compiled
from quantailor.analysis.rounding.loops.lanes import LANES, TILE, Grid, add_lower, add_products, keep, settle, to_halves
from quantailor.analysis.rounding.loops.scale_fits import fit_lines, fit_scales, fit_steps
from quantailor.numerics import Floats, Integers


@compiled
def choose_values(
    weights: Floats,
    lower: Floats,
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
        weights: (block_size, LANES).
        lower: the block's part of L, (block_size, block_size).
        sub_of: sub-block of each column, (block_size,).
        step: of each sub-block, (n_sub, LANES).
        offset: (n_sub, LANES).
        grid: of the type.
        carried: what other errors add to the columns of d L; becomes carried + d L, (block_size, LANES).
        values: of the table, are written, (block_size, LANES).
        errors: d, is written, (block_size, LANES).
    """
    nought, one = np.float32(0), np.float32(1)
    place, inverse = np.empty(LANES, np.float32), np.empty_like(step)
    for sub in range(len(step)):
        for lane in range(LANES):
            inverse[sub, lane] = one / step[sub, lane] if step[sub, lane] != nought else nought
    size = len(weights)
    for start in range(size - TILE, -1, -TILE):
        add_products(errors, size - 1, -1, size - start - TILE, lower, carried, start, start + TILE)
        for column in range(start + TILE - 1, start - 1, -1):
            own, behind, share, sub = weights[column], carried[column], one / lower[column, column], sub_of[column]
            for lane in range(LANES):
                place[lane] = (own[lane] - behind[lane] * share - offset[sub, lane]) * inverse[sub, lane] - grid.zero
            settle(place, grid, values[column])
            error = errors[column]
            for lane in range(LANES):
                error[lane] = offset[sub, lane] + step[sub, lane] * (grid.zero + values[column, lane]) - own[lane]
            for other in range(start, column + 1):
                share, target = lower[column, other], carried[other]
                for lane in range(LANES):
                    target[lane] += error[lane] * share


@compiled
def choose_blocks(
    weights: Floats,
    carried: Floats,
    lower: Floats,
    inverse: Floats,
    importance: Floats,
    members: Integers,
    grid: Grid,
    reaches: Floats,
    n_tries: int,
    factors: Floats,
    scales: Floats,
    numbers: Floats,
    values: Floats,
    errors: Floats,
) -> None:
    """Choose scales and codes of blocks beside each other, from the last to the first.

    Args:
        weights: (n_cols, LANES).
        carried: see `choose_values`, (n_cols, LANES).
        lower: L, (n_cols, n_cols).
        inverse: of each block's part of L, (n_blocks, block_size, block_size).
        importance: of each column where all before it can still make up for it, (n_cols,).
        members: columns of each sub-block within each block, (n_blocks, n_sub, width).
        grid: of the type.
        reaches: see `fit_steps` and `fit_lines`, (n_tries,).
        n_tries: see `fit_scales`.
        factors: multiples of the scales that are tried, (n_factors,).
        scales: (n_blocks, 2, LANES), written as by `fit_scales`, as are the numbers.
        numbers: (n_blocks, n_sub, 2, LANES).
        values: of the table, are written, (n_cols, LANES).
        errors: d, is written, (n_cols, LANES).
    """
    block_size, n_sub, sub_of = inverse.shape[1], members.shape[1], np.empty(inverse.shape[1], np.int64)
    best_values, best_errors = np.empty((block_size, LANES), np.float32), np.empty((block_size, LANES), np.float32)
    found, scaled = np.empty((n_sub, 6, LANES), np.float32), np.zeros((2, LANES), np.float32)
    step, offset = np.empty((n_sub, LANES), np.float32), np.empty((n_sub, LANES), np.float32)
    least, lost, better = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.bool_)
    best_scaled = np.zeros((2, LANES), np.float32)
    for number in range(len(inverse) - 1, -1, -1):
        first, stop = number * block_size, (number + 1) * block_size
        own_lower = lower[first:stop, first:stop].copy()
        x = weights[first:stop].copy()
        add_lower(carried[first:stop], -inverse[number], 0, x)
        if grid.has_offsets:
            fit_lines(x, importance[first:stop], members[number], grid, reaches, found)
        else:
            fit_steps(x, importance[first:stop], members[number], grid, reaches, found)
        fit_scales(found, grid, n_tries, scales[number], numbers[number])
        for sub in range(n_sub):
            for column in members[number, sub]:
                sub_of[column] = sub
        least[:] = np.inf
        for factor in factors:
            scale_by(factor, scales[number], numbers[number], grid, scaled, step, offset)
            tried = carried[first:stop].copy()
            choose_values(weights[first:stop], own_lower, sub_of, step, offset, grid, tried, values[first:stop], errors[first:stop])
            square_sums(tried, lost)
            for lane in range(LANES):
                better[lane] = lost[lane] < least[lane] or factor == factors[0]
            keep(better, lost.reshape(1, -1), least.reshape(1, -1))
            keep(better, scaled, best_scaled)
            keep(better, values[first:stop], best_values)
            keep(better, errors[first:stop], best_errors)
        scales[number], values[first:stop], errors[first:stop] = best_scaled, best_values, best_errors
        add_lower(best_errors, lower[first:stop], first, carried)


@compiled
def square_sums(x: Floats, sums: Floats) -> None:
    """Sums of the squares of columns, (n, LANES), into sums, (LANES,)."""
    squares = np.empty(LANES, np.float32)
    sums[:] = np.float32(0)
    for row in range(len(x)):
        for lane in range(LANES):
            squares[lane] = x[row, lane] * x[row, lane]
        for lane in range(LANES):
            sums[lane] += squares[lane]


@compiled
def scale_by(factor: np.float32, scales: Floats, numbers: Floats, grid: Grid, scaled: Floats, step: Floats, offset: Floats) -> None:
    """Scales of a block, (2, LANES), times a factor, into scaled, (2, LANES), and what sub-blocks then have, (n_sub, LANES) both."""
    for what in range(2 if grid.has_offsets else 1):
        for lane in range(LANES):
            scaled[what, lane] = scales[what, lane] * factor
        to_halves(scaled[what])
    for sub in range(len(numbers)):
        for lane in range(LANES):
            step[sub, lane] = grid.unit * scaled[0, lane] * numbers[sub, 0, lane]
            offset[sub, lane] = grid.sign * scaled[1, lane] * numbers[sub, 1, lane]
