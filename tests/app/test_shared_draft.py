"""One draft, many hands: threads, answers that come late, and another process."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from commands import Command, Workbench

from quantailor.app.choosing.drafts import Draft
from quantailor.app.choosing.planner import Planner
from quantailor.app.choosing.shared_draft import SharedDraft
from quantailor.errors import StrategyError
from quantailor.records import Strategy
from quantailor.session import Workspace
from quantailor.steps.plan import PlanOptions
from small_base import write_small_base

SMALL, LARGE = PlanOptions(size_bytes=4_000_000), PlanOptions(size_bytes=9_000_000)
FIRST, SECOND = "output.weight", "blk.0.ffn_down.weight"


@pytest.fixture
def workspace(workbench: Workbench, tmp_path: Path) -> Iterator[Workspace]:
    shutil.copytree(workbench.home, tmp_path / "home")
    with Workspace.open(tmp_path / "home") as opened:
        yield opened


@pytest.fixture
def planner(workspace: Workspace, workbench: Workbench) -> Iterator[Planner]:
    with Planner.open(workspace, workbench.base) as opened:
        yield opened


@pytest.fixture
def shared(workspace: Workspace) -> SharedDraft:
    return SharedDraft(workspace, "draft", lambda planner: SMALL)


def setting(planner: Planner, name: str, type_name: str) -> Callable[[Draft], str]:
    return lambda draft: draft.set_type(planner, [name], type_name)


class Held:
    """A planner whose answers wait until they are let go."""

    def __init__(self, planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_asked = 0
        self._asked, self._free, self._solve = threading.Semaphore(0), threading.Event(), planner.solve
        monkeypatch.setattr(planner, "solve", self.solve)

    def solve(self, *arguments: object) -> Strategy:
        answer = self._solve(*arguments)  # type: ignore[arg-type]
        self._asked.release()
        assert self._free.wait(60)
        return answer

    def ask(self, shared: SharedDraft, planner: Planner, options: PlanOptions) -> Callable[[], str | None]:
        """Begin to solve in a thread; the result lets all answers go and waits for this one."""
        said: list[str | None] = []
        thread = threading.Thread(target=lambda: said.append(shared.solve(planner, options)))
        thread.start()
        assert self._asked.acquire(timeout=60)

        def answer() -> str | None:
            self._free.set()
            thread.join(60)
            return said[0]

        return answer


def test_edits_pins_and_unpins_during_a_solve_stay(shared: SharedDraft, planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    shared.change(planner, setting(planner, SECOND, "Q3_K"))
    held = Held(planner, monkeypatch)
    answer = held.ask(shared, planner, LARGE)
    kept_at = shared.latest(planner).types["blk.3.attn_q.weight"]
    shared.change(planner, setting(planner, FIRST, "IQ3_XXS"))
    shared.change(planner, lambda draft: draft.pin(["blk.3.attn_q.weight"]))
    shared.change(planner, lambda draft: draft.unpin([SECOND]))
    before = shared.latest(planner)
    assert answer() is not None
    draft = shared.latest(planner)
    assert draft.pins == {FIRST: "IQ3_XXS", "blk.3.attn_q.weight": kept_at}
    assert draft.types.items() >= draft.pins.items()
    assert draft.types[SECOND] == "Q3_K", "it was pinned when the rule was asked"
    assert draft.options == LARGE
    assert len({name for name, type_name in draft.types.items() if before.types[name] != type_name}) > 10
    reasons = {choice.name: choice.reason for choice in draft.strategy(planner).tensors if choice.pinned}
    assert reasons == dict.fromkeys(draft.pins, "set by hand")
    shared.change(planner, Draft.undo, is_edit=False)
    assert (shared.latest(planner).types, shared.latest(planner).pins) == (before.types, before.pins), "the answer is one step of undo"


def test_an_answer_that_nobody_waits_for_any_more_is_dropped(
    shared: SharedDraft, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.change(planner, setting(planner, FIRST, "Q3_K"))
    held = Held(planner, monkeypatch)
    first = held.ask(shared, planner, SMALL)
    second = held.ask(shared, planner, LARGE)
    assert (first(), second() is None) == (None, False)
    assert shared.latest(planner).options == LARGE
    held = Held(planner, monkeypatch)
    answer = held.ask(shared, planner, SMALL)
    shared.change(planner, Draft.undo, is_edit=False)
    undone = shared.latest(planner)
    assert answer() is None
    assert shared.latest(planner) is undone


def test_a_refused_edit_changes_nothing(shared: SharedDraft, planner: Planner) -> None:
    before = shared.latest(planner)
    with pytest.raises(ValueError, match="refused"):
        shared.change(planner, lambda draft: refuse(draft))
    assert shared.latest(planner) is before
    assert Draft.from_json(before.to_json(), "draft").types == before.types


def refuse(draft: Draft) -> str:
    draft.types.clear()
    raise ValueError("refused")


EDITOR = """
import sys
from pathlib import Path
from quantailor.app.choosing.planner import Planner
from quantailor.app.choosing.shared_draft import SharedDraft
from quantailor.session import Workspace
from quantailor.steps.plan import PlanOptions

