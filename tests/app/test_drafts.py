"""Drafts: a rule's answer, edits, undo, versions, files; on real measurements of the dense model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Command, Workbench

from quantailor.app.choosing.drafts import Draft, list_drafts
from quantailor.app.choosing.planner import Planner
from quantailor.app.choosing.versions import versions
from quantailor.app.steps import save_strategy, strategy_text
from quantailor.errors import StrategyError, StrategyMismatchError
from quantailor.session import Workspace
from quantailor.steps import plan as plan_module
from quantailor.steps.plan import PlanOptions
from quantailor.strategy import file as strategy_file

SIZE = 5_000_000


@pytest.fixture
def workspace(workbench: Workbench, tmp_path: Path) -> Iterator[Workspace]:
    shutil.copytree(workbench.home, tmp_path / "home")
    with Workspace.open(tmp_path / "home") as found:
        yield found


@pytest.fixture
def desk(workspace: Workspace, workbench: Workbench) -> Iterator[Planner]:
    with Planner.open(workspace, workbench.base) as found:
        yield found


@pytest.fixture
def draft(desk: Planner) -> Draft:
    return Draft.start(desk, PlanOptions(size_bytes=SIZE))


def test_starts_with_what_plan_answers(workspace: Workspace, workbench: Workbench, draft: Draft, desk: Planner) -> None:
    planned = plan_module.plan(workspace, workbench.base, PlanOptions(size_bytes=SIZE))
    assert draft.types == {choice.name: choice.type_name for choice in planned.tensors}
    assert draft.strategy(desk).prediction == planned.prediction


def test_a_preview_is_near_the_solution_and_within_its_size(desk: Planner, draft: Draft) -> None:
    exact = draft.strategy(desk).prediction
    preview = desk.preview(draft.options, SIZE).prediction
    assert exact is not None
    assert preview.file_size_bytes <= SIZE
    assert preview.damage == pytest.approx(exact.damage, rel=0.02)


def test_one_undo_takes_back_an_edit_of_many(desk: Planner, draft: Draft) -> None:
    before = dict(draft.types)
    names = desk.matching("attn_*")
    assert len(names) == 32
    draft.set_type(desk, names, "Q8_0")
    assert {draft.types[name] for name in names} == {"Q8_0"}
    assert set(draft.pins) == set(names)
    draft.undo()
    assert (draft.types, draft.pins) == (before, {})
    draft.redo()
    assert {draft.types[name] for name in names} == {"Q8_0"}


def test_pins_survive_solving_for_another_size(desk: Planner, draft: Draft) -> None:
    names = desk.matching("layer:2-3")
    draft.set_type(desk, names, "Q6_K")
    for size in (4_000_000, 9_000_000):
        draft.solve(desk, PlanOptions(size_bytes=size))
        assert {draft.types[name] for name in names} == {"Q6_K"}
        strategy = draft.strategy(desk)
        assert strategy.prediction is not None
        assert strategy.prediction.file_size_bytes <= size
        assert {choice.name for choice in strategy.tensors if choice.pinned} == set(names)
    draft.unpin(names)
    draft.solve(desk, PlanOptions(size_bytes=4_000_000))
    assert {draft.types[name] for name in names} != {"Q6_K"}


def test_a_type_that_a_tensor_cannot_take_changes_nothing(desk: Planner, draft: Draft) -> None:
    before = dict(draft.types)
    with pytest.raises(StrategyMismatchError, match="cannot be Q9_Z"):
        draft.set_type(desk, ["output.weight"], "Q9_Z")
    assert draft.types == before
    assert not draft.done


def test_save_load_save_is_byte_identical(desk: Planner, draft: Draft) -> None:
    draft.set_type(desk, ["output.weight"], "Q8_0")
    text = strategy_text(draft.strategy(desk))
    other = Draft.start(desk, PlanOptions(size_bytes=8_000_000))
    other.load_file(desk, text, "edited.yaml")
    assert strategy_text(other.strategy(desk)) == text
    assert other.pins == {"output.weight": "Q8_0"}


def test_a_file_without_a_prediction_gets_one(desk: Planner, draft: Draft) -> None:
    lines = "".join(f"  {name}: Q6_K\n" for name in draft.types)
    draft.load_file(desk, f"model: {{fingerprint: {desk.model.fingerprint}}}\ntensors:\n{lines}", "hand.yaml")
    assert set(draft.types.values()) == {"Q6_K"}
    prediction = draft.strategy(desk).prediction
    assert prediction is not None
    assert prediction.damage == pytest.approx(desk.evaluate(draft.types).prediction.damage)


@pytest.mark.slow
def test_a_kept_draft_tells_what_is_predicted_now(
    quantailor: Command, workspace: Workspace, workbench: Workbench, desk: Planner, draft: Draft
) -> None:
    draft.save(workspace, desk.model.fingerprint)
    before = draft.strategy(desk)
    done = quantailor(
        "measure", workbench.base, "--exhaustive", "--types", "Q4_K,Q6_K,Q2_K,Q3_K,Q5_K,Q8_0,IQ3_XXS,IQ4_XS", "--home", workspace.home.path
    )
    assert done.code == 0
    with Planner.open(workspace, workbench.base) as later:
        found = Draft.load(workspace, later, "draft")
        assert found is not None
        after = found.strategy(later)
        assert found.types == draft.types
    assert after.inputs["measurement"] != before.inputs["measurement"]
    assert after.prediction is not None
    assert before.prediction is not None
    assert after.prediction.damage != before.prediction.damage
    assert after.prediction.damage == pytest.approx(before.prediction.damage, rel=0.05)


def test_another_models_strategy_is_refused_with_the_difference(desk: Planner, draft: Draft) -> None:
    text = strategy_text(draft.strategy(desk))
    foreign = text.replace(desk.model.fingerprint, "f" * 64).replace("blk.0.attn_q.weight", "blk.0.ssm_in.weight")
    before = dict(draft.types)
    with pytest.raises(StrategyMismatchError) as refused:
        draft.load_file(desk, foreign, "foreign.yaml")
    assert "blk.0.ssm_in.weight" in str(refused.value)
    assert "blk.0.attn_q.weight" in str(refused.value)
    assert draft.types == before


def test_a_reloaded_draft_has_its_edits_and_its_undo(workspace: Workspace, desk: Planner, draft: Draft) -> None:
    draft.set_type(desk, ["output.weight"], "Q8_0")
    draft.save(workspace, desk.model.fingerprint)
    draft.save(workspace, desk.model.fingerprint, name="kept")
    found = Draft.load(workspace, desk, "draft")
    assert found is not None
    assert found.strategy(desk) == draft.strategy(desk)
    found.undo()
    assert found.types["output.weight"] != "Q8_0"
    assert {item.name for item in list_drafts(workspace, desk.model.fingerprint)} == {"draft", "kept"}
    workspace.store.forget_draft(desk.model.fingerprint, "kept")
    assert Draft.load(workspace, desk, "kept") is None


def test_the_built_file_is_as_large_as_an_edited_draft_says(
    quantailor: Command, workspace: Workspace, workbench: Workbench, desk: Planner, draft: Draft, tmp_path: Path
) -> None:
    draft.set_type(desk, desk.matching("*"), "Q8_0")
    draft.set_type(desk, desk.matching("ffn_down"), "Q4_K")
    strategy = draft.strategy(desk)
    path = save_strategy(strategy, tmp_path / "s.yaml")
    done = quantailor("build", workbench.base, path, "-o", tmp_path / "out.gguf", "--home", workspace.home.path, "--json")
    assert strategy.prediction is not None
    assert done.result["size_bytes"] == strategy.prediction.file_size_bytes == (tmp_path / "out.gguf").stat().st_size


def test_differences_count_bytes(desk: Planner, draft: Draft) -> None:
    other = {**draft.types, "output.weight": "Q8_0"}
    found = desk.difference(other, draft.types)
    assert [item.tensor for item in found.tensors] == ["output.weight"]
    assert found.ours.tensor_bytes - found.theirs.tensor_bytes == found.tensors[0].bytes_more > 0


def test_partial_measurements_are_enough_to_choose(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    home = tmp_path / "partial"
    types = ("--types", "Q4_K,Q6_K", "--imatrix", "none", "--home", home)
    assert quantailor("measure", workbench.base, "--tensors", "*attn_[qkvo]*", *types, "--json").code == 0
    with Workspace.open(home) as workspace, Planner.open(workspace, workbench.base) as desk:
        assert (len(desk.measured), desk.n_unmeasured) == (32, 26)
        draft = Draft.start(desk, PlanOptions(size_bytes=desk.size_range(PlanOptions())[1]))
        assert set(draft.types) == desk.measured
        assert draft.strategy(desk).prediction is not None


def test_edit_and_drafts_as_commands(quantailor: Command, workspace: Workspace, workbench: Workbench, tmp_path: Path) -> None:
    home = ("--home", workspace.home.path)
    plan, edited, saved = (tmp_path / name for name in ("plan.yaml", "edited.yaml", "saved.yaml"))
    assert quantailor("plan", workbench.base, "--size", "5MB", "-o", plan, *home).code == 0
    done = quantailor("edit", workbench.base, plan, "--set", "attn_v=Q6_K", "-o", edited, *home, "--json")
    assert done.result["n_pinned"] == 8
    assert edited.read_text(encoding="utf-8").count("type: Q6_K") >= 8
    assert "matches no tensor" in quantailor("edit", workbench.base, plan, "--set", "nix=Q6_K", "-o", saved, *home).error_line
    with Planner.open(workspace, workbench.base) as desk:
        Draft.start(desk, PlanOptions(size_bytes=SIZE)).save(workspace, desk.model.fingerprint)
    assert quantailor("drafts", workbench.base, "--save", "draft", "-o", saved, *home, "--json").result[0]["name"] == "draft"
    assert saved.exists()
    assert "there is no draft 'nix'" in quantailor("drafts", workbench.base, "--save", "nix", "-o", tmp_path / "x.yaml", *home).error_line


def test_changes_that_contradict_each_other_are_refused(
    quantailor: Command, workspace: Workspace, workbench: Workbench, tmp_path: Path
) -> None:
    home, plan = ("--home", workspace.home.path), tmp_path / "plan.yaml"
    assert quantailor("plan", workbench.base, "--size", "5MB", "-o", plan, *home).code == 0

    def edit(*changes: str) -> tuple[object, ...]:
        return ("edit", workbench.base, plan, *(word for change in changes for word in ("--set", change)), "-o", tmp_path / "x.yaml", *home)

    assert "--set attn_v=Q6_K and --set attn_v=Q4_K contradict" in quantailor(*edit("attn_v=Q6_K", "attn_v=Q4_K")).error_line
    assert "contradict each other for blk.0.attn_v.weight" in quantailor(*edit("layer:0=Q6_K", "attn_v=Q4_K")).error_line
    assert "Did you mean Q4_K?" in quantailor(*edit("attn_v=Q4K")).error_line
    for changes in (("blk.0.attn_v=Q4_K", "attn_v=Q6_K"), ("attn_v=Q6_K", "blk.0.attn_v=Q4_K")):
        assert quantailor(*edit(*changes), "--force").code == 0
        types = strategy_file.read(tmp_path / "x.yaml").types
        assert [types[f"blk.{layer}.attn_v.weight"] for layer in range(2)] == ["Q4_K", "Q6_K"]


def test_nothing_measured_says_what_to_do(workbench: Workbench, tmp_path: Path) -> None:
    with Workspace.open(tmp_path / "empty") as workspace, pytest.raises(StrategyError, match="nothing is measured"):
        Planner.open(workspace, workbench.base)


def test_versions_are_priced_and_what_was_done_is_told(workspace: Workspace, desk: Planner, draft: Draft) -> None:
    draft.set_type(desk, ["output.weight"], "Q8_0")
    draft.pin(["token_embd.weight"])
    assert list(draft.history) == ["pinned 1", "output.weight to Q8_0"]
    draft.undo()
    assert list(draft.history) == ["output.weight to Q8_0"]
    for name, bits in (("small", 3.5), ("large", 6.5)):
        Draft.start(desk, PlanOptions(bits_per_weight=bits), name=name).save(workspace, desk.model.fingerprint)
    draft.save(workspace, desk.model.fingerprint)
    found = {version.info.name: version for version in versions(workspace, desk)}
    assert found.keys() >= {"small", "large", "draft"}
    assert found["draft"].types == draft.types
    assert found["draft"].info.n_pinned == 1
    sizes = {name: version.prediction.file_size_bytes for name, version in found.items() if version.prediction is not None}
    assert sizes["small"] < sizes["draft"] < sizes["large"]
