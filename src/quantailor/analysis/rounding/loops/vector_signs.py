"""Entries and signs of vectors, where signs have bits of their own: better ones one after another, from the nearest by the diagonal.

Vectors stand one beside the other: arrays of weights are (n_weights, n), so that loops over vectors are the processor's.
"""

from __future__ import annotations

import numpy as np

from quantailor.analysis.rounding.compiling import compiled
from quantailor.numerics import Floats, Integers


@compiled
def improve_vectors(
    x: Floats,
    metric: Floats,
    even: bool,
    tried: Floats,
    candidates: Integers,
    n_sweeps: int,
    entries: Integers,
    signs: Floats,
    units: Floats,
) -> None:
    """Take the candidates and the signs that leave less of vectors in the full metric, by turns.

    Args:
        x: the vectors, (n, n_weights).
        metric: (n_weights, n_weights).
        even: whether only an even number of weights may be negative.
        tried: the candidates of each part, (n_parts, n_picked, n_part, n).
        candidates: their numbers in the book, (n, n_parts, n_picked).
        n_sweeps: how often.
        entries: (n, n_parts), become better.
        signs: are written, (n, n_weights).
        units: the entries, become what they and the signs stand for, (n, n_weights).
    """
    n, n_weights = x.shape
    own, values = np.empty((n_weights, n), np.float32), np.empty((n_weights, n), np.float32)
    ways, rest = np.empty((n_weights, n), np.float32), np.empty((n_weights, n), np.float32)
    for i in range(n_weights):
        for lane in range(n):
            own[i, lane], values[i, lane] = x[lane, i], units[lane, i]
    begin(own, metric, even, ways, values, rest)
    for _ in range(n_sweeps):
        change_entries(metric, tried, candidates, entries, ways, values, rest)
        change_signs(metric, even, ways, values, rest)
    for lane in range(n):
        for i in range(n_weights):
            signs[lane, i], units[lane, i] = ways[i, lane], values[i, lane]


@compiled
def begin(x: Floats, metric: Floats, even: bool, signs: Floats, units: Floats, rest: Floats) -> None:
    """Give entries the signs of x, but for the cheapest where an even number must be negative; all of x is (n_weights, n).

    Args:
        x: the vectors.
        metric: (n_weights, n_weights).
        even: see `improve_vectors`.
        signs: to fill, (n_weights, n).
        units: entries, which are given signs, (n_weights, n).
        rest: to fill with M (x - units).
    """
    n_weights, n = x.shape
    one, nought = np.float32(1), np.float32(0)
    odd, cheapest, cost = np.zeros(n, np.int32), np.zeros(n, np.int32), np.full(n, np.inf, np.float32)
    for i in range(n_weights):
        for lane in range(n):
            negative = x[i, lane] < nought
            signs[i, lane] = -one if negative else one
            odd[lane] ^= np.int32(negative)
            loss = metric[i, i] * abs(x[i, lane]) * units[i, lane]
            cheapest[lane] = np.int32(i) if loss < cost[lane] else cheapest[lane]
            cost[lane] = loss if loss < cost[lane] else cost[lane]
    for i in range(n_weights):
        for lane in range(n):
            sign = signs[i, lane]
            signs[i, lane] = -sign if even and odd[lane] == 1 and cheapest[lane] == i else sign
            units[i, lane] *= signs[i, lane]
    for i in range(n_weights):
        rest[i] = nought
        for j in range(n_weights):
            share = metric[i, j]
            for lane in range(n):
                rest[i, lane] += share * (x[j, lane] - units[j, lane])


@compiled
def price(metric: Floats, signs: Floats, units: Floats, rest: Floats, tried: Floats, delta: Floats, change: Floats) -> None:
    """By how much less or more is left of vectors with other entries in one part.

    Args:
        metric: of the part, (n_part, n_part).
        signs: (n_part, n).
        units: what stands there now, (n_part, n).
        rest: as in `begin`, of the part, (n_part, n).
        tried: the entries, (n_part, n).
        delta: what they would add to the units, is written, (n_part, n).
        change: is written, (n,).
    """
    n_part, n = tried.shape
    nought, two, slope = np.float32(0), np.float32(2), np.empty(n, np.float32)
    for i in range(n_part):
        for lane in range(n):
            delta[i, lane] = signs[i, lane] * tried[i, lane] - units[i, lane]
    change[:] = nought
    for i in range(n_part):
        for lane in range(n):
            slope[lane] = -two * rest[i, lane]
        for j in range(n_part):
            share = metric[i, j]
            for lane in range(n):
                slope[lane] += share * delta[j, lane]
        for lane in range(n):
            change[lane] += slope[lane] * delta[i, lane]


