"""`quantailor jobs`: look at jobs, pause, resume, cancel and remove them."""

from __future__ import annotations

from typing import Annotated

import typer

from quantailor.app import Workspace, jobs
from quantailor.app.jobs import JobReport, cancel_job, follow_job, pause_job, remove_job, resume_job, start_detached
from quantailor.cli import options, show
from quantailor.cli.execution import foreground, started
from quantailor.cli.output import print_json
from quantailor.cli.progress import listening

jobs_app = typer.Typer(help="List, show, pause, resume, cancel and remove jobs.", invoke_without_command=True)

JobId = Annotated[int, typer.Argument(metavar="ID", help="The job's number.")]


@jobs_app.callback()
def _default(context: typer.Context, home: options.Home = None, as_json: options.Json = False) -> None:
    if context.invoked_subcommand is None:
        list_jobs(home=home, as_json=as_json)


@jobs_app.command("list", epilog="Example: quantailor jobs list --json")
def list_jobs(home: options.Home = None, as_json: options.Json = False) -> None:
    """Every job, the newest first."""
    with Workspace.open(home) as workspace:
        reports = jobs.list_jobs(workspace)
    if as_json:
        print_json("jobs", reports)
    else:
        show.jobs(reports)


@jobs_app.command("show", epilog="Example: quantailor jobs show 3 --follow")
def show_job(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", help="Watch it until it ends.")] = False,
    home: options.Home = None,
    as_json: options.Json = False,
) -> None:
    """One job with its log."""
    with Workspace.open(home) as workspace:
        if follow:
            with listening(f"job {job}", quiet=as_json) as listener:
                follow_job(workspace, job, listener)
        report = jobs.show_job(workspace, job)
    _tell(report, as_json)


def _tell(report: JobReport, as_json: bool) -> None:
    if as_json:
        print_json("job", report)
    else:
        show.job(report)


@jobs_app.command(epilog="Example: quantailor jobs pause 3")
def pause(job: JobId, home: options.Home = None, as_json: options.Json = False) -> None:
    """Ask a running job to stop at its next safe point; it can be resumed."""
    with Workspace.open(home) as workspace:
        _tell(pause_job(workspace, job), as_json)


@jobs_app.command(epilog="Example: quantailor jobs resume 3 --detach")
def resume(job: JobId, home: options.Home = None, as_json: options.Json = False, detach: options.Detach = False) -> None:
    """Take up a paused, interrupted or failed job where it stopped."""
    with Workspace.open(home) as workspace:
        report = resume_job(workspace, job)
        if detach:
            started(start_detached(workspace, job), as_json=as_json)
        else:
            foreground(workspace, job, report.kind, as_json=as_json)


@jobs_app.command(epilog="Example: quantailor jobs cancel 3")
def cancel(job: JobId, home: options.Home = None, as_json: options.Json = False) -> None:
    """Stop a job for good; what it measured stays in the store."""
    with Workspace.open(home) as workspace:
        _tell(cancel_job(workspace, job), as_json)


@jobs_app.command(epilog="Example: quantailor jobs remove 3")
def remove(job: JobId, home: options.Home = None, as_json: options.Json = False) -> None:
    """Forget a job that does not run; what it measured stays in the store."""
    with Workspace.open(home) as workspace:
        report = remove_job(workspace, job)
    _tell(report, as_json)
