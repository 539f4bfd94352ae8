"""No row and no importance vector that passes the checks may end the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def run(seed: int, n_cases: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(Path(__file__).with_name("codec_fuzzer.py")), str(seed), str(n_cases)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_thousands_of_hostile_rows_never_reach_an_assertion(seed: int) -> None:
    done = run(seed, 20_000)
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout) > 5_000
