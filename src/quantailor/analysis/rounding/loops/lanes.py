"""Arithmetic on rows that stand one beside the other: arrays of columns are (n_columns, LANES), so that loops over lanes are vectors.

What is added to a lane is added in the order that its docstring says, which no compiler may change: bytes depend on nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quantailor.analysis.rounding.compiling import compiled
from quantailor.numerics import Bytes, Floats, Integers

Flags = npt.NDArray[np.bool_]
"""Of lanes."""
LANES = 64
"""Rows that go through at a time."""
TILE = 8
"""Columns that are added at a time; it divides every block and sub-block."""


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
def to_halves(values: Floats) -> None:
    """Round numbers, (n_lanes,), to the nearest float16; infinity where they are too large."""
    magic = np.empty(LANES, np.float32)
    bits, magic_bits = values.view(np.int32), magic.view(np.int32)
    for lane in range(LANES):
        exponent = bits[lane] & np.int32(0x7F800000)
        magic_bits[lane] = max(exponent, np.int32(113 << 23)) + np.int32(13 << 23)  # its last bit is worth as much as a float16's
    for lane in range(LANES):
        sign = bits[lane] & np.int32(-(1 << 31))
        size = abs(values[lane])
        values[lane] = (size + magic[lane]) - magic[lane] if size < np.float32(65520) else np.float32(np.inf)
        bits[lane] |= sign if size < np.float32(65520) else np.int32(0)


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
def add_products(rows: Floats, first: int, way: int, n: int, shares: Floats, targets: Floats, low: int, high: int) -> None:
    """Add rows[k] shares[k, j] to targets[j] for j in [low, high): n of the rows, one after another from the first, up (1) or down (-1).

    Args:
        rows: (n_rows, LANES).
        first: row.
        way: 1 or -1.
        n: a multiple of `TILE`.
        shares: (n_rows, n_columns).
        targets: (n_columns, LANES).
        low: column.
        high: column, an even number after the lowest.
    """
    for j in range(low, high, 2):
        for tile in range(n // TILE):
            k = first + way * TILE * tile
            k1, k2, k3, k4, k5, k6, k7 = k + way, k + 2 * way, k + 3 * way, k + 4 * way, k + 5 * way, k + 6 * way, k + 7 * way
            s0, s1, s2, s3 = shares[k, j], shares[k1, j], shares[k2, j], shares[k3, j]
            s4, s5, s6, s7 = shares[k4, j], shares[k5, j], shares[k6, j], shares[k7, j]
            t0, t1, t2, t3 = shares[k, j + 1], shares[k1, j + 1], shares[k2, j + 1], shares[k3, j + 1]
            t4, t5, t6, t7 = shares[k4, j + 1], shares[k5, j + 1], shares[k6, j + 1], shares[k7, j + 1]
            for lane in range(LANES):
                x0, x1, x2, x3 = rows[k, lane], rows[k1, lane], rows[k2, lane], rows[k3, lane]
                x4, x5, x6, x7 = rows[k4, lane], rows[k5, lane], rows[k6, lane], rows[k7, lane]
                one = targets[j, lane] + x0 * s0 + x1 * s1 + x2 * s2 + x3 * s3
                two = targets[j + 1, lane] + x0 * t0 + x1 * t1 + x2 * t2 + x3 * t3
                targets[j, lane] = one + x4 * s4 + x5 * s5 + x6 * s6 + x7 * s7
                targets[j + 1, lane] = two + x4 * t4 + x5 * t5 + x6 * t6 + x7 * t7


@compiled
def add_lower(rows: Floats, lower: Floats, first: int, targets: Floats) -> None:
    """Add rows, (n, LANES), times their rows of a lower triangle, (n, n_columns), to targets, (n_columns, LANES), the first row first.

    Row k begins at column 0 and ends at column first + k.
    """
    n = len(rows)
    add_products(rows, 0, 1, n, lower, targets, 0, first)
    for start in range(0, n, TILE):
        low = first + start
        for k in range(start, start + TILE):
            for j in range(low, first + k + 1):
                share = lower[k, j]
                for lane in range(LANES):
                    targets[j, lane] += rows[k, lane] * share
        add_products(rows, start + TILE, 1, n - start - TILE, lower, targets, low, low + TILE)


@compiled
def keep(better: Flags, new: Floats, kept: Floats) -> None:
    """Put what is new, (n, LANES), where it is better, (LANES,)."""
    for row in range(len(new)):
        for lane in range(LANES):
            kept[row, lane] = new[row, lane] if better[lane] else kept[row, lane]


@compiled
def turn(source: Floats | Bytes, target: Floats | Bytes) -> None:
    """Turn rows, (n, m), into columns, (m, n), both multiples of 16; of any type."""
    for start in range(0, source.shape[0], 16):
        for low in range(0, source.shape[1], 16):
            for j in range(low, low + 16):
                for i in range(start, start + 16):
                    target[j, i] = source[i, j]
