"""The Measure screen in a real browser: what it costs, the start, the live map, and measurements that outlive their server."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
from browser import Browser, Server, serving
from commands import Workbench
from nicegui import ui
from selenium.webdriver.common.keys import Keys
from studied import screen_path
from visitor import Visitor, words_of

from quantailor.app.library.projects import list_projects, open_project
from quantailor.app.steps import type_bits
from quantailor.costs import machine
from quantailor.session import Workspace

pytestmark = pytest.mark.slow

SLOW_SECONDS = 90.0
"""What a busy machine may take."""
FEW = ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q8_0", "IQ3_S")
"""The last one takes long enough to be looked at while it is measured."""
LONG = (*FEW, "IQ2_S", "IQ4_XS", "IQ4_NL", "Q5_K", "Q4_0", "Q5_0")
"""More than a test waits for: it looks at the work while it goes on, and then ends it."""
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
    assert before < N_TENSORS * len(LONG), "there is nothing left to measure"
    end_of(lambda: study.n_cells > before, "the count of cells rises")


def end_of(condition: Callable[[], bool], what: str) -> None:
    from browser import wait_for

    wait_for(condition, what, seconds=SLOW_SECONDS)


def test_presets_tell_their_cost_before_the_start(visit: Callable[..., Visitor], workbench: Workbench, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(workbench.home, home)
    with Workspace.open(home) as workspace:
        (project,) = list_projects(workspace)
    page = visit(home)
    page.go(f"/p/{project.fingerprint[:16]}/measure")
    expansion = page.find(".qt-more-form")
    assert isinstance(expansion, ui.expansion)
    page.act(expansion.open)
    for at, title in enumerate(("Quick", "Balanced", "Thorough", "Exhaustive sweep")):
        page.until(partial(has_cost, page, at), f"{title} has its cost", seconds=SLOW_SECONDS)
        assert preset(page, at).startswith(title)
        assert re.search(r"\d+.* to [\d.]+ (s|min|h|days)\n", preset(page, at))
    assert [words_of(card).splitlines()[0] for card in page.all(".qt-preset") if is_pressed(card)] == ["Balanced"]
    stages = [words_of(row).splitlines()[0] for row in page.rows(".qt-stage-costs")]
    assert stages == ["Importance matrix and covariances", "Weight errors", "Probes", "Whole mixes", "In all"]


def test_a_limit_of_time_shortens_the_cost_and_says_when_it_ends(
    visit: Callable[..., Visitor], workbench: Workbench, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    shutil.copytree(workbench.home, home)
    with Workspace.open(home) as workspace:
        (project,) = list_projects(workspace)
    page = visit(home)
    page.go(f"/p/{project.fingerprint[:16]}/measure")
    expansion = page.find(".qt-more-form")
    assert isinstance(expansion, ui.expansion)
    page.act(expansion.open)
    page.until(lambda: "everything is done by" in page.text(".qt-more-form"), "the end is told", seconds=SLOW_SECONDS)
    before = page.text(".qt-stage-costs")

    def shortens(label: str, limit: object) -> None:
        """One limit alone, which is then taken away: nine passes may take no longer than a second."""
        page.fill(label, limit)
        page.until(
            lambda: page.text(".qt-stage-costs") != before if page.all(".qt-stage-costs") else None, "it costs less", seconds=SLOW_SECONDS
        )
        page.fill(label, None)
        page.until(
            lambda: page.text(".qt-stage-costs") == before if page.all(".qt-stage-costs") else None,
            "it costs as much",
            seconds=SLOW_SECONDS,
        )

    shortens("Passes at most", 9)
    shortens("Measure for at most", "1s")
    page.fill("Measure for at most", "soon")
    page.sees("'soon' is not a length of time", seconds=SLOW_SECONDS)
    assert not page.button("Start measuring").enabled


def test_a_text_that_is_not_there_is_told_of_at_its_field_and_leaves_the_costs(visit: Callable[..., Visitor], study: Study) -> None:
    page = visit(study.home)
    page.go(study.page)
    page.fill("Importance matrix", "text")
    page.sees("Name the text.", seconds=SLOW_SECONDS)
    page.until(lambda: has_cost(page, 1), "the level has a cost without the text", seconds=SLOW_SECONDS)
    missing = study.home / "no-such.txt"
    page.fill("Text file", str(missing))
    page.until(lambda: getattr(page.field("Text file"), "error", None), "the field says what is wrong", seconds=SLOW_SECONDS)
    assert "no-such.txt" in str(getattr(page.field("Text file"), "error", ""))
    page.until(lambda: has_cost(page, 1), "the costs are still there", seconds=SLOW_SECONDS)
    assert not page.button("Start measuring").enabled


def is_pressed(element: ui.element) -> bool:
    return bool(element.props.get("aria-pressed") == "true")


def has_cost(page: Visitor, at: int) -> bool:
    return "of memory" in preset(page, at)


def preset(page: Visitor, at: int) -> str:
    return words_of(page.all(".qt-preset")[at])


def chips(page: Visitor) -> dict[str, ui.element]:
    """The chips of the candidate types by their names."""
    return {words_of(chip): chip for chip in page.all(".qt-toggle")}


def pressed(page: Visitor) -> set[str]:
    return {name for name, chip in chips(page).items() if is_pressed(chip)}


def test_types_are_chips_that_can_be_toggled(visit: Callable[..., Visitor], study: Study) -> None:
    page = visit(study.home)
    page.go(study.page)
    usual = pressed(page)
    assert "Q4_K" in usual
    assert "TQ1_0" not in usual
    page.click("All")
    assert pressed(page) == set(type_bits())
    page.trigger(chips(page)["Q4_K"], "click")
    assert "Q4_K" not in pressed(page)
    page.click("Usual")
    assert pressed(page) == usual


def test_a_directory_is_told_to_be_converted_first(visit: Callable[..., Visitor], books_llama_dir: Path, tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        fingerprint = open_project(workspace, books_llama_dir).fingerprint
    page = visit(tmp_path)
    page.go(f"/p/{fingerprint[:16]}/measure")
    page.sees("first converted to a 16-bit GGUF")


def start(page: Visitor, study: Study, types: tuple[str, ...]) -> None:
    """Begin a thorough measurement of these types without an importance matrix."""
    page.go(study.page)
    thorough = next(card for card in page.all(".qt-preset") if words_of(card).startswith("Thorough"))
    page.trigger(thorough, "click")
    for name, chip in chips(page).items():
        if is_pressed(chip) != (name in types):
            page.trigger(chip, "click")
    page.fill("Importance matrix", "none")
    page.sees(f"{len(types)} of {len(type_bits())} types")
    ready = lambda: page.button("Start measuring").enabled and "Thorough: " in page.text(".qt-start-bar")  # noqa: E731
    page.until(ready, "the start is free", seconds=SLOW_SECONDS)
    page.click("Start measuring")
    page.until(lambda: study.n_cells >= 1, "cells are recorded", seconds=SLOW_SECONDS)


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


def test_curves_of_roles_lie_apart_on_an_axis_of_one_notation_and_alpha_is_explained(
    chromium: Browser, studied_home: Path, studied_server: Server
) -> None:
    chart = "getElement(document.querySelector('.qt-bands').id.slice(1)).chart"
    labels = f"return {chart}.getModel().getComponent('yAxis').axis.getViewLabels().map(label => label.formattedLabel)"
    medians = (
        f"return {chart}.getOption().series.filter(line => line.name && line.data.length)"
        ".map(line => [line.name, line.data.map(point => (point.value ?? point).slice(0, 2))])"
    )
    chromium.enter(studied_server, screen_path(studied_home, "measure"))
    chromium.find(".qt-bands canvas, .qt-bands svg")
    chromium.sees("1 is the usual error at that many bits")
    heights: dict[float, set[float]] = {}
    for _, points in chromium.js(medians):
        for bits, height in points:
            heights.setdefault(bits, set()).add(round(height, 4))
    measured = [heights[bits] for bits in (2.625, 4.5, 8.5)]
    assert all(len(each) >= 8 and max(each) > 1.3 * min(each) for each in measured), heights

    def shows(kind: str) -> bool:
        return ("%" in "".join(chromium.js(labels))) == (kind == "Per cent")

    for kind in ("Relative", "Per cent"):
        chromium.click(kind)
        chromium.until(partial(shows, kind), f"the axis is {kind}")
        shown = [label for label in chromium.js(labels) if label]
        assert len(shown) >= 3
        assert len({"e" in label for label in shown}) == 1, shown
    chromium.js("arguments[0].click()", chromium.find('.qt-probes [col-id="tensor"].ag-cell'))
    figure = chromium.find(".qt-chosen-tensor [aria-description]")
    assert figure.text.startswith("alpha ")
    chromium.js("arguments[0].focus()", figure)
    chromium.until(lambda: any("nats of KL divergence" in tip.text for tip in chromium.all(".qt-why")), "alpha is explained")
    assert chromium.errors() == []


def summary(chromium: Browser) -> str:
    return chromium.text(".qt-measure-summary")


def spoken(chromium: Browser) -> str:
    return str(chromium.js("return document.querySelector('.qt-map .qt-sr').textContent"))


@pytest.mark.long
def test_a_job_outlives_its_server_and_the_page_comes_back_by_itself(chromium: Browser, study: Study) -> None:
    first = Server(study.home)
    address = ("--port", str(first.port), "--token", first.token)
    try:
        chromium.enter(first, study.page)
        fill_in(chromium, types=LONG)
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
        end_of(lambda: bool(re.search(r"\d+ (s|min) so far", chromium.text(".qt-dock"))), "the dock tells its time")
        study.stop()
    chromium.errors()


def is_back(chromium: Browser) -> bool:
    return bool(chromium.js("return !!(window.socket && window.socket.connected && document.querySelector('.qt-measure-summary'))"))


def cells_shown(chromium: Browser) -> int:
    found = re.search(r"([\d,]+)(?: of [\d,]+)?\s+cells measured", str(chromium.js("return document.body.innerText")))
    return int(found[1].replace(",", "")) if found else -1


def test_no_cell_is_measured_twice_after_pause_kill_and_resume(visit: Callable[..., Visitor], study: Study) -> None:
    study.query("CREATE TABLE touched (tensor TEXT, type_name TEXT)")
    for event in ("INSERT", "UPDATE"):
        body = "BEGIN INSERT INTO touched VALUES (NEW.tensor, NEW.type_name); END"
        study.query(f"CREATE TRIGGER touched_{event} AFTER {event} ON cells {body}")
    page = visit(study.home)
    start(page, study, FEW)
    (worker,) = study.workers()
    page.click("Pause")
    page.until(
        lambda: study.query("SELECT requested = 'pause' OR state = 'paused' FROM jobs")[0][0] == 1,
        "the pause is asked for",
        seconds=SLOW_SECONDS,
    )
    kill(worker)
    before = study.n_cells
    assert 0 < before < N_TENSORS * len(FEW)
    page.until(lambda: page.button("Resume"), "the job can be resumed", seconds=SLOW_SECONDS)
    assert study.n_cells == before
    page.click("Resume")
    page.until(lambda: study.n_cells >= N_TENSORS * len(FEW), "all cells are measured", seconds=SLOW_SECONDS)
    study.stop()
    assert study.query("SELECT MAX(n) FROM (SELECT COUNT(*) AS n FROM touched GROUP BY tensor, type_name)") == [(1,)]
    # Probes may have begun with types of their own.
    ours = f"SELECT COUNT(DISTINCT tensor || type_name) FROM touched WHERE type_name IN {FEW}"
    assert study.query(ours) == [(N_TENSORS * len(FEW),)]


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        psutil.Process(pid).wait(10)
    except (ProcessLookupError, psutil.Error):
        return


def test_the_time_left_is_a_range_beside_the_elapsed_time(visit: Callable[..., Visitor], study: Study) -> None:
    page = visit(study.home)
    start(page, study, LONG)
    told = (r"\d+ (s|min) so far, \d+.* to \d+.* (s|min) left, done by \d\d:\d\d", "1 of 2: measure", "weights per second")

    def tells_all() -> bool:
        dock = page.text(".qt-dock")
        return all(re.search(words, dock) for words in told)

    page.until(tells_all, "a range is told", seconds=SLOW_SECONDS)
    study.stop()


def test_too_little_disk_blocks_the_start_and_names_the_shortfall(
    visit: Callable[..., Visitor], study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "free_disk_bytes", lambda path: 1 << 20)
    page = visit(study.home)
    page.go(study.page)
    page.sees("Cannot start: needs", seconds=SLOW_SECONDS)
    alert = page.text(".qt-blocked")
    assert re.search(rf"needs [\d.]+ MiB on {re.escape(str(study.home))}, 1.00 MiB free: free [\d.]+ MiB", alert), alert
    assert not page.button("Start measuring").enabled
    assert study.query("SELECT COUNT(*) FROM jobs") == [(0,)]
    page.trigger(page.all(".qt-preset")[0], "click")
    page.fill("Compensated rounding", False)
    page.until(lambda: page.button("Start measuring").enabled, "a quick study of plain rounding needs no disk", seconds=SLOW_SECONDS)
