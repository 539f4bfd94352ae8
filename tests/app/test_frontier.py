"""The frontier of a draft: a curve within limits and pins, with presets and versions beside it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from commands import Workbench

from quantailor.app.choosing.drafts import Draft
from quantailor.app.choosing.frontier import cards, frontier, landmarks
from quantailor.app.choosing.planner import Planner
from quantailor.app.steps import PlanOptions
from quantailor.session import Workspace


@pytest.fixture(scope="module")
def opened(workbench: Workbench) -> Iterator[tuple[Workspace, Planner]]:
    with Workspace.open(workbench.home) as workspace, Planner.open(workspace, workbench.base) as planner:
        yield workspace, planner


def test_larger_files_do_less_damage_and_pins_cost_some(opened: tuple[Workspace, Planner]) -> None:
    _, planner = opened
    free = frontier(planner, PlanOptions())
    assert not free.has_kld, "nothing was probed"
    assert len(free.points) > 10
    assert [point.size_bytes for point in free.points] == sorted({point.size_bytes for point in free.points})
    assert [point.value for point in free.points] == sorted({point.value for point in free.points}, reverse=True)
    held = frontier(planner, PlanOptions(), {"output.weight": "Q2_K"})
    assert held.points[-1].value > free.points[-1].value
    assert frontier(planner, PlanOptions(maximum=("4.6",))).points[-1].size_bytes < 0.6 * free.points[-1].size_bytes


def test_presets_and_versions_lie_beside_it(workbench: Workbench, opened: tuple[Workspace, Planner]) -> None:
    workspace, planner = opened
    Draft.start(planner, PlanOptions(bits_per_weight=5.0)).save(workspace, planner.model.fingerprint, name="five")
    found = {point.label: point for point in landmarks(workspace, planner, "draft", has_kld=False)}
    assert found["five"].kind == "version"
    assert found["Q4_K_M"].kind == "preset"
    for point in found.values():
        best = planner.preview(PlanOptions(), point.size_bytes).prediction.damage
        assert point.value >= 0.99 * best, f"{point.label} would be better than the best"
    assert "five" not in {point.label for point in landmarks(workspace, planner, "five", has_kld=False)}


def test_cards_are_marked_where_the_model_is_of_their_order() -> None:
    assert cards(2**20, 2**24) == []
    assert [label for label, _ in cards(5 * 2**30, 16 * 2**30)] == ["6 GB", "8 GB", "12 GB", "16 GB"]
