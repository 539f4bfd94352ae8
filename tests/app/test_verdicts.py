"""Verdicts looked back on: found, listed, drawn, written, from the services and from the command line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Literal

import pytest
from commands import Command, Workbench

from quantailor.app.products.verdicts import export_verdict, find_verdict, headline, list_verdicts, render_verdict, verify_cost
from quantailor.app.steps import VerifyStep
from quantailor.errors import OutputError, StoreError
from quantailor.ggml.reference import quantize_reference
from quantailor.present.charts.verdict import verdict_points
from quantailor.records import Comparison, Estimate, FidelityStatistics, Verdict, VerdictRow
from quantailor.session import Workspace

Kind = Literal["base", "ours", "reference"]
Outcome = Literal["better", "no better", "worse"]


def row(label: str, kind: Kind, size: int, kld: float) -> VerdictRow:
    figures = FidelityStatistics(
        220,
        56320,
        Estimate(12.5 + kld, 0.3),
        Estimate(kld / 10, 0.001),
        Estimate(kld, kld / 20),
        kld / 2,
        kld * 5,
        kld * 9,
        kld * 30,
        Estimate(0.9, 0.01),
        Estimate(0.02, 0.001),
    )
    return VerdictRow(label, kind, size, 4.5, figures)


def verdict(model: str, ours: str = "mine") -> Verdict:
    rows = (
        row("base", "base", 16_900_000, 0.0),
        row(ours, "ours", 5_300_000, 0.0125),
        row("Q8_0", "reference", 8_900_000, 0.0002),
        row("Q4_K_M", "reference", 5_302_000, 0.0148),
    )
    compared = Comparison("Q4_K_M", math.log(0.84), (math.log(0.8), math.log(0.9)), 0.9996, "better")
    return Verdict(model, "heldout.txt", "0" * 64, 512, rows, (compared,), 0.0, "It is what it is.")


@pytest.fixture
def home(books_llama_base: Path, tmp_path: Path) -> Path:
    """A home with two verdicts, the later on "second"."""
    with Workspace.open(tmp_path / "home") as workspace, workspace.model(books_llama_base) as model:
        workspace.store.record_verdict(verdict(model.fingerprint))
        workspace.store.record_verdict(verdict(model.fingerprint, "second"))
    return tmp_path / "home"


def against(*presets: tuple[str, float, float, float], n_chunks: int = 220) -> Verdict:
    """A verdict on a file of 5.3 MB: each preset's name, its size in bytes, its KLD over ours, and how far its interval reaches."""
    rows = [row("base", "base", 16_900_000, 0.0), row("mine", "ours", 5_300_000, 0.01)]
    compared = []
    for label, size, ratio, spread in presets:
        rows.append(row(label, "reference", int(size), 0.01 * ratio))
        middle = -math.log(ratio)
        outcome: Outcome = "better" if middle + spread < 0 else "worse" if middle - spread > 0 else "no better"
        compared.append(Comparison(label, middle, (middle - spread, middle + spread), 5_300_000 / size, outcome))
    rows = [dataclasses.replace(each, statistics=dataclasses.replace(each.statistics, n_chunks=n_chunks)) for each in rows]
    return Verdict("f" * 64, "heldout.txt", "0" * 64, 512, tuple(rows), tuple(compared), 0.0, "It is what it is.")


Q8, Q4, Q3 = ("Q8_0", 8.9e6, 0.05, 0.1), ("Q4_K_M", 5.302e6, 2.5, 0.1), ("Q3_K_M", 4.4e6, 4.0, 0.1)


@pytest.mark.parametrize(
    ("presets", "said"),
    [
        ((Q8, Q4), "Better than Q4_K_M (40 % of its divergence) at its size."),
        ((Q8, ("Q4_K_M", 5.302e6, 1.02, 0.1)), "No better than Q4_K_M at its size."),
        ((("Q4_K_M", 5.302e6, 0.25, 0.1),), "Worse than Q4_K_M (4.0 times its divergence) at its size."),
        (
            (Q4, ("Q5_K_M", 6.36e6, 1.5, 0.1)),
            "Better than Q4_K_M (40 % of its divergence) at its size, and better than Q5_K_M, which is 20 % larger.",
        ),
        ((Q8, ("Q5_K_M", 6.36e6, 1.5, 0.1)), "Better than Q5_K_M (67 % of its divergence), which is 20 % larger."),
        ((Q8,), "No preset of its size was measured: all are larger."),
        ((Q8, ("Q3_K_M", 4.24e6, 0.5, 0.1)), "Worse than Q3_K_M (2.0 times its divergence), which is 20 % smaller."),
        ((Q3,), "Better than Q3_K_M, which is 17 % smaller; no larger preset was measured."),
        ((Q8, Q3), "It has 80 % of the divergence that the line from Q3_K_M to Q8_0 has at its size."),
        ((), "It was compared with no preset."),
        ((("plain rounding", 5.3e6, 2.0, 0.1),), "It was compared with no preset."),
    ],
)
def test_a_verdict_leads_with_one_line(presets: tuple[tuple[str, float, float, float], ...], said: str) -> None:
    assert headline(against(*presets)) == said


def test_few_chunks_lead_to_no_claim() -> None:
    assert headline(against(Q8, Q4, n_chunks=1)) == "Too early to say: 1 chunk of the 200 that a claim needs."


def test_the_graph_leaves_the_base_out_of_divergence_and_shows_it_in_perplexity() -> None:
    divergence = verdict_points(verdict("f" * 64))
    assert [point.label for point in divergence] == ["mine", "Q4_K_M", "Q8_0"]
    assert [point.kind for point in verdict_points(verdict("f" * 64), "ppl")] == ["ours", "reference", "reference", "base"]
    ours = divergence[0]
    assert ours.value == 0.0125
    assert ours.high - ours.value == pytest.approx(1.96 * 0.0125 / 20)
    assert ours.low + ours.high == pytest.approx(2 * ours.value)


