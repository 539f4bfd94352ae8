"""Run a job in this process: claim it, report, and leave it in a state that says what happened.

    done          the work returned
    paused        somebody asked (Ctrl-C, SIGTERM, `jobs pause`) and the work stopped at a safe point
    interrupted   it was stopped on the spot (second Ctrl-C); a killed process gets this from `reconcile`
    cancelled     somebody asked to stop for good
    failed        the work raised an error; `resume` tries again

All but *done* and *cancelled* can be resumed.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from quantailor.errors import Cancelled, Interrupted, QuantailorError, StoreError
from quantailor.jobs.job_control import JobControl, Listener
from quantailor.jobs.process import this_worker
from quantailor.jobs.signals import stop_signals
from quantailor.jobs.turns import Turns
from quantailor.store import Job, JobState, Store

HEARTBEAT_EVERY_S = 5.0

Result = TypeVar("Result")

_logger = logging.getLogger(__name__)


def run(
    store: Store,
    job_id: int,
    work: Callable[[JobControl], Result],
    *,
    listener: Listener | None = None,
    on_stopping: Callable[[], None] | None = None,
    turns: Turns | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Run a queued job here and return what `work` returns, which must be plain data (it is kept as JSON).

    Args:
        store: where the job is.
        job_id: a job that is queued; `resume` makes it so again.
        work: does it all, calling the control's `check` and `advance`.
        listener: hears of progress, for a progress bar.
        on_stopping: called at the first stop signal, to say that the work will pause at its next safe point.
        turns: how to wait for other jobs before; None does not wait.
        clock: seconds that only grow.

    Raises:
        JobError: the job is not queued, for example because another process runs it.
        Paused, Cancelled: the work stopped because somebody asked.
        KeyboardInterrupt: at the second stop signal; the job is resumable.
        Whatever `work` raises; the job is then failed.
    """
    control: JobControl | None = None
    is_stopping = False

    def stop() -> None:
        nonlocal is_stopping
        is_stopping = True
        if control is not None:
            control.request_stop()
            if on_stopping is not None:
                on_stopping()

    with stop_signals(stop):
        job = store.jobs.claim(job_id, this_worker()) if turns is None else turns.claim(store, job_id, lambda: is_stopping)
        control = JobControl(store, job, listener=listener, clock=clock)
        if is_stopping:
            control.request_stop()
        try:
            with _heartbeat(store, job):
                result = work(control)
                control.flush()
                store.jobs.finish(job.id, job.attempt, "done", result=result)
                return result
        except BaseException as error:
            _leave(store, control, error)
            raise


def _leave(store: Store, control: JobControl, error: BaseException) -> None:
    """Record how an attempt ended; a store that fails here must not hide the first error."""
    job, state = control.job, _state_after(error)
    text = None if isinstance(error, Interrupted) else str(error) or type(error).__name__
    if isinstance(error, Exception) and not isinstance(error, QuantailorError):
        text = f"{type(error).__name__}: {error}"
    try:
        control.flush()
        if state == "failed":
            control.log("".join(traceback.format_exception(error)), level="error")
        store.jobs.finish(job.id, job.attempt, state, error=text)
    except StoreError as second:
        _logger.warning("cannot record that job %d is %s: %s", job.id, state, second)


def _state_after(error: BaseException) -> JobState:
    if isinstance(error, Cancelled):
        return "cancelled"
    if isinstance(error, Interrupted):
        return "paused"
    return "failed" if isinstance(error, Exception) else "interrupted"


@contextmanager
def _heartbeat(store: Store, job: Job) -> Iterator[None]:
    """Show a sign of life while a long unit of work reports nothing."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_EVERY_S):
            try:
                store.jobs.beat(job.id, job.attempt)
            except StoreError as error:
                _logger.warning("heartbeat of job %d: %s", job.id, error)

    thread = threading.Thread(target=beat, name=f"heartbeat of job {job.id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
