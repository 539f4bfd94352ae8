"""Whose turn it is: of the jobs that run a model on one machine, one at a time.

A job that has to wait stays *queued*, with a living worker that looks now and then. It starts when nothing that takes turns runs
on its machine and no job with a lower number waits; a job whose worker died is interrupted, and so blocks nobody.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from quantailor.errors import Cancelled, JobError, Paused
from quantailor.jobs.process import this_worker
from quantailor.jobs.requests import reconcile
from quantailor.store import Job, Store, Worker

LOOK_EVERY_S = 0.3
SIGN_OF_LIFE_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Turns:
    """How jobs wait for each other."""

    takes: Callable[[Job], bool]
    """Whether a job is one of those that take turns."""
    on_waiting: Callable[[Job], None]
    """Hears of the job that is waited for, whenever it is another one."""

    def claim(self, store: Store, job_id: int, is_stopping: Callable[[], bool]) -> Job:
        """Wait for this job's turn and claim it.

        Raises:
            Paused, Cancelled: that was asked while it waited, by `is_stopping` or in the store.
            JobError: it is not queued any more, or gone.
        """
        worker, pause, seen, told = this_worker(), threading.Event(), float("-inf"), 0
        store.jobs.assign(job_id, worker)
        while True:
            job = _waiting(store, job_id, worker)
            ahead = job_ahead(store, job, self.takes)
            if ahead is None:
                with store.transaction():  # nobody starts between looking and claiming
                    if job_ahead(store, _waiting(store, job_id, worker), self.takes) is None:
                        return store.jobs.claim(job_id, worker)
                continue
            if ahead.id != told:
                told = ahead.id
                store.jobs.log(job_id, f"waits for job {told}")
                self.on_waiting(ahead)
            if time.monotonic() - seen >= SIGN_OF_LIFE_EVERY_S:
                seen = time.monotonic()
                store.jobs.assign(job_id, worker)
            if is_stopping():
                with store.transaction():
                    _waiting(store, job_id, worker)
                    store.jobs.set_state(job_id, "paused")
            else:
                pause.wait(LOOK_EVERY_S)


def job_ahead(store: Store, job: Job, takes_turns: Callable[[Job], bool]) -> Job | None:
    """The job that a queued one has to wait for: one that runs on its machine, else one that waits there and has a lower number."""
    if job.worker is None or not takes_turns(job):
        return None
    reconcile(store)
    others = [
        other
        for other in store.jobs.all(states=("running", "queued"))
        if other.id != job.id and other.worker is not None and other.worker.host == job.worker.host and takes_turns(other)
    ]
    running = [other for other in others if other.state == "running"]
    before = [other for other in others if other.state == "queued" and other.id < job.id]
    return next(iter(running or before), None)


def _waiting(store: Store, job_id: int, worker: Worker) -> Job:
    """The job, which still waits, and in this process."""
    job = store.jobs.get(job_id)
    if job.state == "paused":
        raise Paused(f"job {job_id} is paused", remedy=f"`quantailor jobs resume {job_id}` puts it in the queue again")
    if job.state == "cancelled":
        raise Cancelled(f"job {job_id} is cancelled")
    if job.state != "queued" or job.worker is None or (job.worker.pid, job.worker.host) != (worker.pid, worker.host):
        raise JobError(f"job {job_id} was taken over by another process", remedy=f"`quantailor jobs show {job_id}` says more")
    return job
