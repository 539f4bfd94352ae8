"""What surrounds every screen: the rail, the dock, and what is said where there is nothing to show."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from nicegui import app
from visitor import Visitor, marks

from quantailor.app.jobs import submit
from quantailor.app.library.projects import list_projects, open_project
from quantailor.gui import pages
from quantailor.session import Workspace
from quantailor.steps.measure import MeasureStep
from tiny_models import write_tiny


def opened(home: Path, model: Path) -> str:
    with Workspace.open(home) as workspace:
        return f"/p/{open_project(workspace, model).fingerprint[:16]}"


def test_an_unconverted_model_is_not_said_to_be_gone(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    place = opened(tmp_path / "home", write_tiny("mixtral", tmp_path / "mixtral"))
    page = visit(tmp_path / "home", tmp_path)
    for screen in ("build", "verify", "experts"):
        page.go(f"{place}/{screen}")
        page.sees("There is no GGUF base yet")
        assert "gone" not in page.text()
        assert page.button("Measure").visible
    dense = opened(tmp_path / "home", write_tiny("mistral", tmp_path / "mistral"))
    page.go(f"{dense}/experts")
    page.sees("is dense")


def test_only_what_was_done_is_ticked(visit: Callable[..., Visitor], small_base: Path, tmp_path: Path) -> None:
    place = opened(tmp_path / "home", small_base)
    page = visit(tmp_path / "home")
    page.go(f"{place}/model")
    page.sees("Continue: Measure")
    assert marks(page) == {
        "Model": "✓", "Structure": "2", "Measure": "3", "Choose": "4", "Build": "5", "Verify": "6", "Compare models": "compare_arrows",
    }  # fmt: skip
    page.go("/")
    page.sees("Continue: Measure")
    assert "·" not in marks(page).values()


def test_a_paused_job_shows_behind_later_ones_that_ended(visit: Callable[..., Visitor], small_base: Path, tmp_path: Path) -> None:
    opened(tmp_path / "home", small_base)
    with Workspace.open(tmp_path / "home") as workspace:
        ids = [submit(workspace, MeasureStep(base=str(small_base), types=(name,))) for name in ("Q8_0", "Q4_0", "Q5_0")]
    set_states(tmp_path / "home", dict(zip(ids, ("paused", "failed", "cancelled"), strict=True)))
    page = visit(tmp_path / "home")
    page.go("/")
    page.until(lambda: "is paused" in page.text(".qt-dock"), "the paused job is shown")
    assert page.button("Resume").visible
    assert page.button("Cancel the job").text == "Cancel"
    assert page.button("+1 failed").visible


def set_states(home: Path, states: dict[int, str]) -> None:
    with closing(sqlite3.connect(home / "quantailor.db")) as database, database:
        database.executemany("UPDATE jobs SET state = ? WHERE id = ?", [(state, job) for job, state in states.items()])


def test_one_of_a_kind_is_singular(visit: Callable[..., Visitor], run: Callable[..., object], small_base: Path, tmp_path: Path) -> None:
    run("measure", small_base, "--types", "Q8_0")
    run("plan", small_base, "--bpw", 9, "-o", tmp_path / "s.yaml")
    page = visit(tmp_path / "home")
    page.go("/")
    page.sees("1 strategy")
    with Workspace.open(tmp_path / "home") as workspace:
        (project,) = list_projects(workspace)
    page.go(f"/p/{project.fingerprint[:16]}/model")
    page.sees("1 strategy.")


def test_an_address_that_leads_nowhere_has_a_way_back(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    page = visit(tmp_path / "home")
    found = page.fetch("/nothing/here", accept="text/html")
    assert found.status_code == 404
    assert "There is nothing at /nothing/here." in found.text
    assert "To the projects" in found.text
    assert page.fetch("/nothing.css", accept="text/css").text == "404: Not Found\n"


def test_a_page_that_fails_says_so_and_has_a_way_back(
    visit: Callable[..., Visitor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = visit(tmp_path / "home")

    def broken(_: object) -> None:
        raise RuntimeError("the moon is full")

    monkeypatch.setattr(app, "_exception_handlers", [])
    monkeypatch.setitem(pages.home.__globals__, "list_projects", broken)
    found = page.fetch("/", accept="text/html")
    assert found.status_code == 500
    assert "This is a fault in Quantailor, not something you did: RuntimeError: the moon is full." in found.text
    assert "To the projects" in found.text
