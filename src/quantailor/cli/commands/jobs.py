"""`quantailor jobs`: look at jobs, pause, resume, cancel and remove them."""

from __future__ import annotations

from typing import Annotated

import typer

from quantailor.app import jobs
from quantailor.cli import options, show
from quantailor.cli.progress import listening
from quantailor.cli.root import command, with_groups

jobs_app = typer.Typer(help="List, show, pause, resume, cancel and remove jobs.", invoke_without_command=True)

JobId = Annotated[int, typer.Argument(metavar="ID", help="The job's number.")]


def _default(context: typer.Context, answer: options.Answer) -> None:
    if context.invoked_subcommand is None:
        list_jobs(answer)


jobs_app.callback()(with_groups(_default))


@command("list", epilog="Example: quantailor jobs list --json", to=jobs_app)
def list_jobs(answer: options.Answer) -> None:
    """Every job, the newest first."""
    with answer.workspace() as workspace:
        reports = jobs.list_jobs(workspace)
    answer.tell("jobs", reports, lambda: show.jobs(reports))


@command("show", epilog="Example: quantailor jobs show 3 --follow", to=jobs_app)
def show_job(
    answer: options.Answer, job: JobId, follow: Annotated[bool, typer.Option("--follow", help="Watch it until it ends.")] = False
) -> None:
    """One job with its log."""
    with answer.workspace() as workspace:
        if follow:
            with listening(f"job {job}", quiet=answer.as_json) as listener:
                jobs.follow_job(workspace, job, listener)
        report = jobs.show_job(workspace, job)
    _tell(answer, report)


def _tell(answer: options.Answer, report: jobs.JobReport) -> None:
    answer.tell("job", report, lambda: show.job(report))


@command(epilog="Example: quantailor jobs pause 3", to=jobs_app)
def pause(answer: options.Answer, job: JobId) -> None:
    """Ask a running job to stop at its next safe point; it can be resumed."""
    with answer.workspace() as workspace:
        _tell(answer, jobs.pause_job(workspace, job))


@command(epilog="Example: quantailor jobs resume 3 --detach", to=jobs_app)
def resume(run: options.Run, job: JobId) -> None:
    """Continue a paused, interrupted or failed job where it stopped."""
    with run.workspace() as workspace:
        run.start(workspace, job, jobs.resume_job(workspace, job).kind)


@command(epilog="Example: quantailor jobs cancel 3", to=jobs_app)
def cancel(answer: options.Answer, job: JobId) -> None:
    """Stop a job for good; what it measured stays in the store."""
    with answer.workspace() as workspace:
        _tell(answer, jobs.cancel_job(workspace, job))


@command(epilog="Example: quantailor jobs remove 3", to=jobs_app)
def remove(answer: options.Answer, job: JobId) -> None:
    """Forget a job that is not running; what it measured stays in the store."""
    with answer.workspace() as workspace:
        report = jobs.remove_job(workspace, job)
    _tell(answer, report)
