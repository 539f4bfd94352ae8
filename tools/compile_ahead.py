"""Compile what every process of a fresh checkout would compile for itself: `python -m tools.compile_ahead`.

Numba keeps the loops of compensated rounding on disk, and pytest the tests, in whose assertions it writes what to say when they fail.
"""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.rounding.compensation import round_rows
from quantailor.analysis.rounding.metric import Metric
from quantailor.ggml import library

TYPES = ("Q4_0", "IQ2_XXS")
"""A code for each weight, and one for several: other types call the same loops with the same kinds of arrays."""
N_COLS = 256


def compile_loops() -> None:
    """Round a few rows to these types."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2 * N_COLS, N_COLS)).astype(np.float32)
    metric = Metric(InputCovariance("blk.0", inputs.T @ inputs, len(inputs)))
    for name in TYPES:
        round_rows(rng.standard_normal((1, N_COLS)).astype(np.float32), library.types()[name], metric)


def compile_tests() -> None:
    """Collect all tests. Raises SystemExit with what pytest says where one cannot be."""
    collected = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "0", "--collect-only"], capture_output=True, text=True)
    if collected.returncode != 0:
        sys.exit(collected.stdout + collected.stderr)


def main() -> None:
    """Both."""
    compile_tests()
    compile_loops()


if __name__ == "__main__":
    main()
