"""Choosing scales of blocks together with their codes, so that the output errors of rows become small.

First every sub-block is fitted by itself: for some steps, from those that leave room beyond the largest weight to those that cut it off,
codes are the nearest, and step and offset then the least-squares fit of these codes by the importances; the best of the fits stays. The
scales of the block are the float16 whose whole multiples come nearest to all of them. These and some multiples of them are tried: codes are
chosen from the last column to the first, each the nearest to what makes up for those behind it, and what loses least stays. Later each
sub-block's scales are looked at again beside their neighbours, with the codes that go with them.

Rows stand one beside the other: arrays of columns are (n_columns, LANES), in the order of the factor. A weight is
offset + step (zero + value) for one of the values of a table; see `Grid`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from quantailor.analysis.rounding.codes import CodeOf
from quantailor.analysis.rounding.compiling import compiled
from quantailor.numerics import Floats, Integers

LANES = 64
"""Rows that go through at a time."""


class Grid(NamedTuple):
    """What a type's blocks can hold: step = unit d k and offset = sign e m, with float16 d and e and whole numbers k and m."""

    table: Floats
    """What codes stand for, (n_codes,), ascending from 0 to n_codes - 1."""
    middles: Floats
    """Between them, (n_codes - 1,); empty where table[code] == code."""
    zero: np.float32
    unit: np.float32
    sign: np.float32
    numbers: Integers
    """The least and the largest k, then m, (2, 2); alike where there is only one."""
    has_offsets: bool


@compiled
def half(value: np.float32) -> np.float32:
    """The float16 nearest to a number; infinity where it is too large."""
    size = abs(value)
    if size < np.float32(2.0**-14):
        return np.float32(np.rint(value * np.float32(2.0**24)) * np.float32(2.0**-24))
    if not size < np.float32(65520):
        return np.float32(np.inf)
    part, exponent = math.frexp(value)
    return np.float32(math.ldexp(np.rint(part * 2048.0), exponent - 11))


@compiled
def settle(places: Floats, grid: Grid, values: Floats) -> None:
    """The values of the table nearest to places, (n_lanes,), into values, (n_lanes,)."""
    table, middles = grid.table, grid.middles
    nought, half_step, last = np.float32(0), np.float32(0.5), table[-1]
    if len(middles):
        values[:] = table[0]
        for k in range(len(middles)):
            middle, more = middles[k], table[k + 1] - table[k]
            for lane in range(LANES):
                values[lane] += more if places[lane] > middle else nought
    else:
        for lane in range(LANES):
            values[lane] = np.floor(min(max(places[lane] + half_step, nought), last))


@compiled
def fit_steps(x: Floats, importance: Floats, members: Integers, grid: Grid, reaches: Floats, found: Floats) -> None:
    """Steps of sub-blocks without offsets.

    Args:
        x: weights, (block_size, LANES).
        importance: of each, (block_size,).
        members: columns of each sub-block, (n_sub, width).
        grid: of the type.
        reaches: by how many steps the largest weight goes beyond the table's end, (n_tries,).
        found: is written, (n_sub, 6, LANES): the step, 0, and the sum of squares of what codes stand for.
    """
    nought = np.float32(0)
    low, high = grid.zero + grid.table[0], grid.zero + grid.table[-1]
    largest, inverse, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    pull, squares = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    places, values = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    found[:] = nought
    for sub in range(len(members)):
        largest[:] = nought
        for column in members[sub]:
            for lane in range(LANES):
                largest[lane] = x[column, lane] if abs(x[column, lane]) > abs(largest[lane]) else largest[lane]
        best[:] = nought
        for side in range(1 if low == -high else 2):
            end = high if side else low
            for k in range(len(reaches)):
                reach = end - reaches[k] if end < 0 else end + reaches[k]
                for lane in range(LANES):
                    inverse[lane] = reach / largest[lane] if largest[lane] != nought else nought
                pull[:] = nought
                squares[:] = nought
                for column in members[sub]:
                    own, share = x[column], importance[column]
                    for lane in range(LANES):
                        places[lane] = own[lane] * inverse[lane] - grid.zero
                    settle(places, grid, values)
                    for lane in range(LANES):
                        point = values[lane] + grid.zero
                        pull[lane] += share * point * own[lane]
                        squares[lane] += share * point * point
                for lane in range(LANES):
                    gain = pull[lane] * pull[lane] / squares[lane] if squares[lane] > nought else nought
                    if gain > best[lane]:
                        best[lane] = gain
                        found[sub, 0, lane] = pull[lane] / squares[lane]
                        found[sub, 2, lane] = squares[lane]


