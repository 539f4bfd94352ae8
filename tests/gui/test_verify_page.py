"""Verify in a browser: the comparison with error bars, its export, the model card, and a measurement from the page."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import Browser, Server, serving
from commands import Workbench
from studied import run
from visitor import Visitor

from made_up_timings import record
from quantailor.app.products.verdicts import find_verdict, verdict_speeds
from quantailor.making.evals import Evaluated, judge
from quantailor.present.charts.echarts import INTERVALS
from quantailor.present.charts.verdict import verdict_points
from quantailor.present.words import figure
from quantailor.records import EvalItem, Verdict
from quantailor.session import Workspace

pytestmark = pytest.mark.slow

SECONDS = 90.0
CHUNKS = 6
CHART = "getElement(document.querySelector('.qt-verdict-chart').id.slice(1)).chart"
REFERENCES = ("Q8_0", "Q6_K", "Q4_K_M")


@pytest.fixture(scope="module")
def verified(measured_home: Path, books_llama_base: Path, share: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A folder with a home, a built file, and a verdict on it beside three presets. Workers share it."""

    def build(folder: Path) -> None:
        shutil.copytree(measured_home, folder / "home")
        strategy, file = folder / "s.yaml", folder / "mine-4.5bpw.gguf"
        run("plan", books_llama_base, "--bpw", 4.5, "-o", strategy, "--home", folder / "home")
        run("build", books_llama_base, strategy, "-o", file, "--home", folder / "home")
        beside = ("--against", ",".join(REFERENCES))
        run("verify", file, "--base", books_llama_base, *beside, "--chunks", CHUNKS, "--home", folder / "home")

    return share("verified", build)


@pytest.fixture(scope="module")
def server(verified: Path) -> Iterator[Server]:
    with serving(verified / "home", "--allow", str(verified)) as running:
        yield running


@pytest.fixture
def place(verified: Path, workbench: Workbench) -> str:
    with Workspace.open(verified / "home") as workspace, workspace.model(workbench.base) as model:
        return f"/p/{model.fingerprint[:16]}/verify"


def latest(home: Path, base: Path) -> Verdict:
    with Workspace.open(home) as workspace, workspace.model(base) as model:
        return find_verdict(workspace, model.fingerprint).verdict


def plotted(browser: Browser) -> dict[str, dict[str, Any]]:
    """The chart's series by name, as ECharts has them; the one that bears our file's name is called "ours"."""
    there = f"return !!document.querySelector('.qt-verdict-chart') && !!({CHART} && {CHART}.getOption())"
    browser.until(lambda: browser.js(there), "the chart is drawn", seconds=SECONDS)
    found = browser.js(f"return {CHART}.getOption().series.map(one => ({{name: one.name, data: one.data}}))")
    own = next(one["name"] for one in found if one["name"].startswith("mine-4.5bpw, ") and not one["name"].endswith(INTERVALS))
    return {"ours" if series["name"] == own else series["name"]: series for series in found}


def bars_of(series: dict[str, dict[str, Any]]) -> list[list[float]]:
    """(size, low, high, whether it is ours) of every interval."""
    return [row for name, one in series.items() if name.endswith(INTERVALS) for row in one["data"]]


def test_ours_stands_beside_the_presets_with_error_bars(
    chromium: Browser, server: Server, place: str, verified: Path, workbench: Workbench
) -> None:
    verdict = latest(verified / "home", workbench.base)
    points = {point.label: point for point in verdict_points(verdict)}
    chromium.enter(server, place)
    series = plotted(chromium)
    assert [item["name"] for item in series["ours"]["data"]] == ["mine-4.5bpw"]
    assert {item["name"] for item in series["llama.cpp's presets"]["data"]} == set(REFERENCES)
    for item in (*series["ours"]["data"], *series["llama.cpp's presets"]["data"]):
        point = points[item["name"]]
        assert item["value"] == pytest.approx([point.size_bytes / 2**20, point.value])
    bars = sorted(bars_of(series))
    assert bars == sorted([point.size_bytes / 2**20, point.low, point.high, int(point.kind == "ours")] for point in points.values())
    assert all(low < high for _, low, high, _ in bars)
    assert verdict.sentence in chromium.text(".qt-sentence")
    for words in ("mine-4.5bpw", *REFERENCES, "the unquantized base", f"{CHUNKS}, of 512 tokens each"):
        assert words in chromium.text("main")
    chromium.click("Perplexity")
    chromium.until(lambda: "perplexity" in chromium.js(f"return {CHART}.getOption().yAxis[0].name"), "perplexity is shown")
    ours = plotted(chromium)["ours"]["data"][0]["value"][1]
    assert ours == next(row for row in verdict.rows if row.kind == "ours").statistics.perplexity.value
    assert not chromium.errors()


