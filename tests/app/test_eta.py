"""What a running job says of itself: stage, unit, rate, elapsed time, and an honest time left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clocks import Clock
from quantailor.app.jobs import JobReport, show_job, submit
from quantailor.jobs import JobControl, resolve, run
from quantailor.pipeline import StudyStep
from quantailor.session import Workspace
from quantailor.steps.stages import Stages
from quantailor.steps.step import unit_of
from quantailor.store import Store


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def workspace(tmp_path: Path, clock: Clock) -> Iterator[Workspace]:
    home = resolve(tmp_path / "home").create()
    with Workspace(home, Store(home.database, now=clock)) as workspace:
        yield workspace


def test_a_running_job_shows_stage_unit_rate_and_elapsed_time(workspace: Workspace, clock: Clock, books_llama_dir: Path) -> None:
    job = submit(workspace, StudyStep(model=str(books_llama_dir)))
    shown: list[JobReport] = []

    def work(control: JobControl) -> None:
        stages = Stages(control, unit_of)
        stages.part(2, 4)
        at = stages.begin("imatrix")
        for done in range(1, 11):
            clock.now += 2.0
            at.advance(done, 100, f"chunk {done}")
        shown.append(show_job(workspace, job))
        stages.part(3, 4)
        stages.begin("measure")
        shown.append(show_job(workspace, job))

    run(workspace.store, job, work, clock=clock)
    first, second = shown
    assert (first.stage, first.stage_number, first.n_stages, first.unit) == ("imatrix", 2, 4, "chunks")
    assert first.elapsed_seconds == pytest.approx(20.0)
    assert first.rate == pytest.approx(0.5)
    assert first.eta_seconds is not None
    assert first.eta_seconds[0] < 180.0 < first.eta_seconds[1]
    assert (second.stage, second.stage_number, second.unit, second.rate) == ("measure", 3, "weights", None)
    clock.now += 100.0
    assert show_job(workspace, job).elapsed_seconds == pytest.approx(20.0)


def test_a_job_that_waits_has_no_elapsed_time(workspace: Workspace, books_llama_dir: Path) -> None:
    job = submit(workspace, StudyStep(model=str(books_llama_dir)))
    assert show_job(workspace, job).elapsed_seconds is None
