"""The metric in which rounding is judged: H of a matrix's input, damped, with the factors that compensation works from.

For H = L L^T (L lower triangular) a row's error is |d L|^2. Column j of d L holds d_i of columns i >= j alone, so columns are rounded
from the last to the first: each makes up for what those behind it lost. That is Babai's nearest plane (Babai 1986), and gives what
GPTQ (Frantar et al. 2022) gives with a factor of H^-1, which is not needed here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.errors import CovarianceError
from quantailor.numerics import Doubles, Floats, Integers

DAMPING = 0.01
"""Part of the mean diagonal that is added to the diagonal."""
SHRINKAGE_COLUMNS = 0.25
"""Off the diagonal, H from n tokens counts n / (n + this x n_cols): few tokens say little about many pairs of columns."""


@dataclass(frozen=True, eq=False, slots=True)
class Factor:
    """A Cholesky factor of the damped H with its columns in the order in which they are rounded, from the last to the first."""

    order: Integers
    """Columns of the matrix, (n_cols,); those of a block stay together and in their order."""
    lower: Floats
    """(n_cols, n_cols), in that order."""


class Metric:
    """One input's H. Its factors are computed when they are first asked for.

    Args:
        covariance: of the input.
    """

    def __init__(self, covariance: InputCovariance) -> None:
        self.covariance = covariance
        self._factors: dict[int, Factor] = {}

    @property
    def n_bytes(self) -> int:
        """Memory that it takes."""
        return self.covariance.matrix.nbytes + sum(factor.lower.nbytes for factor in self._factors.values())

    def output_errors(self, deltas: Floats) -> Doubles:
        """dw^T H dw of every row of (n_rows, n_cols): (n_rows,), squared output units per token."""
        errors: Doubles = np.einsum("ij,ij->i", deltas @ self.covariance.matrix, deltas, dtype=np.float64)
        return np.maximum(errors, 0.0)

    def factor(self, block: int) -> Factor:
        """The factor for types with blocks of so many columns. Raises CovarianceError where H cannot be one."""
        if block not in self._factors:
            try:
                self._factors[block] = _factor(self.damped(), block)
            except np.linalg.LinAlgError as error:
                raise CovarianceError(
                    f"the covariance of {self.covariance.key} in {self.covariance.origin or 'memory'} is not positive",
                    remedy="Compute it again with `quantailor calibrate`",
                ) from error
        return self._factors[block]

    def damped(self) -> Floats:
        """H with its diagonal raised and, from few tokens, less of what is beside it: (n_cols, n_cols)."""
        matrix, n_tokens = self.covariance.matrix, self.covariance.n_tokens
        diagonal = np.diagonal(matrix).astype(np.float64)
        mean = float(diagonal.mean()) or 1.0
        damped: Floats = matrix * np.float32(n_tokens / (n_tokens + SHRINKAGE_COLUMNS * len(matrix)))
        np.fill_diagonal(damped, diagonal + DAMPING * mean)
        return damped


def _factor(damped: Floats, block: int) -> Factor:
    """Blocks of the most importance are rounded first, when the most columns are left to make up for them."""
    n_cols = len(damped)
    blocks = np.arange(n_cols).reshape(-1, block)
    importance = np.diagonal(damped).astype(np.float64)[blocks].sum(axis=1)
    order = blocks[np.argsort(importance, kind="stable")].reshape(-1)
    lower = scipy.linalg.cholesky(damped[np.ix_(order, order)], lower=True, overwrite_a=True, check_finite=False)
    return Factor(order, np.ascontiguousarray(lower, dtype=np.float32))