@compiled
def fit_lines(x: Floats, importance: Floats, members: Integers, grid: Grid, reaches: Floats, found: Floats) -> None:
    """Steps and offsets of sub-blocks, for tables of equal steps.

    Args:
        x: see `fit_steps`, (block_size, LANES).
        importance: (block_size,).
        members: (n_sub, width).
        grid: of the type; offsets of a negative sign are not positive.
        reaches: by how many steps the range of weights is more than the table's, (n_tries,).
        found: is written, (n_sub, 6, LANES): the step, the offset, and the sums of c c, c, 1 and x for codes c.
    """
    nought, half_step, last = np.float32(0), np.float32(0.5), grid.table[-1]
    most = nought if grid.sign < 0 else np.float32(np.inf)
    bottom, top, inverse, shift = (
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
        np.empty(LANES, np.float32),
    )
    best, sums = np.empty(LANES, np.float32), np.empty((3, LANES), np.float32)
    found[:] = nought
    for sub in range(len(members)):
        first, total, total_x = x[members[sub, 0]], nought, found[sub, 5]
        for lane in range(LANES):
            bottom[lane] = min(first[lane], most)
            top[lane] = max(first[lane], nought) if grid.sign < 0 else first[lane]
        for column in members[sub]:
            own, share = x[column], importance[column]
            total += share
            for lane in range(LANES):
                bottom[lane] = min(bottom[lane], own[lane])
                top[lane] = max(top[lane], own[lane])
                total_x[lane] += share * own[lane]
        best[:] = -np.inf
        found[sub, 4] = total
        for k in range(len(reaches)):
            for lane in range(LANES):
                span = top[lane] - bottom[lane]
                inverse[lane] = (last + reaches[k]) / span if span > nought else nought
                shift[lane] = half_step - half_step * reaches[k] - bottom[lane] * inverse[lane]
            sums[:] = nought
            for column in members[sub]:
                own, share = x[column], importance[column]
                for lane in range(LANES):
                    code = np.floor(min(max(own[lane] * inverse[lane] + shift[lane], nought), last))
                    sums[0, lane] += share * code * code
                    sums[1, lane] += share * code
                    sums[2, lane] += share * code * own[lane]
            for lane in range(LANES):
                squares, codes, pull = sums[0, lane], sums[1, lane], sums[2, lane]
                spread = total * squares - codes * codes
                step = (total * pull - codes * total_x[lane]) / spread if spread > nought else nought
                offset = (total_x[lane] - step * codes) / total if total > nought else nought
                if offset > most:
                    offset = most
                    step = (pull - offset * codes) / squares if squares > nought else nought
                gain = 2 * (step * pull + offset * total_x[lane])
                gain -= step * step * squares + 2 * step * offset * codes + offset * offset * total
                if gain > best[lane]:
                    best[lane] = gain
                    found[sub, 0, lane], found[sub, 1, lane] = step, offset
                    found[sub, 2, lane], found[sub, 3, lane] = squares, codes


@compiled
def whole_multiples(values: Floats, counts: Floats, lowest: int, highest: int, n_tries: int, numbers: Floats) -> np.float32:
    """A float16 of which whole multiples come near to values, each counting so much; fills in the numbers, all (n_sub,)."""
    largest, found, least = np.float32(0), np.float32(0), np.float32(np.inf)
    for value in values:
        largest = value if abs(value) > abs(largest) else largest
    for side in range(1 if lowest == 0 else 2):
        for k in range(n_tries):
            scale = half(largest / np.float32(highest - k if side == 0 else lowest + k))
            for _ in range(2):
                if scale == 0:
                    break
                lost, pull, weight = np.float32(0), np.float32(0), np.float32(0)
                for sub in range(len(values)):
                    number = np.float32(min(max(np.rint(values[sub] / scale), lowest), highest))
                    off = values[sub] - scale * number
                    lost += counts[sub] * off * off
                    pull += counts[sub] * number * values[sub]
                    weight += counts[sub] * number * number
                if lost < least:
                    least, found = lost, scale
                scale = half(pull / weight) if weight > 0 else np.float32(0)
    for sub in range(len(values)):
        numbers[sub] = min(max(np.rint(values[sub] / found), lowest), highest) if found != 0 else np.float32(0)
    return found


@compiled
def fit_scales(found: Floats, grid: Grid, n_tries: int, scales: Floats, numbers: Floats) -> None:
    """Scales of a block nearest to the fits of its sub-blocks.

    Args:
        found: see `fit_lines`, (n_sub, 6, LANES).
        grid: of the type.
        n_tries: how many of the largest whole numbers the largest fit may have.
        scales: d and e, are written, (2, LANES).
        numbers: k and m, are written, (n_sub, 2, LANES).
    """
    nought, one = np.float32(0), np.float32(1)
    values, counts, whole = np.empty(len(found), np.float32), np.empty(len(found), np.float32), np.empty(len(found), np.float32)
    for lane in range(LANES):
        for what in range(2 if grid.has_offsets else 1):
            for sub in range(len(found)):
                values[sub] = found[sub, 0, lane] / grid.unit
                counts[sub] = found[sub, 2, lane]
                if what == 1:
                    step = scales[0, lane] * numbers[sub, 0, lane] * grid.unit
                    counts[sub] = found[sub, 4, lane]
                    values[sub] = (
                        (found[sub, 5, lane] - step * found[sub, 3, lane]) / counts[sub] * grid.sign if counts[sub] > nought else nought
                    )
                    values[sub] = max(values[sub], nought) if grid.sign < 0 else values[sub]
            lowest, highest = grid.numbers[what]
            if lowest == highest:
                scales[what, lane] = half(values[0])
                whole[:] = one
            else:
                scales[what, lane] = whole_multiples(values, counts, lowest, highest, n_tries, whole)
            for sub in range(len(found)):
                numbers[sub, what, lane] = whole[sub]


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
