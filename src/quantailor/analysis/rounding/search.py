"""The entry of a codebook that is nearest to a vector in some metric, its signs included.

Where signs are part of the entries, every entry is tried, exactly. Where they have bits of their own, the metric's diagonal picks a few
entries with the signs of the vector; these are tried in the full metric, then the other signs (in pairs where only an even number may be
negative), and the same once more. On metrics of trained models what is left of the vector is at most some percent more than at the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantailor.analysis.rounding.compiling import compiled, compiled_loosely
from quantailor.analysis.rounding.loops.vector_signs import improve_vectors
from quantailor.numerics import Floats, Integers

LANES = 64
"""Entries that are compared at a time."""
_PICKED, _PICKED_OF_PARTS = 4, 8
"""Entries that are tried in the full metric."""
_SWEEPS = 2
_LEAST_SCALE = 1e-20


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

    @property
    def n_picked(self) -> int:
        """Entries of each part that are tried in the full metric."""
        return 1 if not self.signed else _PICKED if self.n_parts == 1 else _PICKED_OF_PARTS

    def nearest(self, x: Floats, metric: Floats) -> tuple[Integers, Floats]:
        """Entries, (n, n_parts), and signs, (n, n_weights), so that (x - v)^T M (x - v) is small for every row of x, (n, n_weights).

        Args:
            x: vectors in units of the codebook.
            metric: M, (n_weights, n_weights), positive definite; the same for all.
        """
        x, metric = np.ascontiguousarray(x, dtype=np.float32), np.ascontiguousarray(metric, dtype=np.float32)
        entries, signs = np.empty((len(x), self.n_parts), dtype=np.int64), np.empty_like(x)
        nearest_rows(x, metric, self.entries, self.n_picked, self.signed, self.even, entries, signs, np.empty_like(x))
        return entries, signs

    def choose(self, weights: Floats, carried: Floats, lower: Floats, offset: Floats, scale: Floats) -> Chosen:
        """Choose groups of columns from the last to the first, each the nearest to what makes up for those behind it.

        Args:
            weights: (n, size), group after group.
            carried: see `kernels`, (n, size).
            lower: L, (size, size).
            offset: of every group, (n, n_groups).
            scale: of every group, (n, n_groups).
        """
        n_groups, size = offset.shape[1], weights.shape[1] // offset.shape[1]
        chosen = Chosen(
            np.empty((n_groups, len(weights), self.n_parts), dtype=np.int64),
            np.empty((n_groups, len(weights), size), dtype=np.float32),
            np.empty_like(weights),
        )
        inverse = np.ascontiguousarray(np.linalg.inv(_own(lower, size)), dtype=np.float32)
        choose_groups(
            *(weights, carried.copy(), lower, inverse, offset, _inverse(scale), scale),
            *(self.entries, self.n_picked, self.signed, self.even, chosen.entries, chosen.signs, chosen.errors),
        )
        return chosen

    def improve(self, weights: Floats, slopes: Floats, gram: Floats, offset: Floats, scale: Floats, n_sweeps: int, chosen: Chosen) -> None:
        """Look at each group again beside all others, at most so many times, and take what loses less.

        Args:
            weights: as in `choose`, (n, size).
            slopes: half the slope of the output error over the errors as they are, (n, size).
            gram: L L^T, (size, size).
            offset: (n, n_groups).
            scale: (n, n_groups).
            n_sweeps: how often.
            chosen: becomes better.
        """
        inverse = np.ascontiguousarray(np.linalg.inv(_own(gram, weights.shape[1] // offset.shape[1])), dtype=np.float32)
        improve_groups(
            *(weights, slopes.copy(), gram, inverse, offset, _inverse(scale), scale, n_sweeps),
            *(self.entries, self.n_picked, self.signed, self.even, chosen.entries, chosen.signs, chosen.errors),
        )


@dataclass(frozen=True, eq=False, slots=True)
class Chosen:
    """What was chosen for the groups of a block."""

    entries: Integers
    """(n_groups, n, n_parts)."""
    signs: Floats
    """(n_groups, n, n_weights)."""
    errors: Floats
    """That they make, (n, size)."""


def _own(matrix: Floats, size: int) -> Floats:
    """The squares along the diagonal, (n_groups, size, size)."""
    return np.stack([matrix[first : first + size, first : first + size] for first in range(0, len(matrix), size)])


def _inverse(scale: Floats) -> Floats:
    """Of scales, in the same shape; 0 for those that are 0 or next to it, whose codes do not matter."""
    inverse: Floats = np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > _LEAST_SCALE)
    return inverse


@compiled
def choose_groups(
    weights: Floats,
    carried: Floats,
    lower: Floats,
    inverse: Floats,
    offset: Floats,
    inverse_scale: Floats,
    scale: Floats,
    book: Floats,
    n_picked: int,
    signed: bool,
    even: bool,
    entries: Integers,
    signs: Floats,
    errors: Floats,
) -> None:
    """See `Book.choose`: weights are (n, size), inverse has that of each group's part of L, (n_groups, n_weights, n_weights)."""
    n, size = weights.shape[0], inverse.shape[1]
    x, units = np.empty((n, size), np.float32), np.empty((n, size), np.float32)
    for group in range(len(inverse) - 1, -1, -1):
        first = group * size
        for row in range(n):
            for i in range(size):
                target = weights[row, first + i] - offset[row, group]
                for k in range(size):
                    target -= carried[row, first + k] * inverse[group, k, i]
                x[row, i] = target * inverse_scale[row, group]
        own = np.ascontiguousarray(lower[first : first + size, first : first + size])
        nearest_rows(x, own @ own.T, book, n_picked, signed, even, entries[group], signs[group], units)
        for row in range(n):
            for i in range(size):
                error = offset[row, group] + scale[row, group] * units[row, i] - weights[row, first + i]
                errors[row, first + i] = error
                for column in range(first + i + 1):
                    carried[row, column] += error * lower[first + i, column]


