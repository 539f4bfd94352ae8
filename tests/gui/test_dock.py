"""The job dock: every state of a job has its words and its buttons, on any screen."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from browser import Browser, serving, wait_for
from nicegui import ui
from visitor import Visitor, words_of

from quantailor.app.jobs import list_jobs, show_job, start_detached, submit
from quantailor.app.library.projects import open_project
from quantailor.jobs.process import worker_of
from quantailor.session import Workspace
from quantailor.steps.calibration.imatrix import ImatrixStep
from quantailor.steps.measure import MeasureStep
from quantailor.steps.options import Compute
from quantailor.steps.step import Step, StepResult

pytestmark = pytest.mark.slow

PATIENCE = 60.0
SLOW = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ4_NL", "IQ3_S", "Q4_0", "Q5_0", "Q4_1", "Q5_1")
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


def dock(page: Visitor) -> str:
    return page.text(".qt-dock")


def says(page: Visitor, words: str) -> None:
    page.until(lambda: words in dock(page), f"the dock says {words!r}", seconds=PATIENCE)


def test_it_is_quiet_without_jobs(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    page = visit(tmp_path / "home")
    page.go("/")
    says(page, "No job is running")
    page.until(lambda: [words_of(item) for item in page.all(kind=ui.button) if is_in_dock(item)] == [], "no button is shown")


def is_in_dock(element: ui.element) -> bool:
    return any("qt-dock" in above.classes for above in element.ancestors())


def test_a_job_that_nobody_runs_can_be_started_and_its_result_is_linked(chromium: Browser, home: Path, books_llama_base: Path) -> None:
    queue(home, measuring(books_llama_base, "Q8_0"))

    def shown(words: str) -> None:
        chromium.until(lambda: words in chromium.text(".qt-dock"), f"the dock says {words!r}", seconds=PATIENCE)

    with serving(home) as server:
        chromium.enter(server, "/")
        shown("Measure books-llama.gguf waits to be started")
        chromium.click("Start")
        shown("Measure books-llama.gguf is done")
        chromium.find(".qt-dock-result").click()
        chromium.until(lambda: "/measure" in chromium.driver.current_url, "the link leads to the result")
        chromium.ready()
        shown("is done")
        chromium.click("Hide")
        shown("No job is running")
        chromium.go(server, "/")
        shown("No job is running")
        assert chromium.errors() == []


SPY = """
window.told = [];
window.Notification = class { constructor(title, options) { window.told.push([title, options.body, options.tag]); } };
Notification.permission = 'default';
Notification.requestPermission = async () => (Notification.permission = 'granted');
document.hasFocus = () => false;
localStorage.clear();
document.body.classList.add('qt-can-ask');
"""
"""In place of the browser's own notifications, which only a person can allow and see."""


@pytest.mark.long
def test_the_browser_tells_of_an_end_that_nobody_watches_and_asks_once(chromium: Browser, home: Path, books_llama_base: Path) -> None:
    queue(home, measuring(books_llama_base, *SLOW, exhaustive=True))
    with serving(home) as server:
        chromium.enter(server, "/")
        chromium.js(SPY)
        chromium.click("Start")
        chromium.click("Notify me when it is done")
        chromium.until(lambda: not chromium.js("return document.body.classList.contains('qt-can-ask')"), "it is asked once")
        chromium.until(lambda: chromium.js("return told.length"), "the browser tells", seconds=3 * PATIENCE)
        ((title, body, _),) = chromium.js("return told")
        assert title == "Measure books-llama.gguf is done"
        assert body.startswith("after ")
        chromium.go(server, "/")
        assert not chromium.js("return document.body.classList.contains('qt-can-ask')"), "nor does another page ask again"
        assert chromium.errors() == []