home, base, pattern = sys.argv[1:]
with Workspace.open(Path(home)) as workspace, Planner.open(workspace, Path(base)) as planner:
    shared = SharedDraft(workspace, "draft", lambda planner: PlanOptions(size_bytes=4_000_000))
    print("ready", flush=True)
    sys.stdin.readline()
    for name in planner.matching(pattern):
        shared.change(planner, lambda draft: draft.set_type(planner, [name], "Q6_K"))
"""


@pytest.mark.slow
def test_two_processes_lose_no_edit(workspace: Workspace, planner: Planner, shared: SharedDraft, workbench: Workbench) -> None:
    command = [sys.executable, "-c", EDITOR, str(workspace.home.path), str(workbench.base), "ffn_*"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("\n")
        other.stdin.flush()
        for name in planner.matching("attn_*"):
            shared.change(planner, setting(planner, name, "Q8_0"))
        assert other.wait(120) == 0
    pins = {**dict.fromkeys(planner.matching("attn_*"), "Q8_0"), **dict.fromkeys(planner.matching("ffn_*"), "Q6_K")}
    draft = shared.latest(planner)
    assert draft.pins == pins
    assert draft.types.items() >= pins.items()
    with Workspace.open(workspace.home.path) as later:
        assert SharedDraft(later, "draft", lambda planner: LARGE).latest(planner).pins == pins


def test_a_draft_that_was_deleted_meanwhile_is_begun_anew(workspace: Workspace, planner: Planner, shared: SharedDraft) -> None:
    shared.change(planner, setting(planner, FIRST, "Q8_0"))
    workspace.store.forget_draft(planner.model.fingerprint, "draft")
    shared.change(planner, setting(planner, SECOND, "Q8_0"))
    assert shared.latest(planner).pins == {SECOND: "Q8_0"}


def test_a_draft_keeps_what_another_measurement_knows(shared: SharedDraft, planner: Planner) -> None:
    before = shared.latest(planner)
    more = replace(before.copy(), types={**before.types, "blk.9.attn_q.weight": "Q4_K"}, pins={"blk.9.attn_q.weight": "Q4_K"})
    loaded = Draft.from_json(more.to_json(), "draft").covering(planner)
    loaded.solve(planner, LARGE)
    assert loaded.types["blk.9.attn_q.weight"] == "Q4_K"
    assert loaded.pins == {"blk.9.attn_q.weight": "Q4_K"}
    assert set(loaded.strategy(planner).types) == planner.measured


@pytest.mark.slow
def test_a_measurement_that_runs_takes_no_type_and_no_pin_away(quantailor: Command, tmp_path: Path) -> None:
    base, home, text = write_small_base(tmp_path / "base.gguf"), tmp_path / "home", tmp_path / "text.txt"
    text.write_text("The tailor took the measure of the cloth, and cut it. " * 60, encoding="utf-8")

    def run(*words: object) -> None:
        assert quantailor(*words, "--home", home).code == 0

    run("imatrix", base, "-f", text, "--n-ctx", 64, "--chunks", 2, "--threads", 1)
    run("measure", base, "--types", "Q8_0,Q5_K,Q4_K,Q2_K,IQ2_XXS")
    with Workspace.open(home) as workspace:
        shared = SharedDraft(workspace, "draft", lambda planner: PlanOptions(bits_per_weight=4.6))
        with Planner.open(workspace, base) as planner:
            shared.change(planner, setting(planner, FIRST, "Q5_K"))
            shared.change(planner, setting(planner, SECOND, "IQ2_XXS"))
        run("imatrix", base, "-f", text, "--n-ctx", 64, "--chunks", 1, "--threads", 1)
        # Another measurement begins: some tensors at one type, some at two, then all at two.
        for types, tensors in (("Q4_K", "blk.0.*"), ("Q8_0", "blk.0.attn_q.weight"), ("Q4_K,Q8_0", "*")):
            run("measure", base, "--types", types, "--tensors", tensors)
            before = shared.latest(planner)
            with Planner.open(workspace, base) as planner:
                assert planner.n_unmeasured == 0
                assert shared.latest(planner).strategy(planner).types == before.types
                for bits in (3.2, 6.0):
                    assert shared.solve(planner, PlanOptions(bits_per_weight=bits)) is not None
                    draft = shared.latest(planner)
                    assert draft.pins == {FIRST: "Q5_K", SECOND: "IQ2_XXS"}
                    assert draft.types.items() >= draft.pins.items()
                    assert set(draft.types.values()) <= {"Q8_0", "Q5_K", "Q4_K", "Q2_K", "IQ2_XXS"}, "nothing became 16-bit"
                    assert draft.strategy(planner).types == draft.types
                shared.change(planner, setting(planner, "blk.1.ffn_up.weight", "Q2_K"))
                shared.change(planner, Draft.undo, is_edit=False)
        save = tmp_path / "s.yaml"
        run("drafts", base, "--save", "draft", "-o", save)
        run("build", base, save, "-o", tmp_path / "out.gguf")
        run("check", tmp_path / "out.gguf", save, "--base", base)


def test_a_draft_that_has_yet_to_be_begun_is_shown_at_once_about_as_it_will_be(
    shared: SharedDraft, planner: Planner, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(planner, monkeypatch)
    thread = threading.Thread(target=lambda: shared.latest(planner))
    thread.start()
    assert held._asked.acquire(timeout=60)
    glimpse = shared.glimpse(planner)
    assert workspace.store.draft(planner.model.fingerprint, "draft") is None, "nothing is kept before the rule has answered"
    held._free.set()
    thread.join(60)
    begun = shared.latest(planner)
    assert glimpse.types.keys() == begun.types.keys()
    sizes = [planner.evaluate(draft.types).prediction.file_size_bytes for draft in (glimpse, begun)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    assert shared.glimpse(planner) == begun, "and once it is there it is what is shown"
    again = SharedDraft(workspace, "draft", lambda planner: LARGE)
    assert again.glimpse(planner).types == begun.types, "as it is by a server that was started since"


def test_a_thread_that_solves_holds_up_no_preview(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, free = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> None:
        asked.set()
        assert free.wait(60)
        raise StrategyError("no answer")

    monkeypatch.setattr("quantailor.app.choosing.planner.plan.solve", slow)

    def solve() -> None:
        with pytest.raises(StrategyError):
            planner.solve(SMALL)

    thread = threading.Thread(target=solve)
    thread.start()
    assert asked.wait(60)
    previews: list[object] = []
    other = threading.Thread(target=lambda: previews.append(planner.preview(SMALL, 4_000_000)))
    other.start()
    other.join(20)
    free.set()
    thread.join(60)
    assert previews, "the slider waited for the rule"
