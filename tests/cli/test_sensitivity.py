"""Probes, sweeps, predictions and refinements as a user runs them, on short chunks of the dense model."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Command, Workbench, probe_words, validate

from quantailor.analysis.sensitivity import NULL_MIX
from quantailor.session import Workspace
from quantailor.store import Store

pytestmark = pytest.mark.slow

CONTEXT = ("--n-ctx", 64, "--threads", 1)
KNOWN = ("--type", "Q2_K,Q6_K,Q8_0,Q4_K")
"""Types that the workbench has measured; by itself a probe with a limit takes some for which ggml makes tables for 10 seconds."""


@pytest.fixture
def home(probed: Workbench) -> tuple[object, ...]:
    return ("--home", probed.home, "--json")


@pytest.mark.long
def test_probing_again_scores_nothing(quantailor: Command, probed: Workbench, calibration_text: Path, home: Any) -> None:
    outcome = quantailor("probe", probed.base, *probe_words(calibration_text), *home)
    validate(outcome.out)
    result = outcome.result
    assert result["n_scored"] == result["n_scored_before"] > 0
    assert len(result["sensitivities"]) == 58
    assert {item["status"] for item in result["sensitivities"]} == {"measured"}
    assert all(item["alpha"]["value"] > 0 and item["alpha"]["se"] > 0 for item in result["sensitivities"])
    alphas = {item["tensor"]: item["alpha"]["value"] for item in result["sensitivities"]}
    assert max(alphas, key=lambda name: alphas[name]) == "output.weight"
    assert result["base_kernels"] == "finer"
    assert 0 < result["floor_nats"] < result["stored_nats"] < 1e-4
    kinds = [point["kind"] for point in result["curve"]["points"]]
    assert (kinds.count("memory"), kinds.count("file")) == (6, 2)
    assert 0.7 < result["curve"]["gamma"] < 1.3


def test_when_time_is_up_everything_counts(quantailor: Command, workbench: Workbench, calibration_text: Path, tmp_path: Path) -> None:
    home = ("--home", Path(shutil.copytree(workbench.home, tmp_path / "home")), "--json")
    words = ("probe", workbench.base, "-f", calibration_text, "--group", "role", *KNOWN, *CONTEXT)
    first = quantailor(*words, "--time", "1s", *home).result
    assert {item["status"] for item in first["sensitivities"]} == {"measured"}
    assert first["n_scored"] < 40
    plan = quantailor("plan", workbench.base, "--bpw", "4.0", *home).result
    assert (plan["basis"], plan["prediction"]["kld_nats"]) == ("probes", None)
    second = quantailor(*words, "--chunks", 2, "--mixes", 0, "--anchors", 0, *home).result
    assert second["n_scored_before"] == first["n_scored"] < second["n_scored"]
    assert "is not a length of time" in quantailor(*words, "--time", "10", *home).err


def test_few_passes_are_enough_for_a_plan_and_more_go_on_from_there(
    quantailor: Command, workbench: Workbench, calibration_text: Path, tmp_path: Path
) -> None:
    home = ("--home", Path(shutil.copytree(workbench.home, tmp_path / "home")), "--json")
    words = ("probe", workbench.base, "-f", calibration_text, *KNOWN, *CONTEXT)

    def n_changed() -> int:
        with Workspace.open(tmp_path / "home") as workspace, workspace.model(workbench.base) as model:
            (key,) = [key for key in workspace.store.swap_runs(model.fingerprint) if key.kernels == "as built"]
            without = {NULL_MIX.id, *(mix.id for mix in workspace.store.mixes(model.fingerprint, "stored"))}
            return sum(len(rows) for mix, rows in workspace.store.mix_scores(key).items() if mix not in without)

    first = quantailor(*words, "--passes", 5, *home).result
    assert n_changed() == 5
    statuses = [item["status"] for item in first["sensitivities"]]
    assert (len(statuses), set(statuses)) == (58, {"measured", "not probed"})
    assert all(item["alpha"]["value"] > 0 and item["alpha"]["se"] > 0 for item in first["sensitivities"])
    plan = quantailor("plan", workbench.base, "--bpw", "4.0", *home).result
    assert (plan["basis"], plan["prediction"]["kld_nats"]) == ("probes", None)
    second = quantailor(*words, "--passes", 27, *home).result
    assert n_changed() == 32
    assert {item["status"] for item in second["sensitivities"]} == {"measured"}
    assert "--passes" in quantailor(*words, "--passes", 0, *home).err


def test_a_base_that_rests_at_8_bits_gives_the_same_alphas_and_its_scores_are_kept_apart(
    quantailor: Command, workbench: Workbench, calibration_text: Path, tmp_path: Path
) -> None:
    home = ("--home", Path(shutil.copytree(workbench.home, tmp_path / "home")), "--json")
    words = ("probe", workbench.base, "-f", calibration_text, "--group", "role", "--chunks", 2, *CONTEXT)
    resting = quantailor(*words, "--rest", "q8_0", *home).result
    probes = {probe for item in resting["sensitivities"] for probe in item["probes"]}
    assert probes <= {"Q2_K", "Q3_K", "Q4_K", "Q5_K"}, "no types that drown beside it"
    assert resting["curve"]["points"] == []
    assert resting["grounds"]["rest"] == "Q8_0"
    plan = quantailor("plan", workbench.base, "--bpw", "4.0", *home).result
    assert (plan["basis"], plan["prediction"]["kld_nats"]) == ("probes", None)
    again = quantailor(*words, "--rest", "q8_0", *home).result
    assert again["n_scored_before"] == again["n_scored"] == resting["n_scored"]
    (file,) = (tmp_path / "home" / "references").glob("*-resting.gguf")
    assert file.stat().st_size < 0.6 * workbench.base.stat().st_size
    stored = quantailor(*words, "--type", "Q2_K", "--mixes", 0, "--anchors", 0, *home).result
    assert stored["n_scored_before"] == 0
    for one, other in zip(resting["sensitivities"], stored["sensitivities"], strict=True):
        assert one["alpha"]["value"] == pytest.approx(other["alpha"]["value"], rel=0.15)
    memory = [
        quantailor("cost", workbench.base, "--level", "balanced", "--rest", rest, *home).result["stages"][2]["memory_bytes"]
        for rest in ("16", "q8_0")
    ]
    assert memory[0] - memory[1] > 0.4 * workbench.base.stat().st_size - file.stat().st_size * 0.1
    swept = quantailor(
        "sweep",
        workbench.base,
        "-f",
        calibration_text,
        "--tensors",
        "attn_q",
        "--chunks",
        1,
        *CONTEXT,
        "--rest",
        "q8_0",
        "--types",
        "Q3_K,Q8_0",
        *home,
    ).result
    assert {cell["type_name"] for cell in swept["cells"]} == {"Q3_K"}


def test_the_same_seed_gives_the_same_alphas(quantailor: Command, probed: Workbench, calibration_text: Path, tmp_path: Path) -> None:
    words = ("-f", calibration_text, "--type", "Q2_K", "--group", "role", "--chunks", 2, "--mixes", 0, "--anchors", 0, "--n-ctx", 64)

    measured = tmp_path / "measured"
    assert quantailor("measure", probed.base, "--types", "Q2_K", "--home", measured).code == 0

    def alphas(name: str, threads: int) -> Any:
        home = ("--home", shutil.copytree(measured, tmp_path / name), "--json")
        return quantailor("probe", probed.base, *words, "--threads", threads, *home).result["sensitivities"]

    one, again, other = alphas("one", 1), alphas("again", 1), alphas("other", 2)
    assert one == again
    for a, b in zip(one, other, strict=True):
        assert abs(a["alpha"]["value"] - b["alpha"]["value"]) <= a["alpha"]["se"]


def test_plans_rest_on_probes_where_there_are_any(quantailor: Command, probed: Workbench, home: Any, tmp_path: Path) -> None:
    strategy = tmp_path / "s.yaml"
    plan = quantailor("plan", probed.base, "--bpw", "4.0", "-o", strategy, *home).result
    ranking = quantailor("plan", probed.base, "--bpw", "4.0", "--basis", "ranking", *home).result
    assert (plan["basis"], ranking["basis"]) == ("probes", "ranking only")
    low, high = plan["prediction"]["kld_interval_nats"]
    assert 0 < low < plan["prediction"]["kld_nats"] < high
    assert ranking["prediction"]["kld_nats"] is None
    predicted = quantailor("predict", probed.base, strategy, *home)
    validate(predicted.out)
    assert predicted.result["prediction"] == plan["prediction"]
    assert sum(item["share"] for item in predicted.result["contributions"]) == pytest.approx(1)


def test_a_damage_budget_gives_the_smallest_file_within_it(quantailor: Command, probed: Workbench, home: Any) -> None:
    strict, loose = (quantailor("plan", probed.base, "--kld", kld, *home).result["prediction"] for kld in (0.01, 0.1))
    assert strict["kld_nats"] <= 0.01 * (1 + 1e-9)
    assert 0.05 < loose["kld_nats"] <= 0.1 * (1 + 1e-9)
    assert loose["file_size_bytes"] < strict["file_size_bytes"]
    again = quantailor("plan", probed.base, "--size", strict["file_size_bytes"], *home).result["prediction"]
    assert again["kld_nats"] == pytest.approx(strict["kld_nats"], rel=0.01)
    assert "the least that the constraints allow has" in quantailor("plan", probed.base, "--kld", 1e-12, "--home", probed.home).error_line


def test_a_sweep_fills_cells_and_resumes(quantailor: Command, probed: Workbench, calibration_text: Path, home: Any) -> None:
    words = ("sweep", probed.base, "-f", calibration_text, "--tensors", "attn_v", "--types", "Q3_K,Q4_K", "--chunks", 2, *CONTEXT)
    first = quantailor(*words, *home)
    validate(first.out)
    again = quantailor(*words, *home).result
    assert first.result["n_cells"] == again["n_cells"] == again["n_already_measured"] == 16
    for cell in again["cells"]:
        measured = cell["measured"]
        assert measured["n_chunks"] == 2
        assert measured["kld"]["value"] > 0
        assert measured["perplexity"]["value"] > 10
        assert measured["kld"]["value"] == pytest.approx(cell["predicted_nats"], rel=5)
    by_type = {
        name: [cell["measured"]["kld"]["value"] for cell in again["cells"] if cell["type_name"] == name] for name in ("Q3_K", "Q4_K")
    }
    assert sum(by_type["Q3_K"]) > 2 * sum(by_type["Q4_K"])


def test_a_sweep_may_skip_what_is_certain(quantailor: Command, probed: Workbench, calibration_text: Path, home: Any) -> None:
    words = ("sweep", probed.base, "-f", calibration_text, "--tensors", "attn_q", "--types", "Q5_K", "--chunks", 1, *CONTEXT)
    result = quantailor(*words, "--only-uncertain", *home).result
    assert result["n_skipped"] + sum(cell["measured"] is not None for cell in result["cells"]) == result["n_cells"] == 8


def test_refining_keeps_the_size_and_tells_the_gain(
    quantailor: Command, probed: Workbench, heldout_text: Path, home: Any, tmp_path: Path
) -> None:
    strategy, better = tmp_path / "s.yaml", tmp_path / "better.yaml"
    plan = quantailor("plan", probed.base, "--bpw", "3.6", "--pin", "attn_v=Q4_K", "-o", strategy, *home).result
    words = ("-f", heldout_text, "--chunks", 2, "--swaps", 6, *CONTEXT)
    outcome = quantailor("refine", probed.base, strategy, "-o", better, *words, *home)
    validate(outcome.out)
    result = outcome.result
    assert result["prediction"]["file_size_bytes"] <= plan["prediction"]["file_size_bytes"]
    assert result["kld_after"]["value"] <= result["kld_before"]["value"]
    assert 0 < result["n_swaps_tried"] <= 6
    built = quantailor("build", probed.base, better, "-o", tmp_path / "out.gguf", *home).result
    assert built["size_bytes"] == result["prediction"]["file_size_bytes"]
    # The latest run has no probes now; those on the other text are still found.
    types = {row["tensor"]: row["type_name"] for row in quantailor("predict", probed.base, better, *home).result["contributions"]}
    assert {types[f"blk.{layer}.attn_v.weight"] for layer in range(8)} == {"Q4_K"}


def test_reports_in_three_forms(quantailor: Command, probed: Workbench, home: Any, tmp_path: Path) -> None:
    page, data, table = (tmp_path / f"report.{kind}" for kind in ("html", "json", "csv"))
    outcome = quantailor("report", probed.base, "-o", page, "-o", data, "-o", table, *home)
    validate(outcome.out)
    assert outcome.result["n_probed"] == 58
    html = page.read_text(encoding="utf-8")
    assert "blk.7.ffn_down.weight" in html
    assert "://" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    assert len(json.loads(data.read_text(encoding="utf-8"))["sensitivities"]) == 58
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert {row["tensor"] for row in rows} >= {"output.weight", "blk.0.attn_q.weight"}
    assert all(float(row["damage_nats"]) >= 0 for row in rows)
    assert "exists" in quantailor("report", probed.base, "-o", page, "--home", probed.home).error_line
    assert "endings" in quantailor("report", probed.base, "-o", tmp_path / "report.pdf", "--home", probed.home).error_line


def test_comparing_a_model_with_itself_shows_equal_shares(quantailor: Command, probed: Workbench, home: Any, tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    outcome = quantailor("compare-models", probed.base, probed.base, "-o", page, *home)
    validate(outcome.out)
    whole = [row for row in outcome.result["profiles"] if row["depth"] == "all depths"]
    assert sum(row["share_a"]["value"] for row in whole) == pytest.approx(1)
    assert all(row["share_a"] == row["share_b"] for row in outcome.result["profiles"])
    assert 'class="chart' in page.read_text(encoding="utf-8")


def test_tables_for_people(quantailor: Command, probed: Workbench, calibration_text: Path, tmp_path: Path) -> None:
    home = ("--home", probed.home)
    strategy = tmp_path / "s.yaml"
    shown = quantailor("probe", probed.base, *probe_words(calibration_text), *home).out
    assert "output.weight" in shown
    assert "fitted to 6 mixes and 2 files" in shown
    assert "(probes)" in quantailor("plan", probed.base, "--bpw", "4", "-o", strategy, *home).out
    assert "Where it comes from" in quantailor("predict", probed.base, strategy, *home).out
    assert "attn_q" in quantailor("compare-models", probed.base, probed.base, *home).out


def test_without_probes_it_says_what_to_run(quantailor: Command, workbench: Workbench, calibration_text: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    strategy = tmp_path / "s.yaml"
    quantailor("measure", workbench.base, "--types", "Q4_K,Q8_0", *home)
    quantailor("plan", workbench.base, "--bpw", "6", "-o", strategy, *home)
    for words in (
        ("plan", workbench.base, "--kld", "0.01"),
        ("plan", workbench.base, "--bpw", "6", "--basis", "probes"),
        ("predict", workbench.base, strategy),
        ("refine", workbench.base, strategy, "-o", tmp_path / "better.yaml"),
        ("sweep", workbench.base, "-f", calibration_text, "--only-uncertain", "--chunks", 1, *CONTEXT),
    ):
        assert "quantailor probe" in quantailor(*words, *home).error_line


def test_a_weighing_needs_enough_halves(quantailor: Command, probed: Workbench, calibration_text: Path) -> None:
    words = ("probe", probed.base, *probe_words(calibration_text), "--weighing", 10, "--home", probed.home)
    assert "at least 116" in quantailor(*words).error_line


def test_scores_are_in_the_store_and_no_anchor_file_is_left(probed: Workbench) -> None:
    with Store(probed.home / "quantailor.db") as store:
        runs = [key for model in store.models() for key in store.swap_runs(model.fingerprint)]
        assert {key.kernels for key in runs} == {"as built", "file"}
        assert all(store.mix_scores(key) for key in runs)
    assert not list((probed.home / "references").glob("*anchor*"))
