"""The rounding of files and measurements on the pages: the switch of Build, the two measurements of Measure, what Model lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Command
from visitor import Visitor

from quantailor.app.library.projects import list_projects
from quantailor.session import Workspace

pytestmark = pytest.mark.slow

FEW = ("--chunks", 2, "--n-ctx", 64, "--threads", 1)


def place(home: Path) -> str:
    with Workspace.open(home) as workspace:
        (project,) = list_projects(workspace)
        return f"/p/{project.fingerprint[:16]}"


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
