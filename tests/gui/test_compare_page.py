"""Compare models, in a browser."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Browser, Server
from visitor import Visitor

from quantailor.app.library.projects import list_projects
from quantailor.app.measuring.profile_words import profile_findings
from quantailor.app.measuring.reporting import CompareResult, ProfileReport, compare_models
from quantailor.records import Estimate
from quantailor.session import Workspace


@pytest.mark.slow
def test_two_models_side_by_side(
    chromium: Browser, visit: Callable[..., Visitor], studied_home: Path, studied_server: Server, tmp_path: Path
) -> None:
    with Workspace.open(studied_home) as workspace:
        moe, dense = sorted(list_projects(workspace), key=lambda project: project.name, reverse=True)
        a, b = dense.fingerprint[:16], moe.fingerprint[:16]
        chromium.enter(studied_server, f"/compare?a={a}&b={b}")
        chromium.sees("holds most of the sensitivity")
        assert "Only Books Moe has ffn_down_exps" in chromium.text(".qt-findings")
        result = compare_models(workspace, Path(dense.base or ""), Path(moe.base or ""))
        (figure,) = (
            row.share_a.value for row in result.profiles if (row.role, row.depth) == ("output", "outside the blocks") and row.share_a
        )
        maps = chromium.all(".qt-heat")
        assert len(maps) == 2
        assert f"{100 * figure:.2f}" in maps[0].text
        assert "not in this model" in maps[0].text
        assert len(chromium.all(".qt-bars canvas")) == 2
        chromium.click("Swap")
        chromium.until(lambda: chromium.js("return location.search") == f"?a={b}&b={a}", "the address has the models swapped")
        assert chromium.errors() == []
        page = visit(studied_home, tmp_path)
        page.go(f"/compare?a={b}&b={a}")
        _save_and_read(page, tmp_path, [row.role for row in result.profiles])


def _save_and_read(page: Visitor, folder: Path, roles: list[str]) -> None:
    page.sees("Figures by role")
    page.button("Save as CSV")
    page.fill("Folder", "/")
    page.click("Save as CSV")
    page.sees("lies outside the folders")
    page.fill("Folder", str(folder))
    page.click("Save as CSV")
    page.sees("Saved ")
    file = folder / "compare-books-moe-books-llama.csv"
    with file.open(encoding="utf-8") as rows:
        assert sorted(row["role"] for row in csv.DictReader(rows)) == sorted(roles)
    page.click("Save as CSV")
    page.sees("exists")


def test_with_fewer_than_two_it_says_what_to_do(visit: Callable[..., Visitor], tmp_path: Path) -> None:
    page = visit(tmp_path / "home")
    page.go("/compare")
    page.sees("None has been probed yet")
    page.click("Open a model")
    page.until(lambda: page.address == "/open", "the button leads on")


def _row(role: str, depth: str, a: tuple[float, float, float], b: tuple[float, float, float]) -> ProfileReport:
    return ProfileReport(role, depth, Estimate(*a[:2]), Estimate(*b[:2]), a[2], b[2])


def test_the_sentences_name_what_differs_most() -> None:
    rows = (
        _row("attn_v", "all depths", (0.6, 0.01, 0.2), (0.3, 0.01, 0.2)),
        _row("attn_q", "all depths", (0.4, 0.01, 0.8), (0.5, 0.01, 0.7)),
        ProfileReport("attn_k", "all depths", None, Estimate(0.2, 0.01), 0.0, 0.1),
        ProfileReport("ffn_up", "all depths", None, Estimate(0.9, 0.01), None, 0.3),
        _row("attn_q", "0-25 %", (0.1, 0.05, 0.2), (0.2, 0.05, 0.2)),
    )
    assert profile_findings(CompareResult(("One", "Two"), (), rows, (12, 0))) == (
        "In One, attn_v holds most of the sensitivity: 60.0 ± 1.0 %, with 20.0 % of the weights.",
        "In Two, ffn_up holds most of the sensitivity: 90.0 ± 1.0 %, with 30.0 % of the weights.",
        "Of the roles that both have, attn_v differs most: 60.0 ± 1.0 % in One, 30.0 ± 1.0 % in Two.",
        "Within the blocks, attn_q at 0-25 % of the depth differs most: 10.0 ± 5.0 % in One, 20.0 ± 5.0 % in Two (within the error).",
        "Only Two has attn_k.",
        "In One, 12 tensors are not probed or not measured, and left out of all shares.",
    )
    assert profile_findings(CompareResult(("One", "Two"), (), (), (0, 0))) == ()
