"""The demonstration: one click on the first page leads to Choose, with predictions, without any measuring."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tools.pack_demo import pack_demo
from visitor import Visitor

from quantailor.app.choosing.planner import Planner
from quantailor.app.library import demo
from quantailor.app.library.projects import list_projects
from quantailor.app.steps import PlanOptions
from quantailor.session import Workspace

TRY = "Try it on a small model, already measured"


def test_the_first_page_offers_a_measured_model_on_which_choose_works(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    page = visit(tmp_path)
    page.go("/")
    page.click(TRY)
    page.until(lambda: page.address.endswith("/choose"), "Choose opens")
    page.until(lambda: "bytes" in page.text(".qt-choose-top"), "the size is shown")
    assert "KLD" in page.text(".qt-choose-top"), "a KLD is predicted"
    page.go("/")
    assert TRY not in page.text()


@pytest.mark.slow
def test_a_tour_of_three_steps_leads_through_choose_once_in_a_home(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    page = visit(tmp_path)
    page.go("/")
    page.click(TRY)
    page.sees("1 of 3")
    assert "Drag the dot along the curve" in page.text(".qt-tour")
    assert page.all(".qt-choose-top.qt-tour-place"), "the page shows what the step speaks of"
    page.click("Next")
    assert "2 of 3" in page.text(".qt-tour")
    assert page.all(".qt-choose-map.qt-tour-place")
    page.click("Back")
    page.click("Next")
    page.click("Next")
    assert "Build the file" in page.text(".qt-tour")
    page.reload()
    page.sees("1 of 3")  # whoever left half-way begins again
    page.trigger(page.find(".qt-tour"), "keydown.escape")
    assert not page.all(".qt-tour")
    assert not page.all(".qt-tour-place")
    page.reload()
    page.button("Show the tour")
    assert not page.all(".qt-tour"), "it was seen in this home"
    page.click("Show the tour")
    page.sees("1 of 3")


@pytest.mark.slow
def test_from_the_demonstration_it_goes_on_to_a_built_file(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    page = visit(tmp_path, tmp_path)
    page.go("/")
    page.click(TRY)
    page.until(lambda: "bytes" in page.text(".qt-choose-top"), "the size is shown")
    page.go(page.address.replace("/choose", "/build"))
    page.sees("the same model as a 16-bit GGUF file of 16.02 MiB")
    page.click("Write the base")
    page.sees("the file that a strategy describes")
    page.until(lambda: page.field("File name").value, "the page has come back with what it can build now", seconds=60)
    assert page.button("Build").visible


def test_opening_it_again_changes_nothing_that_is_known(tmp_path: Path) -> None:
    with Workspace.open(tmp_path) as workspace:
        first = demo.open_demo(workspace)
        known = workspace.store.result_rows()
        assert demo.open_demo(workspace).n_cells == first.n_cells
        assert workspace.store.result_rows() == known
        assert [project.fingerprint for project in list_projects(workspace)] == [first.fingerprint]
        assert first.source is not None
        with Planner.open(workspace, Path(first.source)) as desk:
            assert desk.solve(PlanOptions(bits_per_weight=4.5)).prediction.kld_nats  # type: ignore[union-attr]


def test_what_is_packed_is_what_is_opened(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "books-llama").symlink_to(demo.PLACE / "books-llama")
    assert demo.demo_model(place) is None, "there are no measurements"
    with Workspace.open(tmp_path / "one") as workspace:
        project = demo.open_demo(workspace)
        pack_demo(workspace, project.fingerprint, place)
        known = workspace.store.result_rows()
    assert demo.demo_model(place) is not None
    with Workspace.open(tmp_path / "two") as workspace:
        demo.open_demo(workspace, place)
        assert workspace.store.result_rows() == known
