"""axe-core on every screen in both themes: no serious or critical finding; and no window cuts anything off."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, Server, serving
from hub_server import HubServer, running_hub
from selenium.webdriver.common.keys import Keys
from studied import SCREENS, screen_path

from quantailor.app.jobs import submit
from quantailor.app.steps import MeasureStep
from quantailor.session import Workspace

pytestmark = pytest.mark.slow
_RUN = """
const [within, done] = arguments;
axe.run(within || document, {resultTypes: ['violations']}).then(found => done(found.violations), error => done(String(error)));
"""
"""What axe finds wrong in what a selector matches, or in all of the page."""
_CUT_OFF = """
const scrolls = part =>
  part && !part.matches('.qt-main') && (getComputedStyle(part).overflowX !== 'visible' || scrolls(part.parentElement));
return [...document.querySelectorAll('.qt-main *')]
  .map(part => [part, part.getBoundingClientRect()])
  .filter(([part, box]) => box.width && box.right > innerWidth + 2 && !scrolls(part.parentElement))
  .map(([part]) => part.tagName + '.' + part.className);
"""
"""What lies beyond the right edge of the window and nowhere within something that scrolls."""
_SQUEEZED = """
return [...document.querySelectorAll('.qt-main *, .qt-dock *')]
  .map((part) => [part, [...part.childNodes].filter((it) => it.nodeType === 3).map((it) => it.textContent).join(' ').trim()])
  .filter(([part, words]) => words.length > 24 && words.includes(' ') && part.clientWidth && part.clientWidth < 80)
  .filter(([part]) => part.clientHeight > 90)
  .map(([part, words]) => part.className + ': ' + words);
"""
"""Sentences that stand in a column of a word or less."""
_OUT_OF_CARD = """
const scrolls = (part, card) => part !== card && (getComputedStyle(part).overflowX !== 'visible' || scrolls(part.parentElement, card));
return [...document.querySelectorAll('.qt-card')].flatMap((card) => [...card.querySelectorAll('*')]
  .filter((part) => part.clientWidth && !part.closest('svg') && getComputedStyle(part).position !== 'absolute')
  .filter((part) => part.getBoundingClientRect().right > card.getBoundingClientRect().right + 1 && !scrolls(part.parentElement, card))
  .filter(() => getComputedStyle(card).overflowX === 'visible')
  .map((part) => part.tagName + '.' + part.className + ': ' + part.textContent.slice(0, 40)));
