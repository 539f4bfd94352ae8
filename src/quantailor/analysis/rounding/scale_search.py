"""Choosing scales of blocks together with their codes, so that the output errors of rows become small.

Every sub-block is fitted by itself (`scale_fits`), and the scales of the block are the float16 whose whole multiples come nearest to all of
the fits. These and some multiples of them are tried: codes are chosen from the last column to the first, each the nearest to what makes up
for those behind it, and what loses least stays. Later each sub-block's scales are looked at again beside their neighbours, with the codes
that go with them.

Rows stand one beside the other, as in `scale_fits`.
"""

from __future__ import annotations

import numpy as np

from quantailor.analysis.rounding.codes import CodeOf
from quantailor.analysis.rounding.compiling import compiled
from quantailor.analysis.rounding.scale_fits import LANES, Grid, fit_lines, fit_scales, fit_steps, half, settle
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
    for column in range(len(weights) - 1, -1, -1):
        own, behind, share, sub = weights[column], carried[column], one / lower[column, column], sub_of[column]
        for lane in range(LANES):
            place[lane] = (own[lane] - behind[lane] * share - offset[sub, lane]) * inverse[sub, lane] - grid.zero
        settle(place, grid, values[column])
        error = errors[column]
        for lane in range(LANES):
            error[lane] = offset[sub, lane] + step[sub, lane] * (grid.zero + values[column, lane]) - own[lane]
        for other in range(column + 1):
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
    least, best_scaled = np.empty(LANES, np.float32), np.zeros((2, LANES), np.float32)
    for number in range(len(inverse) - 1, -1, -1):
        first, stop = number * block_size, (number + 1) * block_size
        own_lower = lower[first:stop, first:stop].copy()
        x = weights[first:stop].copy()
        take_off(carried[first:stop], inverse[number], x)
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
            for lane in range(LANES):
                lost = (tried[:, lane] * tried[:, lane]).sum()
                if lost < least[lane] or factor == factors[0]:
                    least[lane] = lost
                    best_scaled[:, lane] = scaled[:, lane]
                    best_values[:, lane] = values[first:stop, lane]
                    best_errors[:, lane] = errors[first:stop, lane]
        scales[number], values[first:stop], errors[first:stop] = best_scaled, best_values, best_errors
        add_up(best_errors, lower[first:stop], first, carried)


@compiled
def take_off(carried: Floats, inverse: Floats, x: Floats) -> None:
    """Take off x, (n, LANES), what makes up for what is carried, (n, LANES), by the inverse of its part of L, (n, n)."""
    for column in range(len(x)):
        for other in range(column, len(x)):
            for lane in range(LANES):
                x[column, lane] -= carried[other, lane] * inverse[other, column]


@compiled
def add_up(errors: Floats, lower: Floats, first: int, carried: Floats) -> None:
    """Add errors of a block, (block_size, LANES), times its rows of L, (block_size, n_cols), to what is carried, (n_cols, LANES)."""
    for column in range(len(errors)):
        for other in range(first + column + 1):
            share = lower[column, other]
            for lane in range(LANES):
                carried[other, lane] += errors[column, lane] * share


@compiled
def scale_by(factor: np.float32, scales: Floats, numbers: Floats, grid: Grid, scaled: Floats, step: Floats, offset: Floats) -> None:
    """Scales of a block, (2, LANES), times a factor, into scaled, (2, LANES), and what sub-blocks then have, (n_sub, LANES) both."""
    for lane in range(LANES):
        for what in range(2 if grid.has_offsets else 1):
            scaled[what, lane] = half(scales[what, lane] * factor)
        for sub in range(len(numbers)):
            step[sub, lane] = grid.unit * scaled[0, lane] * numbers[sub, 0, lane]
            offset[sub, lane] = grid.sign * scaled[1, lane] * numbers[sub, 1, lane]


@compiled
def nearest_code(place: np.float32, grid: Grid) -> int:
    """The code whose value in the table is nearest to a place."""
    code = 0
    for middle in grid.middles:
        code += place > middle
    return code if len(grid.middles) else min(max(int(place + np.float32(0.5)), 0), len(grid.table) - 1)


@compiled
def weight_of_scale(gram: Floats, points: Floats, products: Floats) -> np.float32:
    """p^T M p for points p that a scale multiplies, (n,), by the metric M of their columns, (n, n); writes M p, (n,)."""
    weight = np.float32(0)
    products[:] = weight
    for i in range(len(points)):
        for j in range(len(points)):
            products[j] += gram[i, j] * points[i]
    for i in range(len(points)):
        weight += products[i] * points[i]
    return weight


@compiled
def neighbour(trial: int, best: np.float32, now: np.float32, scale: np.float32, ends: Integers, nudge: np.float32) -> np.float32:
    """What a scale times its number may be instead: the best whole multiple, or one step towards it; ends are the numbers', (2,)."""
    way = np.float32(1) if best > now else np.float32(-1)
    if ends[0] == ends[1]:
        return half(scale * (best if trial == 0 else np.float32(1) + nudge * way))
    number = np.rint(best) if trial == 0 else now + way
    return np.float32(scale * min(max(number, np.float32(ends[0])), np.float32(ends[1])))


