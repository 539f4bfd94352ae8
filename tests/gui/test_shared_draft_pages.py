"""Two tabs, a slow rule and a growing measurement: what somebody set by hand stays, and the page says what is so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import Command, Workbench
from visitor import Visitor, words_of

from quantailor.app.choosing.drafts import Draft
from quantailor.app.choosing.planner import Planner
from quantailor.app.library.projects import list_projects
from quantailor.app.steps import PlanOptions
from quantailor.gui.elements.frontier import FrontierControl
from quantailor.gui.elements.tensor_map import TensorMap
from quantailor.gui.elements.thumbnail import Thumbnail
from quantailor.session import Workspace

NAMES = ("output.weight", "blk.0.ffn_down.weight", "blk.3.attn_q.weight")


@dataclass
class HeldRule:
    """Holds every answer of a rule back until `free` is set."""

    asked: threading.Event
    free: threading.Event


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldRule]:
    rule, solve = HeldRule(threading.Event(), threading.Event()), Planner.solve

    def slow(*arguments: object) -> object:
        answer = solve(*arguments)  # type: ignore[arg-type]
        rule.asked.set()
        assert rule.free.wait(60)
        return answer

    monkeypatch.setattr(Planner, "solve", slow)
    rule.free.set()
    yield rule
    rule.free.set()


def path_of(home: Path, draft: str) -> str:
    with Workspace.open(home) as workspace:
        return f"/p/{list_projects(workspace)[0].fingerprint[:16]}/choose?draft={draft}"


def kept(home: Path, base: Path, name: str) -> Draft:
    with Workspace.open(home) as workspace, Planner.open(workspace, base) as planner:
        draft = Draft.load(workspace, planner, name)
        assert draft is not None
        return draft


def opened(page: Visitor, path: str) -> Visitor:
    page.go(path)
    page.until(lambda: "bytes" in page.text(".qt-choose-top"), "the size is shown")
    return page


def set_type(page: Visitor, name: str, type_name: str) -> None:
    """Choose in the table."""
    page.trigger(page.layout, "quantailor-choose", {"kind": "type", "value": [name, type_name]})


def move_slider(page: Visitor, position: int) -> None:
    """Let the handle of the frontier go at so many thousandths of its way, which solves anew."""
    control = next(iter(page.all(kind=FrontierControl)))
    low, high = control.props["range"]
    page.trigger(control, "release", int(low * (high / low) ** (position / 1000)))


def choose(page: Visitor, name: str) -> str:
    """Look at a tensor; what is said of its type."""
    page.trigger(page.layout, "quantailor-choose", {"kind": "row", "value": name})
    page.until(lambda: page.text(".qt-tensor-name") == name, f"{name} is shown")
    return page.text(".qt-reason")


def test_an_edit_during_a_solve_is_kept(visit: Callable[..., Visitor], held: HeldRule, workbench: Workbench) -> None:
    page = opened(visit(workbench.home), path_of(workbench.home, "slow"))
    other = opened(page.tab(), path_of(workbench.home, "slow"))
    before = kept(workbench.home, workbench.base, "slow")
    held.asked.clear()
    held.free.clear()
    move_slider(page, 100)
    page.until(held.asked.is_set, "the rule is asked")
    for editor, name in zip((page, other, page), NAMES, strict=True):
        set_type(editor, name, "IQ4_XS")
    page.until(lambda: set(kept(workbench.home, workbench.base, "slow").pins) == set(NAMES), "all edits are kept while it is solved")
    held.free.set()
    page.until(lambda: kept(workbench.home, workbench.base, "slow").options != before.options, "the answer is taken over")
    after = kept(workbench.home, workbench.base, "slow")
    assert after.pins == dict.fromkeys(NAMES, "IQ4_XS")
    assert {after.types[name] for name in NAMES} == {"IQ4_XS"}
    assert after.types != {**before.types, **after.pins}, "the other tensors have the rule's types"
    for tab in (page, other):
        tab.until(lambda: "IQ4_XS: set by hand" in choose(tab, NAMES[0]), "the page says what is so")  # noqa: B023


@pytest.mark.slow
def test_edits_of_two_tabs_are_both_kept(visit: Callable[..., Visitor], workbench: Workbench, quantailor: Command) -> None:
    path = path_of(workbench.home, "tabs")
    first = opened(visit(workbench.home), path)
    assert quantailor("measure", workbench.base, "--types", "Q4_0", "--home", workbench.home).code == 0
    second = opened(first.tab(), path)
    for tab, name in zip((first, second, first), NAMES, strict=True):
        set_type(tab, name, "IQ4_XS")
    first.until(lambda: kept(workbench.home, workbench.base, "tabs").pins == dict.fromkeys(NAMES, "IQ4_XS"), "all edits are kept")
    for tab in (first, second):
        tab.until(lambda: "\n3\n" in tab.text(".qt-choose-top"), "both tabs count three")  # noqa: B023


@pytest.mark.slow
def test_a_growing_measurement_takes_no_type_and_no_pin_away(
    visit: Callable[..., Visitor], quantailor: Command, books_llama_base: Path, calibration_text: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"

    def measure(tensors: str, *more: object) -> None:
        done = quantailor("measure", books_llama_base, "--tensors", tensors, "--types", "Q4_K,Q6_K,Q8_0,BF16", *more, "--home", home)
        assert done.code == 0, done.err

    def draft() -> Draft:
        return kept(home, books_llama_base, "draft")

    def solve(tab: Visitor, position: int) -> None:
        before = draft().options
        move_slider(tab, position)
        tab.until(lambda: draft().options != before, "solved anew")

    measure("*attn_[qk]*", "--imatrix", "none")
    early = opened(visit(home), path_of(home, "draft"))
    set_type(early, "blk.3.attn_q.weight", "Q8_0")
    measure("*", "--imatrix", "none")
    late = opened(early.tab(), path_of(home, "draft"))
    set_type(late, "output.weight", "Q8_0")
    late.until(lambda: "output.weight" in draft().pins, "the late tab's edit is kept")
    solve(late, 500)
    types = draft().types
    solve(early, 900)
    set_type(early, "blk.0.attn_k.weight", "Q6_K")
    pins = {"blk.3.attn_q.weight": "Q8_0", "output.weight": "Q8_0", "blk.0.attn_k.weight": "Q6_K"}
    early.until(lambda: draft().pins == pins, "no pin is lost")
    now = draft()
    unknown_to_early = {name for name in types if "attn_q" not in name and "attn_k" not in name}
    assert {name: now.types[name] for name in unknown_to_early} == {name: types[name] for name in unknown_to_early}
    assert now.types.items() >= pins.items()
    assert quantailor("imatrix", books_llama_base, "-f", calibration_text, "--chunks", 2, "--threads", 1, "--home", home).code == 0
    measure("*attn_q*")
    newest = opened(early.tab(), path_of(home, "draft"))
    set_type(newest, "blk.1.attn_q.weight", "Q6_K")
    newest.until(lambda: draft().pins == {**pins, "blk.1.attn_q.weight": "Q6_K"}, "nothing is lost")
    assert draft().types == {**now.types, "blk.1.attn_q.weight": "Q6_K"}


@pytest.mark.slow
def test_the_page_shows_about_what_it_will_be_while_the_first_plan_is_made(
    visit: Callable[..., Visitor], held: HeldRule, workbench: Workbench
) -> None:
    held.free.clear()
    page = visit(workbench.home)
    page.go(path_of(workbench.home, "waited-for"))
    page.until(lambda: "being planned" in page.text(".qt-choose-top"), "a size is shown before the rule has answered")
    assert "MiB" in page.text(".qt-choose-top")
    assert "Planning" in page.text(".qt-reason")
    (control,) = page.all(kind=FrontierControl)
    page.until(lambda: control.props["points"], "the curve is there to drag along")
    held.free.set()
    page.until(lambda: "bytes" in page.text(".qt-choose-top"), "the exact size follows")
    assert "Planning" not in page.text(".qt-reason")


@pytest.mark.slow
def test_versions_lie_side_by_side_and_any_two_are_compared(visit: Callable[..., Visitor], workbench: Workbench) -> None:
    with Workspace.open(workbench.home) as workspace, Planner.open(workspace, workbench.base) as planner:
        for name, bits in (("slim", 3.5), ("wide", 6.5), ("other", 5.0)):
            draft = Draft.start(planner, PlanOptions(bits_per_weight=bits), name=name)
            draft.set_type(planner, [NAMES[0]], "Q8_0")
            draft.save(workspace, planner.model.fingerprint)
    page = opened(visit(workbench.home), path_of(workbench.home, "slim"))
    page.click("Versions and files")
    page.until(lambda: {"slim", "wide"} <= set(_versions(page)), "both are there")
    shown = _versions(page)
    assert "open here, 1 pinned" in shown["slim"]
    assert "MiB" in shown["wide"]
    pictures = {picture.props["title"]: picture for picture in page.all(kind=Thumbnail)}
    assert pictures["Types of slim by layer and role"].props["colours"] != pictures["Types of wide by layer and role"].props["colours"]
    page.sees("output.weight to Q8_0")
    page.click("Compare with wide")
    page.sees("tensors differ")
    assert _captions(page) == ["in this draft than in version wide"]
    page.fill("Choice", "draft:wide")
    page.sees("No tensor differs")
    page.fill("Beside", "draft:other")
    page.until(lambda: _captions(page) == ["in version wide than in version other"], "any two can be compared")


def _versions(page: Visitor) -> dict[str, str]:
    """Name -> what its card says."""
    return {str(card.props["aria-label"]).removeprefix("Version "): words_of(card) for card in page.all(".qt-version")}


def _captions(page: Visitor) -> list[str]:
    """What maps of differences say their colours mean."""
    return [each.props["legend"]["caption"] for each in page.all(kind=TensorMap) if each.props["title"] == "Difference by layer and role"]
