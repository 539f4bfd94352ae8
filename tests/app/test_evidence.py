"""Which evidence a plan stands on, what it says of it, and what it does where there is too little."""

from __future__ import annotations

import csv
import hashlib
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_up_runs as made_up
import pytest
from commands import Command, Outcome, validate

from quantailor.analysis.expected import expected_alphas
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.importance.imatrix_file import write_imatrix
from quantailor.analysis.prediction import UNSEEN
from quantailor.analysis.rounding.rounding import COMPENSATED as COMPENSATED_VERSION
from quantailor.analysis.rounding.rounding import PLAIN_MEASURED
from quantailor.analysis.weight_errors.measure import MeasureSettings
from quantailor.evidence import damages
from quantailor.evidence.measurements import measured
from quantailor.models.source import ModelSource
from quantailor.session import AUTO, OpenedModel, Workspace, quantizable_tensors
from quantailor.store import CalibrationRecord, ImatrixKey

BITS = "4.6"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return made_up.write_model(tmp_path / "base.gguf")


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    found = tmp_path / "first.txt", tmp_path / "second text.txt"
    for path in found:
        path.write_text(path.name, encoding="utf-8")
    return found


@pytest.fixture
def at(tmp_path: Path, base: Path) -> Iterator[tuple[Workspace, OpenedModel]]:
    """A home in which the model is measured."""
    with Workspace.open(tmp_path / "home") as workspace, workspace.model(base) as model:
        made_up.measure(workspace, model)
        yield workspace, model


Home = tuple[Workspace, OpenedModel]


@pytest.fixture
def run(quantailor: Command, tmp_path: Path) -> Command:
    def run_command(*words: object) -> Outcome:
        return quantailor(*words, "--home", tmp_path / "home")

    return run_command


def plan(run: Command, base: Path, *more: object) -> Any:
    outcome = run("plan", base, "--bpw", BITS, *more, "--json")
    validate(outcome.out)
    return outcome.result


def types(result: Any) -> dict[str, str]:
    return {choice["name"]: choice["type_name"] for choice in result["tensors"]}


@pytest.mark.parametrize(("preset", "too_far", "most"), [("Q5_K_M", "Q3_K", 0), ("IQ4_XS", "Q2_K", 2)])
def test_without_probes_a_plan_stays_near_a_preset_where_what_is_expected_is_far_off(
    at: Home, run: Command, base: Path, monkeypatch: pytest.MonkeyPatch, preset: str, too_far: str, most: int
) -> None:
    """A model whose feed-forward networks count ten times as much as is expected; IQ4_XS is not among the types that are measured."""

    def far_off(source: ModelSource, imatrix: Imatrix | None) -> dict[str, float]:
        return {name: alpha / (10 if "ffn" in name else 1) for name, alpha in expected_alphas(source, imatrix).items()}

    monkeypatch.setattr(damages, "expected_alphas", far_off)
    found = types(run("plan", base, "--like", preset, "--basis", "ranking", "--json").result)
    assert [type_name for name, type_name in found.items() if "ffn" in name].count(too_far) <= most


@pytest.mark.slow
def test_a_probe_that_is_half_done_takes_nothing_over(at: Home, run: Command, base: Path, texts: tuple[Path, Path]) -> None:
    made_up.probe(*at, texts[0])
    before = plan(run, base)
    made_up.probe(*at, texts[1], only="attn_v", types=("Q4_K",), n_mixes=0, salt="other")
    after = plan(run, base)
    assert after == before
    assert after["grounds"]["text"] == "first.txt"
    said = run("plan", base, "--bpw", BITS).out
    assert re.search(r"rests on  probes: (\d+) of \1 tensors, first.txt, 8 chunks; 8 mixes\n", said)


def test_evidence_is_not_chosen_by_date(tmp_path: Path, base: Path, texts: tuple[Path, Path], quantailor: Command) -> None:
    found = []
    for name, order in (("one", (0, 1)), ("other", (1, 0))):
        with Workspace.open(tmp_path / name) as workspace, workspace.model(base) as model:
            made_up.measure(workspace, model)
            for number in order:
                made_up.probe(workspace, model, texts[number], salt=str(number))
        found.append(quantailor("plan", base, "--bpw", BITS, "--home", tmp_path / name, "--json").result)
        assert str(tmp_path / name) in found[-1]["grounds"].pop("command")
    assert found[0] == found[1]


