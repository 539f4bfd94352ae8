"""Scales that fit single sub-blocks: least squares beside their codes, and the float16 of the block that comes nearest to them.

For some steps, from those that leave room beyond the largest weight to those that cut it off, codes are the nearest, and step and offset
then the least-squares fit of these codes by the importances; the best of the fits stays.

Rows stand one beside the other: arrays of columns are (n_columns, LANES), in the order of the factor. A weight is
offset + step (zero + value) for one of the values of a table; see `Grid`.
"""

from __future__ import annotations

import numpy as np

from quantailor.analysis.rounding.compiling import compiled
from quantailor.analysis.rounding.loops.lanes import LANES, Grid, settle, to_halves
from quantailor.numerics import Floats, Integers


@compiled
def add_points(x: Floats, importance: Floats, columns: Integers, grid: Grid, inverse: Floats, pull: Floats, squares: Floats) -> None:
    """Sums over a sub-block's columns, with points as what the nearest codes stand for in steps: of points times weights, and of squares.

    Args:
        x: weights of the block, (n_cols, LANES).
        importance: of each, (n_cols,).
        columns: of the sub-block, (width,).
        grid: of the type.
        inverse: of the step, (LANES,).
        pull: sums of points times weights, are written, (LANES,).
        squares: sums of squares of points, are written, (LANES,).
    """
    nought, half_step, last = np.float32(0), np.float32(0.5), grid.table[-1]
    places, values = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    pull[:] = nought
    squares[:] = nought
    for column in columns:
        own, share = x[column], importance[column]
        if len(grid.middles):
            for lane in range(LANES):
                places[lane] = own[lane] * inverse[lane] - grid.zero
            settle(places, grid, values)
        else:
            for lane in range(LANES):
                values[lane] = np.floor(min(max(own[lane] * inverse[lane] - grid.zero + half_step, nought), last))
        for lane in range(LANES):
            point = values[lane] + grid.zero
            pull[lane] += share * point * own[lane]
            squares[lane] += share * point * point


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
                add_points(x, importance, members[sub], grid, inverse, pull, squares)
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
def whole_multiples(values: Floats, counts: Floats, lowest: int, highest: int, n_tries: int, numbers: Floats, found: Floats) -> None:
    """Float16 of which whole multiples come near to values, each counting so much.

    Args:
        values: (n_sub, LANES).
        counts: (n_sub, LANES).
        lowest: number.
        highest: number.
        n_tries: how many of the largest whole numbers the largest value may have.
        numbers: of the values, are written, (n_sub, LANES).
        found: is written, (LANES,).
    """
    nought, low, high = np.float32(0), np.float32(lowest), np.float32(highest)
    largest, scale, least = np.zeros(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    lost, pull, weight = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    found[:], least[:] = nought, np.inf
    for sub in range(len(values)):
        own = values[sub]
        for lane in range(LANES):
            largest[lane] = own[lane] if abs(own[lane]) > abs(largest[lane]) else largest[lane]
    for side in range(1 if lowest == 0 else 2):
        for k in range(n_tries):
            for lane in range(LANES):
                scale[lane] = largest[lane] / np.float32(highest - k if side == 0 else lowest + k)
            to_halves(scale)
            for _ in range(2):
                lost[:], pull[:], weight[:] = nought, nought, nought
                for sub in range(len(values)):
                    own, count = values[sub], counts[sub]
                    for lane in range(LANES):
                        number = min(max(np.rint(own[lane] / scale[lane]), low), high)
                        off = own[lane] - scale[lane] * number
                        lost[lane] += count[lane] * off * off
                        pull[lane] += count[lane] * number * own[lane]
                        weight[lane] += count[lane] * number * number
                for lane in range(LANES):
                    better = scale[lane] != nought and lost[lane] < least[lane]
                    least[lane] = lost[lane] if better else least[lane]
                    found[lane] = scale[lane] if better else found[lane]
                    scale[lane] = pull[lane] / weight[lane] if scale[lane] != nought and weight[lane] > nought else nought
                to_halves(scale)
    for sub in range(len(values)):
        own = values[sub]
        for lane in range(LANES):
            number = min(max(np.rint(own[lane] / found[lane]), low), high)
            numbers[sub, lane] = number if found[lane] != nought else nought


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
    nought = np.float32(0)
    values, counts = np.empty((len(found), LANES), np.float32), np.empty((len(found), LANES), np.float32)
    whole = np.empty((len(found), LANES), np.float32)
    for what in range(2 if grid.has_offsets else 1):
        for sub in range(len(found)):
            own, value, count = found[sub], values[sub], counts[sub]
            if what == 0:
                for lane in range(LANES):
                    value[lane] = own[0, lane] / grid.unit
                    count[lane] = own[2, lane]
            else:
                for lane in range(LANES):
                    step = scales[0, lane] * numbers[sub, 0, lane] * grid.unit
                    count[lane] = own[4, lane]
                    offset = (own[5, lane] - step * own[3, lane]) / own[4, lane] * grid.sign if own[4, lane] > nought else nought
                    value[lane] = max(offset, nought) if grid.sign < 0 else offset
        lowest, highest = grid.numbers[what]
        if lowest == highest:
            scales[what] = values[0]
            to_halves(scales[what])
            whole[:] = np.float32(1)
        else:
            whole_multiples(values, counts, lowest, highest, n_tries, whole, scales[what])
        numbers[:, what] = whole