@compiled
def improve_groups(
    weights: Floats,
    slopes: Floats,
    gram: Floats,
    inverse: Floats,
    offset: Floats,
    inverse_scale: Floats,
    scale: Floats,
    n_sweeps: int,
    book: Floats,
    n_picked: int,
    signed: bool,
    even: bool,
    entries: Integers,
    signs: Floats,
    errors: Floats,
) -> None:
    """See `Book.improve`: weights are (n, size), inverse has that of each group's part of gram, (n_groups, n_weights, n_weights)."""
    n, size = weights.shape[0], inverse.shape[1]
    x, units, change = np.empty((n, size), np.float32), np.empty((n, size), np.float32), np.empty(size, np.float32)
    found_entries, found_signs = np.empty_like(entries[0]), np.empty_like(signs[0])
    for sweep in range(n_sweeps * len(inverse)):
        group = len(inverse) - 1 - sweep % len(inverse)
        first = group * size
        for row in range(n):
            for i in range(size):
                target = weights[row, first + i] + errors[row, first + i] - offset[row, group]
                for k in range(size):
                    target -= slopes[row, first + k] * inverse[group, k, i]
                x[row, i] = target * inverse_scale[row, group]
        own = np.ascontiguousarray(gram[first : first + size, first : first + size])
        nearest_rows(x, own, book, n_picked, signed, even, found_entries, found_signs, units)
        for row in range(n):
            gain = np.float32(0)
            for i in range(size):
                change[i] = offset[row, group] + scale[row, group] * units[row, i] - weights[row, first + i] - errors[row, first + i]
                gain -= 2 * slopes[row, first + i] * change[i] + own[i, i] * change[i] * change[i]
                for j in range(i):
                    gain -= 2 * own[i, j] * change[i] * change[j]
            if gain > 0:
                entries[group, row], signs[group, row] = found_entries[row], found_signs[row]
                for i in range(size):
                    errors[row, first + i] += change[i]
                    for column in range(gram.shape[0]):
                        slopes[row, column] += change[i] * gram[first + i, column]


@compiled
def nearest_rows(
    x: Floats, metric: Floats, book: Floats, n_picked: int, signed: bool, even: bool, entries: Integers, signs: Floats, units: Floats
) -> None:
    """See `Book.nearest`: x, signs and what they stand for are (n, n_weights), entries (n, n_parts), the book (n_chunks, n_part, LANES)."""
    n, n_part = len(x), book.shape[1]
    candidates = np.empty((n, entries.shape[1], n_picked), np.int64)
    sizes, pull = np.empty((len(book), LANES), np.float32), np.empty((n, n_part), np.float32)
    signs[:] = 1
    for part in range(entries.shape[1]):
        first = part * n_part
        own = metric[first : first + n_part, first : first + n_part].copy()
        if signed:
            own *= np.eye(n_part, dtype=np.float32)
        for row in range(n):
            for i in range(n_part):
                pull[row, i] = 0
                for j in range(n_part):
                    pull[row, i] += own[i, j] * (abs(x[row, first + j]) if signed else x[row, first + j])
        measure(book, own, sizes)
        pick(book, sizes, pull, candidates[:, part])
        for row in range(n):
            entries[row, part] = candidates[row, part, 0]
            for i in range(n_part):
                units[row, first + i] = book[entries[row, part] // LANES, i, entries[row, part] % LANES]
    if signed:
        tried = np.empty((entries.shape[1], n_picked, n_part, n), np.float32)
        take_entries(book, candidates, tried)
        improve_vectors(x, metric, even, tried, candidates, _SWEEPS, entries, signs, units)


@compiled
def take_entries(book: Floats, candidates: Integers, tried: Floats) -> None:
    """The entries of a book, (n_chunks, n_part, LANES), by number, (n, n_parts, n_picked), into (n_parts, n_picked, n_part, n)."""
    n, n_parts, n_picked = candidates.shape
    for row in range(n):
        for part in range(n_parts):
            for k in range(n_picked):
                number = candidates[row, part, k]
                for i in range(book.shape[1]):
                    tried[part, k, i, row] = book[number // LANES, i, number % LANES]


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