@compiled
def codes_anew(
    sought: Floats, gram: Floats, grid: Grid, step: np.float32, offset: np.float32, slope: Floats, codes: CodeOf, change: Floats
) -> np.float32:
    """Choose codes of a sub-block for other scales, one column after another; says by how much more is lost.

    Args:
        sought: weights and their errors, what the codes stand for now: (2, width).
        gram: M of these columns, (width, width).
        grid: of the type.
        step: of the sub-block.
        offset: of a weight whose code is 0.
        slope: half the slope of the output error, kept so, (width,).
        codes: is written, (width,).
        change: of the errors, is written, (width,).
    """
    gain, inverse = np.float32(0), np.float32(1) / step if step != 0 else np.float32(0)
    for i in range(len(codes) - 1, -1, -1):
        target = sought[0, i] + sought[1, i] - slope[i] / gram[i, i]
        code = nearest_code((target - offset) * inverse, grid)
        by = offset + step * grid.table[code] - sought[0, i] - sought[1, i]
        gain += by * (np.float32(2) * slope[i] + by * gram[i, i])
        codes[i], change[i] = code, by
        for j in range(len(codes)):
            slope[j] += by * gram[i, j]
    return gain


@compiled
def change_scale(
    weights: Floats,
    slopes: Floats,
    gram: Floats,
    own_gram: Floats,
    columns: Integers,
    grid: Grid,
    nudge: np.float32,
    what: int,
    work: Floats,
    tried: CodeOf,
    scales: Floats,
    numbers: Floats,
    step: Floats,
    offset: Floats,
    codes: CodeOf,
    errors: Floats,
) -> np.float32:
    """See `change_scales`: for one row, the sub-block of these columns, (width,), and its step (0) or offset (1). Says what more is lost.

    Arrays are those of the row, (n_cols,), but scales and numbers, (2,), gram, its rows of these columns, (width, n_cols), own_gram, the
    part of that in these columns, (width, width), and room to work in, (6, width) and (2, width).
    """
    width, nought, scale, now = len(columns), np.float32(0), scales[what], numbers[what]
    points, sought, slope, change, best_change = work[0], work[1:3], work[3], work[4], work[5]
    pull = nought
    for i in range(width):
        sought[0, i], sought[1, i] = weights[columns[i]], errors[columns[i]]
        points[i] = grid.zero + grid.table[codes[columns[i]]] if what == 0 else np.float32(1)
        pull += points[i] * slopes[columns[i]]
    weight = weight_of_scale(own_gram, points, slope)
    if not weight > nought or scale == nought:
        return nought
    factor = grid.unit if what == 0 else grid.sign
    best = now - pull / weight / (factor * scale)
    own_step = step[columns[0]]
    own_offset = offset[columns[0]] - grid.zero * own_step
    least, kept, last = nought, scale * now, scale * now
    for trial in range(2):
        new = neighbour(trial, best, now, scale, grid.numbers[what], nudge)
        if new != scale * now and new != last and np.isfinite(new):
            last = new
            new_step = factor * new if what == 0 else own_step
            new_offset = (own_offset if what == 0 else factor * new) + grid.zero * new_step
            for i in range(width):
                slope[i] = slopes[columns[i]]
            gain = codes_anew(sought, own_gram, grid, new_step, new_offset, slope, tried[0], change)
            if gain < least:
                least, kept = gain, new
                tried[1] = tried[0]
                best_change[:] = change
    if least < nought:
        if grid.numbers[what, 0] == grid.numbers[what, 1]:
            scales[what] = kept
        else:
            numbers[what] = np.rint(kept / scale)
        new_step = factor * kept if what == 0 else own_step
        for i in range(width):
            step[columns[i]] = new_step
            offset[columns[i]] = (own_offset if what == 0 else factor * kept) + grid.zero * new_step
            codes[columns[i]] = tried[1, i]
            errors[columns[i]] += best_change[i]
            for other in range(len(weights)):
                slopes[other] += best_change[i] * gram[i, other]
    return least


@compiled
def change_scales(
    weights: Floats,
    slopes: Floats,
    gram: Floats,
    members: Integers,
    grid: Grid,
    nudge: np.float32,
    scales: Floats,
    numbers: Floats,
    step: Floats,
    offset: Floats,
    codes: CodeOf,
    errors: Floats,
    lost: Floats,
) -> bool:
    """Look at the step, then the offset of every sub-block again: the best for its codes, and one step towards that.

    Each is tried with codes chosen anew, one column after another, and what loses least stays. Changes all of the last eight arrays.

    Args:
        weights: (n_rows, n_cols).
        slopes: as in `kernels.improve_codes`, kept so, (n_rows, n_cols).
        gram: L L^T, (n_cols, n_cols).
        members: columns of each sub-block within each block, (n_blocks, n_sub, width).
        grid: of the type.
        nudge: the part by which a float16 that is no multiple is made more or less.
        scales: as in `scale_search`, (n_blocks, 2, n_rows).
        numbers: (n_blocks, n_sub, 2, n_rows).
        step: of each weight, (n_rows, n_cols).
        offset: of each weight whose code is 0, (n_rows, n_cols).
        codes: (n_rows, n_cols).
        errors: d, (n_rows, n_cols).
        lost: |carried + d L|^2, (n_rows,).

    Returns:
        Whether anything changed.
    """
    n_blocks, n_sub, width = members.shape
    any_changed = False
    work, tried = np.empty((6, width), np.float32), np.empty((2, width), np.uint8)
    for number in range(n_blocks):
        for sub in range(n_sub):
            columns = members[number, sub] + number * n_sub * width
            rows = gram[columns]
            own = np.ascontiguousarray(rows[:, columns])
            for row in range(len(weights)):
                for what in range(2 if grid.has_offsets else 1):
                    given = (weights[row], slopes[row], rows, own, columns, grid, nudge, what, work, tried)
                    changed = (scales[number, :, row], numbers[number, sub, :, row], step[row], offset[row], codes[row], errors[row])
                    gain = change_scale(*given, *changed)
                    lost[row] += gain
                    any_changed = any_changed or bool(gain < 0)
    return any_changed
