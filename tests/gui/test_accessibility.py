"""axe-core on every screen in both themes: no serious or critical finding; and no window cuts anything off."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Server
from studied import SCREENS, screen_path

pytestmark = pytest.mark.slow
_RUN = """
const done = arguments[0];
axe.run(document, {resultTypes: ['violations']}).then(found => done(found.violations), error => done(String(error)));
"""
_CUT_OFF = """
const scrolls = part =>
  part && !part.matches('.qt-main') && (getComputedStyle(part).overflowX !== 'visible' || scrolls(part.parentElement));
return [...document.querySelectorAll('.qt-main *')]
  .map(part => [part, part.getBoundingClientRect()])
  .filter(([part, box]) => box.width && box.right > innerWidth + 2 && !scrolls(part.parentElement))
  .map(([part]) => part.tagName + '.' + part.className);
"""
"""What lies beyond the right edge of the window and nowhere within something that scrolls."""
_FITS = """return [...document.querySelectorAll('.qt-choose-grid, .qt-m-grid-table')].every((grid) => {
    const view = grid.querySelector('.ag-center-cols-viewport');
    return view && view.scrollWidth <= view.clientWidth + 1;
})"""
"""Whether tables of tensors show all that they have without scrolling sideways."""


@pytest.fixture(scope="session")
def axe() -> str:
    """The script; the package that carries it is never imported, for it would want a browser of its own."""
    package = importlib.util.find_spec("axe_playwright_python")
    assert package is not None
    assert package.origin is not None
    return (Path(package.origin).parent / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("screen", SCREENS)
def test_no_serious_finding(chromium: Browser, studied_server: Server, axe: str, screen: str, theme: str) -> None:
    chromium.enter(studied_server, screen_path(studied_server.home, screen), theme=theme)
    chromium.settle()
    assert chromium.js("return document.body.classList.contains('body--dark')") == (theme == "dark")
    chromium.js(axe)
    found = chromium.driver.execute_async_script(_RUN)
    assert isinstance(found, list), found
    assert _told(found) == []
    try:
        for width in (375, 640, 1280):
            chromium.size(width, 800)
            chromium.until(lambda: not chromium.js(_CUT_OFF), f"nothing is cut off at {width} pixels")
            chromium.until(lambda: chromium.js(_FITS), f"tables fit at {width} pixels")
    finally:
        chromium.size(1280, 800)


def _told(violations: Sequence[Any]) -> list[str]:
    """What is wrong and where, for a person."""
    return [
        f"{item['impact']}: {item['id']}: {item['help']}: {node['target']} {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
        for item in violations
        if item["impact"] in ("serious", "critical")
        for node in item["nodes"][:5]
    ]


def test_the_check_finds_what_is_wrong(chromium: Browser, studied_server: Server, axe: str) -> None:
    chromium.enter(studied_server)
    chromium.js("document.querySelector('main').innerHTML += '<button></button><p style=\"color: #888; background: #999\">faint</p>'")
    chromium.js(axe)
    rules = {item["id"] for item in chromium.driver.execute_async_script(_RUN)}
    assert {"button-name", "color-contrast"} <= rules


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_no_serious_finding_in_open_dialogs(chromium: Browser, studied_server: Server, axe: str, theme: str) -> None:
    for screen, button in (
        ("choose", "Rule and limits"),
        ("choose", "Compare"),
        ("choose", "Versions and files"),
        ("build", "Open a file"),
        ("open", "Browse"),
        ("model", "Free disk space …"),
    ):
        chromium.enter(studied_server, screen_path(studied_server.home, screen), theme=theme)
        chromium.settle()
        chromium.click(button)
        dialog = chromium.find('.q-dialog[role="dialog"]')
        assert dialog.get_attribute("aria-label")
        chromium.until(lambda: chromium.all(".q-dialog .q-card"), "it is open")
        chromium.settle()
        chromium.js(axe)
        found = chromium.driver.execute_async_script(_RUN)
        assert isinstance(found, list), found
        for item in found:  # what lies behind the dialog cannot be seen, and axe takes its colours for others
            item["nodes"] = [node for node in item["nodes"] if chromium.all(f".q-dialog {node['target'][0]}")]
        assert _told(found) == [], button
