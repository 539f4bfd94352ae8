"""The metric in which rounding is judged: H of a matrix's input, damped, with the factors that compensation works from.

For H = L L^T (L lower triangular) a row's error is |d L|^2. Column j of d L holds d_i of columns i >= j alone, so columns are rounded
from the last to the first: each makes up for what those behind it lost. That is Babai's nearest plane (Babai 1986), and gives what
GPTQ (Frantar et al. 2022) gives with a factor of H^-1, which is not needed here.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.errors import CovarianceError
from quantailor.numerics import Doubles, Floats, Integers

DAMPING = 0.03
"""Part of the mean diagonal that is added to the diagonal."""
SPAN_COLUMNS = 256
"""Columns whose codes are looked at again together."""
SHRINKAGE_COLUMNS = 1.0
"""Off the diagonal, H from n tokens counts n / (n + this x n_cols): few tokens say little about many pairs of columns."""


@dataclass(frozen=True, eq=False, slots=True)
class FactorBlock:
    """What one block of columns needs, all in the factor's order unless said otherwise."""

    index: int
    """Of the block in the row."""
    within: Integers
    """Columns of the block in the factor's order, counted from its first, (size,)."""
    natural: Integers
    """Where each column of the block is in the factor's order, (size,)."""
    lower: Floats
    """Its part of L, (size, size)."""
    inverse: Floats
    """Of that, (size, size)."""
    gram: Floats
    """L L^T of that part: the metric that is left to the block where all columns before can still make up for it, (size, size)."""
    importance: Floats
    """Its diagonal in the block's own order, (size,)."""


@dataclass(frozen=True, eq=False, slots=True)
class Span:
    """Some blocks beside each other in the factor's order, whose codes are chosen together."""

    start: int
    stop: int
    lower: Floats
    """Their part of L, (n_cols, n_cols)."""
    upper: Floats
    """That, turned."""
    below: Floats
    """What stands under it in L, (n_behind, n_cols)."""
    gram: Floats
    """L L^T of that part, (n_cols, n_cols)."""
    blocks: tuple[FactorBlock, ...]
    inverse: Floats
    """Of each block's part of L, turned, (n_blocks, size, size)."""
    importance: Floats
    """Of each column where all before it can still make up for it: the diagonals of the blocks' metrics, (n_cols,)."""
    natural: Integers
    """Where each column of each block is in the factor's order, counted from the span's first, (n_cols,)."""


@dataclass(frozen=True, eq=False, slots=True)
class Factor:
    """A Cholesky factor of the damped H with its columns in the order in which they are rounded, from the last to the first."""

    order: Integers
    """Columns of the matrix, (n_cols,); those of a block stay together."""
    importance: Floats
    """The diagonal of the damped H in that order, (n_cols,)."""
    spans: tuple[Span, ...]
    """From the last to the first, as they are rounded."""

    @property
    def n_bytes(self) -> int:
        """Memory that it takes, nearly."""
        return sum(7 * span.lower.nbytes + span.below.nbytes for span in self.spans)

    def losses(self, deltas: Floats) -> Doubles:
        """|d L|^2 of rows of errors, (n_rows, n_cols) in that order: (n_rows,)."""
        lost = np.zeros(len(deltas))
        for span in self.spans:
            lost += np.square(deltas[:, span.start : span.stop] @ span.lower + deltas[:, span.stop :] @ span.below).sum(axis=1)
        return lost


