"""No row and no importance vector that passes the checks may end the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fuzzing


def run(seed: int, n_cases: int, rounding: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", str(Path(__file__).with_name("codec_fuzzer.py")), str(seed), str(n_cases), rounding]
    command += ["all"] * fuzzing.LONG
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(("rounding", "n_all"), [("plain", 20_000), ("compensated", 2_000)])
def test_hostile_rows_never_reach_an_assertion(rounding: str, n_all: int) -> None:
    for seed in fuzzing.seeds(4):
        n_cases = fuzzing.n_cases(n_all, share=20)
        done = run(seed, n_cases, rounding)
        assert done.returncode == 0, done.stderr[-500:]
        assert int(done.stdout) > n_cases // 4
