"""Where a command works, how it answers, and how it runs as a job."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from quantailor.app import Workspace
from quantailor.app.jobs import JobReport, job_lines, run_job, start_detached, submit, telling
from quantailor.app.steps import (
    Step,
    StepResult,
)
from quantailor.cli import show
from quantailor.cli.advice import with_home
from quantailor.cli.options.single import Home, Json
from quantailor.cli.output import console, print_json
from quantailor.cli.progress import listening, reading


@dataclass(frozen=True, slots=True)
class Answer:
    """Where a command works, and how it answers."""

    home: Home = None
    as_json: Json = False

    @contextmanager
    def workspace(self) -> Iterator[Workspace]:
        """The home, opened; reading a large model for the first time shows its progress. Raises StoreError."""
        with Workspace.open(self.home) as opened, reading(quiet=self.as_json) as listener, telling(opened, listener) as workspace:
            yield workspace

    def tell(self, command: str, result: object, show_result: Callable[[], None]) -> None:
        """One JSON document, or what `show_result` prints."""
        if self.as_json:
            print_json(command, result)
        else:
            show_result()


@dataclass(frozen=True, slots=True)
class Run(Answer):
    """The same for a command that is a job."""

    detach: Annotated[bool, typer.Option("--detach", help="Run as a background job and return at once.", rich_help_panel="Common")] = False
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for another job that runs a model on this machine.", rich_help_panel="Common")
    ] = False

    def execute(self, step: Step[StepResult]) -> None:
        """Submit the step (taking up an unfinished job for the same step), run it and show its result."""
        with self.workspace() as workspace:
            self.start(workspace, submit(workspace, step), step.kind)

    def start(self, workspace: Workspace, job: int, kind: str) -> None:
        """Run a queued job here with a progress bar, or start a process for it."""
        if self.detach:
            _started(start_detached(workspace, job, now=self.now), self.home, as_json=self.as_json)
            return
        with listening(kind, quiet=self.as_json) as listener:
            result = run_job(workspace, job, listener, on_stopping=_say_stopping, on_waiting=_say_waiting, now=self.now)
        for warning in dict.fromkeys(line.message for line in job_lines(workspace, job) if line.level == "warning"):
            sys.stderr.write(f"note: {warning}\n")
        if self.as_json:
            print_json(kind, result)
        else:
            show.result(result)


def _started(report: JobReport, home: Path | None, *, as_json: bool) -> None:
    if as_json:
        print_json("job", report)
    else:
        doing = "runs" if report.waits_for is None else f"waits for job {report.waits_for}"
        follow = f"job {report.id} {doing} in the background; follow it with `quantailor jobs show {report.id} --follow`"
        console().print(with_home(follow, home), markup=False, soft_wrap=True)


def _say_waiting(ahead: JobReport) -> None:
    sys.stderr.write(f"waiting for job {ahead.id}, {ahead.kind} {ahead.title}; with --now it would not, and Ctrl-C leaves the queue\n")


def _say_stopping() -> None:
    sys.stderr.write("pausing at the next safe point; Ctrl-C again stops at once\n")
