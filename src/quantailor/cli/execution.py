"""How a long command runs: as a job, here with a progress bar or in the background."""

from __future__ import annotations

import sys
from pathlib import Path

from quantailor.app import Workspace
from quantailor.app.jobs import JobReport, run_job, start_detached, submit
from quantailor.app.steps import Step, StepResult
from quantailor.cli import show
from quantailor.cli.output import console, print_json
from quantailor.cli.progress import listening


def execute(step: Step[StepResult], *, home: Path | None, as_json: bool, detach: bool) -> None:
    """Submit the step (taking up an unfinished job for the same step), run it and show its result."""
    with Workspace.open(home) as workspace:
        job = submit(workspace, step)
        if detach:
            started(start_detached(workspace, job), as_json=as_json)
        else:
            foreground(workspace, job, step.kind, as_json=as_json)


def foreground(workspace: Workspace, job: int, kind: str, *, as_json: bool) -> None:
    """Run a job here and show its result."""
    with listening(kind, quiet=as_json) as listener:
        result = run_job(workspace, job, listener, on_stopping=_say_stopping)
    if as_json:
        print_json(kind, result)
    else:
        show.result(result)


def started(report: JobReport, *, as_json: bool) -> None:
    """Say that a job went to the background."""
    if as_json:
        print_json("job", report)
    else:
        console().print(f"job {report.id} runs in the background; follow it with: quantailor jobs show {report.id} --follow")


def _say_stopping() -> None:
    sys.stderr.write("pausing at the next safe point; Ctrl-C again stops at once\n")