@compiled
def subtract(metric: Floats, row: int, step: Floats, rest: Floats) -> None:
    """Of what is left of vectors, (n_weights, n), subtract what a step, (n,), of one weight takes; the metric is (n_weights, n_weights)."""
    for j in range(len(rest)):
        share, own = metric[j, row], rest[j]
        for lane in range(len(step)):
            own[lane] -= share * step[lane]


@compiled
def change_entries(
    metric: Floats, tried: Floats, candidates: Integers, entries: Integers, signs: Floats, units: Floats, rest: Floats
) -> None:
    """Take the candidate that serves each part best in the full metric; arrays as in `improve_vectors` and `begin`, (n_weights, n)."""
    n_parts, n_picked, n_part, n = tried.shape
    nought = np.float32(0)
    delta, best = np.empty((n_part, n), np.float32), np.empty((n_part, n), np.float32)
    change, least, chosen = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.int32)
    for part in range(n_parts):
        first, stop = part * n_part, (part + 1) * n_part
        own = metric[first:stop, first:stop].copy()
        best[:], least[:], chosen[:] = nought, nought, np.int32(-1)
        for k in range(n_picked):
            price(own, signs[first:stop], units[first:stop], rest[first:stop], tried[part, k], delta, change)
            for i in range(n_part):
                for lane in range(n):
                    best[i, lane] = delta[i, lane] if change[lane] < least[lane] else best[i, lane]
            for lane in range(n):
                chosen[lane] = np.int32(k) if change[lane] < least[lane] else chosen[lane]
                least[lane] = min(least[lane], change[lane])
        for lane in range(n):
            if chosen[lane] >= 0:
                entries[lane, part] = candidates[lane, part, chosen[lane]]
        for i in range(n_part):
            for lane in range(n):
                units[first + i, lane] += best[i, lane]
            subtract(metric, first + i, best[i], rest)


@compiled
def find_pairs(metric: Floats, units: Floats, rest: Floats, first: Integers, second: Integers) -> None:
    """The two signs whose change leaves least of vectors, the first behind the second, each (n,), -1 where none do.

    Args:
        metric: (n_weights, n_weights).
        units: (n_weights, n).
        rest: as in `begin`, (n_weights, n).
        first: is written.
        second: is written.
    """
    n_weights, n = units.shape
    two = np.float32(2)
    least, alone = np.zeros(n, np.float32), np.empty(n, np.float32)
    first[:], second[:] = -1, -1
    for i in range(n_weights):
        for lane in range(n):
            by = -two * units[i, lane]
            alone[lane] = by * (by * metric[i, i] - two * rest[i, lane])
        for j in range(i):
            share, weight = metric[i, j], metric[j, j]
            for lane in range(n):
                by, other = -two * units[i, lane], -two * units[j, lane]
                pair = alone[lane] + other * (other * weight - two * rest[j, lane] + two * by * share)
                first[lane] = i if pair < least[lane] else first[lane]
                second[lane] = j if pair < least[lane] else second[lane]
                least[lane] = min(least[lane], pair)


@compiled
def find_signs(metric: Floats, units: Floats, rest: Floats, first: Integers) -> None:
    """The sign whose change leaves least of vectors, (n,), -1 where none does; the rest as in `find_pairs`, (n_weights, n)."""
    n_weights, n = units.shape
    two = np.float32(2)
    least = np.zeros(n, np.float32)
    first[:] = -1
    for i in range(n_weights):
        for lane in range(n):
            by = -two * units[i, lane]
            alone = by * (by * metric[i, i] - two * rest[i, lane])
            first[lane] = i if alone < least[lane] else first[lane]
            least[lane] = min(least[lane], alone)


@compiled
def change_signs(metric: Floats, even: bool, signs: Floats, units: Floats, rest: Floats) -> None:
    """Change signs, one or a pair at a time, while that helps; arrays as in `begin`, (n_weights, n), and kept so."""
    n_weights, n = units.shape
    nought, two = np.float32(0), np.float32(2)
    step, first, second = np.empty(n, np.float32), np.empty(n, np.int64), np.full(n, -1, np.int64)
    for _ in range(n_weights):
        if even:
            find_pairs(metric, units, rest, first, second)
        else:
            find_signs(metric, units, rest, first)
        if first.max() < 0:
            break
        for i in range(n_weights - 1, -1, -1):
            for lane in range(n):
                flips = first[lane] == i or second[lane] == i
                step[lane] = -two * units[i, lane] if flips else nought
                signs[i, lane] = -signs[i, lane] if flips else signs[i, lane]
                units[i, lane] += step[lane]
            subtract(metric, i, step, rest)
