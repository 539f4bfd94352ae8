"""The Measure screen in a real browser: what it costs, the start, the live map, and measurements that outlive their server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from browser import Browser, Server, serving
from commands import Workbench
from selenium.webdriver.common.keys import Keys

from quantailor.app.library.projects import list_projects, open_project
from quantailor.app.steps import type_bits
from quantailor.session import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("workbench")]

SLOW_SECONDS = 90.0
"""What a busy machine may take."""
FEW = ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q8_0", "IQ3_S")
"""The last one takes long enough to be looked at while it is measured."""
N_TENSORS = 58


@dataclass
class Study:
    """A home that knows the dense model, and its page."""

    home: Path
    fingerprint: str

    @property
    def page(self) -> str:
        return f"/p/{self.fingerprint[:16]}/measure"

    def query(self, sql: str) -> list[tuple[int, ...]]:
        """What sqlite says, asked from outside."""
        with closing(sqlite3.connect(self.home / "quantailor.db", timeout=30)) as database, database:
            return database.execute(sql).fetchall()

    @property
    def n_cells(self) -> int:
        return self.query("SELECT COUNT(*) FROM cells")[0][0]

    def workers(self) -> list[int]:
        """Processes of jobs that run."""
        return [pid for (pid,) in self.query("SELECT pid FROM jobs WHERE state IN ('running', 'queued') AND pid IS NOT NULL")]

    def stop(self) -> None:
        """End whatever works on this home."""
        for pid in self.workers():
            try:
                process = psutil.Process(pid)
                process.kill()
                process.wait(10)
            except psutil.Error:
                continue


@pytest.fixture
def study(books_llama_base: Path, tmp_path: Path) -> Iterator[Study]:
    with Workspace.open(tmp_path / "home") as workspace:
        fingerprint = open_project(workspace, books_llama_base).fingerprint
    found = Study(tmp_path / "home", fingerprint)
    yield found
    found.stop()


def fill_in(chromium: Browser, *, level: str = "Thorough", types: tuple[str, ...] = FEW, matrix: str = "None") -> None:
    """Choose a preset, types and importance matrix, and wait until the start is free."""
    chromium.js("[...document.querySelectorAll('.qt-preset')].find(card => card.innerText.startsWith(arguments[0])).click()", level)
    script = """for (const chip of document.querySelectorAll('.qt-toggle'))
        if ((chip.getAttribute('aria-pressed') === 'true') !== arguments[0].includes(chip.firstChild.textContent)) chip.click();"""
    chromium.js(script, list(types))
    chromium.js("[...document.querySelectorAll('.qt-matrix .q-radio')].find(item => item.innerText.includes(arguments[0])).click()", matrix)
    chromium.sees(f"{len(types)} of {len(type_bits())} types")
    chromium.until(lambda: is_ready(chromium, level), "the start is free", seconds=SLOW_SECONDS)


def is_ready(chromium: Browser, level: str) -> bool:
    return chromium.button("Start measuring").is_enabled() and f"{level}: " in chromium.text(".qt-start-bar")


def begin(chromium: Browser, study: Study, *, n_cells: int = 1) -> None:
    """Start, and wait until something is measured."""
    chromium.click("Start measuring")
    chromium.until(lambda: study.n_cells >= n_cells, "cells are recorded", seconds=SLOW_SECONDS)


def rises(study: Study) -> None:
    """Wait until more cells are recorded than now."""
    before = study.n_cells
    assert before < N_TENSORS * len(FEW), "there is nothing left to measure"
    end_of(lambda: study.n_cells > before, "the count of cells rises")


def end_of(condition: Callable[[], bool], what: str) -> None:
    from browser import wait_for

    wait_for(condition, what, seconds=SLOW_SECONDS)


def test_presets_tell_their_cost_before_the_start(chromium: Browser, workbench: Workbench, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(workbench.home, home)
    with Workspace.open(home) as workspace:
        (project,) = list_projects(workspace)
    with serving(home) as server:
        chromium.enter(server, f"/p/{project.fingerprint[:16]}/measure")
        chromium.find(".qt-more-form .q-item").click()
        for at, title in enumerate(("Quick", "Balanced", "Thorough", "Exhaustive sweep")):
            end_of(partial(has_cost, chromium, at), f"{title} has its cost")
            assert preset(chromium, at).startswith(title)
            assert re.search(r"\d+.* to [\d.]+ (s|min|h|days)\n", preset(chromium, at))
        assert chromium.js("return document.querySelector('.qt-preset[aria-pressed=true]').innerText").startswith("Balanced")
        stages = chromium.js("return [...document.querySelectorAll('.qt-stage-costs tbody tr')].map(row => row.cells[0].innerText)")
        assert stages == ["Importance matrix", "Weight errors", "Probes", "In all"]
        assert chromium.errors() == []


def has_cost(chromium: Browser, at: int) -> bool:
    return "of memory" in preset(chromium, at)


def preset(chromium: Browser, at: int) -> str:
    return str(chromium.js("return document.querySelectorAll('.qt-preset')[arguments[0]].innerText", at))


def test_types_are_chips_that_can_be_toggled(chromium: Browser, study: Study) -> None:
    with serving(study.home) as server:
        chromium.enter(server, study.page)
        pressed = "return [...document.querySelectorAll('.qt-toggle[aria-pressed=true]')].map(chip => chip.firstChild.textContent)"
        usual = set(chromium.js(pressed))
        assert "Q4_K" in usual
        assert "TQ1_0" not in usual
        chromium.click("All")
        chromium.until(lambda: set(chromium.js(pressed)) == set(type_bits()), "all types are chosen")
        chromium.js("[...document.querySelectorAll('.qt-toggle')].find(chip => chip.innerText === 'Q4_K').click()")
        chromium.until(lambda: "Q4_K" not in chromium.js(pressed), "Q4_K is left out")
        chromium.click("Usual")
        chromium.until(lambda: set(chromium.js(pressed)) == usual, "the usual ones are back")
        assert chromium.errors() == []


def test_a_directory_is_told_to_be_converted_first(chromium: Browser, books_llama_dir: Path, tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        fingerprint = open_project(workspace, books_llama_dir).fingerprint
    with serving(tmp_path) as server:
        chromium.enter(server, f"/p/{fingerprint[:16]}/measure")
        chromium.sees("first converted to a 16-bit GGUF")
        assert chromium.errors() == []


def test_the_map_fills_in_and_choose_opens_on_partial_results(chromium: Browser, study: Study) -> None:
    with serving(study.home) as server:
        chromium.enter(server, study.page)
        fill_in(chromium)
        begin(chromium, study, n_cells=2 * len(FEW))
        chromium.until(lambda: re.search(r"[1-9]\d* of 348\s+cells measured", summary(chromium)), "cells are counted", seconds=SLOW_SECONDS)
        chromium.until(lambda: chromium.button("Choose now").is_enabled(), "partial results are enough to choose")
        canvas = chromium.find(".qt-map canvas")
        canvas.send_keys(Keys.ARROW_UP)
        end_of(lambda: "6 of 6 types, error" in spoken(chromium), "the first tensor is told of as measured")
        canvas.send_keys(Keys.ENTER)
        chromium.until(lambda: "?tensor=" in chromium.driver.current_url, "the address holds the tensor")
        name = chromium.text(".qt-chosen-tensor .qt-mono")
        assert name in spoken(chromium)
        assert {chip.text for chip in chromium.all(".qt-type-errors .qt-chip")} == set(FEW)
        chromium.driver.refresh()
        chromium.ready()
        chromium.until(lambda: chromium.text(".qt-chosen-tensor .qt-mono") == name, "the reloaded page has the tensor")
        chromium.click("Choose now")
        chromium.until(lambda: "/choose" in chromium.driver.current_url, "the Choose screen opens")
        study.stop()
        assert [message for message in chromium.errors() if "/choose" not in message] == []


def summary(chromium: Browser) -> str:
    return chromium.text(".qt-measure-summary")


def spoken(chromium: Browser) -> str:
    return str(chromium.js("return document.querySelector('.qt-map .qt-sr').textContent"))


def test_a_job_outlives_its_server_and_the_page_comes_back_by_itself(chromium: Browser, study: Study) -> None:
    first = Server(study.home)
    address = ("--port", str(first.port), "--token", first.token)
    try:
        chromium.enter(first, study.page)
        fill_in(chromium)
        begin(chromium, study)
        chromium.until(lambda: cells_shown(chromium) >= 0, "cells are counted", seconds=SLOW_SECONDS)
        shown = cells_shown(chromium)
        first.kill()
        rises(study)
        rises(study)
    finally:
        first.stop()
    with serving(study.home, *address):
        end_of(lambda: is_back(chromium), "the page is connected again")
        chromium.until(lambda: "Study books-llama.gguf" in chromium.text(".qt-dock"), "the dock shows the job", seconds=SLOW_SECONDS)
        end_of(lambda: cells_shown(chromium) > shown, "the page's count of cells rises")
        assert re.search(r"\d+ (s|min) so far|is done", chromium.text(".qt-dock"))
        study.stop()
    chromium.errors()


def is_back(chromium: Browser) -> bool:
    return bool(chromium.js("return !!(window.socket && window.socket.connected && document.querySelector('.qt-measure-summary'))"))


def cells_shown(chromium: Browser) -> int:
    found = re.search(r"([\d,]+)(?: of [\d,]+)?\s+cells measured", str(chromium.js("return document.body.innerText")))
    return int(found[1].replace(",", "")) if found else -1


def test_no_cell_is_measured_twice_after_pause_kill_and_resume(chromium: Browser, study: Study) -> None:
    study.query("CREATE TABLE touched (tensor TEXT, type_name TEXT)")
    for event in ("INSERT", "UPDATE"):
        body = "BEGIN INSERT INTO touched VALUES (NEW.tensor, NEW.type_name); END"
        study.query(f"CREATE TRIGGER touched_{event} AFTER {event} ON cells {body}")
    with serving(study.home) as server:
        chromium.enter(server, study.page)
        fill_in(chromium)
        begin(chromium, study)
        (worker,) = study.workers()
        chromium.find(".qt-dock")
        chromium.click("Pause")
        end_of(lambda: study.query("SELECT requested = 'pause' OR state = 'paused' FROM jobs")[0][0] == 1, "the pause is asked for")
        kill(worker)
        before = study.n_cells
        assert 0 < before < N_TENSORS * len(FEW)
        chromium.until(lambda: chromium.button("Resume"), "the job can be resumed", seconds=SLOW_SECONDS)
        assert study.n_cells == before
        chromium.click("Resume")
        end_of(lambda: study.n_cells >= N_TENSORS * len(FEW), "all cells are measured")
        study.stop()
        assert chromium.errors() == []
    assert study.query("SELECT MAX(n) FROM (SELECT COUNT(*) AS n FROM touched GROUP BY tensor, type_name)") == [(1,)]
    assert study.query("SELECT COUNT(DISTINCT tensor || type_name) FROM touched") == [(N_TENSORS * len(FEW),)]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        psutil.Process(pid).wait(10)
    except (ProcessLookupError, psutil.Error):
        return


def test_the_time_left_is_a_range_beside_the_elapsed_time(chromium: Browser, study: Study) -> None:
    with serving(study.home) as server:
        chromium.enter(server, study.page)
        fill_in(chromium, types=(*FEW, "IQ2_S", "IQ4_XS", "Q5_K"))
        begin(chromium, study)
        chromium.until(
            lambda: re.search(r"\d+ (s|min) so far, \d+.* to \d+.* (s|min) left in this stage", chromium.text(".qt-dock")),
            "a range is told",
            seconds=SLOW_SECONDS,
        )
        assert re.search(r"1 of 2: measure", chromium.text(".qt-dock"))
        assert re.search(r"weights per second", chromium.text(".qt-dock"))
        study.stop()
        assert chromium.errors() == []


class FullDisk(Server):
    """A server on a machine whose disk is full."""

    def __init__(self, home: Path, free_bytes: int) -> None:
        script = (
            "import sys; from quantailor.service import machine; from quantailor import cli; "
            f"machine.free_disk_bytes = lambda path: {free_bytes}; "
            "sys.exit(cli.run(sys.argv[1:]))"
        )
        self.home = home
        command = [sys.executable, "-c", script, "gui", "--no-browser", "--home", str(home)]
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "NICEGUI_"))}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=plain)
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.port, self.token = self._address()
        self._answering()


def test_too_little_disk_blocks_the_start_and_names_the_shortfall(chromium: Browser, study: Study) -> None:
    server = FullDisk(study.home, free_bytes=1 << 20)
    try:
        chromium.enter(server, study.page)
        chromium.sees("Cannot start: needs", seconds=SLOW_SECONDS)
        told = chromium.text(".qt-start-bar [role=alert]")
        assert re.search(rf"needs [\d.]+ MiB on {re.escape(str(study.home))}, 1.00 MiB free: free [\d.]+ MiB", told), told
        assert not chromium.button("Start measuring").is_enabled()
        assert study.query("SELECT COUNT(*) FROM jobs") == [(0,)]
        chromium.js("document.querySelector('.qt-preset').click()")
        chromium.until(lambda: chromium.button("Start measuring").is_enabled(), "a quick study needs no disk", seconds=SLOW_SECONDS)
        assert chromium.errors() == []
    finally:
        server.stop()