def download(browser: Browser, label: str, folder: Path, ending: str) -> Path:
    """Click an export and wait for its file."""
    folder.mkdir(exist_ok=True)
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)})
    browser.click(label)

    def arrived() -> Path | None:
        if list(folder.glob("*.crdownload")):
            return None
        return next((path for path in folder.glob(f"*{ending}") if path.stat().st_size), None)

    return browser.until(arrived, f"a {ending} arrives", seconds=SECONDS)


def test_exports_hold_what_is_plotted(chromium: Browser, server: Server, place: str, tmp_path: Path) -> None:
    chromium.enter(server, place)
    series = plotted(chromium)
    shown = {item["name"]: item["value"] for name in ("ours", "llama.cpp's presets") for item in series[name]["data"]}
    bars = {row[0]: row[1:3] for row in bars_of(series)}
    with download(chromium, "Export as CSV", tmp_path / "csv", ".csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["label"]: [int(row["size_bytes"]) / 2**20, float(row["value"])] for row in rows} == shown
    assert {int(row["size_bytes"]) / 2**20: [float(row["low_95"]), float(row["high_95"])] for row in rows} == bars
    assert download(chromium, "Export as PNG", tmp_path / "png", ".png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in download(chromium, "Export as SVG", tmp_path / "svg", ".svg").read_bytes()
    assert not chromium.errors()


def test_the_model_card_is_shown_and_saved(visit: Callable[..., Visitor], place: str, verified: Path, tmp_path: Path) -> None:
    page = visit(verified / "home", verified, tmp_path)
    page.go(place)
    page.until(lambda: "library_name" in page.text(".qt-front"), "the card is written", seconds=SECONDS)
    front = yaml.safe_load(page.text(".qt-front").strip("-\n "))
    assert front["library_name"] == "gguf"
    assert "quantailor" in front["tags"]
    rendered = page.text(".qt-markdown")
    for words in ("Measured", "Predicted", "Not measured", "mine-4.5bpw.gguf"):
        assert words in rendered
    assert page.field("Save as").value == str(verified / "README.md")
    page.fill("Save as", str(tmp_path / "README.md"))
    page.click("Save")
    page.sees("Saved ")
    saved = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(saved.split("---\n")[1]) == front


def test_figures_have_the_predicted_speed_once_types_are_timed(
    visit: Callable[..., Visitor], place: str, verified: Path, workbench: Workbench, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(verified / "home", tmp_path / "home"))
    page = visit(home, verified)
    page.go(place)
    page.sees("All figures", seconds=SECONDS)
    assert "Tok/s" not in page.text()
    record(home, workbench.base)
    page.go(place)
    page.sees("as predicted for this machine", seconds=SECONDS)
    with Workspace.open(home) as workspace:
        speeds = verdict_speeds(workspace, workbench.base, latest(home, workbench.base))
    assert {"base", "mine-4.5bpw"} <= speeds.keys()  # the references are a copy, which was not read here
    for each in speeds.values():
        assert figure(each.generation_tokens_per_second) in page.text()


def test_what_files_do_is_a_table_where_they_were_asked(
    visit: Callable[..., Visitor], place: str, verified: Path, workbench: Workbench, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(verified / "home", tmp_path / "home"))
    page = visit(home, verified)
    page.go(place)
    page.sees("mine-4.5bpw", seconds=SECONDS)
    assert "What the files do" not in page.text()
    found = latest(home, workbench.base)
    kinds = {row.label: row.kind for row in found.rows}
    answers = {label: [EvalItem(index, (float(index),)) for index in range(10)] for label in kinds}
    with Workspace.open(home) as workspace:
        evals = (judge(Evaluated("greedy", "prose.txt", "0" * 64, answers), kinds),)
        workspace.store.record_verdict(dataclasses.replace(found, evals=evals))
    page.reload()
    page.sees("Greedy text of 32 tokens after 10 prompts of prose.txt", seconds=SECONDS)
    assert page.text().count("4.50 [") == len(kinds)


def test_a_verdict_from_the_page(visit: Callable[..., Visitor], place: str, verified: Path, workbench: Workbench, tmp_path: Path) -> None:
    home = Path(shutil.copytree(verified / "home", tmp_path / "home"))
    page = visit(home, verified)
    page.go(place)
    page.click("Measure a file")
    page.sees("393 of 393 chunks", seconds=SECONDS)
    page.click("Leave IQ4_XS out")  # one of the two around its size
    page.fill("Chunks of 512 tokens", 4)
    page.sees("4 of 393 chunks", seconds=SECONDS)
    page.until(lambda: page.button("Verify").enabled, "it can start")
    page.click("Verify")
    page.sees("4, of 512 tokens each", seconds=SECONDS)
    verdict = latest(home, workbench.base)
    assert [row.label for row in verdict.rows if row.kind == "reference"] == ["Q3_K_M"]
    page.until(lambda: "?verdict=" in page.address, "the address names the verdict")
    page.reload()
    assert verdict.sentence in page.text(".qt-sentence")
    assert page.text(".qt-sentence-text") == "Too early to say: 4 chunks of the 200 that a claim needs."
    assert "Measured: " in page.text(".qt-sentence")
