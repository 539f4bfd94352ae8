"""`make bench`: every benchmark in turn, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("measure", "build", "rounding", "solve", "swap", "busy", "apart", "cluster", "eta", "identity")


def main() -> int:
    """Run them all; the exit code is that of the worst."""
    worst = 0
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=Path(__file__).parent.parent, check=False)
        worst = max(worst, abs(done.returncode))
    return worst


sys.exit(main())
