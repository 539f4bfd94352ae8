"""Codes are the same in a process that compiles the loops and in one that finds them on the disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tools import compile_ahead

ROOT = Path(__file__).parents[2]


def codes(**environment: str) -> str:
    """What a process of its own rounds to."""
    command, environ = [sys.executable, "-m", "tools.compile_ahead", "codes"], os.environ | environment
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_codes_do_not_depend_on_who_compiled_the_loops(tmp_path: Path) -> None:
    """`make check` has compiled them in one process; without that, one does so here, which takes most of a minute."""
    environment = {}
    compiling = compile_ahead.noted_digest()
    if compiling is None:
        environment = {"NUMBA_CACHE_DIR": str(tmp_path)}
        compiling = codes(**environment)
        assert any(tmp_path.rglob("*.nbi"))
    kept = {path: path.stat().st_mtime_ns for path in Path(environment.get("NUMBA_CACHE_DIR", compile_ahead.ROUNDING)).rglob("*.nbi")}
    assert codes(**environment) == compiling
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "it found them all"
