"""Experts, in a browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Browser, Server
from visitor import Visitor

from quantailor.app.library.experts import experts
from quantailor.app.library.projects import list_projects, open_project
from quantailor.session import Workspace


@pytest.mark.slow
def test_routing_and_sensitivity_by_layer(chromium: Browser, studied_home: Path, studied_server: Server) -> None:
    with Workspace.open(studied_home) as workspace:
        moe, dense = sorted(list_projects(workspace), key=lambda project: project.name, reverse=True)
        report = experts(workspace, Path(moe.base or ""))
        chromium.enter(studied_server, f"/p/{moe.fingerprint[:16]}/experts")
        chromium.sees("By layer")
        shares, importance = chromium.all(".qt-heat")
        for shown, values in ((shares, report.layers[0].shares), (importance, report.layers[0].importance)):
            cells = chromium.js("return [...arguments[0].querySelectorAll('tbody tr:first-child td')].map(cell => cell.innerText)", shown)
            assert cells == [f"{100 * value:.1f}" if value > 0 else "×" for value in values]
        unseen = sum(len(layer.unseen) for layer in report.layers)
        assert chromium.js("return document.querySelector('.qt-heat').innerText.split('×').length - 1") == unseen > 0
        assert "No token of the text reached some experts" in chromium.text("main")
        rows = chromium.js("return [...document.querySelectorAll('.qt-table tbody tr')].map(row => row.innerText.split('\\t'))")
        assert [row[0] for row in rows] == [str(layer.layer) for layer in report.layers]
        marks = {"measured": "±", "drowned": "≤"}
        assert all(marks[layer.tensors[-1].alpha_status] in row[-1] for layer, row in zip(report.layers, rows, strict=True))
        assert "Experts" in chromium.text("nav")
        chromium.go(studied_server, f"/p/{dense.fingerprint[:16]}/experts")
        chromium.sees("Books Llama is dense")
        assert "Experts" not in chromium.text("nav")
        assert chromium.errors() == []


def test_without_an_importance_matrix_it_leads_to_measuring(visit: Callable[..., Visitor], books_moe_base: Path, tmp_path: Path) -> None:
    with Workspace.open(tmp_path / "home") as workspace:
        fingerprint = open_project(workspace, books_moe_base).fingerprint[:16]
    page = visit(tmp_path / "home")
    page.go(f"/p/{fingerprint}/experts")
    page.sees("No counts of the experts yet")
    page.click("Measure")
    page.until(lambda: page.address == f"/p/{fingerprint}/measure", "the button leads on")
