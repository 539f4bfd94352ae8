"""Compensated rounding before a build and after it: what is offered, what it lacks, which measurement is shown, what it gained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from commands import Command

from quantailor.app.choosing.planner import Planner, rounding_choices
from quantailor.app.choosing.shared_draft import SharedDraft
from quantailor.app.library.projects import calibrations, list_projects
from quantailor.app.measuring.progress import MeasurementWatch
from quantailor.app.products.builds import (
    PLAIN_TWIN,
    BuildWish,
    BuiltFile,
    StrategyChoice,
    build_offer,
    chosen_strategy,
    list_builds,
    rounding_report,
)
from quantailor.app.products.verdicts import StoredVerdict, list_verdicts
from quantailor.records import Strategy
from quantailor.session import Workspace
from quantailor.steps.plan import PlanOptions
from quantailor.strategy import file as strategy_file

FEW = ("--chunks", 2, "--n-ctx", 64, "--threads", 1)


@pytest.fixture
def text(tmp_path: Path, calibration_text: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(calibration_text.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    return path


@pytest.fixture
def planned(run: Command, small_base: Path, tmp_path: Path) -> Strategy:
    """A strategy of a model that no covariances are known of."""
    run("measure", small_base, "--types", "Q4_0,Q8_0")
    run("plan", small_base, "--bpw", 6.5, "-o", tmp_path / "plain.yaml")
    return strategy_file.read(tmp_path / "plain.yaml")


def calibrate_and_measure(run: Command, base: Path, text: Path) -> None:
    run("calibrate", base, "-f", text, *FEW)
    for rounding in ("plain", "compensated"):
        run("measure", base, "--types", "Q4_0,Q8_0", "--rounding", rounding)


def test_a_build_that_lacks_covariances_says_so_and_is_offered_plain(small_base: Path, planned: Strategy, tmp_path: Path) -> None:
    wish = BuildWish(base=small_base, strategy=planned, output=tmp_path / "out.gguf")
    with Workspace.open(tmp_path / "home") as workspace:
        plain, wanted = (build_offer(workspace, dataclasses.replace(wish, rounding=how)) for how in ("plain", "compensated"))
    assert plain.no_covariances is not None
    assert "needs input covariances" in plain.no_covariances
    assert (plain.is_compensated, plain.shortfalls) == (False, ())
    assert wanted.shortfalls == (plain.no_covariances,)


def test_the_rounding_of_an_offer_is_the_strategy_s_unless_asked_for(
    run: Command, small_base: Path, planned: Strategy, text: Path, tmp_path: Path
) -> None:
    calibrate_and_measure(run, small_base, text)
    run("plan", small_base, "--bpw", 6.5, "-o", tmp_path / "better.yaml")
    better = strategy_file.read(tmp_path / "better.yaml")
    wish = BuildWish(base=small_base, strategy=better, output=tmp_path / "out.gguf")
    with Workspace.open(tmp_path / "home") as workspace:
        offer, plain = build_offer(workspace, wish), build_offer(workspace, dataclasses.replace(wish, rounding="plain"))
        of_plain = build_offer(workspace, dataclasses.replace(wish, strategy=planned))
    assert (offer.is_compensated, plain.is_compensated, of_plain.is_compensated) == (True, False, False)
    assert "--rounding" not in offer.own_lines[0]
    assert "--rounding plain" in plain.own_lines[0]
    assert 0 < offer.compensation_seconds[0] <= offer.compensation_seconds[1]
    assert offer.quantize is not None
    assert plain.quantize is not None
    assert "llama-quantize cannot do" in " ".join(offer.quantize.notes)
    assert "llama-quantize cannot do" not in " ".join(plain.quantize.notes)


def test_either_measurement_can_be_looked_at(run: Command, small_base: Path, text: Path, tmp_path: Path) -> None:
    calibrate_and_measure(run, small_base, text)
    with Workspace.open(tmp_path / "home") as workspace:
        (project,) = list_projects(workspace)
        kept = calibrations(workspace, project.fingerprint)
        watch = MeasurementWatch(workspace, project.fingerprint)
        watch.look()
        compensated = watch.map("Q4_0")
        watch.rounding = "plain"
        watch.look()
        plain = watch.map("Q4_0")
        with Planner.open(workspace, small_base) as desk:
            assert desk.is_compensated
            assert desk.solve(PlanOptions(bits_per_weight=6.5)).inputs["rounding"] == "compensated"
    assert [(item.kind, item.is_own, item.record.chunk_count) for item in kept] == [
        ("importance matrix", True, 2),
        ("input covariances", True, 2),
    ]
    assert compensated.roundings == plain.roundings == ("compensated", "plain")
    assert (compensated.rounding, plain.rounding) == ("compensated", "plain")
    ours, theirs = ({item.name: item.error or 0.0 for item in found.tensors} for found in (compensated, plain))
    assert sum(ours.values()) < sum(theirs.values())


def test_reports_tell_of_the_rounding_that_is_asked_for(run: Command, small_base: Path, text: Path, tmp_path: Path) -> None:
    calibrate_and_measure(run, small_base, text)

    def errors(*words: object) -> tuple[dict[str, Any], dict[str, float | None]]:
        path = tmp_path / "report.json"
        told = run("report", small_base, "-o", path, "--force", "--json", *words).result
        document = json.loads(path.read_text(encoding="utf-8"))
        assert (document["is_compensated"], document["covariances"]) == (told["rounding"] == "compensated", told["covariances"])
        return told, {cell["tensor"]: cell["output_mse"] for cell in document["weight_errors"] if cell["type_name"] == "Q4_0"}

    as_planned, compensated = errors()
    told, plain = errors("--rounding", "plain")
    assert (as_planned["rounding"], told["rounding"]) == ("compensated", "plain")
    assert as_planned["covariances"] == told["covariances"] != ""
    assert sum(error or 0.0 for error in compensated.values()) < sum(error or 0.0 for error in plain.values())
    assert "nothing is measured" in run("report", small_base, "-o", tmp_path / "no.json", "--covariances", "none").error_line

    page = tmp_path / "both.html"
    both = run("compare-models", small_base, small_base, "--rounding", "plain", "-o", page, "--json").result
    assert both["roundings"] == ["plain", "plain"]
    assert "plain rounding" in page.read_text(encoding="utf-8")
    many = run("compare-models", small_base, small_base, *("--covariances", "none") * 3)
    assert "--covariances is given 3 times for two models" in many.err


def test_an_edited_strategy_is_for_the_rounding_that_it_was_made_for(run: Command, small_base: Path, text: Path, tmp_path: Path) -> None:
    calibrate_and_measure(run, small_base, text)
    made, edited = tmp_path / "made.yaml", tmp_path / "edited.yaml"
    run("plan", small_base, "--bpw", 6.5, "--rounding", "plain", "-o", made)
    for words, wanted in (((), "plain"), (("--rounding", "compensated"), "compensated")):
        assert run("edit", small_base, made, "--set", "output=Q8_0", "-o", edited, "--force", *words).code == 0
        assert strategy_file.read(edited).inputs["rounding"] == wanted


def test_a_draft_can_be_planned_for_either_rounding(run: Command, small_base: Path, text: Path, tmp_path: Path) -> None:
    calibrate_and_measure(run, small_base, text)
    with Workspace.open(tmp_path / "home") as workspace:
        (project,) = list_projects(workspace)
        choices = {label: key for key, label in rounding_choices(workspace, project.fingerprint).items()}
        shared = SharedDraft(workspace, "draft", lambda _: PlanOptions(bits_per_weight=6.5))
        with Planner.open(workspace, small_base) as desk:
            shared.change(desk, lambda draft: draft.set_type(desk, ["output.weight"], "Q8_0"))
        with Planner.open(workspace, small_base, rounding=choices["plain rounding"]) as desk:
            shared.plan_for(desk, choices["plain rounding"])
        built = chosen_strategy(workspace, small_base, StrategyChoice("draft", "draft"))
    run("drafts", small_base, "--save", "draft", "-o", tmp_path / "s.yaml")
    saved = strategy_file.read(tmp_path / "s.yaml")
    assert sorted(choices) == ["compensated rounding", "plain rounding"]
    assert [each.inputs["rounding"] for each in (built, saved)] == ["plain", "plain"]
    assert built.types["output.weight"] == "Q8_0"


@pytest.mark.slow
def test_a_verdict_tells_the_rounding_and_its_gain_over_the_plain_twin(run: Command, small_base: Path, text: Path, tmp_path: Path) -> None:
    calibrate_and_measure(run, small_base, text)
    strategy = tmp_path / "better.yaml"
    run("plan", small_base, "--bpw", 6.5, "-o", strategy)
    for rounding in ("compensated", "plain"):
        run("build", small_base, strategy, "--rounding", rounding, "-o", tmp_path / f"{rounding}.gguf")
    run("verify", tmp_path / "compensated.gguf", "--base", small_base, "--against", "", "-f", text, *FEW)
    with Workspace.open(tmp_path / "home") as workspace:
        (project,) = list_projects(workspace)
        alone = rounding_report(workspace, project.fingerprint, *judged(workspace, project.fingerprint, "compensated.gguf"))
    run("verify", tmp_path / "plain.gguf", "--base", small_base, "--against", "", "-f", text, *FEW)
    with Workspace.open(tmp_path / "home") as workspace:
        (project,) = list_projects(workspace)
        both, of_plain = (
            rounding_report(workspace, project.fingerprint, *judged(workspace, project.fingerprint, name))
            for name in ("compensated.gguf", "plain.gguf")
        )
    assert alone is not None
    assert (alone.is_compensated, alone.gain) == (True, None)
    assert both is not None
    assert both.gain is not None
    assert both.gain.reference == PLAIN_TWIN
    assert both.gain.size_ratio == pytest.approx(1, abs=0.01)
    assert of_plain is not None
    assert (of_plain.is_compensated, of_plain.gain) == (False, None)


def judged(workspace: Workspace, model: str, name: str) -> tuple[StoredVerdict, list[BuiltFile]]:
    builds = list_builds(workspace, model)
    wanted = next(item for item in builds if Path(item.path).name == name)
    return next(item for item in list_verdicts(workspace, model) if item.fingerprint in wanted.verdicts), builds
