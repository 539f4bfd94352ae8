"""The job dock in a real browser: every state of a job has its words and its buttons, on any screen."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from browser import Browser, Server, serving, wait_for

from quantailor.app.jobs import list_jobs, show_job, start_detached, submit
from quantailor.app.library.projects import open_project
from quantailor.session import Workspace
from quantailor.steps.measure import MeasureStep
from quantailor.steps.options import Compute
from quantailor.steps.step import Step, StepResult

pytestmark = pytest.mark.slow

PATIENCE = 60.0
SLOW = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
"""Types that take seconds in all, but not in one tensor."""


@pytest.fixture
def home(books_llama_base: Path, tmp_path: Path) -> Iterator[Path]:
    """A home that knows the dense model; whatever works on it at the end is ended."""
    folder = tmp_path / "home"
    with Workspace.open(folder) as workspace:
        open_project(workspace, books_llama_base)
    yield folder
    for pid in workers(folder):
        try:
            psutil.Process(pid).kill()
        except psutil.Error:
            continue


def workers(home: Path) -> list[int]:
    with closing(sqlite3.connect(home / "quantailor.db", timeout=30)) as database:
        return [pid for (pid,) in database.execute("SELECT pid FROM jobs WHERE pid IS NOT NULL")]


def queue(home: Path, *work: Step[StepResult]) -> list[int]:
    """Queue jobs that nobody runs yet."""
    with Workspace.open(home) as workspace:
        return [submit(workspace, task) for task in work]


def measuring(base: Path, *types: str, exhaustive: bool = False) -> MeasureStep:
    return MeasureStep(base=str(base), types=types, imatrix="none", exhaustive=exhaustive, compute=Compute(n_threads=1))


def dock(chromium: Browser) -> str:
    return chromium.text(".qt-dock")


def says(chromium: Browser, words: str) -> None:
    chromium.until(lambda: words in dock(chromium), f"the dock says {words!r}", seconds=PATIENCE)


def menu(chromium: Browser) -> list[str]:
    return [item.text for item in chromium.all(".q-menu .q-item")]


def test_it_is_quiet_without_jobs(chromium: Browser, empty_server: Server) -> None:
    chromium.enter(empty_server, "/")
    says(chromium, "No job is running")
    assert not [button for button in chromium.all(".qt-dock button") if button.is_displayed()]
    assert chromium.errors() == []


def test_a_job_that_nobody_runs_can_be_started_and_its_result_is_linked(chromium: Browser, home: Path, books_llama_base: Path) -> None:
    queue(home, measuring(books_llama_base, "Q8_0"))
    with serving(home) as server:
        chromium.enter(server, "/")
        says(chromium, "Measure books-llama.gguf waits to be started")
        chromium.click("Start")
        says(chromium, "Measure books-llama.gguf is done")
        chromium.find(".qt-dock-link").click()
        chromium.until(lambda: "/measure" in chromium.driver.current_url, "the link leads to the result")
        chromium.ready()
        says(chromium, "is done")
        chromium.click("Hide")
        says(chromium, "No job is running")
        chromium.go(server, "/")
        says(chromium, "No job is running")
        assert chromium.errors() == []


def test_waiting_jobs_are_counted_and_can_be_looked_at(chromium: Browser, home: Path, books_llama_base: Path, books_moe_base: Path) -> None:
    queue(home, *(measuring(base, "Q8_0") for base in (books_llama_base, books_moe_base)), measuring(books_moe_base, "Q4_K"))
    with serving(home) as server:
        chromium.enter(server, "/")
        says(chromium, "Measure books-llama.gguf")
        chromium.click("+2 waiting")
        chromium.until(lambda: menu(chromium) == ["measure books-moe.gguf: waiting"] * 2, "the menu names both")
        chromium.all(".q-menu .q-item")[0].click()
        says(chromium, "Measure books-moe.gguf waits")
        assert chromium.errors() == []


def test_a_failure_is_told_with_its_remedy_and_can_be_dismissed(chromium: Browser, home: Path, tmp_path: Path) -> None:
    (job,) = queue(home, MeasureStep(base=str(tmp_path / "missing.gguf")))
    with Workspace.open(home) as workspace:
        start_detached(workspace, job)
        wait_for(lambda: show_job(workspace, job).state == "failed", "the job fails", seconds=PATIENCE)
        error = show_job(workspace, job).error
    assert error is not None
    with serving(home) as server:
        chromium.enter(server, "/")
        says(chromium, "Measure missing.gguf failed")
        assert error in dock(chromium)
        assert chromium.button("Try again").is_displayed()
        chromium.click("Dismiss")
        says(chromium, "No job is running")
        with Workspace.open(home) as workspace:
            assert list_jobs(workspace) == []
        assert chromium.errors() == []


def test_a_killed_worker_s_job_goes_on_and_its_log_follows(chromium: Browser, home: Path, books_llama_base: Path) -> None:
    (job,) = queue(home, measuring(books_llama_base, *SLOW, exhaustive=True))
    with serving(home) as server:
        chromium.enter(server, "/")
        chromium.click("Start")
        chromium.click("Show the log")
        chromium.until(lambda: "measure begins" in chromium.text(".qt-dock-log"), "the log is shown", seconds=PATIENCE)
        chromium.until(lambda: "measure: " in chromium.text(".qt-dock-log"), "the log follows", seconds=PATIENCE)
        (worker,) = workers(home)
        os.kill(worker, signal.SIGKILL)
        says(chromium, "was interrupted")
        chromium.click("Resume")
        chromium.until(lambda: [pid for pid in workers(home) if pid != worker], "another process takes it up", seconds=PATIENCE)
        chromium.until(lambda: chromium.button("Pause"), "it runs", seconds=PATIENCE)
        chromium.click("Cancel the job")
        chromium.sees("What it found so far is kept")
        chromium.js("[...document.querySelectorAll('.qt-ask button')].find(button => button.innerText.includes('Cancel the job')).click()")
        says(chromium, "No job is running")
        with Workspace.open(home) as workspace:
            assert show_job(workspace, job).state == "cancelled"
        assert chromium.errors() == []