def test_more_text_counts_among_equals(at: Home, run: Command, base: Path, texts: tuple[Path, Path]) -> None:
    made_up.probe(*at, texts[0], n_chunks=16)
    made_up.probe(*at, texts[1], n_chunks=4)
    assert plan(run, base)["grounds"]["text"] == "first.txt"


def test_evidence_can_be_chosen_and_is_listed(at: Home, run: Command, base: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    made_up.probe(*at, texts[0])
    other = made_up.probe(*at, texts[1], n_chunks=4, salt="other")
    strategy = tmp_path / "s.yaml"
    usual, chosen = plan(run, base), plan(run, base, "--evidence", other.run[:8], "-o", strategy)
    assert chosen["grounds"]["text"] == "second text.txt"
    assert types(chosen) != types(usual)
    listed = run("status", base, "--json").result["evidence"]
    assert [item["text"] for item in listed] == ["first.txt", "second text.txt"]
    assert other.run[:8] in run("status", base).out
    predicted = run("predict", base, strategy, "--evidence", other.run[:8], "--json").result
    assert predicted["prediction"] == chosen["prediction"]
    assert predicted["grounds"]["text"] == "second text.txt"
    wrong = run("plan", base, "--bpw", BITS, "--evidence", "feedbeef").error_line
    assert "no evidence 'feedbeef'" in wrong
    assert all(item["name"] in wrong for item in listed)


def test_a_plan_on_part_of_the_model_says_so(at: Home, run: Command, base: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    made_up.probe(*at, texts[1], only="attn", n_mixes=0)
    strategy = tmp_path / "s.yaml"
    said = run("plan", base, "--bpw", BITS, "-o", strategy).out
    n_probed, n_tensors = map(int, re.findall(r"probes: (\d+) of (\d+) tensors \(\d+ % of the weights\)", said)[0])
    assert 0 < n_probed < n_tensors
    assert "are estimated from the others" in said
    assert f"probed_tensors: {n_probed} of {n_tensors}" in strategy.read_text(encoding="utf-8")
    command = shlex.split(next(line for line in said.splitlines() if line.startswith("for all")).removeprefix("for all"))
    assert command[:3] == ["quantailor", "probe", str(base)]
    assert command[command.index("-f") + 1] == str(texts[1])
    assert command[command.index("--home") + 1] == str(tmp_path / "home")


@pytest.mark.slow
def test_it_is_too_early_to_predict_without_whole_mixes(
    at: Home, run: Command, base: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    made_up.probe(*at, texts[0], n_mixes=2, n_chunks=2)
    strategy = tmp_path / "s.yaml"
    planned = plan(run, base, "-o", strategy)["prediction"]
    predicted = run("predict", base, strategy, "--json").result
    assert predicted["kld_interval_80_nats"] is None
    for prediction in (planned, predicted["prediction"]):
        assert prediction["kld_nats"] is prediction["kld_interval_nats"] is None
        assert prediction["no_prediction"].startswith("too early to predict: after 2 whole mixes")
    for words in (("plan", base, "--bpw", BITS), ("predict", base, strategy), ("status", base)):
        said = run(*words).out
        assert "too early to predict" in said
        assert f"quantailor probe {base} -f {texts[0]}" in said
        assert "--mixes 24" in said
    compared = run("diff", base, strategy, "Q4_K_M", "--json").result
    assert compared["a"]["kld_nats"] is None
    assert compared["a"]["no_prediction"].startswith("too early")
    assert "too early to predict" in run("diff", base, strategy, "Q4_K_M").out
    report = tmp_path / "report.html"
    assert run("report", base, "-o", report).code == 0
    page = report.read_text(encoding="utf-8")
    assert "Too early to predict: after 2 whole mixes the 95" in page
    assert f"run <code>quantailor probe {base} -f {texts[0]}" in page
    file = tmp_path / "out.gguf"
    assert run("build", base, strategy, "-o", file).code == 0
    card = run("card", file, "--base", base, "--json").result["text"]
    assert "No KL divergence is predicted: too early to predict: after 2 whole mixes" in card
    assert "`quantailor probe base.gguf -f first.txt --n-ctx 512 " in card
    assert str(tmp_path) not in card
    refused = run("plan", base, "--kld", 0.01).error_line
    assert "too early to predict" in refused
    assert "quantailor probe" in refused
    made_up.probe(*at, texts[0], n_mixes=8)
    enough = plan(run, base)["prediction"]
    low, high = enough["kld_interval_nats"]
    assert low < enough["kld_nats"] < high <= 10 * low
    assert enough["no_prediction"] is None


def test_probes_carry_over_to_a_new_importance_matrix(at: Home, run: Command, base: Path, texts: tuple[Path, Path]) -> None:
    """Its errors are half as large, so the same alphas predict half of the damage, and the types stay the best."""
    workspace, model = at
    made_up.probe(*at, texts[0])
    before = plan(run, base)
    newest = made_up.matrix(workspace, model, 1)
    refused = run("plan", base, "--bpw", BITS).error_line
    assert f"nothing is measured with importance matrix {newest[:12]}" in refused
    assert f"`quantailor measure {base} --home " in refused
    assert types(plan(run, base, "--imatrix", "none")) == types(before)
    made_up.measure(workspace, model, newest, factor=0.5)
    after = plan(run, base)
    assert after["grounds"]["carried"] is True
    assert after["grounds"]["text"] == "first.txt"
    quantized = {name for name, kind in types(after).items() if kind != "F16" and "ffn_down" not in name}
    damage = {choice["name"]: choice["damage"] for choice in after["tensors"]}
    tensors = {tensor.name: tensor for tensor in model.source.tensors}
    for name in quantized:
        expected = made_up.alpha_of(tensors[name]) * (made_up.error_of(types(after)[name], 0.5) + made_up.NOISE)
        assert damage[name] == pytest.approx(expected, rel=0.15)  # noise is drawn towards what is expected
    assert "with another importance matrix" in run("plan", base, "--bpw", BITS).out


def test_a_smaller_importance_matrix_does_not_take_over(
    at: Home, run: Command, base: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    workspace, model = at
    thorough = made_up.matrix(workspace, model, 7)
    made_up.measure(workspace, model, thorough)
    made_up.probe(*at, texts[0], thorough)
    before = plan(run, base)
    trial = tmp_path / "trial.gguf"
    write_imatrix(made_up.imatrix(model, 1), trial)
    made = run("imatrix", base, "--import", trial)
    told = f"Importance matrix {thorough[:12]} is used (8 chunks of 7.txt); --imatrix {workspace.home.imatrices / model.fingerprint[:16]}"
    assert told in made.out
    after = plan(run, base)
    assert types(after) == types(before)
    assert after["grounds"] == before["grounds"]
    (note,) = (each for each in after["notes"] if each not in before["notes"])
    assert note.startswith(told)
    assert note.endswith("takes the later one (2 chunks of 1.txt).")
    for words in (("imatrix", base, "--show"), ("plan", base, "--bpw", BITS), ("status", base), ("measure", base, "--types", "Q8_0")):
        outcome = run(*words)
        assert told in outcome.out + outcome.err, words
    assert run("imatrix", base, "--show", "--json").result["fingerprint"] == thorough
    assert run("measure", base, "--types", "Q8_0", "--json").result["imatrix_fingerprint"] == thorough
    later = shlex.split(note.partition("; ")[2])[:2]
    assert run("measure", base, "--types", "Q8_0", *later, "--json").result["imatrix_fingerprint"] != thorough


def test_one_that_saw_no_less_takes_over_and_status_says_so_before_it_is_measured(at: Home, run: Command, base: Path) -> None:
    workspace, model = at
    old = made_up.matrix(workspace, model, 3)
    made_up.measure(workspace, model, old)
    assert run("status", base, "--json").result["notes"] == []
    new = made_up.matrix(workspace, model, 4)
    shown = run("status", base).out
    assert f"importance matrix {old[:12]}" in shown
    assert f"A plan takes importance matrix {new[:12]} (5 chunks), with which nothing is measured yet" in shown
    (command,) = re.findall(r"`quantailor (measure [^`]*)`", shown)
    assert run(*shlex.split(command), "--types", "Q8_0", "--json").result["imatrix_fingerprint"] == new
    assert run("status", base, "--json").result["notes"] == []


def test_what_alone_was_measured_with_is_taken_though_another_saw_more(at: Home, run: Command, base: Path) -> None:
    workspace, model = at
    made_up.matrix(workspace, model, 7)
    small = made_up.matrix(workspace, model, 1)
    made_up.measure(workspace, model, small)
    assert run("imatrix", base, "--show", "--json").result["fingerprint"] == small


def test_own_probes_count_before_those_with_another_matrix(at: Home, run: Command, base: Path, texts: tuple[Path, Path]) -> None:
    workspace, model = at
    made_up.probe(*at, texts[0], n_chunks=16)
    newest = made_up.matrix(workspace, model, 1)
    made_up.measure(workspace, model, newest, factor=0.5)
    made_up.probe(*at, texts[1], newest, factor=0.5, n_chunks=8)
    assert plan(run, base)["grounds"]["text"] == "second text.txt"


def test_the_advised_measurement_is_with_the_matrix_that_was_asked_for(
    at: Home, run: Command, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace, model = at
    workspace.store.forget_cells(next(iter(workspace.store.measurements(model.fingerprint))))
    newest = made_up.matrix(workspace, model, 1)
    made_up.measure(workspace, model, newest)
    monkeypatch.setenv("QUANTAILOR_HOME", str(tmp_path / "home"))
    advised = re.findall(r"`quantailor (measure [^`]*)`", run("plan", base, "--bpw", BITS, "--imatrix", "none").error_line)
    assert [words.partition(" --home ")[0] for words in advised] == [f"measure {base} --imatrix none"]
    assert run(*shlex.split(advised[0]), "--types", "Q4_K,Q8_0", "--json").result["imatrix_fingerprint"] is None
    assert run("plan", base, "--bpw", 12, "--imatrix", "none").code == 0


def test_tensors_that_were_not_probed_are_left_out_of_comparisons(
    at: Home, run: Command, base: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    made_up.probe(*at, texts[0], only="attn_q", n_mixes=0)
    other = made_up.write_model(tmp_path / "other.gguf")
    page, table = tmp_path / "compared.html", tmp_path / "compared.csv"
    found = run("compare-models", base, other, "-o", page, "-o", table, "--json")
    validate(found.out)
    whole = {row["role"]: row for row in found.result["profiles"] if row["depth"] == "all depths"}
    assert whole["attn_q"]["share_a"]["value"] > 0
    for role in ("attn_v", "output", "ffn_up"):
        assert whole[role]["share_a"] is whole[role]["parameter_share_a"] is None
    n_tensors = len(quantizable_tensors(at[1].source))
    n_probed = sum("attn_q" in tensor.name for tensor in quantizable_tensors(at[1].source))
    assert found.result["left_out"] == [n_tensors - n_probed] * 2
    said = run("compare-models", base, other).out
    assert "– (not measured)" in said
    assert "0.00 %" not in said
    assert f"left out  {n_tensors - n_probed} tensors" in said
    assert f"{n_tensors - n_probed} tensors of A are not probed or not measured, and left out" in page.read_text(encoding="utf-8")
    rows = {row["role"]: row for row in csv.DictReader(table.read_text(encoding="utf-8").splitlines()) if row["depth"] == "all depths"}
    assert rows["output"]["share_a"] == rows["output"]["parameter_share_a"] == ""
    report = tmp_path / "report.csv"
    run("report", base, "-o", report)
    cells = list(csv.DictReader(report.read_text(encoding="utf-8").splitlines()))
    assert {row["alpha"] for row in cells if row["tensor"] == "output.weight"} == {""}
    assert {row["damage_basis"] for row in cells if row["tensor"] == "output.weight"} == {"what others tell"}


PLAIN = "plain:0123456789abcdef"


def test_plain_probes_serve_compensated_plans_once_their_errors_are_known_in_the_same_metric(
    at: Home, run: Command, base: Path, texts: tuple[Path, Path]
) -> None:
    made_up.probe(*at, texts[0])
    version = f"{COMPENSATED_VERSION}:0123456789abcdef"
    before = plan(run, base)
    assert before["tensors"] == plan(run, base, "--rounding", "plain")["tensors"]
    made_up.measure(*at, rounding=version, output=0.4)
    refused = run("plan", base, "--bpw", BITS).error_line
    assert f"`quantailor measure {base} --rounding plain" in refused
    assert plan(run, base, "--basis", "ranking")["basis"] == "ranking only"
    assert plan(run, base, "--rounding", "plain")["grounds"] == {**before["grounds"], "command": plan_command(run, base)}
    made_up.measure(*at, rounding=PLAIN, output=0.8)
    after = plan(run, base)
    assert after["basis"] == "probes"
    assert (after["grounds"]["carried"], after["grounds"]["rounding"]) == (True, "plain")
    assert ", with plain rounding" in run("plan", base, "--bpw", BITS).out
    tensors = {tensor.name: tensor for tensor in quantizable_tensors(at[1].source)}
    damages = {choice["name"]: choice["damage"] for choice in after["tensors"]}
    for name, kind in types(after).items():
        if kind != "F16" and "ffn_down" not in name:
            error = math.exp(UNSEEN.value) * made_up.error_of(kind, 0.4 / 0.8)  # on text that the covariances have not seen
            assert damages[name] == pytest.approx(made_up.alpha_of(tensors[name]) * (error + made_up.NOISE), rel=0.15)


@pytest.mark.parametrize("version", [COMPENSATED_VERSION, PLAIN_MEASURED])
def test_output_errors_that_were_sampled_in_an_earlier_way_are_not_taken(at: Home, version: str) -> None:
    rounding = f"{version}:0123456789abcdef"
    made_up.measure(*at, rounding=rounding, output=0.4, settings=MeasureSettings().key)
    assert measured(*at, AUTO).key.rounding == "", "what was measured without covariances stands"
    made_up.measure(*at, rounding=rounding, output=0.4)
    found = measured(*at, AUTO).key
    assert (found.rounding, found.settings) == (rounding, MeasureSettings().key_with(rounding))


def plan_command(run: Command, base: Path) -> str:
    return str(plan(run, base, "--rounding", "plain")["grounds"]["command"])


def test_compensated_probes_are_another_run_and_come_first(at: Home, run: Command, base: Path, texts: tuple[Path, Path]) -> None:
    version = f"{COMPENSATED_VERSION}:0123456789abcdef"
    made_up.probe(*at, texts[0], n_chunks=8)
    made_up.measure(*at, rounding=PLAIN, output=0.8)
    made_up.measure(*at, rounding=version, output=0.4)
    compensated = made_up.probe(*at, texts[0], n_chunks=4, rounding=version, factor=0.4)
    found = plan(run, base)
    assert compensated.run.startswith(found["grounds"]["name"])
    assert (found["grounds"]["carried"], found["grounds"]["rounding"]) == (False, "")
    assert "--rounding compensated" in found["grounds"]["command"]
    plainly = plan(run, base, "--rounding", "plain")
    assert not plainly["grounds"]["carried"]
    assert not compensated.run.startswith(plainly["grounds"]["name"])


def test_predictions_of_compensated_files_speak_of_text_that_their_covariances_have_not_seen(
    tmp_path: Path, base: Path, texts: tuple[Path, Path], quantailor: Command
) -> None:
    version, predicted = f"{COMPENSATED_VERSION}:{'c' * 16}", {}
    for name, text, n_chunks in (("seen", texts[0], 8), ("half", texts[0], 4), ("unseen", texts[1], 8)):
        with Workspace.open(tmp_path / name) as workspace, workspace.model(base) as model:
            made_up.measure(workspace, model, rounding=version, output=0.4)
            made_up.probe(workspace, model, text, rounding=version, factor=0.4)
            record = CalibrationRecord(model.fingerprint, "c" * 64, (texts[0].name,), n_chunks, 512, "computed")
            corpus = hashlib.sha256(texts[0].read_bytes()).hexdigest()
            workspace.store.record_covariances(record, computed=ImatrixKey(model.fingerprint, corpus, 512))
        outcome = quantailor("plan", base, "--bpw", BITS, "--home", tmp_path / name, "--json")
        predicted[name] = outcome.result["prediction"]["kld_nats"]
    # What kernels cost is the same on any text, and a few per cent of it all.
    for name, factor in (("seen", math.exp(UNSEEN.value)), ("half", math.exp(UNSEEN.value / 2))):
        assert 0.97 * factor < predicted[name] / predicted["unseen"] < factor


def test_plain_probes_of_compensated_files_count_as_seen(at: Home, run: Command, base: Path, texts: tuple[Path, Path]) -> None:
    made_up.probe(*at, texts[0])
    made_up.measure(*at, rounding=PLAIN, output=0.8)
    plain = plan(run, base)["prediction"]["kld_nats"]
    made_up.measure(*at, rounding=f"{COMPENSATED_VERSION}:0123456789abcdef", output=0.8)
    assert plan(run, base)["prediction"]["kld_nats"] == pytest.approx(math.exp(UNSEEN.value) * plain, rel=0.03)
    assert plan(run, base, "--rounding", "plain")["prediction"]["kld_nats"] == pytest.approx(plain, rel=1e-6)
