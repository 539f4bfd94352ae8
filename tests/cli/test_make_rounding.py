"""`make` and `study` compensate rounding unless told otherwise; with --rounding plain they do what they did before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import Command

import quantailor as q
from quantailor.evidence.measurements import UNUSUAL_TYPES
from quantailor.ggml import library
from quantailor.session import Workspace
from small_base import write_small_base

pytestmark = pytest.mark.slow

TYPES = "Q4_K,Q8_0"
FEW = ("--types", TYPES, "--basis", "ranking", "--no-verify", "--bpw", 6, "--threads", 1, "--json")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_base(tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory, calibration_text: Path) -> Path:
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text(calibration_text.read_text(encoding="utf-8")[:2_000], encoding="utf-8")
    return path


def built(made: object) -> Path:
    assert isinstance(made, dict)
    return Path(made["build"]["paths"][0])


def test_make_compensates_and_a_second_run_takes_what_is_there(quantailor: Command, base: Path, text: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    words = ("make", base, "-f", text, *FEW, *home, "-o", tmp_path / "out")
    made = quantailor(*words).result
    assert made["rounding"] == "compensated"
    assert (tmp_path / "out" / "imatrix.gguf").is_file()
    (job,) = quantailor("jobs", *home, "--json").result
    assert (job["stage_number"], job["n_stages"]) == (4, 4), "calibrate, measure, plan, build"
    before = built(made).stat().st_mtime_ns
    assert quantailor(*words).result == made
    assert built(made).stat().st_mtime_ns == before
    again = tmp_path / "again.gguf"
    assert quantailor("build", base, made["strategy"], "-o", again, *home).code == 0
    assert again.read_bytes() == built(made).read_bytes(), "the strategy records how it is rounded"


def test_told_to_round_plainly_it_makes_what_its_parts_make(quantailor: Command, base: Path, text: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "parts", "--json")
    strategy, output = tmp_path / "s.yaml", tmp_path / "parts.gguf"
    assert quantailor("imatrix", base, "-f", text, "--threads", 1, *home).code == 0
    assert quantailor("measure", base, "--types", TYPES, *home).code == 0
    assert quantailor("plan", base, "--bpw", 6, "--basis", "ranking", "--allow", TYPES, "-o", strategy, *home).code == 0
    assert quantailor("build", base, strategy, "-o", output, *home).code == 0
    words = ("make", base, "-f", text, *FEW)
    compensated = quantailor(*words, "--home", tmp_path / "home", "-o", tmp_path / "compensated").result
    for name in ("home", "home of its own"):  # one that has covariances, and one that has none
        folder = tmp_path / f"plain in {name}"
        made = quantailor(*words, "--rounding", "plain", "--home", tmp_path / name, "-o", folder).result
        assert (made["rounding"], made["covariances"]) == ("plain", None)
        assert built(made).read_bytes() == output.read_bytes()
        assert (folder / "strategy.yaml").read_bytes() == strategy.read_bytes()
        assert (folder / "imatrix.gguf").read_bytes() == (tmp_path / "compensated" / "imatrix.gguf").read_bytes()
    assert built(compensated).read_bytes() != output.read_bytes()
    assert not list((tmp_path / "home of its own" / "covariances").glob("*"))


@pytest.mark.tables
def test_types_that_no_plan_takes_by_itself_are_measured_where_they_are_named(quantailor: Command, base: Path, tmp_path: Path) -> None:
    options = [word for word in FEW if word not in ("--types", TYPES)]
    words = ("make", base, "--imatrix", "none", *options, "--rounding", "plain", "--home")
    for named, unusual in (((), set()), (("--pin", "attn_v=MXFP4", "--allow", "ffn_down=TQ*,Q8_0"), {"MXFP4", "TQ1_0", "TQ2_0"})):
        home = tmp_path / f"with {len(named)}"
        made = quantailor(*words, home, *named, "-o", home / "out").result
        with Workspace.open(home) as workspace:
            (key,) = workspace.store.measurements(q.read_strategy(Path(made["strategy"])).model_fingerprint)
            measured = {cell.type_name for cell in workspace.store.cells(key)}
        assert measured & UNUSUAL_TYPES == unusual
        assert measured > {"Q3_K", "IQ4_XS", "Q4_0", "BF16"}
        small = {name for name, qtype in library.types().items() if qtype.bits_per_weight < 0.45 * 6} - UNUSUAL_TYPES
        assert (measured & small) == (small if named else set()), "types much smaller than the file's bits, unless there are limits"


def test_a_result_of_the_other_rounding_is_not_replaced(quantailor: Command, base: Path, text: Path, tmp_path: Path) -> None:
    words = ("make", base, "-f", text, *FEW, "--home", tmp_path / "home", "-o", tmp_path / "out")
    made = quantailor(*words, "--rounding", "plain").result
    before = built(made).read_bytes()
    line = quantailor(*words).error_line
    assert f"{tmp_path / 'out'} holds the same with plain rounding" in line
    assert "--rounding plain" in line
    assert built(made).read_bytes() == before
    assert quantailor(*words, "--rounding", "plain").result == made
    assert quantailor(*words, "--force").result["rounding"] == "compensated"


def test_a_matrix_that_is_given_stays_what_the_quantizers_see(quantailor: Command, base: Path, text: Path, tmp_path: Path) -> None:
    matrix = tmp_path / "given.gguf"
    elsewhere = ("--home", tmp_path / "elsewhere", "--json")
    given = quantailor("imatrix", base, "-f", text, "--chunks", 1, "--threads", 1, "-o", matrix, *elsewhere).result
    words = ("make", base, "-f", text, *FEW, "--imatrix", matrix, "--home", tmp_path / "home", "-o", tmp_path / "out")
    straight = quantailor(*words).result
    assert straight["rounding"] == "plain", "no text runs through the model"
    made = quantailor(*words, "--rounding", "compensated", "--force").result
    assert made["imatrix"] == straight["imatrix"] == str(matrix)
    inputs = q.read_strategy(Path(made["strategy"])).inputs
    assert inputs["imatrix"] == given["fingerprint"]
    assert inputs["covariances"] == made["covariances"]


def test_a_study_compensates_and_takes_covariances_that_are_there(quantailor: Command, base: Path, text: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home", "--json")
    words = ("study", base, "--level", "quick", "-f", text, "--types", TYPES, "--threads", 1, *home)
    before = quantailor(*words, "--cost").result
    assert [stage["stage"] for stage in before["stages"]] == ["calibrate", "measure"]
    calibrated = quantailor("calibrate", base, "-f", text, "--threads", 1, *home).result
    found = quantailor(*words).result
    assert found["rounding"] == "compensated"
    assert found["covariances_fingerprint"] == calibrated["fingerprint"][:16]
    assert found["imatrix_fingerprint"] == calibrated["imatrix"]["fingerprint"]
    assert quantailor(*words, "--cost").result["share_done"] == 1
    plain = quantailor(*words, "--rounding", "plain").result
    assert (plain["rounding"], plain["imatrix_fingerprint"]) == ("plain", found["imatrix_fingerprint"])
    with Workspace.open(tmp_path / "home") as workspace:
        roundings = {key.rounding.partition(":")[0] for key in workspace.store.measurements(found["model_fingerprint"])}
    assert roundings == {"plain", "compensated-3"}


def test_what_covariances_need_is_said_before(
    quantailor: Command, base: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantailor.costs.machine.free_disk_bytes", lambda _: 1_000_000)
    home = tmp_path / "home"
    for words in (("make", base, *FEW, "-o", tmp_path / "out"), ("study", base, "--level", "quick", "--types", TYPES, "--json")):
        line = quantailor(*words, "-f", text, "--home", home).error_line
        assert f"on {home}" in line, json.dumps(line)
        assert quantailor(*words, "-f", text, "--rounding", "plain", "--home", tmp_path / "another").code == 0


def test_the_verdict_tells_what_compensation_gains(quantailor: Command, base: Path, text: Path, tmp_path: Path) -> None:
    words = ("make", base, "-f", text, *(word for word in FEW if word != "--no-verify"), "--home", tmp_path / "home")
    judged = ("--verify-text", text, "--against", "Q8_0", "--chunks", 1, "--beside", "plain")
    made = quantailor(*words, *judged, "-o", tmp_path / "out").result
    rows = {row["label"]: row for row in made["verify"]["verdict"]["rows"]}
    plain = quantailor(*words, "--rounding", "plain", *judged, "-o", tmp_path / "plain").result
    labels = {row["label"] for row in plain["verify"]["verdict"]["rows"]}
    assert "plain rounding" not in labels, "its rounding is plain already"
    assert "plain rounding" in made["verify"]["verdict"]["sentence"]
    again = tmp_path / "again.gguf"
    home = ("--home", tmp_path / "home", "--json")
    assert quantailor("build", base, made["strategy"], "-o", again, "--rounding", "plain", *home).code == 0
    judge = ("--against", "Q8_0", "-f", text, "--chunks", 1, "--threads", 1)
    verdict = quantailor("verify", again, "--base", base, *judge, *home).result["verdict"]
    (ours,) = (row for row in verdict["rows"] if row["kind"] == "ours")
    assert rows["plain rounding"]["statistics"]["kld_mean"] == ours["statistics"]["kld_mean"]
    assert rows["plain rounding"]["content"] == ours["content"]
