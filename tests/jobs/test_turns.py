"""Of the jobs that run a model on a machine one runs at a time; the others wait, and can be paused and cancelled meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from quantailor.errors import Cancelled, Interrupted, JobError, Paused
from quantailor.jobs import Job, JobControl, Turns, request_cancel, request_pause, run, this_worker
from quantailor.jobs.process import worker_of
from quantailor.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "q.db") as store:
        yield store


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantailor.jobs.turns.LOOK_EVERY_S", 0.01)


def claimed_by(store: Store, process: subprocess.Popen[bytes], kind: str = "probe") -> Job:
    worker = worker_of(process.pid)
    assert worker is not None
    return store.jobs.claim(store.jobs.create(kind, {}).id, worker)


def turns(on_waiting: Callable[[Job], object]) -> Turns:
    def tell(ahead: Job) -> None:
        on_waiting(ahead)

    return Turns(lambda job: job.kind == "probe", tell)


def must_not_wait(ahead: Job) -> None:
    pytest.fail(f"waits for job {ahead.id}")


def test_a_job_waits_until_the_one_that_runs_has_ended(store: Store, other: subprocess.Popen[bytes]) -> None:
    first, second = claimed_by(store, other), store.jobs.create("probe", {})

    def end(ahead: Job) -> None:
        seen.append((ahead.id, store.jobs.get(second.id).state))
        store.jobs.finish(first.id, first.attempt, "done")

    seen: list[tuple[int, str]] = []
    assert run(store, second.id, lambda _: store.jobs.get(first.id).state, turns=turns(end)) == "done"
    assert seen == [(first.id, "queued")]
    assert [line.message for line in store.jobs.log_lines(second.id)] == [f"waits for job {first.id}"]


def test_a_killed_job_blocks_nobody(store: Store, other: subprocess.Popen[bytes]) -> None:
    first, second = claimed_by(store, other), store.jobs.create("probe", {})

    def kill(_: Job) -> None:
        other.kill()
        other.wait()

    assert run(store, second.id, lambda _: store.jobs.get(first.id).state, turns=turns(kill)) == "interrupted"


def test_work_that_runs_no_model_waits_for_nobody_and_nobody_for_it(store: Store, other: subprocess.Popen[bytes]) -> None:
    claimed_by(store, other)
    claimed_by(store, other, "plan")
    assert run(store, store.jobs.create("plan", {}).id, lambda _: "went on", turns=turns(must_not_wait)) == "went on"


def test_without_turns_nothing_is_waited_for(store: Store, other: subprocess.Popen[bytes]) -> None:
    claimed_by(store, other)
    assert run(store, store.jobs.create("probe", {}).id, lambda _: "went on") == "went on"


def test_waiting_jobs_start_in_the_order_of_their_numbers(store: Store, other: subprocess.Popen[bytes]) -> None:
    first = claimed_by(store, other)
    jobs = [store.jobs.create("probe", {}).id for _ in range(3)]
    waiting = {job: threading.Event() for job in jobs}
    ran: list[int] = []

    def work(control: JobControl) -> None:
        assert [job.id for job in store.jobs.all(states=("running",))] == [control.job.id]
        ran.append(control.job.id)

    def start(job: int) -> Future[None]:
        return pool.submit(run, store, job, work, turns=turns(lambda _: waiting[job].set()))

    with ThreadPoolExecutor(3) as pool:
        started = [start(job) for job in reversed(jobs)]
        assert all(event.wait(20) for event in waiting.values())
        store.jobs.finish(first.id, first.attempt, "done")
        for one in started:
            one.result(timeout=20)
    assert ran == jobs


@pytest.mark.parametrize(
    ("ask", "error", "state"),
    [
        (request_pause, Paused, "paused"),
        (request_cancel, Cancelled, "cancelled"),
        (lambda store, job: signal.raise_signal(signal.SIGINT), Paused, "paused"),
    ],
)
def test_a_waiting_job_can_be_paused_and_cancelled(
    store: Store, other: subprocess.Popen[bytes], ask: Callable[[Store, int], object], error: type[Interrupted], state: str
) -> None:
    claimed_by(store, other)
    job = store.jobs.create("probe", {}).id
    with pytest.raises(error, match=f"job {job} is {state}"):
        run(store, job, lambda _: pytest.fail("it ran"), turns=turns(lambda _: ask(store, job)))
    assert store.jobs.get(job).state == state


def test_a_waiting_job_that_another_process_takes_over_is_left_to_it(store: Store, other: subprocess.Popen[bytes]) -> None:
    claimed_by(store, other)
    job = store.jobs.create("probe", {}).id
    worker = worker_of(other.pid)
    assert worker is not None
    with pytest.raises(JobError, match="taken over"):
        run(store, job, lambda _: pytest.fail("it ran"), turns=turns(lambda _: store.jobs.claim(job, worker)))
    assert store.jobs.get(job).worker == worker != this_worker()
