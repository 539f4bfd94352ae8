"""Try it: both files write, the first token that differs is marked, and the line that serves the file is there to copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Workbench
from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement
from studied import screen_path
from visitor import Visitor

from quantailor.app.library.projects import list_projects
from quantailor.session import Workspace

pytestmark = pytest.mark.slow


def test_base_and_file_write_side_by_side(visit: Callable[..., Visitor], studied_home: Path) -> None:
    page = visit(studied_home)
    page.go(screen_path(studied_home, "try"))
    page.sees("llama-server -m ")
    page.click("Write")
    said = page.until(lambda: _ended(page), "both have written", seconds=120)
    sides = [[span.text for span in side.descendants() if isinstance(span, TextElement)] for side in page.all(".qt-try-text")]
    assert [len(side) > 0 for side in sides] == [True, True]
    marked = [span.text for span in page.all(".qt-try-differs") if isinstance(span, TextElement)]
    if marked:
        assert len(marked) == 2
        assert f"the base writes “{marked[0].strip()}”, the built file “{marked[1].strip()}”" in said
    else:
        assert sides[0] == sides[1]
    page.click("Write")
    page.until(lambda: _ended(page), "it can be asked again", seconds=120)


def test_no_text_is_refused_in_words(visit: Callable[..., Visitor], studied_home: Path) -> None:
    page = visit(studied_home)
    page.go(screen_path(studied_home, "try"))
    page.fill("Text", "  ")
    page.click("Write")
    page.sees("there is no text to continue")


def test_without_a_built_file_it_leads_to_build(visit: Callable[..., Visitor], workbench: Workbench) -> None:
    page = visit(workbench.home)
    with Workspace.open(workbench.home) as workspace:
        page.go(f"/p/{list_projects(workspace)[0].fingerprint[:16]}/try")
    page.sees("There is no built file to try")
    assert page.button("Build").enabled


def _ended(page: Visitor) -> str | None:
    """What is said once both have come to their end."""
    is_idle = any(button.text == "Write" for button in page.all(kind=ui.button) if isinstance(button, ui.button))
    said = page.text(".qt-try-said")
    return said if is_idle and said not in ("", "Writing …") else None
