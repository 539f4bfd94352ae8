"""Jobs with what a screen needs beside them: their model, whether anybody runs them, when they ended; and their log, piecewise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantailor.jobs import Job, reconcile
from quantailor.service.jobs import report_of
from quantailor.service.results import JobReport
from quantailor.service.workspace import Workspace


@dataclass(frozen=True, slots=True)
class JobPlace:
    """One job and where it belongs."""

    job: JobReport
    fingerprint: str | None
    """Of the model that it works on, where that is known."""
    is_unclaimed: bool
    """It is queued, and no process was started for it."""
    ended_seconds_ago: float | None
    """None while it can go on."""


@dataclass(frozen=True, slots=True)
class JobLine:
    """A line of a job's log."""

    id: int
    logged: float
    """Seconds since 1970."""
    message: str


def job_places(workspace: Workspace) -> list[JobPlace]:
    """Every job, the newest first; those whose process has died are marked as interrupted."""
    reconcile(workspace.store)
    models = {str(location.path): location.key for location in reversed(workspace.store.every_location("model"))}
    return [_place(workspace, job, models) for job in workspace.store.jobs.all()]


def _place(workspace: Workspace, job: Job, models: Mapping[str, str]) -> JobPlace:
    named = (job.hub_path, *(job.arguments.get(key) for key in ("base", "model", "output", "file")))
    paths = [str(path) for path in named if path]
    ended = job.finished if job.state in ("done", "failed", "cancelled") else None
    return JobPlace(
        job=report_of(workspace, job),
        fingerprint=next((models[path] for path in paths if path in models), None),
        is_unclaimed=job.state == "queued" and job.worker is None,
        ended_seconds_ago=None if ended is None else max(0.0, workspace.store.now - ended),
    )


def job_lines(workspace: Workspace, job_id: int, *, after: int = 0) -> list[JobLine]:
    """A job's log in order; `after` is the number of the last line that was seen."""
    return [JobLine(line.id, line.logged, line.message) for line in workspace.store.jobs.log_lines(job_id, after=after)]
