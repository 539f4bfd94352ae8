"""The layer x role map in a browser, on the screens that show it: zoom, selection by role and layer, what it says of a tensor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Browser, Server, serving
from commands import Workbench
from large_home import large_home
from selenium.webdriver.common.action_chains import ActionChains

from quantailor.app.library.projects import list_projects
from quantailor.gui.elements.tensor_map import type_look
from quantailor.session import Workspace

SEEN = "getElement(document.querySelector('.qt-map').id.slice(1))"
"""The map's component in the page."""


@pytest.mark.parametrize(
    ("type_name", "short"), [("Q4_K", "4"), ("Q8_0", "8"), ("IQ3_XXS", "i3"), ("BF16", "16"), ("F32", "32"), ("TQ2_0", "2")]
)
def test_a_cell_has_letters_for_its_type(type_name: str, short: str) -> None:
    look = type_look(type_name)
    assert (look.text, look.short) == (type_name, short)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """A server that knows a measured model of 218 layers, and the model's path."""
    home, project = large_home(tmp_path_factory.mktemp("map"))
    with serving(home) as server:
        yield server, f"/p/{project.fingerprint[:16]}"


@pytest.fixture
def choose(chromium: Browser, workbench: Workbench, request: pytest.FixtureRequest) -> Iterator[Browser]:
    """The Choose screen with a draft of the test's own."""
    with Workspace.open(workbench.home) as workspace:
        path = f"/p/{list_projects(workspace)[0].fingerprint[:16]}/choose?draft={request.node.name}"
    with serving(workbench.home) as server:
        chromium.enter(server, path)
        chromium.find(".qt-choose-grid .ag-row")
        chromium.until(lambda: "bytes" in chromium.text(".qt-choose-top"), "the size is shown")
        yield chromium


def at(browser: Browser, x: float, y: float) -> ActionChains:
    """A pointer at a place of the map's canvas, from its upper left corner."""
    canvas = browser.find(".qt-map canvas")
    browser.js("arguments[0].scrollIntoView({block: 'center'})", canvas)
    return ActionChains(browser.driver).move_to_element_with_offset(
        canvas, round(x - canvas.size["width"] / 2), round(y - canvas.size["height"] / 2)
    )


def cell(browser: Browser, name: str) -> tuple[float, float]:
    """The middle of a tensor's cell."""
    x, y = browser.js(
        f"const map = {SEEN}, cell = map.byName.get(arguments[0]);"
        "return [map.x(cell[2]) + map.columnWidth / 2, (cell[1] + 0.5) * map.rowHeight]",
        name,
    )
    return float(x), float(y)


@pytest.mark.slow
def test_a_role_a_layer_and_a_type_are_selected_by_a_click(choose: Browser) -> None:
    _, y = cell(choose, "blk.0.attn_v.weight")
    at(choose, 20, y).click().perform()
    choose.sees("8 ticked, 1 role")
    x, _ = cell(choose, "blk.3.attn_v.weight")
    at(choose, x, choose.find(".qt-map canvas").size["height"] - 6).click().perform()
    choose.sees("7 ticked, 7 roles")
    kind = choose.find("button.qt-map-kind")
    count = kind.text.split()[-1]
    kind.click()
    choose.sees(f"{count} ticked")
    assert choose.errors() == []


@pytest.mark.slow
def test_the_map_tells_before_and_after_and_counts_types_and_pins(choose: Browser) -> None:
    at(choose, *cell(choose, "blk.1.ffn_up.weight")).perform()
    choose.until(lambda: "BF16 384.00 KiB →" in choose.text(".qt-map-tip"), "the tip tells of the base and the choice")
    assert "damage" in choose.text(".qt-map-tip")
    kinds = choose.js("return [...document.querySelectorAll('button.qt-map-kind')].map(kind => +kind.innerText.split(/\\s+/).pop())")
    assert sum(kinds) == 58
    assert "pinned" not in choose.text(".qt-map-legend")
    choose.find('.ag-row[row-id="output.weight"] .ag-cell[col-id="type"]').click()
    choose.find('.qt-type-option[data-type="Q8_0"]').click()
    choose.until(lambda: "1 pinned" in choose.text(".qt-map-legend"), "the legend counts the pin")
    choose.click("Damage")
    choose.until(lambda: "damage" in choose.text(".qt-map-legend"), "the legend tells of damages")
    assert choose.errors() == []


@pytest.mark.slow
def test_a_deep_model_can_be_zoomed_and_scrolled(chromium: Browser, large: tuple[Server, str]) -> None:
    server, path = large
    chromium.enter(server, f"{path}/structure")
    chromium.sees("5,000 tensors")
    chromium.find(".qt-map canvas")
    chromium.until(lambda: chromium.js(f"return {SEEN}.width > 0"), "the map is there")
    assert chromium.js(f"return {SEEN}.all.length") == 5000
    chromium.sees("llama.cpp")  # cannot run made-up headers: a note above the map, which moves it down
    chromium.find(".qt-map-zoom button:nth-child(2)").click()
    chromium.until(lambda: chromium.js(f"return {SEEN}.zoom") > 1.4, "it is larger")
    chromium.js("document.querySelector('.qt-map-view').scrollLeft = 1e6")
    name = "blk.215.attn_q.weight"
    x, y = cell(chromium, name)
    at(chromium, x, y).click().perform()
    chromium.until(lambda: name in chromium.text(".qt-m-tensor"), "what is clicked after scrolling is what is chosen")
    _, y = cell(chromium, "blk.215.ffn_up.weight")
    at(chromium, 20, y).click().perform()
    chromium.sees("of 5,000 tensors")
    rows = chromium.js("return [...document.querySelectorAll('.ag-center-cols-container [col-id=\"role\"]')].map(cell => cell.innerText)")
    assert set(rows) == {"ffn_up"}
    chromium.click("Show all")
    chromium.find(".qt-map canvas").send_keys("0")
    chromium.until(lambda: chromium.js(f"return {SEEN}.zoom") == 1, "all layers are in sight")
    assert chromium.errors() == []
