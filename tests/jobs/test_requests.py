"""Jobs in processes of their own: started, watched, paused, killed, resumed, removed."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from quantailor.errors import JobError
from quantailor.jobs import (
    Job,
    Worker,
    is_alive,
    reconcile,
    remove,
    request_cancel,
    request_pause,
    resume,
    spawn_detached,
    submit,
    this_worker,
)
from quantailor.store import Store

ENDLESS = """
import sys
from pathlib import Path
from quantailor.errors import Interrupted
from quantailor.jobs import run
from quantailor.store import Store

def work(control):
    print("at work", flush=True)
    done = 0
    while True:
        control.check()
        done = min(done + 1, 999)
        control.advance(done, 1000)

with Store(Path(sys.argv[1])) as store:
    try:
        run(store, int(sys.argv[2]), work)
    except Interrupted as error:
        print(error)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "q.db") as store:
        yield store
        for job in store.jobs.all(states=("running",)):
            if job.worker and job.worker.pid != this_worker().pid and is_alive(job.worker, heartbeat=None, now=0):
                psutil.Process(job.worker.pid).kill()


@pytest.fixture
def job(store: Store) -> Job:
    return store.jobs.create("measure", {})


@pytest.fixture
def dead() -> Worker:
    """A process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    worker = Worker(process.pid, psutil.Process(process.pid).create_time(), this_worker().host)
    process.wait()
    return worker


def endless(store: Store, job: Job) -> list[str]:
    return [sys.executable, "-c", ENDLESS, str(store.path), str(job.id)]


def wait_for(store: Store, job_id: int, reached: Callable[[Job], bool]) -> Job:
    """The job once it is as expected; AssertionError after 30 seconds."""
    pause = threading.Event()
    for _ in range(3000):
        job = store.jobs.get(job_id)
        if reached(job):
            return job
        pause.wait(0.01)
    raise AssertionError(job)


@pytest.mark.slow
def test_a_detached_job_is_watched_paused_and_resumed_from_here(store: Store, job: Job, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "job.log"
    assert submit(store, job.id, endless(store, job), log).log_path == str(log)
    running = wait_for(store, job.id, lambda now: now.progress.done > 0)
    assert running.worker is not None
    assert running.worker.pid != this_worker().pid
    assert reconcile(store) == []
    request_pause(store, job.id)
    wait_for(store, job.id, lambda now: now.state == "paused")
    resume(store, job.id)
    submit(store, job.id, endless(store, job), log)
    wait_for(store, job.id, lambda now: now.state == "running" and now.progress.done > 0)
    request_cancel(store, job.id)
    wait_for(store, job.id, lambda now: now.state == "cancelled")
    assert log.read_text().startswith("at work\njob 1 is paused")


def test_a_killed_worker_leaves_an_interrupted_job(store: Store, job: Job, tmp_path: Path) -> None:
    submit(store, job.id, endless(store, job), tmp_path / "log")
    worker = wait_for(store, job.id, lambda now: now.state == "running").worker
    assert worker is not None
    process = psutil.Process(worker.pid)
    process.kill()
    process.wait()
    assert [one.state for one in reconcile(store)] == ["interrupted"]
    assert resume(store, job.id).state == "queued"


def test_a_worker_that_dies_before_it_claims_its_job_is_noticed(store: Store, job: Job, tmp_path: Path) -> None:
    submit(store, job.id, [sys.executable, "-c", "print('no such option')"], tmp_path / "log")

    def interrupted(now: Job) -> bool:
        reconcile(store)
        return now.state == "interrupted"

    wait_for(store, job.id, interrupted)
    assert (tmp_path / "log").read_text().strip() == "no such option"


def test_a_worker_that_cannot_be_started_leaves_a_job_that_can_be_resumed(store: Store, job: Job, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="cannot start no-such-program"):
        submit(store, job.id, ["no-such-program"], tmp_path / "log")
    assert store.jobs.get(job.id).state == "interrupted"


def test_a_program_that_does_not_exist_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"cannot start no-such-program .*without --detach"):
        spawn_detached(["no-such-program"], tmp_path / "log")


def test_a_detached_process_has_its_own_session(tmp_path: Path) -> None:
    code = "import os, sys; print(not hasattr(os, 'getsid') or os.getsid(0) == os.getpid())"
    spawn_detached([sys.executable, "-c", code], tmp_path / "log")
    pause = threading.Event()
    while not (tmp_path / "log").read_text().endswith("\n"):
        pause.wait(0.01)
    assert (tmp_path / "log").read_text().strip() == "True"


def test_this_process_lives() -> None:
    assert is_alive(this_worker(), heartbeat=None, now=0)


def test_an_ended_process_does_not(dead: Worker) -> None:
    assert not is_alive(dead, heartbeat=None, now=0)


def test_a_process_with_a_dead_ones_number_is_not_taken_for_it() -> None:
    earlier = replace(this_worker(), process_started=this_worker().process_started - 1000)
    assert not is_alive(earlier, heartbeat=None, now=0)


@pytest.mark.parametrize(("age_s", "lives"), [(10.0, True), (100.0, False)])
def test_a_worker_on_another_computer_is_judged_by_its_heartbeat(age_s: float, lives: bool) -> None:
    elsewhere = replace(this_worker(), host="another computer")
    assert is_alive(elsewhere, heartbeat=1000.0, now=1000.0 + age_s) is lives


def test_a_job_whose_worker_died_can_be_cancelled_at_once(store: Store, job: Job, dead: Worker) -> None:
    store.jobs.claim(job.id, dead)
    assert request_cancel(store, job.id).state == "cancelled"


def test_a_queued_job_pauses_at_once(store: Store, job: Job) -> None:
    assert request_pause(store, job.id).state == "paused"
    assert request_pause(store, job.id).state == "paused"
    assert resume(store, job.id).state == "queued"
    assert resume(store, job.id).state == "queued"


def test_resuming_takes_back_a_pause_that_was_not_noticed_yet(store: Store, job: Job) -> None:
    store.jobs.claim(job.id, this_worker())
    assert request_pause(store, job.id).requested == "pause"
    assert resume(store, job.id).requested == ""


def test_a_running_job_is_not_resumed_twice(store: Store, job: Job) -> None:
    store.jobs.claim(job.id, this_worker())
    with pytest.raises(JobError, match="job 1 is running and cannot be resumed"):
        resume(store, job.id)


@pytest.mark.parametrize("ask", [request_pause, request_cancel, resume])
def test_a_cancelled_job_stays_cancelled(store: Store, job: Job, ask: Callable[[Store, int], Job]) -> None:
    request_cancel(store, job.id)
    with pytest.raises(JobError, match="job 1 is cancelled"):
        ask(store, job.id)


def test_a_removed_job_takes_its_log_along_and_leaves_the_others(store: Store, job: Job, tmp_path: Path) -> None:
    other = store.jobs.create("build", {})
    (tmp_path / "log").write_text("at work")
    store.jobs.set_log_path(job.id, str(tmp_path / "log"))
    store.jobs.log(job.id, "a line")
    remove(store, job.id)
    assert store.jobs.all() == [other]
    assert store.jobs.log_lines(job.id) == []
    assert not (tmp_path / "log").exists()


def test_a_running_job_is_not_removed(store: Store, job: Job) -> None:
    store.jobs.claim(job.id, this_worker())
    with pytest.raises(JobError, match=r"job 1 is running. Stop it first: `quantailor jobs cancel 1`"):
        remove(store, job.id)


def test_what_a_replaced_worker_still_writes_is_ignored(store: Store, job: Job, dead: Worker) -> None:
    first = store.jobs.claim(job.id, dead)
    reconcile(store)
    resume(store, job.id)
    second = store.jobs.claim(job.id, this_worker())
    store.jobs.report(job.id, first.attempt, replace(first.progress, done=9))
    assert not store.jobs.finish(job.id, first.attempt, "done")
    assert store.jobs.get(job.id) == second


def test_jobs_are_listed_latest_first_and_by_state(store: Store, job: Job) -> None:
    later = store.jobs.create("build", {})
    store.jobs.claim(job.id, this_worker())
    assert [one.id for one in store.jobs.all()] == [later.id, job.id]
    assert [one.id for one in store.jobs.all(states=("running",))] == [job.id]
