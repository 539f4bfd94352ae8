"""Looking at scales of sub-blocks again beside their neighbours, with the codes that go with them.

Rows stand one beside the other, see `lanes`.
"""

from __future__ import annotations

import numpy as np

from quantailor.analysis.rounding.codes import CodeOf
from quantailor.analysis.rounding.compiling import compiled
from quantailor.analysis.rounding.loops.lanes import LANES, TILE, Flags, Grid, add_jumps, add_products, columns_of, keep, to_halves
from quantailor.numerics import Floats, Integers


@compiled
def nearest_codes(places: Floats, grid: Grid, codes: Floats, values: Floats) -> None:
    """The codes whose values in the table are nearest to places, (n_lanes,), and these values, for tables of unequal steps."""
    codes[:] = np.float32(0)
    add_jumps(places, grid.middles, np.ones_like(grid.middles), codes)
    for lane in range(LANES):
        values[lane] = grid.table[int(codes[lane])]


@compiled
def codes_anew(
    weights: Floats,
    errors: Floats,
    columns: Integers,
    gram: Floats,
    grid: Grid,
    step: Floats,
    offset: Floats,
    slopes: Floats,
    codes: Floats,
    changes: Floats,
    gain: Floats,
) -> None:
    """Choose codes of a sub-block for other scales, one column after another, from the last to the first.

    Args:
        weights: (n_cols, LANES).
        errors: (n_cols, LANES).
        columns: of the sub-block, (width,).
        gram: M of these columns, (width, width).
        grid: of the type.
        step: of the sub-block, (LANES,).
        offset: of weights whose code is 0, (LANES,).
        slopes: half the slope of the output error over these columns; changes in those that are looked at later, (width, LANES).
        codes: are written, (width, LANES).
        changes: of the errors, are written, (width, LANES).
        gain: by how much more is lost, is written, (LANES,).
    """
    width, nought, one, two, last = len(columns), np.float32(0), np.float32(1), np.float32(2), np.float32(len(grid.table) - 1)
    place, inverse, value = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for lane in range(LANES):
        gain[lane] = nought
        inverse[lane] = one / step[lane] if step[lane] != nought else nought
    for start in range(width - TILE, -1, -TILE):
        add_products(changes, width - 1, -1, width - start - TILE, gram, slopes, start, start + TILE)
        for i in range(start + TILE - 1, start - 1, -1):
            own, error, slope, change, weight = weights[columns[i]], errors[columns[i]], slopes[i], changes[i], gram[i, i]
            if len(grid.middles):
                for lane in range(LANES):
                    place[lane] = (own[lane] + error[lane] - slope[lane] / weight - offset[lane]) * inverse[lane]
                nearest_codes(place, grid, codes[i], value)
                for lane in range(LANES):
                    by = offset[lane] + step[lane] * value[lane] - own[lane] - error[lane]
                    gain[lane] += by * (two * slope[lane] + by * weight)
                    change[lane] = by
            else:
                code = codes[i]
                for lane in range(LANES):
                    at = (own[lane] + error[lane] - slope[lane] / weight - offset[lane]) * inverse[lane]
                    nearest = np.floor(min(max(at + np.float32(0.5), nought), last))
                    by = offset[lane] + step[lane] * nearest - own[lane] - error[lane]
                    gain[lane] += by * (two * slope[lane] + by * weight)
                    change[lane], code[lane] = by, nearest
            for j in range(start, i):
                share, target = gram[i, j], slopes[j]
                for lane in range(LANES):
                    target[lane] += change[lane] * share


@compiled
def best_numbers(
    points: Floats,
    slopes: Floats,
    gram: Floats,
    grid: Grid,
    what: int,
    scale: Floats,
    numbers: Floats,
    best: Floats,
    usable: Flags,
) -> None:
    """What is best for a scale's numbers as codes are, and whether anything is.

    Args:
        points: what the scale multiplies, (width, LANES).
        slopes: of all, (n_cols, LANES), those of these columns, (width, LANES).
        gram: M of these columns, (width, width).
        grid: of the type.
        what: the step (0) or the offset (1).
        scale: (LANES,).
        numbers: as they are, (LANES,).
        best: is written, (LANES,).
        usable: is written, (LANES,).
    """
    nought, width, factor = np.float32(0), len(points), grid.unit if what == 0 else grid.sign
    pull, weight = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    products = columns_of(width, LANES)
    products[:] = nought
    add_products(points, 0, 1, width, gram, products, 0, width)
    for i in range(width):
        for lane in range(LANES):
            pull[lane] += points[i, lane] * slopes[i, lane]
            weight[lane] += products[i, lane] * points[i, lane]
    for lane in range(LANES):
        usable[lane] = weight[lane] > nought and scale[lane] != nought
        best[lane] = numbers[lane] - pull[lane] / weight[lane] / (factor * scale[lane])