class Metric:
    """One input's H. Its factors are computed when they are first asked for.

    Args:
        covariance: of the input.
    """

    def __init__(self, covariance: InputCovariance) -> None:
        self.covariance = covariance
        self._factors: dict[tuple[int, int], Factor] = {}
        self._lock = threading.Lock()

    @property
    def n_bytes(self) -> int:
        """Memory that it takes."""
        return self.covariance.matrix.nbytes + sum(factor.n_bytes for factor in self._factors.values())

    def output_errors(self, deltas: Floats) -> Doubles:
        """dw^T H dw of every row of (n_rows, n_cols): (n_rows,), squared output units per token."""
        errors: Doubles = np.einsum("ij,ij->i", deltas @ self.covariance.matrix, deltas, dtype=np.float64)
        return np.maximum(errors, 0.0)

    def factor(self, block: int, run: int = 1) -> Factor:
        """The factor for types with blocks of so many columns, of which `run` beside each other share a code.

        Raises CovarianceError where H is not positive.
        """
        with self._lock:
            if (block, run) not in self._factors:
                try:
                    self._factors[block, run] = _factor(self.damped(), block, run)
                except np.linalg.LinAlgError:
                    file = f" in {self.covariance.origin}" if self.covariance.origin else ""
                    raise CovarianceError(
                        f"the covariance of {self.covariance.key}{file} is not positive",
                        remedy="Compute it again with `quantailor calibrate`",
                    ) from None
            return self._factors[block, run]

    def damped(self) -> Floats:
        """H with its diagonal raised and, from few tokens, less of what is beside it: (n_cols, n_cols)."""
        matrix, n_tokens = self.covariance.matrix, self.covariance.n_tokens
        diagonal = np.diagonal(matrix).astype(np.float64)
        mean = float(diagonal.mean()) or 1.0
        damped: Floats = matrix * np.float32(n_tokens / (n_tokens + SHRINKAGE_COLUMNS * len(matrix)))
        np.fill_diagonal(damped, diagonal + DAMPING * mean)
        return damped


def _factor(damped: Floats, size: int, run: int) -> Factor:
    """Columns of the most importance are rounded first, when the most others are left to make up for them: blocks, and within each."""
    from scipy.linalg import cholesky  # scipy takes a quarter of a second to import

    importance = np.diagonal(damped).astype(np.float64)
    runs = np.arange(len(damped)).reshape(-1, size // run, run)
    ranks = np.argsort(importance[runs].sum(axis=2), axis=1, kind="stable")
    blocks = np.take_along_axis(runs, ranks[:, :, None], axis=1).reshape(-1, size)
    blocks = blocks[np.argsort(importance[blocks].sum(axis=1), kind="stable")]
    order = blocks.reshape(-1)
    lower = cholesky(damped[np.ix_(order, order)], lower=True, overwrite_a=True, check_finite=False)
    lower = np.ascontiguousarray(lower, dtype=np.float32)
    n_span = max(1, SPAN_COLUMNS // size) * size
    stops = range(len(order), 0, -n_span)
    spans = tuple(_span(lower, order, size, max(0, stop - n_span), stop) for stop in stops)
    return Factor(order, importance[order].astype(np.float32), spans)


def _span(lower: Floats, order: Integers, size: int, start: int, stop: int) -> Span:
    part = np.ascontiguousarray(lower[start:stop, start:stop])
    blocks = tuple(
        _block(part[first : first + size, first : first + size], order[start + first : start + first + size], size)
        for first in range(0, stop - start, size)
    )
    inverse = np.ascontiguousarray([block.inverse.T for block in blocks])
    importance = np.concatenate([block.importance[block.within] for block in blocks])
    natural = np.concatenate([number * size + block.natural for number, block in enumerate(blocks)])
    below = np.ascontiguousarray(lower[stop:, start:stop])
    return Span(start, stop, part, np.ascontiguousarray(part.T), below, part @ part.T, blocks, inverse, importance, natural)


def _block(part: Floats, columns: Integers, size: int) -> FactorBlock:
    from scipy.linalg import solve_triangular

    lower = np.ascontiguousarray(part)
    inverse = solve_triangular(lower, np.eye(size, dtype=np.float32), lower=True, check_finite=False)
    gram = lower @ lower.T
    within = columns % size
    natural = np.argsort(within)
    return FactorBlock(
        index=int(columns[0]) // size,
        within=within,
        natural=natural,
        lower=lower,
        inverse=np.ascontiguousarray(inverse, dtype=np.float32),
        gram=gram,
        importance=np.ascontiguousarray(np.diagonal(gram)[natural]),
    )
