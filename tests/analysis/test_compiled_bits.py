"""Codes are the same in a process that compiles the loops and in one that finds them on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import hashlib
import numpy as np
from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.rounding.compensation import round_rows
from quantailor.analysis.rounding.metric import Metric
from quantailor.ggml import library

found = hashlib.sha256()
for seed in range(6):
    numbers = np.random.default_rng(seed)
    inputs = (numbers.normal(0, 1, (512, 256)) * numbers.lognormal(0, 1, 256)).astype(np.float32)
    metric = Metric(InputCovariance("made up", (inputs.T @ inputs / np.float32(512)).astype(np.float32), 512))
    weights = (numbers.normal(0, 1, (128, 256)) / 20).astype(np.float32)
    for name in ("Q4_K", "Q5_K", "Q5_1"):
        found.update(round_rows(weights, library.type_named(name), metric).tobytes())
print(found.hexdigest())
"""


@pytest.mark.long
@pytest.mark.slow
def test_codes_do_not_depend_on_who_compiled_the_loops(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "OPENBLAS_NUM_THREADS": "1"}
    compiling, finding = (
        subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    )
    assert any(tmp_path.rglob("*.nbi"))
    assert compiling == finding
