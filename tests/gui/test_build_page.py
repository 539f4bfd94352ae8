"""Build in a browser: the file is the draft's, and a job outlives the server that started it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Browser, serving, wait_for
from commands import Workbench
from selenium.webdriver.common.keys import Keys
from visitor import Visitor, marks

from quantailor.app.choosing.drafts import Draft
from quantailor.app.choosing.planner import Planner
from quantailor.app.jobs import JobPlace, job_places, list_jobs
from quantailor.app.library.projects import open_project
from quantailor.app.library.structure import inspect
from quantailor.session import Workspace
from quantailor.steps.plan import PlanOptions

pytestmark = pytest.mark.slow

SECONDS = 60.0


@pytest.fixture
def home(workbench: Workbench, tmp_path: Path) -> Path:
    """The measured home with a draft whose embeddings were set by hand."""
    shutil.copytree(workbench.home, tmp_path / "home")
    with Workspace.open(tmp_path / "home") as workspace, Planner.open(workspace, workbench.base) as desk:
        draft = Draft.start(desk, PlanOptions(bits_per_weight=4.5), name="mine")
        draft.set_type(desk, ["token_embd.weight"], "Q6_K")
        draft.save(workspace, desk.model.fingerprint)
    return tmp_path / "home"


def address(home: Path, base: Path, screen: str) -> str:
    with Workspace.open(home) as workspace, workspace.model(base) as model:
        return f"/p/{model.fingerprint[:16]}/{screen}"


def drafted_types(home: Path, base: Path) -> dict[str, str]:
    with Workspace.open(home) as workspace, Planner.open(workspace, base) as desk:
        draft = Draft.load(workspace, desk, "mine")
        assert draft is not None
        return draft.types


def fill(browser: Browser, label: str, content: str) -> None:
    field = browser.find(f'input[aria-label="{label}"]')
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(content)


def ask_for(browser: Browser, folder: Path, name: str) -> None:
    """Wait for the draft's figures, then name the file to build."""
    browser.sees("bytes, exactly", seconds=SECONDS)
    fill(browser, "File name", name)
    fill(browser, "Folder", str(folder))
    browser.sees(f"one file: {folder / name}", seconds=SECONDS)


def types_in(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.type_name for tensor in inspect(path).tensors}


def test_the_file_has_the_draft_s_types(visit: Callable[..., Visitor], home: Path, workbench: Workbench, tmp_path: Path) -> None:
    wanted = drafted_types(home, workbench.base)
    page = visit(home, tmp_path)
    page.go(address(home, workbench.base, "build") + "?draft=mine")
    page.sees("bytes, exactly", seconds=SECONDS)
    kind = str(page.field("File name").value).partition("bpw-")[2].removesuffix(".gguf")
    page.until(lambda: page.field("Compare with").value == f"preset:{kind}", "the preset of its kind stands beside it")
    page.sees(f"llama.cpp's {kind}")
    page.fill("File name", "mine.gguf")
    page.fill("Folder", str(tmp_path))
    page.sees(f"one file: {tmp_path / 'mine.gguf'}", seconds=SECONDS)
    page.sees("ranking only")
    assert "llama-quantize" in page.text(".qt-commands")
    assert marks(page)["Build"] == "5"
    page.click("Build")
    page.sees("exactly as predicted", seconds=SECONDS)
    assert marks(page)["Build"] == "✓"
    page.sees("Every tensor has the type that the strategy says")
    found = types_in(tmp_path / "mine.gguf")
    assert {name: found[name] for name in wanted} == wanted
    assert f"{(tmp_path / 'mine.gguf').stat().st_size:,} bytes, exactly" in page.text()
    assert "mine.gguf" in page.text(".qt-built")
    page.click("Build")
    page.sees("mine.gguf exists")


def is_started_build(place: JobPlace) -> bool:
    return place.job.kind == "build" and not place.is_unclaimed


def test_a_build_outlives_its_server(chromium: Browser, home: Path, workbench: Workbench, tmp_path: Path) -> None:
    place, wanted = address(home, workbench.base, "build"), drafted_types(home, workbench.base)
    with serving(home, "--allow", str(tmp_path)) as server:
        chromium.enter(server, place + "?draft=mine")
        ask_for(chromium, tmp_path, "outlives.gguf")
        chromium.click("Build")
        chromium.sees("outlives.gguf", seconds=SECONDS)
        with Workspace.open(home) as workspace:
            # A job whose server dies before it has started a process for it waits for somebody to start it: see test_dock.
            wait_for(lambda: [each for each in job_places(workspace) if is_started_build(each)], "a process has it", seconds=SECONDS)
            server.kill()
            with serving(home, "--allow", str(tmp_path)) as again:
                chromium.enter(again, place + "?draft=mine")
                chromium.sees("outlives.gguf", seconds=SECONDS)
                wait_for(lambda: list_jobs(workspace)[0].state not in ("queued", "running"), "the job ends", seconds=SECONDS)
                assert (list_jobs(workspace)[0].state, list_jobs(workspace)[0].error) == ("done", None)
                chromium.go(again, place + "?draft=mine")
                chromium.until(lambda: "outlives.gguf" in chromium.text(".qt-built"), "the file is listed", seconds=SECONDS)
    assert types_in(tmp_path / "outlives.gguf").items() >= wanted.items()


def test_without_measurements_the_page_says_what_to_do(visit: Callable[..., Visitor], books_llama_base: Path, tmp_path: Path) -> None:
    with Workspace.open(tmp_path / "home") as workspace:
        open_project(workspace, books_llama_base)
    page = visit(tmp_path / "home")
    for screen, words in (("build", "No strategy yet: measure what each type costs"), ("verify", "Nothing to verify yet")):
        page.go(address(tmp_path / "home", books_llama_base, screen))
        page.sees(words)
    page.go("/p/0123456789abcdef/build")
    page.sees("0 known models")
