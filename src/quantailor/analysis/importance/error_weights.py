"""How the errors of one tensor's weights count, gathered in one record.

An importance matrix, token frequencies or nothing at all come down to the same few arrays; the measurement
needs to know no more.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantailor.numerics import Floats


@dataclass(frozen=True, slots=True)
class ErrorWeights:
    """Weights for the error sums of one tensor and for its quantizer. All fields may be None: plain sums.

    A tensor has `n_slices` matrices of `rows_per_slice` rows and `n_cols` columns.
    """

    columns: Floats | None = None
    """E[x_j^2] per slice and column, (n_slices, n_cols)."""
    means: Floats | None = None
    """E[x_j], (n_slices, n_cols), where the importance matrix holds it."""
    slice_shares: Floats | None = None
    """Share of the routed tokens per slice, (n_slices,), sums to 1; None counts slices alike."""
    row_weights: Floats | None = None
    """Weight of every row, (n_rows,): a token embedding's row counts by its token's frequency plus one."""
    quantizer: Floats | None = None
    """What llama.cpp would hand to the quantizer, (n_slices, n_cols); None where it hands nothing."""
    n_unseen_slices: int = 0
    """Experts that no calibration token reached; they have unit weights."""


UNWEIGHTED = ErrorWeights()
