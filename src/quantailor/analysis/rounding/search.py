"""The entry of a codebook that is nearest to a vector in some metric, its signs included.

Where signs are part of the entries, every entry is tried, exactly. Where they have bits of their own, the metric's diagonal picks a few
entries with the signs of the vector; these are tried in the full metric, then the other signs (in pairs where only an even number may be
negative), and the same once more. On metrics of trained models what is left of the vector is at most some percent more than at the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantailor.analysis.rounding.compiling import compiled, compiled_loosely
from quantailor.numerics import Floats, Integers

LANES = 64
"""Entries that are compared at a time."""
_PICKED, _PICKED_OF_PARTS = 4, 8
"""Entries that are tried in the full metric."""
_SWEEPS = 2


@dataclass(frozen=True, eq=False, slots=True)
class Book:
    """A codebook as it is searched."""

    entries: Floats
    """(n_chunks, n_part, LANES)."""
    n_parts: int
    signed: bool
    """Whether signs are apart from the entries, which are then not negative."""
    even: bool
    """Whether only an even number of weights may be negative."""

    @classmethod
    def of(cls, codebook: Floats, n_parts: int, *, signed: bool, even: bool) -> Book:
        """A codebook, (n_entries, n_part), of which every vector has one entry for each of its parts."""
        return cls(np.ascontiguousarray(codebook.reshape(-1, LANES, codebook.shape[1]).transpose(0, 2, 1)), n_parts, signed, even)

    def nearest(self, x: Floats, metric: Floats) -> tuple[Integers, Floats]:
        """Entries, (n, n_parts), and signs, (n, n_weights), so that (x - v)^T M (x - v) is small for every row of x, (n, n_weights).

        Args:
            x: vectors in units of the codebook.
            metric: M, (n_weights, n_weights), positive definite; the same for all.
        """
        x, metric = np.ascontiguousarray(x, dtype=np.float32), np.ascontiguousarray(metric, dtype=np.float32)
        pull = np.abs(x) * np.diagonal(metric) if self.signed else x @ metric
        picked = _PICKED if self.n_parts == 1 else _PICKED_OF_PARTS
        candidates = np.empty((len(x), self.n_parts, picked if self.signed else 1), dtype=np.int64)
        shape = metric.shape[0] // self.n_parts
        for part in range(self.n_parts):
            own = slice(part * shape, (part + 1) * shape)
            sizes = np.empty((len(self.entries), LANES), dtype=np.float32)
            measure(self.entries, np.diag(np.diagonal(metric)[own]) if self.signed else metric, sizes)
            pick(self.entries, sizes, np.ascontiguousarray(pull[:, own]), candidates[:, part])
        entries, signs = candidates[:, :, 0].copy(), np.ones_like(x)
        if self.signed:
            units, rest = np.empty_like(x), np.empty_like(x)
            begin(x, metric, self.entries, entries, self.even, signs, units, rest)
            for _ in range(_SWEEPS):
                change_entries(metric, self.entries, candidates, entries, signs, units, rest)
                change_signs(metric, self.even, signs, units, rest)
        return entries, signs


@compiled_loosely
def measure(book: Floats, metric: Floats, out: Floats) -> None:
    """Half of v^T M v for every entry v of a book, (n_chunks, n_part, LANES), into out, (n_chunks, LANES); M is (n_part, n_part)."""
    for chunk in range(book.shape[0]):
        out[chunk] = 0
        for i in range(book.shape[1]):
            for j in range(i + 1):
                share = metric[i, j] if j < i else np.float32(0.5) * metric[i, i]
                for lane in range(LANES):
                    out[chunk, lane] += share * book[chunk, i, lane] * book[chunk, j, lane]


@compiled_loosely
def pick(book: Floats, sizes: Floats, pull: Floats, out: Integers) -> None:
    """The entries v of a book, (n_chunks, n_part, LANES), with the largest pull . v - size, largest first: (n, n_picked).

    Args:
        book: n_part is 4 or 8.
        sizes: (n_chunks, LANES).
        pull: (n, n_part).
        out: (n, n_picked).
    """
    n_chunks = book.shape[0]
    scores, tops = np.empty((n_chunks, LANES), np.float32), np.empty(LANES, np.float32)
    for row in range(pull.shape[0]):
        tops[:] = -np.inf
        for chunk in range(n_chunks):
            p0, p1, p2, p3 = pull[row, 0], pull[row, 1], pull[row, 2], pull[row, 3]
            if book.shape[1] == 4:
                for lane in range(LANES):
                    low = p0 * book[chunk, 0, lane] + p1 * book[chunk, 1, lane] + p2 * book[chunk, 2, lane] + p3 * book[chunk, 3, lane]
                    scores[chunk, lane] = low - sizes[chunk, lane]
            else:
                p4, p5, p6, p7 = pull[row, 4], pull[row, 5], pull[row, 6], pull[row, 7]
                for lane in range(LANES):
                    low = p0 * book[chunk, 0, lane] + p1 * book[chunk, 1, lane] + p2 * book[chunk, 2, lane] + p3 * book[chunk, 3, lane]
                    high = p4 * book[chunk, 4, lane] + p5 * book[chunk, 5, lane] + p6 * book[chunk, 6, lane] + p7 * book[chunk, 7, lane]
                    scores[chunk, lane] = low + high - sizes[chunk, lane]
            for lane in range(LANES):
                score, top = scores[chunk, lane], tops[lane]
                tops[lane] = score if score > top else top
        for k in range(out.shape[1]):
            best = np.argmax(tops)
            place = np.argmax(scores[:, best])
            out[row, k] = place * LANES + best
            if k + 1 < out.shape[1]:
                scores[place, best] = -np.inf
                tops[best] = scores[:, best].max()


@compiled
def begin(x: Floats, metric: Floats, book: Floats, entries: Integers, even: bool, signs: Floats, units: Floats, rest: Floats) -> None:
    """Give entries the signs of x, but for the cheapest where an even number must be negative; all of x is (n, n_weights).

    Args:
        x: the vectors.
        metric: (n_weights, n_weights).
        book: (n_chunks, n_part, LANES).
        entries: (n, n_parts).
        even: see `Book`.
        signs: to fill, (n, n_weights).
        units: to fill with entries times signs.
        rest: to fill with M (x - units).
    """
    n_part = book.shape[1]
    for row in range(x.shape[0]):
        odd, cheapest, cost = False, 0, np.inf
        for i in range(x.shape[1]):
            entry = entries[row, i // n_part]
            units[row, i] = book[entry // LANES, i % n_part, entry % LANES]
            signs[row, i] = -1 if x[row, i] < 0 else 1
            odd ^= x[row, i] < 0
            loss = metric[i, i] * abs(x[row, i]) * units[row, i]
            if loss < cost:
                cheapest, cost = i, loss
        if odd and even:
            signs[row, cheapest] = -signs[row, cheapest]
        for i in range(x.shape[1]):
            units[row, i] *= signs[row, i]
        for i in range(x.shape[1]):
            rest[row, i] = 0
            for j in range(x.shape[1]):
                rest[row, i] += metric[i, j] * (x[row, j] - units[row, j])


@compiled
def change_entries(
    metric: Floats, book: Floats, candidates: Integers, entries: Integers, signs: Floats, units: Floats, rest: Floats
) -> None:
    """Take the candidate, (n, n_parts, n_picked), that serves each part best in the full metric; the rest as in `begin`, and kept so."""
    n_part = book.shape[1]
    for row in range(units.shape[0]):
        for part in range(candidates.shape[1]):
            first = part * n_part
            least, chosen = np.float32(0), entries[row, part]
            for entry in candidates[row, part]:
                change = np.float32(0)
                for i in range(n_part):
                    slope = -2 * rest[row, first + i]
                    for j in range(n_part):
                        new = signs[row, first + j] * book[entry // LANES, j, entry % LANES]
                        slope += metric[first + i, first + j] * (new - units[row, first + j])
                    new = signs[row, first + i] * book[entry // LANES, i, entry % LANES]
                    change += slope * (new - units[row, first + i])
                if change < least:
                    least, chosen = change, entry
            if chosen != entries[row, part]:
                entries[row, part] = chosen
                for i in range(n_part):
                    step = signs[row, first + i] * book[chosen // LANES, i, chosen % LANES] - units[row, first + i]
                    units[row, first + i] += step
                    for j in range(units.shape[1]):
                        rest[row, j] -= metric[j, first + i] * step


@compiled
def change_signs(metric: Floats, even: bool, signs: Floats, units: Floats, rest: Floats) -> None:
    """Change signs, one or a pair at a time, while that helps; arrays as in `begin`, (n, n_weights), and kept so."""
    n_weights = units.shape[1]
    for row in range(units.shape[0]):
        for _ in range(n_weights):
            least, first, second = np.float32(0), -1, -1
            for i in range(n_weights):
                step = -2 * units[row, i]
                alone = step * (step * metric[i, i] - 2 * rest[row, i])
                if not even and alone < least:
                    least, first = alone, i
                for j in range(i if even else 0):
                    other = -2 * units[row, j]
                    pair = alone + other * (other * metric[j, j] - 2 * rest[row, j] + 2 * step * metric[i, j])
                    if pair < least:
                        least, first, second = pair, i, j
            for i in (first, second):
                if i >= 0:
                    step = -2 * units[row, i]
                    signs[row, i] = -signs[row, i]
                    units[row, i] += step
                    for j in range(n_weights):
                        rest[row, j] -= metric[j, i] * step
            if first < 0:
                break
