"""Arithmetic on rows that stand one beside the other: arrays of columns are (n_columns, LANES), so that loops over lanes are vectors.

What is added to a lane is added in the order that its docstring says, which no compiler may change: bytes depend on nothing else.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quantailor.analysis.rounding.compiling import Compiled, compiled
from quantailor.numerics import Bytes, Floats, Integers

Flags = npt.NDArray[np.bool_]
"""Of lanes."""
LANES = 64
"""Rows that go through at a time."""
TILE = 4
"""Columns that are added at a time; it divides every block and sub-block."""
_ALIGNMENT = 16
"""Of arrays, numbers."""


class Grid(NamedTuple):
    """What a type's blocks can hold: step = unit d k and offset = sign e m, with float16 d and e and whole numbers k and m."""

    table: Floats
    """What codes stand for, (n_codes,), ascending from 0 to n_codes - 1."""
    middles: Floats
    """Between them, (n_codes - 1,); empty where table[code] == code."""
    jumps: Floats
    """From each to the next, (n_codes - 1,)."""
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
def add_jumps(places: Floats, middles: Floats, jumps: Floats, sums: Floats) -> None:
    """Add to sums, (n_lanes,), the jumps, (n_middles,), of all middles below each place, (n_lanes,), one after another from the first.

    Five at a time, between which a sum does not leave the processor's registers.
    """
    nought, n = np.float32(0), len(middles)
    for k in range(0, n - n % 5, 5):
        m0, m1, m2, m3, m4 = middles[k], middles[k + 1], middles[k + 2], middles[k + 3], middles[k + 4]
        s0, s1, s2, s3, s4 = jumps[k], jumps[k + 1], jumps[k + 2], jumps[k + 3], jumps[k + 4]
        for lane in range(len(places)):
            place = places[lane]
            total = sums[lane] + (s0 if place > m0 else nought) + (s1 if place > m1 else nought) + (s2 if place > m2 else nought)
            sums[lane] = total + (s3 if place > m3 else nought) + (s4 if place > m4 else nought)
    for k in range(n - n % 5, n):
        middle, jump = middles[k], jumps[k]
        for lane in range(len(places)):
            sums[lane] += jump if places[lane] > middle else nought


@compiled
def settle(places: Floats, grid: Grid, values: Floats) -> None:
    """The values of the table nearest to places, (n_lanes,), into values, (n_lanes,)."""
    nought, half_step, last = np.float32(0), np.float32(0.5), grid.table[-1]
    if len(grid.middles):
        values[:] = grid.table[0]
        add_jumps(places, grid.middles, grid.jumps, values)
    else:
        for lane in range(len(places)):
            values[lane] = np.floor(min(max(places[lane] + half_step, nought), last))


def products_of(lanes: int) -> Compiled[[Floats, int, int, int, Floats, Floats, int, int], None]:
    """`add_products` for so many lanes, (n_columns, lanes): fast only if their number is known beforehand."""

    def add_products(rows: Floats, first: int, way: int, n: int, shares: Floats, targets: Floats, low: int, high: int) -> None:
        """Add rows[k] shares[j, k] to targets[j] for j in [low, high): n of the rows, one after another from the first, up or down.

        Args:
            rows: (n_rows, lanes).
            first: row.
            way: 1 (up) or -1 (down).
            n: a multiple of `TILE`.
            shares: (n_columns, n_rows).
            targets: (n_columns, lanes).
            low: column.
            high: column, a multiple of `TILE` after the lowest.
        """
        for j in range(low, high, TILE):
            for tile in range(n // TILE):
                k = first + way * TILE * tile
                k1, k2, k3 = k + way, k + 2 * way, k + 3 * way
                s0, s1, s2, s3 = shares[j, k], shares[j, k1], shares[j, k2], shares[j, k3]
                t0, t1, t2, t3 = shares[j + 1, k], shares[j + 1, k1], shares[j + 1, k2], shares[j + 1, k3]
                u0, u1, u2, u3 = shares[j + 2, k], shares[j + 2, k1], shares[j + 2, k2], shares[j + 2, k3]
                v0, v1, v2, v3 = shares[j + 3, k], shares[j + 3, k1], shares[j + 3, k2], shares[j + 3, k3]
                row0, row1, row2, row3 = rows[k], rows[k1], rows[k2], rows[k3]
                target0, target1, target2, target3 = targets[j], targets[j + 1], targets[j + 2], targets[j + 3]
                for lane in range(lanes):
                    x0, x1, x2, x3 = row0[lane], row1[lane], row2[lane], row3[lane]
                    target0[lane] = target0[lane] + x0 * s0 + x1 * s1 + x2 * s2 + x3 * s3
                    target1[lane] = target1[lane] + x0 * t0 + x1 * t1 + x2 * t2 + x3 * t3
                    target2[lane] = target2[lane] + x0 * u0 + x1 * u1 + x2 * u2 + x3 * u3
                    target3[lane] = target3[lane] + x0 * v0 + x1 * v1 + x2 * v2 + x3 * v3

    return compiled(add_products)


add_products = products_of(LANES)


@compiled
def add_lower(rows: Floats, upper: Floats, targets: Floats) -> None:
    """Add rows, (n, LANES), times their rows of a lower triangle to targets, (n, LANES), the first row first.

    `upper` is the triangle turned, with zeros below it: (n, n).
    """
    for start in range(0, len(rows), TILE):
        add_products(rows, start, 1, len(rows) - start, upper, targets, start, start + TILE)


@compiled
def products_with_lower(rows: Floats, lower: Floats, products: Floats) -> None:
    """Of each row of a lower triangle, (n, n), the product with columns, (n, LANES), into products, (n, LANES)."""
    products[:] = np.float32(0)
    for start in range(0, len(rows), TILE):
        add_products(rows, 0, 1, start + TILE, lower, products, start, start + TILE)


@compiled
def columns_of(n: int, lanes: int) -> Floats:
    """An array to be written, (n, lanes), that begins where vectors of the processor may begin; others take a third longer."""
    room = np.empty(n * lanes + _ALIGNMENT, np.float32)
    first = -(room.ctypes.data // 4) % _ALIGNMENT
    return room[first : first + n * lanes].reshape(n, lanes)


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