def test_an_interval_never_reaches_zero() -> None:
    found = verdict("f" * 64)
    unsure = dataclasses.replace(found.rows[1].statistics, kld_mean=Estimate(0.01, 0.02))
    rows = (found.rows[0], dataclasses.replace(found.rows[1], statistics=unsure))
    (point,) = verdict_points(dataclasses.replace(found, rows=rows))
    assert 0 < point.low < point.value < point.high


@pytest.mark.parametrize("measure", ["kld", "ppl"])
def test_csv_rows_are_the_graph_s_points(measure: Literal["kld", "ppl"]) -> None:
    found = verdict("f" * 64)
    rows = list(csv.DictReader(io.StringIO(render_verdict(found, "csv", measure=measure).decode())))
    points = verdict_points(found, measure)
    assert [(row["label"], int(row["size_bytes"]), float(row["value"])) for row in rows] == [
        (point.label, point.size_bytes, point.value) for point in points
    ]
    assert [(float(row["low_95"]), float(row["high_95"])) for row in rows] == [(point.low, point.high) for point in points]


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["kld", "ppl"])
def test_figures_are_drawn(measure: Literal["kld", "ppl"]) -> None:
    found = verdict("f" * 64)
    assert render_verdict(found, "png", measure=measure).startswith(b"\x89PNG")
    drawn = render_verdict(found, "svg", measure=measure)
    assert b"<svg" in drawn
    assert drawn == render_verdict(found, "svg", measure=measure)


def test_the_latest_verdict_is_found_first(home: Path, books_llama_base: Path) -> None:
    with Workspace.open(home) as workspace, workspace.model(books_llama_base) as model:
        second, first = list_verdicts(workspace, model.fingerprint)
        assert (second.ours.label, first.ours.label) == ("second", "mine")
        assert find_verdict(workspace, model.fingerprint) == second
        assert find_verdict(workspace, model.fingerprint, first.fingerprint[:12]) == first
        with pytest.raises(StoreError, match="no verdict zz"):
            find_verdict(workspace, model.fingerprint, "zz")


def test_the_command_lists_and_exports(quantailor: Command, home: Path, books_llama_base: Path, tmp_path: Path) -> None:
    place = tmp_path / "points.csv"
    shown = quantailor("verdicts", books_llama_base, "--home", home, "--export", place)
    assert shown.code == 0
    assert "second" in shown.out
    assert place.read_text(encoding="utf-8").count("\n") == 4
    assert "exists" in quantailor("verdicts", books_llama_base, "--home", home, "--export", place).error_line
    assert (
        "does not name a format" in quantailor("verdicts", books_llama_base, "--home", home, "--export", tmp_path / "points.xls").error_line
    )
    document = json.loads(quantailor("verdicts", books_llama_base, "--home", home, "--json").out)
    assert [item["verdict"]["rows"][1]["label"] for item in document["result"]["verdicts"]] == ["second", "mine"]


def test_without_verdicts_the_command_says_what_to_do(quantailor: Command, books_llama_base: Path, tmp_path: Path) -> None:
    assert "quantailor verify" in quantailor("verdicts", books_llama_base, "--home", tmp_path / "empty").out
    assert quantailor("builds", books_llama_base, "--home", tmp_path / "empty").code == 0


def test_unknown_endings_are_refused(home: Path, books_llama_base: Path, tmp_path: Path) -> None:
    with Workspace.open(home) as workspace, workspace.model(books_llama_base) as model, pytest.raises(OutputError, match="jpg"):
        export_verdict(workspace, model.fingerprint, tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("made_as", "references"),
    [
        pytest.param({"type_name": "Q2_K"}, ("Q2_K",), id="below the smallest", marks=pytest.mark.slow),
        pytest.param({"preset": "Q4_K_S"}, ("Q4_K_M", "IQ4_XS"), id="between two", marks=pytest.mark.slow),
        pytest.param({"preset": "Q3_K_M"}, ("Q3_K_M",), id="equal to one"),
        pytest.param({"type_name": "F16"}, ("Q8_0",), id="above the largest"),
    ],
)
def test_a_file_is_compared_with_the_presets_around_its_size(
    books_llama_base: Path, tmp_path: Path, made_as: dict[str, str], references: tuple[str, ...]
) -> None:
    file = tmp_path / "file.gguf"
    quantize_reference(books_llama_base, file, preset=made_as.get("preset"), type_name=made_as.get("type_name"), n_threads=1)
    step = VerifyStep(file=str(file), base=str(books_llama_base), imatrix="none")
    with Workspace.open(tmp_path / "home") as workspace:
        assert verify_cost(workspace, step).references == references
        assert verify_cost(workspace, dataclasses.replace(step, against=("q8_0", "Q2_K"))).references == ("Q8_0", "Q2_K")


@pytest.mark.slow
def test_the_preset_that_a_file_was_planned_like_is_always_compared(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    strategy, file, home = tmp_path / "s.yaml", tmp_path / "file.gguf", ("--home", workbench.home, "--json")
    assert quantailor("plan", workbench.base, "--like", "Q5_K_M", "--max", "4.6", "-o", strategy, *home).code == 0
    assert quantailor("build", workbench.base, strategy, "-o", file, *home).code == 0
    with Workspace.open(workbench.home) as workspace:
        references = verify_cost(workspace, VerifyStep(file=str(file), base=str(workbench.base))).references
    assert references[0] == "Q5_K_M"
    assert len(references) > 1  # and those around its real size
