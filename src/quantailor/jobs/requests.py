"""What one process may ask of a job that another one runs, and what becomes of jobs whose worker died.

queued ──claim──> running ──> done | failed | paused | cancelled
  ^                  └─ its worker is gone ──> interrupted
  └── resume ── paused, interrupted, failed
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from quantailor.errors import JobError
from quantailor.jobs.process import is_alive, spawn_detached, worker_of
from quantailor.store import Job, Store

Clock = Callable[[], float]

_logger = logging.getLogger(__name__)


def submit(store: Store, job_id: int, argv: Sequence[str], log_path: Path) -> Job:
    """Start a detached process (`argv`) that will claim this queued job; the job as it is now.

    A process that cannot be started, or that ended without claiming the job, leaves it interrupted.
    """
    store.jobs.set_log_path(job_id, str(log_path))
    try:
        worker = worker_of(spawn_detached(argv, log_path))
    except JobError:
        _interrupt(store, store.jobs.get(job_id))
        raise
    if worker is not None:
        store.jobs.assign(job_id, worker)
    job = store.jobs.get(job_id)
    if worker is None and job.state == "queued":
        _interrupt(store, job)
    return store.jobs.get(job_id)


def reconcile(store: Store, *, now: Clock = time.time) -> list[Job]:
    """Mark jobs whose worker has died as interrupted; those that were marked. Cheap, so do it before showing jobs."""
    suspects = [job for job in store.jobs.all(states=("running", "queued")) if _worker_is_gone(job, now())]
    return [job for job in (_interrupt(store, suspect) for suspect in suspects) if job is not None]


def request_pause(store: Store, job_id: int) -> Job:
    """Ask a job to stop at its next safe point. A queued one pauses at once; the job as it is now.

    Raises JobError where it has ended.
    """
    with store.transaction():
        reconcile(store)
        job = store.jobs.get(job_id)
        if job.state == "running":
            store.jobs.request(job_id, "pause")
        elif job.state == "queued":
            store.jobs.set_state(job_id, "paused")
        elif job.state not in ("paused", "interrupted"):
            raise JobError(f"job {job_id} is {job.state} and cannot be paused")
        return store.jobs.get(job_id)


def request_cancel(store: Store, job_id: int) -> Job:
    """Stop a job for good; what it recorded is kept. At once, unless a worker has to come to a safe point first.

    Raises JobError where it is done or cancelled already.
    """
    with store.transaction():
        reconcile(store)
        job = store.jobs.get(job_id)
        if job.state == "running":
            store.jobs.request(job_id, "cancel")
        elif job.state in ("done", "cancelled"):
            raise JobError(f"job {job_id} is {job.state} already")
        else:
            store.jobs.set_state(job_id, "cancelled")
        return store.jobs.get(job_id)


def resume(store: Store, job_id: int) -> Job:
    """Queue a stopped job again, for `run` or `submit`; takes back a pause that its worker has not noticed yet.

    Raises JobError where it is done or cancelled.
    """
    with store.transaction():
        reconcile(store)
        job = store.jobs.get(job_id)
        if job.state in ("paused", "interrupted", "failed"):
            return store.jobs.set_state(job_id, "queued")
        if job.state == "running" and job.requested == "pause":
            store.jobs.request(job_id, "")
        elif job.state != "queued":
            raise JobError(f"job {job_id} is {job.state} and cannot be resumed")
        return store.jobs.get(job_id)


def remove(store: Store, job_id: int) -> None:
    """Forget a job, its log and its log file; results stay. Raises JobError while it runs."""
    with store.transaction():
        reconcile(store)
        job = store.jobs.get(job_id)
        if job.state == "running":
            raise JobError(f"job {job_id} is running", remedy=f"Stop it first: `quantailor jobs cancel {job_id}`")
        store.jobs.remove(job_id)
    if job.log_path is not None:
        _delete_log(Path(job.log_path))


def _delete_log(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _logger.warning("the log %s stays: %s", path, error)


def _worker_is_gone(job: Job, now: float) -> bool:
    if job.worker is None:
        return False
    return not is_alive(job.worker, heartbeat=job.heartbeat, now=now)


def _interrupt(store: Store, suspect: Job) -> Job | None:
    with store.transaction():
        job = store.jobs.get(suspect.id)
        if (job.state, job.worker) != (suspect.state, suspect.worker):
            return None
        return store.jobs.set_state(job.id, "interrupted")