"""
"""What sticks out of its card at the right."""
_FITS = """return [...document.querySelectorAll('.qt-choose-grid, .qt-m-grid-table, .qt-probes')].every((grid) => {
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


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub of our own, where nobody is logged in."""
    with running_hub() as server:
        server.use(monkeypatch, tmp_path)
        yield server


_NOTHING_FADES = "return [...document.querySelectorAll('.q-tooltip')].every((tip) => !tip.getAnimations().length);"
_WEARS = "document.body.classList.replace(...(arguments[0] === 'dark' ? ['body--light', 'body--dark'] : ['body--dark', 'body--light']));"
_NO_COLOUR_CHANGES = "return !document.getAnimations().some((animation) => animation instanceof CSSTransition);"
THEMES = ("dark", "light")


def is_free(page: Browser, script: str) -> bool:
    """Whether a script finds nothing."""
    return not page.js(script)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("screen", SCREENS)
def test_no_serious_finding(chromium: Browser, studied_server: Server, axe: str, screen: str, theme: str) -> None:
    chromium.enter(studied_server, screen_path(studied_server.home, screen), theme=theme)
    chromium.settle()
    assert chromium.js("return document.body.classList.contains('body--dark')") == (theme == "dark")
    chromium.js(axe)
    found = chromium.driver.execute_async_script(_RUN, None)
    assert isinstance(found, list), found
    assert _told(found) == []


@pytest.mark.parametrize("screen", SCREENS)
def test_no_window_cuts_anything_off(chromium: Browser, studied_server: Server, screen: str) -> None:
    chromium.enter(studied_server, screen_path(studied_server.home, screen))
    chromium.settle()
    try:
        for width in (375, 640, 800, 1000, 1200, 1280):
            chromium.size(width, 800)
            for script, what in ((_CUT_OFF, "cut off"), (_OUT_OF_CARD, "out of its card"), (_SQUEEZED, "squeezed")):
                chromium.until(partial(is_free, chromium, script), f"nothing is {what} at {width} pixels")
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
    rules = {item["id"] for item in chromium.driver.execute_async_script(_RUN, None)}
    assert {"button-name", "color-contrast"} <= rules


DIALOGS: dict[str, tuple[tuple[str, ...], ...]] = {
    "choose": (("Rule and limits",), ("Compare",), ("Versions and files",)),
    "build": (("Open a file",), ("Browse for: Folder",), ("Compare with a file",)),
    "measure": (("Measure more", "Import a file", "Browse"), ("Compute it from a text of yours", "Browse")),
    "verify": (("Browse for: Save as",),),
    "open": (("Browse",),),
    "model": (("Free disk space …",),),
}
"""Screen -> what is clicked there, one after the other, until a dialog is open; then, when that is closed, until the next one is."""
_CLICK = """
const named = [...document.querySelectorAll('button, .q-radio, .q-item')].find(
  (item) => item.offsetParent && (item.getAttribute('aria-label') === arguments[0] || item.innerText.trim() === arguments[0]
    || [...item.querySelectorAll('*')].some((part) => part.childElementCount === 0 && part.textContent.trim() === arguments[0])));
named?.click();
return !!named;
"""


def no_serious_finding_in_either_theme(chromium: Browser, axe: str, within: str | None, what: object) -> None:
    """Have axe look at a page as it is, first in one theme and then in the other."""
    chromium.js(axe)
    for theme in THEMES:
        chromium.js(_WEARS, theme)
        chromium.until(lambda: bool(chromium.js(_NO_COLOUR_CHANGES)), "no colour changes")
        found = chromium.driver.execute_async_script(_RUN, within)
        assert isinstance(found, list), found
        assert _told(found) == [], (what, theme)


def no_serious_finding_in_the_dialog(chromium: Browser, axe: str, what: object) -> None:
    """Wait for a dialog, and have axe look at it."""
    dialog = chromium.find('.q-dialog[role="dialog"]')
    assert dialog.get_attribute("aria-label"), what
    chromium.until(lambda: chromium.all(".q-dialog .q-card"), "it is open")
    chromium.settle()
    # What lies behind the dialog cannot be seen, and axe takes its colours for others.
    no_serious_finding_in_either_theme(chromium, axe, ".q-dialog", what)


@pytest.mark.long
def test_no_serious_finding_in_open_dialogs(chromium: Browser, studied_server: Server, axe: str) -> None:
    for screen, dialogs in DIALOGS.items():
        chromium.enter(studied_server, screen_path(studied_server.home, screen))
        chromium.settle()
        for clicks in dialogs:
            for label in clicks:
                chromium.until(partial(chromium.js, _CLICK, label), f"{label} is there")
            no_serious_finding_in_the_dialog(chromium, axe, (screen, clicks))
            chromium.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
            chromium.until(lambda: not chromium.all('.q-dialog[role="dialog"]'), "it is closed")


def test_no_serious_finding_in_the_question_before_a_job_is_cancelled(
    chromium: Browser, small_base: Path, axe: str, tmp_path: Path
) -> None:
    with Workspace.open(tmp_path / "home") as workspace:
        submit(workspace, MeasureStep(base=str(small_base), types=("Q8_0",), imatrix="none"))
    with serving(tmp_path / "home") as server:
        chromium.enter(server, "/")
        chromium.click("Cancel the job")
        no_serious_finding_in_the_dialog(chromium, axe, "cancel")
        chromium.click("Keep it")
        chromium.until(lambda: not chromium.all(".q-dialog .q-card"), "it is closed")


def test_no_serious_finding_in_the_choice_of_a_token_file(
    chromium: Browser, hub: HubServer, books_llama_dir: Path, axe: str, tmp_path: Path
) -> None:
    hub.add("books/gated", books_llama_dir, gated="auto")
    with serving(tmp_path / "home", "--allow", str(tmp_path)) as server:
        chromium.enter(server, "/open?model=books/gated")
        chromium.click("Choose a token file")
        no_serious_finding_in_the_dialog(chromium, axe, "token file")


def test_no_serious_finding_in_the_editor_of_a_type_and_in_an_explanation(chromium: Browser, studied_server: Server, axe: str) -> None:
    chromium.enter(studied_server, screen_path(studied_server.home, "choose"))
    chromium.settle()
    chromium.js("document.querySelector('.qt-choose-top [aria-description]').focus()")
    chromium.find(".qt-why")
    chromium.until(lambda: bool(chromium.js(_NOTHING_FADES)), "it has faded in")
    no_serious_finding_in_either_theme(chromium, axe, None, "explanation")
    chromium.find('.ag-row .ag-cell[col-id="type"]').click()
    chromium.find(".qt-type-editor")
    chromium.until(lambda: bool(chromium.js(_NOTHING_FADES)), "the explanation has faded out")
    no_serious_finding_in_either_theme(chromium, axe, None, "editor")
