"""What a study is said to take against what it takes: `python -m benchmarks.cost`.

In a fresh home the stages of a study run one after the other as the commands a user types, each after its estimate: first from
a trial of the machine alone, then, with the next model, corrected by the runs before. `--probes 1` goes on to probes.

Where other programs keep the machine busy, the time that was computed, per thread, is judged too. Take `--threads 1` then,
because threads that wait for each other count as computing.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.setting import Setting, parse, save
from quantailor.app.jobs import list_jobs
from quantailor.app.measuring.cost import job_cost
from quantailor.app.measuring.counted import StageCost
from quantailor.pipeline import LEVEL_SETTINGS, LEVELS, Level, StudyStep
from quantailor.session import AUTO, Workspace
from quantailor.steps.options import Compute
from quantailor.steps.probe import ProbeStep

FACTOR = 3.0
"""The truth should lie within this factor of the range."""


@dataclass(frozen=True)
class Row:
    """One stage of one model."""

    model: str
    stage: str
    basis: str
    low: float
    high: float
    seconds: float
    computing_seconds: float

    @property
    def is_within(self) -> bool:
        """Either time counts: runs that waited for other programs correct later estimates by what they waited."""
        return any(self.low / FACTOR <= seconds <= self.high * FACTOR for seconds in (self.seconds, self.computing_seconds))


def _run(home: Path, threads: int | None, *words: object) -> float:
    """A command in a process of its own, so that ggml sets its tables up as it does for a user; its computing time per thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    arguments = [str(word) for word in (*words, *(("--threads", threads) if threads else ()), "--home", home)]
    subprocess.run([sys.executable, "-m", "quantailor", *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return (resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before) / (threads or os.cpu_count() or 1)


def _elapsed(home: Path) -> float:
    with Workspace.open(home) as workspace:
        return list_jobs(workspace)[0].elapsed_seconds or 0.0


def _probe_options(step: ProbeStep) -> tuple[object, ...]:
    return "--chunks", step.chunks, "--types", ",".join(step.types), "--mixes", step.mixes, "--mix-chunks", step.mix_chunks


def _rows(setting: Setting, home: Path, model: Path, level: Level, with_probes: bool) -> list[Row]:
    base, settings = setting.base(model), LEVEL_SETTINGS[level]
    threads = Compute(n_threads=setting.threads)
    task = StudyStep(model=str(base), level=level, text=str(setting.text), rounding="plain", compute=threads)
    words: dict[str, tuple[object, ...]] = {
        "imatrix": ("imatrix", base, "-f", setting.text, *(("--chunks", settings.imatrix_chunks) if settings.imatrix_chunks else ())),
        "measure": ("measure", base, "--types", ",".join(task.candidate_types), *(("--exhaustive",) if settings.exhaustive else ())),
        "probes": ("probe", base, "-f", setting.text, *_probe_options(task.probes(str(base), AUTO, 0))),
    }
    if not (with_probes and settings.probe_chunks):
        del words["probes"]
    found: list[Row] = []
    for stage, command in words.items():
        with Workspace.open(home) as workspace:
            cost = job_cost(workspace, task)
        estimate = next(item for item in cost.stages if item.stage == stage)
        if stage == "probes":  # one command does both
            mixes = next(item for item in cost.stages if item.stage == "mixes")
            estimate = replace(estimate, seconds=(estimate.seconds[0] + mixes.seconds[0], estimate.seconds[1] + mixes.seconds[1]))
        computing = _run(home, setting.threads, *command)
        found.append(_row(model.name, estimate, cost.basis, _elapsed(home), computing))
    return found


def _row(model: str, estimate: StageCost, basis: str, seconds: float, computing: float) -> Row:
    row = Row(model, estimate.stage, basis, *estimate.seconds, seconds, computing)
    verdict = "ok" if row.is_within else f"beyond a factor of {FACTOR:g}"
    took = f"took {seconds:7.1f} s, {computing:7.1f} s of computing"
    print(f"{model:12} {row.stage:8} {row.low:8.1f} to {row.high:8.1f} s, {took}: {verdict} ({basis})", flush=True)
    return row


def main() -> None:
    """Print a line per model and stage, and keep the figures."""
    setting, options = parse(str(__doc__), ("--probes", int, 0, "1 for probes too"), ("--level", int, 1, "0 quick, 1 balanced, 2 thorough"))
    home = setting.folder / "cost-home"
    shutil.rmtree(home, ignore_errors=True)
    level = LEVELS[options.level]
    rows = [row for model in setting.models for row in _rows(setting, home, model, level, bool(options.probes))]
    save(setting.folder / "cost.json", [asdict(row) for row in rows])
    if not all(row.is_within for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
