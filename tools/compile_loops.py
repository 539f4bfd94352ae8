"""Compile the loops of compensated rounding: `python -m tools.compile_loops`.

Numba keeps them on disk from then on. Otherwise every process of a fresh checkout that rounds would compile them for itself.
"""

from __future__ import annotations

import numpy as np

from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.rounding.compensation import round_rows
from quantailor.analysis.rounding.metric import Metric
from quantailor.ggml import library

TYPES = ("Q4_0", "IQ2_XXS")
"""A code for each weight, and one for several: other types call the same loops with the same kinds of arrays."""
N_COLS = 256


def main() -> None:
    """Round a few rows to these types."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2 * N_COLS, N_COLS)).astype(np.float32)
    metric = Metric(InputCovariance("blk.0", inputs.T @ inputs, len(inputs)))
    for name in TYPES:
        round_rows(rng.standard_normal((1, N_COLS)).astype(np.float32), library.types()[name], metric)


if __name__ == "__main__":
    main()
