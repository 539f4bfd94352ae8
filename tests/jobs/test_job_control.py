"""What running work sees of its job: progress out, requests in."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clocks import Clock
from quantailor.control import Control
from quantailor.errors import Cancelled, Paused
from quantailor.jobs import JobControl, Progress, this_worker
from quantailor.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "q.db") as store:
        yield store


@pytest.fixture
def clock() -> Clock:
    return Clock(0.0)


@pytest.fixture
def shown() -> list[Progress]:
    return []


@pytest.fixture
def control(store: Store, clock: Clock, shown: list[Progress]) -> JobControl:
    job = store.jobs.claim(store.jobs.create("measure", {}).id, this_worker())
    return JobControl(store, job, listener=shown.append, clock=clock)


def test_it_is_a_control(control: JobControl) -> None:
    one: Control = control
    one.check()


def test_a_pause_is_noticed_within_its_interval(store: Store, control: JobControl, clock: Clock) -> None:
    control.check()
    store.jobs.request(control.job.id, "pause")
    control.check()
    clock.now += 0.2
    with pytest.raises(Paused, match=r"job 1 is paused.*jobs resume 1"):
        control.check()


def test_a_cancel_is_noticed(store: Store, control: JobControl) -> None:
    store.jobs.request(control.job.id, "cancel")
    with pytest.raises(Cancelled, match="job 1 is cancelled"):
        control.check()


def test_a_signal_pauses_at_the_next_check_without_asking_the_store(store: Store, control: JobControl) -> None:
    control.check()
    control.request_stop()
    with pytest.raises(Paused):
        control.check()


@pytest.mark.parametrize("taken", ["removed", "replaced"])
def test_work_whose_job_is_no_longer_its_own_stops(store: Store, control: JobControl, taken: str) -> None:
    if taken == "removed":
        store.jobs.remove(control.job.id)
    else:
        store.jobs.set_state(control.job.id, "queued")
        store.jobs.claim(control.job.id, this_worker())
    with pytest.raises(Paused, match="removed or taken over"):
        control.check()


def test_progress_reaches_the_store_with_a_heartbeat(store: Store, control: JobControl, clock: Clock) -> None:
    control.stage("measure")
    clock.now += 1
    control.advance(3, 10, "blk.0.attn_q.weight")
    job = store.jobs.get(control.job.id)
    assert job.progress == Progress("measure", 3, 10, "blk.0.attn_q.weight")
    assert job.heartbeat is not None


def test_rapid_progress_is_thinned_but_the_end_is_told(store: Store, control: JobControl, clock: Clock, shown: list[Progress]) -> None:
    for done in range(1, 1001):
        clock.now += 0.001
        control.advance(done, 1000)
    assert 10 <= len(shown) <= 13
    assert shown[-1].done == store.jobs.get(control.job.id).progress.done == 1000


def test_progress_carries_rate_and_a_range_of_time_left(control: JobControl, clock: Clock) -> None:
    for second in range(20):
        clock.now = float(second)
        control.advance(2 * second, 100)
    progress = control.progress
    assert progress.rate == pytest.approx(2)
    assert progress.eta_low_s is not None
    assert progress.eta_high_s is not None
    assert progress.eta_low_s < 62 / 2 < progress.eta_high_s


def test_a_new_stage_forgets_the_old_rate(control: JobControl, clock: Clock, shown: list[Progress]) -> None:
    for second in range(20):
        clock.now = float(second)
        control.advance(2 * second, 100)
    control.stage("build")
    assert shown[-1] == Progress("build")


def test_a_line_goes_to_the_log(store: Store, control: JobControl) -> None:
    control.log("blk.0 has an expert without tokens", level="warning")
    (line,) = store.jobs.log_lines(control.job.id)
    assert (line.level, line.message) == ("warning", "blk.0 has an expert without tokens")
    assert store.jobs.log_lines(control.job.id, after=line.id) == []
