"""Whether jobs keep their word about time: `python -m benchmarks.promise`.

A study of demo/books-llama runs without a limit of time and with several, each in a fresh home. Told are the ratio of the time it took to
the time it was given (it should end within 5 %, or one pass, or what is done in any case), the time left that was stated half-way against
what it took from there, what `cost` had said before, and whether the bar of the whole job ever went back.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.setting import parse, save
from quantailor.app.jobs import run_job, submit
from quantailor.app.measuring.cost import job_cost
from quantailor.jobs import Progress
from quantailor.pipeline import StudyResult, StudyStep
from quantailor.session import Workspace
from quantailor.steps.options import Compute

TYPES = ("Q2_K", "Q4_K", "Q6_K", "Q8_0")
GOAL = 0.25


@dataclass(frozen=True)
class Row:
    """One study."""

    promised: float | None
    took: float
    cost: tuple[float, float]
    """As it was told before."""
    half_way: tuple[float, float] | None
    """The time left that was stated when half of it was over."""
    truth: float
    """What it was."""
    went_back: bool
    n_scored: int

    @property
    def honesty(self) -> float | None:
        """Stated over true."""
        return None if self.half_way is None else sum(self.half_way) / 2 / self.truth

    def __str__(self) -> str:
        given = "without a limit" if self.promised is None else f"given {self.promised:.0f} s, {self.took / self.promised:.3f} of it"
        told = "nothing" if self.half_way is None else f"{self.half_way[0]:.0f} to {self.half_way[1]:.0f} s ({self.honesty:.2f})"
        return (
            f"{given}: took {self.took:.1f} s (cost said {self.cost[0]:.0f} to {self.cost[1]:.0f}); half-way it said {told}, true were "
            f"{self.truth:.0f}; the bar {'WENT BACK' if self.went_back else 'never went back'}; {self.n_scored} scores"
        )


def study(base: Path, text: Path, seconds: float | None, threads: int | None) -> Row:
    """Run one study in a home of its own."""
    task = StudyStep(model=str(base), types=TYPES, text=str(text), rounding="plain", seconds=seconds, compute=Compute(n_threads=threads))
    seen: list[tuple[float, Progress]] = []
    with TemporaryDirectory() as folder, Workspace.open(Path(folder)) as workspace:
        cost = job_cost(workspace, task).seconds
        job = submit(workspace, task)
        start = time.monotonic()
        result = run_job(workspace, job, lambda progress: seen.append((time.monotonic() - start, progress)))
        took = time.monotonic() - start
    assert isinstance(result, StudyResult)
    half = next((one for one in seen if one[0] >= took / 2), seen[-1])
    low, high = half[1].eta_low_s, half[1].eta_high_s
    shares = [progress.overall or 0.0 for _, progress in seen]
    return Row(
        promised=seconds,
        took=took,
        cost=cost,
        half_way=None if low is None or high is None else (low, high),
        truth=took - half[0],
        went_back=shares != sorted(shares),
        n_scored=result.n_scored,
    )


def main() -> int:
    """Print a line a study; 0 when every half-way statement is within the goal and no bar went back."""
    setting, options = parse(str(__doc__), ("--budgets", str, "40,80,160", "seconds, separated by commas"))
    base = setting.base(setting.models[0])
    rows = []
    for seconds in (None, *map(float, options.budgets.split(","))):
        rows.append(study(base, setting.text, seconds, setting.threads))
        print(rows[-1], flush=True)
    save(setting.folder / "promise.json", [asdict(row) for row in rows])
    return 0 if all(row.honesty is not None and abs(row.honesty - 1) <= GOAL and not row.went_back for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