@compiled
def neighbours(trial: int, best: Floats, now: Floats, scale: Floats, ends: Integers, nudge: np.float32, new: Floats) -> None:
    """What scales times their numbers may be instead: the best whole multiple, or one step towards it; ends are the numbers', (2,).

    Arrays are (LANES,), and `new` is written.
    """
    one, low, high = np.float32(1), np.float32(ends[0]), np.float32(ends[1])
    for lane in range(LANES):
        way = one if best[lane] > now[lane] else -one
        if ends[0] == ends[1]:
            new[lane] = scale[lane] * (best[lane] if trial == 0 else one + nudge * way)
        else:
            number = np.rint(best[lane]) if trial == 0 else now[lane] + way
            new[lane] = scale[lane] * min(max(number, low), high)
    if ends[0] == ends[1]:
        to_halves(new)


@compiled
def find_points(codes: CodeOf, columns: Integers, grid: Grid, what: int, points: Floats) -> None:
    """What a sub-block's step (0) or offset (1) multiplies as codes, (n_cols, LANES), are: into points, (width, LANES)."""
    points[:] = np.float32(1)
    for i in range(len(columns) if what == 0 else 0):
        own = codes[columns[i]]
        for lane in range(LANES):
            points[i, lane] = grid.zero + (grid.table[own[lane]] if len(grid.middles) else np.float32(own[lane]))


@compiled
def set_scales(
    better: Flags,
    new: Floats,
    factor: np.float32,
    base: Floats,
    zero: np.float32,
    what: int,
    ends: Integers,
    scale: Floats,
    numbers: Floats,
    step: Floats,
    offset: Floats,
) -> None:
    """Where that is better, give a sub-block a new scale times its number; arrays are (n_lanes,), and the last four are changed."""
    for lane in range(LANES):
        if better[lane]:
            step[lane] = factor * new[lane] if what == 0 else step[lane]
            offset[lane] = (base[lane] if what == 0 else factor * new[lane]) + zero * step[lane]
            if ends[0] == ends[1]:
                scale[lane] = new[lane]
            else:
                numbers[lane] = np.rint(new[lane] / scale[lane])


@compiled
def change_scale(
    weights: Floats,
    slopes: Floats,
    gram: Floats,
    columns: Integers,
    grid: Grid,
    nudge: np.float32,
    what: int,
    scale: Floats,
    numbers: Floats,
    step: Floats,
    offset: Floats,
    codes: CodeOf,
    errors: Floats,
    changes: Floats,
    changed: Flags,
    lost: Floats,
) -> None:
    """See `change_scales`: the sub-block of these columns, (width,), and its step (0) or offset (1).

    Arrays are (n_cols, LANES) or (LANES,) but for what is of these columns: slopes, and changes of errors, to which is added,
    (width, LANES), and gram, (width, width). Lanes that change become `changed`.
    """
    width, nought, ends = len(columns), np.float32(0), grid.numbers[what]
    factor = grid.unit if what == 0 else grid.sign
    # Taken by number, for what is unpacked is no longer known to stand side by side.
    of_columns = columns_of(5 * width, LANES).reshape(5, width, LANES)
    of_lanes, of_flags = columns_of(9, LANES), np.empty((2, LANES), np.bool_)
    tried, change, own_slopes, best_codes, best_change = of_columns[0], of_columns[1], of_columns[2], of_columns[3], of_columns[4]
    base, new_step, new_offset, best, new = of_lanes[0], of_lanes[1], of_lanes[2], of_lanes[3], of_lanes[4]
    gain, least, kept, usable, better = of_lanes[5], of_lanes[6], of_lanes[7:], of_flags[0], of_flags[1]
    find_points(codes, columns, grid, what, tried)
    best_numbers(tried, slopes, gram, grid, what, scale, numbers, best, usable)
    best_change[:], least[:] = nought, nought
    for lane in range(LANES):
        kept[0, lane] = scale[lane] * numbers[lane]  # what is best so far
        kept[1, lane] = kept[0, lane]  # what was tried last
        base[lane] = offset[lane] - grid.zero * step[lane]
    for trial in range(2):
        neighbours(trial, best, numbers, scale, ends, nudge, new)
        for lane in range(LANES):
            now = scale[lane] * numbers[lane]
            better[lane] = usable[lane] and new[lane] != now and new[lane] != kept[1, lane] and abs(new[lane]) < np.float32(np.inf)
            new[lane] = new[lane] if better[lane] else now
            kept[1, lane] = new[lane] if better[lane] else kept[1, lane]
            new_step[lane] = factor * new[lane] if what == 0 else step[lane]
            new_offset[lane] = (base[lane] if what == 0 else factor * new[lane]) + grid.zero * new_step[lane]
        if better.any():
            own_slopes[:] = slopes
            codes_anew(weights, errors, columns, gram, grid, new_step, new_offset, own_slopes, tried, change, gain)
            for lane in range(LANES):
                better[lane] = better[lane] and gain[lane] < least[lane]
                least[lane] = gain[lane] if better[lane] else least[lane]
                kept[0, lane] = new[lane] if better[lane] else kept[0, lane]
            keep(better, tried, best_codes)
            keep(better, change, best_change)
    for lane in range(LANES):
        better[lane] = least[lane] < nought
        changed[lane] |= better[lane]
        lost[lane] += least[lane]
    if not better.any():
        return
    set_scales(better, kept[0], factor, base, grid.zero, what, ends, scale, numbers, step, offset)
    for i in range(width):
        own, error = codes[columns[i]], errors[columns[i]]
        for lane in range(LANES):
            own[lane] = np.uint8(best_codes[i, lane]) if better[lane] else own[lane]
            error[lane] += best_change[i, lane]
            changes[i, lane] += best_change[i, lane]
    if what == 0 and grid.has_offsets:  # the offset comes next
        add_products(best_change, 0, 1, width, gram, slopes, 0, width)


