"""How honest the time left is: `python -m benchmarks.eta`.

Half-way through a measurement of demo/books-llama, the middle of the stated interval is to be within 25 % of the time that was really left.
Seconds are those that this process computes, in one thread, so that other programs count for little.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.setting import MODELS
from quantailor import cli
from quantailor.app.jobs import submit
from quantailor.jobs import Progress, resolve, run
from quantailor.session import Workspace
from quantailor.steps.measure import MeasureStep
from quantailor.steps.options import Compute
from quantailor.steps.stages import Stages
from quantailor.steps.step import unit_of
from quantailor.store import Store

GOAL = 0.25
TYPES = ("Q2_K", "Q4_K", "Q5_K", "Q4_1", "Q5_1", "IQ4_NL", "IQ4_XS", "IQ3_S", "IQ2_XS")


def main() -> int:
    """Measure once; 0 when the goal is met."""
    with tempfile.TemporaryDirectory() as folder:
        home, base = resolve(Path(folder) / "home").create(), Path(folder) / "base.gguf"
        if cli.run(["convert", str(MODELS[0]), "-o", str(base), "--home", str(home.path)]):
            return 1
        with Workspace(home, Store(home.database, now=time.process_time)) as workspace:
            task = MeasureStep(base=str(base), types=TYPES, imatrix="none", compute=Compute(n_threads=1))
            seen: list[tuple[float, Progress]] = []
            run(
                workspace.store,
                submit(workspace, task),
                lambda control: task.run(workspace, Stages(control, unit_of)).n_cells,
                listener=lambda progress: seen.append((time.process_time(), progress)),
                clock=time.process_time,
            )
            end = time.process_time()
    at, progress = next((at, progress) for at, progress in seen if progress.total and progress.done >= progress.total / 2)
    if progress.eta_low_s is None or progress.eta_high_s is None:
        print("no time left was stated half-way")
        return 1
    middle, truth = (progress.eta_low_s + progress.eta_high_s) / 2, end - at
    print(f"half-way: {progress.eta_low_s:.1f} to {progress.eta_high_s:.1f} s left were stated, {truth:.1f} s it took")
    print(f"middle / truth {middle / truth:.2f} (goal within {GOAL:.0%})")
    return 0 if abs(middle / truth - 1) <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