def test_waiting_jobs_are_counted_and_can_be_looked_at(
    visit: Callable[..., Visitor], home: Path, books_llama_base: Path, books_moe_base: Path
) -> None:
    queue(home, *(measuring(base, "Q8_0") for base in (books_llama_base, books_moe_base)), measuring(books_moe_base, "Q4_K"))
    page = visit(home)
    page.go("/")
    says(page, "Measure books-llama.gguf")
    menu = next(item for item in page.button("+2 waiting").descendants() if isinstance(item, ui.menu))
    page.act(menu.open)
    items = page.all(kind=ui.menu_item)
    assert [words_of(item) for item in items] == ["measure books-moe.gguf: waiting"] * 2
    page.trigger(items[0], "click")
    says(page, "Measure books-moe.gguf waits")


def test_a_job_says_what_it_waits_for_and_can_be_started_all_the_same(
    visit: Callable[..., Visitor], home: Path, books_llama_base: Path, calibration_text: Path
) -> None:
    first, second = queue(
        home, *(ImatrixStep(base=str(books_llama_base), text=str(calibration_text), chunks=n, compute=Compute(n_threads=1)) for n in (1, 2))
    )
    with Workspace.open(home) as workspace, subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE) as other:
        worker = worker_of(other.pid)
        assert worker is not None
        workspace.store.jobs.claim(first, worker)
        start_detached(workspace, second)
        page = visit(home)
        page.go("/")
        page.until(lambda: page.button("+1 waiting"), "the second job waits", seconds=PATIENCE)
        menu = next(item for item in page.button("+1 waiting").descendants() if isinstance(item, ui.menu))
        page.act(menu.open)
        (item,) = page.all(kind=ui.menu_item)
        assert words_of(item) == f"imatrix books-llama.gguf: waiting for job {first}"
        page.trigger(item, "click")
        says(page, f"Imatrix books-llama.gguf waits for job {first}")
        page.click("Start now")
        wait_for(lambda: show_job(workspace, second).state == "done", "the second job is done", seconds=PATIENCE)
        assert show_job(workspace, first).state == "running"


def test_a_failure_is_told_with_its_remedy_and_can_be_dismissed(visit: Callable[..., Visitor], home: Path, tmp_path: Path) -> None:
    (job,) = queue(home, MeasureStep(base=str(tmp_path / "missing.gguf")))
    with Workspace.open(home) as workspace:
        start_detached(workspace, job)
        wait_for(lambda: show_job(workspace, job).state == "failed", "the job fails", seconds=PATIENCE)
        error = show_job(workspace, job).error
    assert error is not None
    page = visit(home)
    page.go("/")
    says(page, "Measure missing.gguf failed")
    assert error in dock(page)
    assert page.button("Try again").enabled
    page.click("Dismiss")
    says(page, "No job is running")
    with Workspace.open(home) as workspace:
        assert list_jobs(workspace) == []


def test_a_killed_worker_s_job_goes_on_and_its_log_follows(visit: Callable[..., Visitor], home: Path, books_llama_base: Path) -> None:
    (job,) = queue(home, measuring(books_llama_base, *SLOW, exhaustive=True))
    page = visit(home)
    page.go("/")
    page.click("Start")
    page.click("Show the log")
    page.until(lambda: "measure begins" in page.text(".qt-dock-log"), "the log is shown", seconds=PATIENCE)
    page.until(lambda: "measure: " in page.text(".qt-dock-log"), "the log follows", seconds=PATIENCE)
    (worker,) = workers(home)
    os.kill(worker, signal.SIGKILL)
    says(page, "was interrupted")
    page.click("Resume")
    page.until(lambda: [pid for pid in workers(home) if pid != worker], "another process takes it up", seconds=PATIENCE)
    page.until(lambda: page.button("Pause"), "it runs", seconds=PATIENCE)
    page.click("Cancel the job")
    page.sees("What it has found so far is kept")
    page.trigger(next(item for item in page.find(".qt-ask").descendants() if getattr(item, "text", "") == "Cancel the job"), "click")
    says(page, "No job is running")
    with Workspace.open(home) as workspace:
        assert show_job(workspace, job).state == "cancelled"
