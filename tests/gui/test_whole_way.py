"""From a model to a verdict in one browser tab, with nothing done beforehand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from browser import Browser, Server, serving
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from quantailor.app.library.structure import inspect
from quantailor.evidence.presets import preset_size_bytes
from quantailor.session import Workspace

pytestmark = pytest.mark.slow

SECONDS = 300.0
TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
EDITS = dict.fromkeys(("output.weight", "blk.0.ffn_down.weight", "blk.0.ffn_gate.weight"), "Q8_0")


def fill(browser: Browser, label: str, content: str) -> None:
    field = browser.find(f'input[aria-label="{label}"]')
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(content)


def steps_done(browser: Browser) -> list[str]:
    """What the rail has a tick before."""
    return [link.text.removeprefix("✓").strip() for link in browser.all(".qt-step.qt-done") if link.text.startswith("✓")]


def open_model(browser: Browser, server: Server, model: Path) -> None:
    browser.enter(server, "/open")
    browser.find(".qt-main input").send_keys(str(model))
    browser.click("Open")
    browser.click("Look at its structure")
    browser.sees("The 10 largest tensors hold")
    browser.find('nav a[href$="/measure"]').click()


def measure_quick(browser: Browser) -> None:
    browser.sees("Quick")
    browser.js("[...document.querySelectorAll('.qt-preset')].find(card => card.innerText.startsWith('Quick')).click()")
    browser.js(
        """for (const chip of document.querySelectorAll('.qt-toggle'))
             if ((chip.getAttribute('aria-pressed') === 'true') !== arguments[0].includes(chip.firstChild.textContent)) chip.click();""",
        list(TYPES),
    )
    browser.js("[...document.querySelectorAll('.qt-matrix .q-radio')].find(item => item.innerText.includes('None')).click()")
    browser.sees(f"{len(TYPES)} of ")
    browser.click("Start measuring")
    browser.until(lambda: "58\ntensors done" in browser.text(".qt-main"), "all tensors are measured", seconds=SECONDS)
    browser.sees("is done", seconds=SECONDS)


def choose(browser: Browser) -> dict[str, str]:
    """Drag the slider, edit three rows; the table's types."""
    browser.find('nav a[href$="/choose"]').click()
    browser.find(".qt-choose-grid .ag-row", seconds=SECONDS)
    slider = browser.find(".qt-frontier-handle")
    ActionChains(browser.driver).move_to_element(slider).click_and_hold().move_by_offset(-15, 0).release().perform()
    browser.until(lambda: "bytes" in browser.text(".qt-choose-top"), "the size is shown")
    for name, type_name in EDITS.items():
        browser.find(f'.ag-row[row-id="{name}"] .ag-cell[col-id="type"]').click()
        browser.find(f'.qt-type-option[data-type="{type_name}"]').click()
        browser.until(lambda: browser.text(".qt-reason").startswith(f"{type_name}: set by hand"), f"{name} is set")  # noqa: B023
        browser.until(lambda: browser.text(".qt-tensor-name") == name, f"{name} is shown")  # noqa: B023
    browser.until(lambda: "\n3\n" in browser.text(".qt-choose-top"), "three are pinned")
    rows = browser.js(
        """const grid = document.querySelector('.qt-choose-grid'), rows = {};
           getElement(parseInt(grid.id.slice(1))).api.forEachNode(node => { rows[node.id] = node.data.type; });
           return rows;"""
    )
    return {str(name): str(type_name) for name, type_name in rows.items()}


def build(browser: Browser, folder: Path) -> Path:
    browser.click("Build")
    browser.sees("bytes, exactly", seconds=SECONDS)
    fill(browser, "File name", "books.gguf")
    fill(browser, "Folder", str(folder))
    browser.sees(f"one file: {folder / 'books.gguf'}")
    browser.click("Build")
    browser.sees("Every tensor has the type that the strategy says", seconds=SECONDS)
    return folder / "books.gguf"


def verify(browser: Browser) -> str:
    browser.click("Verify")
    browser.sees("chunks", seconds=SECONDS)
    fill(browser, "Chunks of 512 tokens", "4")
    browser.sees("4 of 393 chunks", seconds=SECONDS)
    browser.click("Verify")
    browser.sees("4, of 512 tokens each", seconds=SECONDS)
    browser.sees("--against")
    return browser.text(".qt-main")


@pytest.mark.long
def test_from_a_model_to_a_verdict(chromium: Browser, books_llama_base: Path, tmp_path: Path) -> None:
    model = Path(shutil.copy(books_llama_base, tmp_path / "books-llama.gguf"))
    with serving(tmp_path / "home", "--allow", str(tmp_path)) as server:
        open_model(chromium, server, model)
        measure_quick(chromium)
        assert steps_done(chromium) == ["Model", "Structure", "Measure"]
        wanted = choose(chromium)
        assert {name: wanted[name] for name in EDITS} == EDITS
        built = build(chromium, tmp_path)
        types = {tensor.name: tensor.type_name for tensor in inspect(built).tensors}
        assert {name: types[name] for name in wanted} == wanted
        told = verify(chromium)
        assert "diverges from the base by" in told
        assert steps_done(chromium) == ["Model", "Structure", "Measure", "Choose", "Build", "Verify"]
        with Workspace.open(tmp_path / "sizes") as workspace, workspace.model(model) as opened:
            command = re.search(r"--against (\S+)", told)
            assert command, told
            larger, smaller = (preset_size_bytes(opened, preset, None) for preset in command[1].split(","))
        assert smaller < built.stat().st_size < larger
        assert chromium.errors() == []
