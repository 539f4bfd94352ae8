"""The whole job's bar and time left: one bar that never goes back, and an end that knows of what follows and of a limit of time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from clocks import Clock
from quantailor.jobs import JobControl, Phase, Progress, this_worker
from quantailor.store import Store

PHASES = (
    Phase("measure", (80.0, 120.0)),
    Phase("probes", (50.0, 150.0), (200.0, 200.0), ("null control", "probes"), kind="running the model"),
    Phase("mixes", (20.0, 40.0), (40.0, 40.0), ("whole mixes",), kind="running the model"),
    Phase("build", (10.0, 10.0)),
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def seen() -> list[Progress]:
    return []


@pytest.fixture
def control(tmp_path: Path, clock: Clock, seen: list[Progress]) -> Iterator[JobControl]:
    with Store(tmp_path / "q.db", now=clock) as store:
        job = store.jobs.claim(store.jobs.create("study", {}).id, this_worker())
        control = JobControl(store, job, listener=seen.append, clock=clock)
        control.expect(PHASES)
        yield control


def work(control: JobControl, clock: Clock, stage: str, total: int, seconds: float, unit: str = "") -> None:
    control.stage(stage, unit)
    for done in range(1, total + 1):
        clock.now += seconds / total
        control.advance(done, total)


def middle(progress: Progress) -> float:
    assert progress.eta_low_s is not None
    assert progress.eta_high_s is not None
    return (progress.eta_low_s + progress.eta_high_s) / 2


def test_one_bar_goes_up_through_all_stages_and_the_time_left_is_the_job_s(control: JobControl, clock: Clock, seen: list[Progress]) -> None:
    work(control, clock, "measure", 50, 100.0)
    assert middle(seen[-1]) == pytest.approx(140.0)  # what is estimated for what follows
    work(control, clock, "null control", 8, 8.0, "chunks")
    work(control, clock, "probes, 1 chunk", 96, 96.0, "chunks")
    assert middle(seen[-1]) == pytest.approx(96.0 + 2 * 30.0 + 10.0)  # the probes tell their own speed now, and so how fast mixes will be
    work(control, clock, "probes, 2 chunks", 96, 96.0, "chunks")
    work(control, clock, "whole mixes", 40, 80.0, "chunks")
    assert middle(seen[-1]) == pytest.approx(10.0)
    work(control, clock, "build", 10, 10.0)
    shares = [progress.overall or 0.0 for progress in seen]
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] < 1
    assert control.progress.stage == "build"


def test_no_time_left_goes_beyond_a_limit_but_for_what_follows(control: JobControl, clock: Clock, seen: list[Progress]) -> None:
    control.expect([replace(phase, is_limited=phase.name in ("probes", "mixes")) for phase in PHASES])
    control.limit(130.0)
    work(control, clock, "measure", 50, 100.0)
    assert seen[-1].eta_high_s == pytest.approx(40.0)  # 30 s of probes, 10 of building
    work(control, clock, "probes, 1 chunk", 40, 20.0, "chunks")
    assert seen[-1].eta_high_s == pytest.approx(20.0)
    work(control, clock, "whole mixes", 4, 4.0, "chunks")
    assert seen[-1].eta_high_s == pytest.approx(16.0)
    work(control, clock, "probes, 2 chunks", 4, 4.0, "chunks")
    assert seen[-1].eta_high_s == pytest.approx(12.0)


def test_what_is_done_in_any_case_counts_beyond_the_limit(control: JobControl, clock: Clock, seen: list[Progress]) -> None:
    control.expect((Phase("probes", (50.0, 150.0), (200.0, 200.0), is_limited=True, least=40.0),))
    control.limit(10.0)
    work(control, clock, "probes", 20, 20.0, "chunks")
    assert middle(seen[-1]) == pytest.approx(20.0)


def test_a_stage_that_runs_again_forgets_nothing(control: JobControl, clock: Clock, seen: list[Progress]) -> None:
    control.stage("measure")
    control.stage("probes, 1 chunk", "chunks")
    for _ in range(2):
        for done in range(1, 51):
            clock.now += 1.0
            control.advance(done, 50)
    assert middle(seen[-1]) == pytest.approx(100.0 + 2 * 30.0 + 10.0)


def test_a_phase_that_takes_longer_than_expected_is_not_said_to_end_at_once(
    control: JobControl, clock: Clock, seen: list[Progress]
) -> None:
    control.stage("null control", "chunks")
    clock.now += 400.0
    control.advance(1, 8)
    assert seen[-1].eta_high_s is not None
    assert seen[-1].eta_high_s > 100.0 + 50.0


def test_the_speed_of_one_phase_tells_of_others_of_its_kind_before_they_begin(
    control: JobControl, clock: Clock, seen: list[Progress]
) -> None:
    kind = "running the model"
    control.expect((Phase("calibrate", (40.0, 60.0), kind=kind), Phase("build", (10.0, 10.0)), Phase("verify", (10.0, 90.0), kind=kind)))
    control.stage("calibrate", "chunks")
    for done in range(1, 26):
        clock.now += 4.0
        control.advance(done, 50)
    assert seen[-1].eta_low_s is not None
    assert seen[-1].eta_high_s is not None
    assert middle(seen[-1]) == pytest.approx(100.0 + 10.0 + 4 * 50.0, rel=0.02)
    assert seen[-1].eta_high_s / seen[-1].eta_low_s < 1.7


def round_seconds(took: tuple[str, float, float]) -> tuple[str, int, int]:
    pace, expected, seconds = took
    return pace, round(expected), round(seconds)


def test_what_is_done_is_remembered_beside_what_a_trial_made_of_it(control: JobControl, clock: Clock) -> None:
    control.expect(
        (
            Phase("measure", (80.0, 120.0), pace="measure", trial_seconds=50.0),
            Phase("probes", (50.0, 150.0), (200.0, 200.0), pace="probes", trial_seconds=400.0, counted=200.0),
            Phase("mixes", (20.0, 40.0), (40.0, 40.0), ("whole mixes",), pace="mixes", trial_seconds=60.0, counted=40.0),
            Phase("build", (10.0, 10.0), pace="build", trial_seconds=10.0),
        )
    )
    work(control, clock, "measure", 50, 100.0)
    work(control, clock, "probes", 100, 70.0, "chunks")
    assert [round_seconds(one) for one in control.took(has_ended=False)] == [("measure", 50, 100), ("probes", 200, 70)]
    work(control, clock, "build", 10, 20.0)  # there were no mixes
    assert [round_seconds(one) for one in control.took(has_ended=True)[2:]] == [("build", 10, 20)]
