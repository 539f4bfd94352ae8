"""What `make` is said to take against what it takes: `python -m benchmarks.cost`.

In a fresh home files are made of one model after the other, each after its estimate: of the first from a trial of the machine alone, of
the next from what was recorded of those before. Told are, stage by stage, the middle of the estimate over the truth; the time left that was
stated half-way against what it took from there; and whether the bar of the whole job ever went back.

Seconds are those that this process and its children compute, so that other programs count for little. Take `--threads 1`, because threads
that wait for each other count as computing.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.setting import Setting, parse, save
from quantailor.app.jobs import run_job, submit
from quantailor.app.measuring.cost import job_cost
from quantailor.jobs import Progress
from quantailor.pipeline import MakeStep
from quantailor.session import Workspace
from quantailor.steps.options import Compute
from quantailor.steps.plan import PlanOptions

FACTOR, GOAL = 1.5, 0.25
LEAST_SECONDS = 2.0
"""Shorter stages are told and not judged."""
LOOK_SECONDS = 1.0
"""Between looks at which children there are."""
STAGES_OF = {
    "probes": ("null control", "probes", "weighing"),
    "mixes": ("whole mixes", "anchor"),
    "verify": ("reference", "plain", "verify"),
}
"""How the names of stages begin that are told as one."""


@dataclass(frozen=True)
class Row:
    """One stage of one model."""

    model: str
    stage: str
    basis: str
    low: float
    high: float
    seconds: float

    @property
    def ratio(self) -> float:
        """Middle of the estimate over the truth."""
        return math.sqrt(max(self.low, 1e-3) * max(self.high, 1e-3)) / max(self.seconds, 1e-3)

    @property
    def is_within(self) -> bool:
        return self.seconds < LEAST_SECONDS or 1 / FACTOR <= self.ratio <= FACTOR

    def __str__(self) -> str:
        verdict = "ok" if self.is_within else f"beyond {FACTOR:g}"
        expected = f"{self.low:7.1f} to {self.high:7.1f} s"
        return f"{self.model:12} {self.stage:9} {expected}, took {self.seconds:7.1f}: {self.ratio:5.2f} {verdict}"


@dataclass(frozen=True)
class Whole:
    """One job."""

    model: str
    basis: str
    low: float
    high: float
    seconds: float
    half_way: tuple[float, float] | None
    """The time left that was stated when half of it was over."""
    truth: float
    """What it was."""
    went_back: bool

    @property
    def honesty(self) -> float | None:
        """Stated over true."""
        return None if self.half_way is None else sum(self.half_way) / 2 / self.truth

    def __str__(self) -> str:
        told = "nothing" if self.half_way is None else f"{self.half_way[0]:.0f} to {self.half_way[1]:.0f} s ({self.honesty:.2f})"
        return (
            f"{self.model:12} whole     {self.low:7.1f} to {self.high:7.1f} s, took {self.seconds:7.1f} ({self.basis}); half-way it said "
            f"{told}, true were {self.truth:.0f}; the bar {'WENT BACK' if self.went_back else 'never went back'}"
        )


def made(home: Path, task: MakeStep, name: str) -> tuple[list[Row], Whole]:
    """Make one file and compare."""
    seen: list[tuple[float, Progress]] = []
    with Workspace.open(home) as workspace:
        cost = job_cost(workspace, task)

        clock = _Computed()
        start = clock()
        run_job(workspace, submit(workspace, task), lambda progress: seen.append((clock(), progress)), now=True, clock=clock)
        end = clock()
    took: dict[str, float] = defaultdict(float)
    times = [at for at, _ in seen] + [end]
    for number, (at, progress) in enumerate(seen):
        took[_stage(progress.stage)] += times[number + 1] - at
    rows = [Row(name, stage.stage, cost.basis, *stage.seconds, took[stage.stage]) for stage in cost.stages]
    at, half = next((one for one in seen if one[0] >= (start + end) / 2), seen[-1])
    low, high = half.eta_low_s, half.eta_high_s
    shares = [progress.overall or 0.0 for _, progress in seen]
    said = None if low is None or high is None else (low, high)
    return rows, Whole(name, cost.basis, *cost.seconds, end - start, said, end - at, shares != sorted(shares))


class _Computed:
    """A clock of the seconds that this process and its children compute, those that have ended included."""

    def __init__(self) -> None:
        self._me = psutil.Process()
        self._last, self._looked, self._children = 0.0, 0.0, list[psutil.Process]()

    def __call__(self) -> float:
        now = time.monotonic()
        if now - self._looked > LOOK_SECONDS:
            self._looked, self._children = now, self._me.children(recursive=True)
        times = []
        for process in (self._me, *self._children):
            with suppress(psutil.Error):
                times.append(process.cpu_times())
        found = sum(one.user + one.system + one.children_user + one.children_system for one in times)
        self._last = max(self._last, found)  # which falls for a moment when a child ends
        return self._last


def _stage(name: str) -> str:
    return next((stage for stage, beginnings in STAGES_OF.items() if name.startswith(beginnings)), name)


def _task(setting: Setting, model: Path, options: argparse.Namespace) -> MakeStep:
    return MakeStep(
        model=str(model),
        output=str(setting.folder / f"cost-{model.stem}"),
        plan=PlanOptions(bits_per_weight=4.5),
        text=str(setting.text),
        verify_text=str(setting.heldout),
        types=tuple(filter(None, options.types.split(","))),
        imatrix_chunks=options.imatrix_chunks or None,
        chunks=options.chunks or None,
        passes=options.passes or None,
        compute=Compute(n_threads=setting.threads),
    )


def main() -> None:
    """Print a line per model and stage, and keep the figures."""
    extra = (
        ("--imatrix-chunks", int, 0, "of the importance matrix; 0 for all"),
        ("--chunks", int, 0, "of the verdict; 0 for all"),
        ("--passes", int, 0, "of probes; 0 for as many as there are by default"),
        ("--types", str, "", "candidate types, separated by commas; all usual ones by default"),
    )
    setting, options = parse(str(__doc__), *extra)
    home = setting.folder / "cost-home"
    shutil.rmtree(home, ignore_errors=True)
    figures: list[dict[str, object]] = []
    is_fine = True
    for model in setting.models:
        task = _task(setting, model, options)
        shutil.rmtree(task.output, ignore_errors=True)
        rows, whole = made(home, task, model.stem)
        print(*rows, whole, sep="\n", flush=True)
        figures += [*map(asdict, rows), asdict(whole)]
        is_fine = is_fine and all(row.is_within for row in rows) and abs((whole.honesty or 0.0) - 1) <= GOAL and not whole.went_back
    save(setting.folder / "cost.json", figures)
    if not is_fine:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