@compiled
def add_to_some(rows: Floats, changes: Floats, changed: Flags, targets: Floats) -> None:
    """Add changes[:, j] @ rows to targets[j] for those that changed, four at a time, and to others nothing.

    Args:
        rows: (n, n_columns).
        changes: (n, LANES), 0 where nothing changed; n is a multiple of 4.
        changed: (LANES,).
        targets: (LANES, n_columns).
    """
    places, n_places = np.empty(LANES, np.int64), 0
    for lane in range(LANES):
        if changed[lane]:
            places[n_places] = lane
            n_places += 1
    for lane in range(LANES):  # the rest of the last four is of those that did not change
        if n_places % 4 and not changed[lane]:
            places[n_places] = lane
            n_places += 1
    for first in range(0, n_places, 4):
        a, b, c, d = places[first], places[first + 1], places[first + 2], places[first + 3]
        target0, target1, target2, target3 = targets[a], targets[b], targets[c], targets[d]
        for k in range(0, len(rows), 4):
            s0, s1, s2, s3 = changes[k, a], changes[k + 1, a], changes[k + 2, a], changes[k + 3, a]
            t0, t1, t2, t3 = changes[k, b], changes[k + 1, b], changes[k + 2, b], changes[k + 3, b]
            u0, u1, u2, u3 = changes[k, c], changes[k + 1, c], changes[k + 2, c], changes[k + 3, c]
            v0, v1, v2, v3 = changes[k, d], changes[k + 1, d], changes[k + 2, d], changes[k + 3, d]
            row0, row1, row2, row3 = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
            for column in range(targets.shape[1]):
                x0, x1, x2, x3 = row0[column], row1[column], row2[column], row3[column]
                target0[column] = target0[column] + x0 * s0 + x1 * s1 + x2 * s2 + x3 * s3
                target1[column] = target1[column] + x0 * t0 + x1 * t1 + x2 * t2 + x3 * t3
                target2[column] = target2[column] + x0 * u0 + x1 * u1 + x2 * u2 + x3 * u3
                target3[column] = target3[column] + x0 * v0 + x1 * v1 + x2 * v2 + x3 * v3


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
        weights: (n_cols, LANES).
        slopes: as in `kernels.improve_codes`, kept so, (LANES, n_cols).
        gram: L L^T, (n_cols, n_cols).
        members: columns of each sub-block within each block, (n_blocks, n_sub, width).
        grid: of the type.
        nudge: the part by which a float16 that is no multiple is made more or less.
        scales: as in `scale_search`, (n_blocks, 2, LANES).
        numbers: (n_blocks, n_sub, 2, LANES).
        step: of each sub-block, (n_blocks, n_sub, LANES).
        offset: of weights whose code is 0, (n_blocks, n_sub, LANES).
        codes: (n_cols, LANES).
        errors: d, (n_cols, LANES).
        lost: |carried + d L|^2, (LANES,).

    Returns:
        Whether anything changed.
    """
    n_blocks, n_sub, width = members.shape
    any_changed, changed, rows = False, np.empty(LANES, np.bool_), columns_of(width, len(gram))
    own_slopes, changes, own_gram = columns_of(width, LANES), columns_of(width, LANES), np.empty((width, width), np.float32)
    for number in range(n_blocks):
        for sub in range(n_sub):
            columns = members[number, sub] + number * n_sub * width
            for i in range(width):
                rows[i] = gram[columns[i]]
                for j in range(width):
                    own_gram[i, j] = rows[i, columns[j]]
                for lane in range(LANES):
                    own_slopes[i, lane], changes[i, lane] = slopes[lane, columns[i]], np.float32(0)
            changed[:] = False
            for what in range(2 if grid.has_offsets else 1):
                change_scale(
                    *(weights, own_slopes, own_gram, columns, grid, nudge, what, scales[number, what], numbers[number, sub, what]),
                    *(step[number, sub], offset[number, sub], codes, errors, changes, changed, lost),
                )
            add_to_some(rows, changes, changed, slopes)
            any_changed = any_changed or bool(changed.any())
    return any_changed


@compiled
def spread(of_subs: Floats, members: Integers, of_weights: Floats) -> None:
    """Give every weight of rows, (LANES, n_cols), what its sub-block has, (n_blocks, n_sub, LANES); members as in `change_scales`."""
    n_blocks, n_sub, width = members.shape
    for row in range(LANES):
        for number in range(n_blocks):
            for sub in range(n_sub):
                value = of_subs[number, sub, row]
                for column in members[number, sub]:
                    of_weights[row, number * n_sub * width + column] = value
