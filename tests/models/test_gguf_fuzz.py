"""Damaged headers: each is refused with a QuantailorError or read, within bounded memory and time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fuzzing

LIMIT = """
import runpy, sys
try:
    import resource
except ImportError:
    pass
else:
    import quantailor.ggml.library as library
    library.types()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 0
    if used:
        resource.setrlimit(resource.RLIMIT_AS, (used + 256 * 2**20,) * 2)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def fuzz(kind: str, seed: int, n_cases: int, folder: Path) -> tuple[int, int]:
    """How many cases were refused and how many read; on Linux with 256 MiB beside what the libraries take."""
    fuzzer = Path(__file__).with_name("header_fuzzer.py")
    command = [sys.executable, "-c", LIMIT, str(fuzzer), kind, str(seed), str(n_cases), str(folder)]
    path = [str(fuzzer.parent), *sys.path]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=500, env={**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, read = map(int, done.stdout.split())
    return refused, read


def test_some_hundred_damaged_headers(tmp_path: Path) -> None:
    refused, read = fuzz("gguf", fuzzing.seed(), 400, tmp_path)
    assert refused > 200
    assert read > 20


@pytest.mark.slow
def test_damaged_headers_never_crash(tmp_path: Path) -> None:
    for seed in fuzzing.seeds(4):
        n_cases = fuzzing.n_cases(4_000, share=4)
        refused, read = fuzz("gguf", seed, n_cases, tmp_path)
        assert refused > n_cases // 2
        assert read > n_cases // 20


@pytest.mark.slow
def test_damaged_importance_matrices_never_crash(tmp_path: Path) -> None:
    for seed in fuzzing.seeds(2):
        n_cases = fuzzing.n_cases(2_000, share=4)
        refused, read = fuzz("imatrix", seed, n_cases, tmp_path)
        assert refused > n_cases // 2
        assert read > n_cases // 40
