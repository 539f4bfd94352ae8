"""How a long command runs: as a job, here with a progress bar or in the background."""

from __future__ import annotations

import sys
from pathlib import Path

from quantailor import service
from quantailor.cli import show
from quantailor.cli.output import console, print_json
from quantailor.cli.progress import listening
from quantailor.service.tasks import Task, kind_of


def execute(task: Task, *, home: Path | None, as_json: bool, detach: bool) -> None:
    """Submit the task (taking up an unfinished job for the same task), run it and show its result."""
    with service.Workspace.open(home) as workspace:
        job = service.submit(workspace, task)
        if detach:
            started(service.start_detached(workspace, job), as_json=as_json)
        else:
            foreground(workspace, job, kind_of(task), as_json=as_json)


def foreground(workspace: service.Workspace, job: int, kind: str, *, as_json: bool) -> None:
    """Run a job here and show its result."""
    with listening(kind, quiet=as_json) as listener:
        result = service.run_job(workspace, job, listener, on_stopping=_say_stopping)
    if as_json:
        print_json(kind, result)
    else:
        show.result(result)


def started(report: service.JobReport, *, as_json: bool) -> None:
    """Say that a job went to the background."""
    if as_json:
        print_json("job", report)
    else:
        console().print(f"job {report.id} runs in the background; follow it with: quantailor jobs show {report.id} --follow")


def _say_stopping() -> None:
    sys.stderr.write("pausing at the next safe point; Ctrl-C again stops at once\n")
