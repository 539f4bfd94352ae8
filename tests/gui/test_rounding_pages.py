"""The rounding of files and measurements on the pages: the switch of Build, the two measurements of Measure, what Model lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Browser, serving
from commands import Command
from nicegui.elements.mixins.disableable_element import DisableableElement
from visitor import Visitor

from gguf_models import write_bert
from quantailor.app.choosing.planner import rounding_choices
from quantailor.app.library.projects import list_projects
from quantailor.app.library.structure import inspect
from quantailor.ggml.reference import quantize_reference
from quantailor.session import Workspace

pytestmark = pytest.mark.slow

PLAIN_TOO = "Compare with its own types, rounded plainly"
FEW = ("--chunks", 2, "--n-ctx", 64, "--threads", 1)


def place(home: Path) -> str:
    with Workspace.open(home) as workspace:
        (project,) = list_projects(workspace)
        return f"/p/{project.fingerprint[:16]}"


def is_greyed(page: Visitor, label: str) -> bool:
    field = page.field(label)
    assert isinstance(field, DisableableElement)
    return not field.enabled


def test_the_switch_says_what_it_lacks_and_then_follows_the_strategy(
    run: Command, visit: Callable[..., Visitor], small_base: Path, calibration_text: Path, tmp_path: Path
) -> None:
    run("measure", small_base, "--types", "Q4_0,Q8_0")
    run("plan", small_base, "--bpw", 6.5, "-o", tmp_path / "plain.yaml")
    page = visit(tmp_path / "home", tmp_path)
    page.go(f"{place(tmp_path / 'home')}/build?file={tmp_path / 'plain.yaml'}")
    page.sees("bytes, exactly")
    assert page.field("Compensated rounding").value is False
    page.sees("It needs input covariances")
    page.fill("Compensated rounding", True)
    page.sees("It cannot start: compensated rounding needs input covariances")

    run("calibrate", small_base, "-f", calibration_text, *FEW)
    run("measure", small_base, "--types", "Q4_0,Q8_0", "--rounding", "compensated")
    run("plan", small_base, "--bpw", 6.5, "-o", tmp_path / "better.yaml")
    page.go(f"{place(tmp_path / 'home')}/build?file={tmp_path / 'better.yaml'}")
    page.sees("more to write")
    assert page.field("Compensated rounding").value is True
    page.sees("which llama-quantize cannot do")
    page.fill("Compensated rounding", False)
    page.sees("--rounding plain")


def test_verify_offers_the_same_types_rounded_plainly(
    run: Command, visit: Callable[..., Visitor], small_base: Path, calibration_text: Path, tmp_path: Path
) -> None:
    text = tmp_path / "short.txt"
    text.write_text(calibration_text.read_text(encoding="utf-8")[:8_000], encoding="utf-8")
    run("calibrate", small_base, "-f", text, *FEW)
    run("measure", small_base, "--types", "Q4_0,Q8_0", "--rounding", "compensated")
    run("plan", small_base, "--bpw", 6.5, "-o", tmp_path / "s.yaml")
    for rounding in ("plain", "compensated"):
        assert run("build", small_base, tmp_path / "s.yaml", "-o", tmp_path / f"{rounding}.gguf", "--rounding", rounding).code == 0
    page = visit(tmp_path / "home", tmp_path)
    page.go(f"{place(tmp_path / 'home')}/verify?built={tmp_path / 'plain.gguf'}")
    page.sees("This file's rounding is plain")
    assert is_greyed(page, PLAIN_TOO)
    page.fill("File", str(tmp_path / "compensated.gguf"))
    page.sees("What compensated rounding alone gains")
    page.fill(PLAIN_TOO, True)
    page.fill("Chunks of 512 tokens", 1)
    page.sees("its types are rounded plainly first")
    judge = ("--base", small_base, "--against", "Q8_0", "--chunks", 1, "--threads", 1)
    assert run("verify", tmp_path / "compensated.gguf", *judge).code == 0
    page.go(f"{place(tmp_path / 'home')}/verify")
    page.sees("Measure it again with")
    assert run("verify", tmp_path / "compensated.gguf", *judge, "--beside", "plain").code == 0
    page.go(f"{place(tmp_path / 'home')}/verify")
    page.sees("against plain rounding")
    assert "Measure it again with" not in page.text()


def test_measure_says_why_a_model_that_predicts_nothing_is_rounded_plainly(
    visit: Callable[..., Visitor], run: Command, tmp_path: Path
) -> None:
    model = write_bert(tmp_path / "bert.gguf")
    run("plan", model, "--bpw", 6)
    page = visit(tmp_path / "home")
    page.go(f"{place(tmp_path / 'home')}/measure")
    page.sees("Rounding stays plain: this model predicts no next token (its attention is not causal")
    assert is_greyed(page, "Compensated rounding")
    assert page.field("Compensated rounding").value is False
    page.until(lambda: page.button("Start measuring").enabled, "the quick study can start")
    page.trigger(page.all(".qt-preset")[1], "click")
    page.sees("it cannot be probed. Choose Quick.")
    assert not page.button("Start measuring").enabled


def test_choose_plans_for_either_rounding(
    run: Command, visit: Callable[..., Visitor], small_base: Path, calibration_text: Path, tmp_path: Path
) -> None:
    run("calibrate", small_base, "-f", calibration_text, *FEW)
    run("measure", small_base, "--types", "Q4_0,Q8_0", "--rounding", "compensated")
    page = visit(tmp_path / "home")
    page.go(f"{place(tmp_path / 'home')}/choose")
    page.sees("For compensated rounding.")
    run("measure", small_base, "--types", "Q4_0,Q8_0", "--rounding", "plain")
    with Workspace.open(tmp_path / "home") as workspace:
        (project,) = list_projects(workspace)
        choices = {label: key for key, label in rounding_choices(workspace, project.fingerprint).items()}
    page.go(f"{place(tmp_path / 'home')}/choose")
    page.fill("Planned for", choices["plain rounding"])
    page.until(lambda: "draft=draft" in page.address and page.field("Planned for").value == choices["plain rounding"], "planned anew")
    page.go(f"{place(tmp_path / 'home')}/build?draft=draft")
    page.sees("bytes, exactly")
    assert page.field("Compensated rounding").value is False


def test_build_takes_types_that_others_chose(
    run: Command, visit: Callable[..., Visitor], small_base: Path, calibration_text: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.gguf"
    quantize_reference(small_base, other, preset="Q8_0", n_threads=1)
    run("calibrate", small_base, "-f", calibration_text, *FEW)
    page = visit(tmp_path / "home", tmp_path)
    page.go(f"{place(tmp_path / 'home')}/build")
    page.sees("or take the types of a preset")
    page.fill("Strategy", "preset:Q8_0")
    page.sees("bytes, exactly")
    assert page.field("Compensated rounding").value is True
    page.sees("--rounding compensated")
    page.go(f"{place(tmp_path / 'home')}/build?file={other}")
    page.sees("bytes, exactly")
    page.fill("File name", "better.gguf")
    page.fill("Folder", str(tmp_path))
    page.sees(f"one file: {tmp_path / 'better.gguf'}")
    page.click("Build")
    page.sees("Every tensor has the type that the strategy says")
    assert types_in(tmp_path / "better.gguf") == types_in(other)
    page.sees("compensated rounding, ")


def types_in(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.type_name for tensor in inspect(path).tensors}


def test_a_narrow_window_shows_all_of_the_form(chromium: Browser, run: Command, tmp_path: Path) -> None:
    run("plan", write_bert(tmp_path / "bert.gguf"), "--bpw", 6)
    script = (
        "return Math.max(...[...document.querySelectorAll('.qt-preset, .qt-start-bar')].map(part => part.getBoundingClientRect().right))"
    )
    with serving(tmp_path / "home") as server:
        try:
            chromium.size(375, 800)
            chromium.enter(server, f"{place(tmp_path / 'home')}/measure")
            chromium.until(lambda: "Quick: " in chromium.text(".qt-start-bar"), "its cost is known")
            assert chromium.js(script) <= 375
        finally:
            chromium.size(1280, 800)


def test_measure_shows_either_rounding_and_model_lists_covariances(
    run: Command, visit: Callable[..., Visitor], small_base: Path, calibration_text: Path, tmp_path: Path
) -> None:
    run("calibrate", small_base, "-f", calibration_text, *FEW)
    for rounding in ("plain", "compensated"):
        run("measure", small_base, "--types", "Q4_0,Q8_0", "--rounding", rounding)
    page = visit(tmp_path / "home")
    page.go(f"{place(tmp_path / 'home')}/measure")
    page.sees("compensated rounding.")
    page.fill("Rounding that is shown", "plain")
    page.sees("plain rounding.")
    page.until(lambda: "rounding=plain" in page.address, "the address names it")
    page.go(f"{place(tmp_path / 'home')}/measure?rounding=plain")
    page.sees("plain rounding.")
    page.go(f"{place(tmp_path / 'home')}/model")
    page.sees("Input covariances, in use")
