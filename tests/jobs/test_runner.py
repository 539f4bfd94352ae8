"""Running a job here: every way it can end, and what is left behind."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from quantailor.errors import Cancelled, JobError, OutputError, Paused, StoreError
from quantailor.jobs import Job, JobControl, Progress, request_cancel, request_pause, resume, run
from quantailor.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "q.db") as store:
        yield store


@pytest.fixture
def job(store: Store) -> Job:
    return store.jobs.create("measure", {"model": "base.gguf", "types": ["Q4_K"]})


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def test_done_work_leaves_its_result(store: Store, job: Job) -> None:
    shown: list[Progress] = []

    def work(control: JobControl) -> dict[str, int]:
        control.advance(5, 5, "all")
        return {"cells": 5}

    assert run(store, job.id, work, listener=shown.append) == {"cells": 5}
    after = store.jobs.get(job.id)
    assert (after.state, after.result, after.progress.done, after.worker) == ("done", {"cells": 5}, 5, None)
    assert after.arguments == {"model": "base.gguf", "types": ["Q4_K"]}
    assert after.finished is not None
    assert shown == [Progress("", 5, 5, "all")]


def test_while_it_runs_the_job_names_its_process(store: Store, job: Job) -> None:
    seen = run(store, job.id, lambda control: store.jobs.get(job.id).state)
    assert seen == "running"


def test_an_error_is_kept_and_the_job_can_be_tried_again(store: Store, job: Job) -> None:
    def fail(control: JobControl) -> None:
        raise OutputError("the disk is full")

    with pytest.raises(OutputError):
        run(store, job.id, fail)
    failed = store.jobs.get(job.id)
    assert (failed.state, failed.error) == ("failed", "the disk is full")
    resume(store, job.id)
    run(store, job.id, lambda control: None)
    assert (store.jobs.get(job.id).state, store.jobs.get(job.id).error) == ("done", None)


def test_an_unforeseen_error_leaves_its_trace_in_the_log(store: Store, job: Job) -> None:
    with pytest.raises(ZeroDivisionError):
        run(store, job.id, lambda control: 1 / 0)
    assert store.jobs.get(job.id).error == "ZeroDivisionError: division by zero"
    assert "test_runner.py" in store.jobs.log_lines(job.id)[0].message


def test_ctrl_c_pauses_at_the_next_safe_point(store: Store, job: Job) -> None:
    told = []

    def work(control: JobControl) -> None:
        press_ctrl_c()
        control.advance(3, 10, "half a cell more")
        control.check()

    with pytest.raises(Paused, match="jobs resume 1"):
        run(store, job.id, work, on_stopping=lambda: told.append("pausing"))
    after = store.jobs.get(job.id)
    assert (after.state, after.progress.done, after.error, told) == ("paused", 3, None, ["pausing"])


def test_a_second_ctrl_c_stops_at_once_and_the_job_is_resumable(store: Store, job: Job) -> None:
    def work(control: JobControl) -> None:
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        run(store, job.id, work)
    assert store.jobs.get(job.id).state == "interrupted"
    assert resume(store, job.id).state == "queued"


def test_ctrl_c_in_the_middle_of_recording_records_all_or_nothing(store: Store, job: Job) -> None:
    def work(control: JobControl) -> None:
        press_ctrl_c()
        with store.transaction():
            control.log("never seen")
            press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        run(store, job.id, work)
    assert store.jobs.log_lines(job.id) == []
    assert store.jobs.get(job.id).state == "interrupted"


def test_ctrl_c_works_as_before_when_the_job_has_ended(store: Store, job: Job) -> None:
    before = signal.getsignal(signal.SIGINT)
    run(store, job.id, lambda control: None)
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored(store: Store, job: Job) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:

        def work(control: JobControl) -> None:
            press_ctrl_c()
            control.check()

        run(store, job.id, work)
    finally:
        signal.signal(signal.SIGINT, before)
    assert store.jobs.get(job.id).state == "done"


@pytest.mark.parametrize(("ask", "error", "state"), [(request_pause, Paused, "paused"), (request_cancel, Cancelled, "cancelled")])
def test_a_request_from_elsewhere_is_followed(
    store: Store, job: Job, ask: Callable[[Store, int], Job], error: type[Exception], state: str
) -> None:
    def work(control: JobControl) -> None:
        with Store(store.path) as elsewhere:
            assert ask(elsewhere, job.id).state == "running"
        control.check()

    with pytest.raises(error):
        run(store, job.id, work)
    assert store.jobs.get(job.id).state == state


def test_one_job_runs_once_at_a_time(store: Store, job: Job) -> None:
    def work(control: JobControl) -> None:
        with Store(store.path) as elsewhere:
            run(elsewhere, job.id, lambda inner: None)

    with pytest.raises(JobError, match="job 1 is running, not queued"):
        run(store, job.id, work)


def test_a_cancelled_job_does_not_start(store: Store, job: Job) -> None:
    request_cancel(store, job.id)
    with pytest.raises(JobError, match="job 1 is cancelled"):
        run(store, job.id, lambda control: None)


def test_an_unknown_job_is_told(store: Store) -> None:
    with pytest.raises(JobError, match=r"there is no job 7.*jobs list"):
        run(store, 7, lambda control: None)


def test_a_job_removed_under_its_worker_ends_quietly(store: Store, job: Job) -> None:
    def work(control: JobControl) -> None:
        store.jobs.remove(job.id)
        control.check()

    with pytest.raises(Paused, match="removed or taken over"):
        run(store, job.id, work)
    assert store.jobs.all() == []


def test_a_store_that_fails_does_not_hide_why_the_work_failed(store: Store, job: Job) -> None:
    def work(control: JobControl) -> None:
        store.close()
        raise OutputError("the disk is full")

    with pytest.raises(OutputError, match="the disk is full"):
        run(store, job.id, work)


def test_a_store_that_fails_at_the_end_is_told(store: Store, job: Job) -> None:
    with pytest.raises(StoreError, match="closed database"):
        run(store, job.id, lambda control: store.close())


def test_a_job_runs_in_any_thread(store: Store, job: Job) -> None:
    thread = threading.Thread(target=run, args=(store, job.id, lambda control: 5))
    thread.start()
    thread.join()
    assert store.jobs.get(job.id).result == 5


def test_a_heartbeat_goes_on_while_work_says_nothing(store: Store, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantailor.jobs.runner.HEARTBEAT_EVERY_S", 0.01)

    def work(control: JobControl) -> bool:
        first = control.job.heartbeat
        end = time.monotonic() + 60
        while store.jobs.get(job.id).heartbeat == first and time.monotonic() < end:
            time.sleep(0.01)
        return store.jobs.get(job.id).heartbeat != first

    assert run(store, job.id, work)
