"""`make --sizes`: several files from one measurement, what they are called, and what is never replaced or built twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import Command, validate

import quantailor as q
from quantailor.steps.build import BuildStep
from small_base import write_small_base

QUICK = ("--types", "Q8_0,Q4_K,Q2_K", "--imatrix", "none", "--basis", "ranking", "--no-verify")
SIZES = "q8_0,Q4_K_M,5bpw,700kB"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_base(tmp_path_factory.mktemp("base") / "base.gguf")


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.gguf")}


def test_every_size_is_one_file_named_as_the_hub_shows_it(quantailor: Command, base: Path, tmp_path: Path) -> None:
    words = ("make", base, "--sizes", SIZES, "-o", tmp_path / "out", *QUICK, "--home", tmp_path / "home", "--json")
    outcome = quantailor(*words)
    validate(outcome.out)
    rungs = outcome.result["rungs"]
    assert [rung["size"] for rung in rungs] == ["700kB", "Q4_K_M", "5bpw", "Q8_0"], "the smallest first"
    names = {rung["size"]: Path(rung["file"]).name for rung in rungs}
    assert names["Q8_0"] == "Small-Q8_0.gguf"
    assert names["Q4_K_M"] == "Small-Q4_K_M.gguf"
    assert re.fullmatch(r"Small-(4\.9\d|5\.00)bpw-Q4_K_M\.gguf", names["5bpw"]), "what it has, which is at most what was asked for"
    sizes = {rung["size"]: rung["build"]["size_bytes"] for rung in rungs}
    assert sizes["700kB"] <= 700_000
    for rung in rungs:
        assert Path(rung["file"]).stat().st_size == rung["build"]["size_bytes"] == rung["build"]["predicted_size_bytes"]
        assert q.read_strategy(rung["file"]).types == q.read_strategy(rung["plan"]["path"]).types
    before = times(tmp_path / "out")
    assert quantailor(*words).result == outcome.result
    assert times(tmp_path / "out") == before, "nothing is built twice"


@pytest.mark.slow
def test_a_size_that_is_added_leaves_the_others(quantailor: Command, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rest = ("-o", out, *QUICK, "--home", tmp_path / "home")
    assert quantailor("make", base, "--sizes", "Q4_K_M", *rest).code == 0
    before = times(out)
    assert quantailor("make", base, "--sizes", "Q4_K_M,Q8_0", *rest).code == 0
    assert times(out).items() > before.items()
    shown = (out / "README.md").read_text()
    assert "| [Small-Q4_K_M.gguf](Small-Q4_K_M.gguf) |" in shown
    assert "| [Small-Q8_0.gguf](Small-Q8_0.gguf) |" in shown
    assert "**Perplexity and KL divergence of these files were not measured.**" in shown
    assert "- imatrix" not in shown


@pytest.mark.slow
def test_an_interrupted_ladder_goes_on(quantailor: Command, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, run = tmp_path / "out", BuildStep.run
    words = ("make", base, "--sizes", SIZES, "-o", out, *QUICK, "--home", tmp_path / "home")
    built = []

    def breaking(step: BuildStep, *arguments: object) -> object:
        built.append(Path(step.output).name)
        if len(built) == 3:
            raise KeyboardInterrupt
        return run(step, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(BuildStep, "run", breaking)
    assert quantailor(*words).code != 0
    before = times(out)
    assert len(before) == 2
    assert quantailor(*words).code == 0
    assert len(built) == 5, "the two files that were whole are not built again"
    assert times(out).items() > before.items()


@pytest.mark.slow
def test_what_was_planned_stays_when_more_is_measured(quantailor: Command, base: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", ("--home", tmp_path / "home")
    quick = [word if word != QUICK[1] else "Q8_0,Q2_K" for word in QUICK]
    assert quantailor("make", base, "--sizes", "5bpw", "-o", out, *quick, *home).code == 0
    before, plan = times(out), (out / "strategies" / "5bpw.yaml").read_bytes()
    assert quantailor("measure", base, "--types", "Q4_K,Q6_K", "--imatrix", "none", *home).code == 0
    assert quantailor("make", base, "--sizes", "5bpw,Q8_0", "-o", out, *quick, *home).code == 0
    assert times(out).items() > before.items()
    assert (out / "strategies" / "5bpw.yaml").read_bytes() == plan


@pytest.mark.slow
def test_other_files_of_these_names_are_not_replaced(quantailor: Command, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    theirs = out / "Small-Q4_K_M.gguf"
    theirs.write_bytes(base.read_bytes())
    words = ("make", base, "--sizes", "Q4_K_M,Q8_0", "-o", out, *QUICK, "--home", tmp_path / "home")
    line = quantailor(*words).error_line
    assert f"{theirs} already exists and is not a file of this ladder" in line
    assert "Move it away, or give --force to replace it" in line
    assert theirs.read_bytes() == base.read_bytes()
    assert quantailor(*words, "--name", "{model}-ours-{bits}").code == 0
    assert theirs.read_bytes() == base.read_bytes()
    card = out / "README.md"
    assert "-c 512\n" in card.read_text(), "no more context than the model was made for"
    card.write_text(card.read_text() + "Mine.\n")
    assert quantailor(*words, "--name", "{model}-ours-{bits}").code == 0
    assert card.read_text().endswith("Mine.\n"), "a card that was edited stays"
    assert quantailor(*words, "--force").code == 0
    assert theirs.read_bytes() != base.read_bytes()
    assert not card.read_text().endswith("Mine.\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--sizes", "Q4_K_M,Q9_X"), "'Q9_X' is not a size for --sizes"),
        (("--sizes", "Q4_K_M,q4_k"), "the size Q4_K_M is given twice"),
        (("--sizes", "5bpw,5.0 bpw"), "the size 5bpw is given twice"),
        (("--sizes", "0.5bpw"), "0.5"),
        (("--sizes", "5bpw", "--bpw", "4"), "takes its sizes from --sizes alone"),
        (("--sizes", "5bpw,6bpw", "--name", "{model}"), "gives several files the same name"),
        (("--sizes", "5bpw", "--name", "{sise}"), "is not a pattern for a file name"),
        (("--sizes", "5bpw", "--name", "a/{size}"), "is not a pattern for a file name"),
        (("--sizes", "5bpw", "--beside", "plain"), "is about one file"),
    ],
)
def test_sizes_and_names_that_make_no_sense_are_refused(
    quantailor: Command, base: Path, tmp_path: Path, options: tuple[str, ...], said: str
) -> None:
    line = quantailor("make", base, *options, "-o", tmp_path / "out", *QUICK, "--home", tmp_path / "home").error_line
    assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_one_verdict_holds_all_files_and_each_has_its_own(quantailor: Command, base: Path, heldout_text: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", ("--home", tmp_path / "home")
    options = [word for word in QUICK if word != "--no-verify"]
    judged = ("--verify-text", heldout_text, "--chunks", "2", "--against", "Q4_0", "--threads", "1")
    outcome = quantailor("make", base, "--sizes", "Q4_K_M,Q8_0", "-o", out, *options, *judged, *home, "--json")
    validate(outcome.out)
    rows = outcome.result["verify"]["verdict"]["rows"]
    assert [(row["label"], row["kind"]) for row in rows] == [
        *(("base", "base"), ("Small-Q4_K_M", "ours"), ("Small-Q8_0", "ours"), ("Q4_0", "reference"))
    ]
    assert {path.name for path in out.iterdir()} >= {"ladder.json", "ladder.csv", "ladder.png", "ladder.svg", "README.md"}
    assert "![Size against divergence](ladder.png)" in (out / "README.md").read_text()
    found = quantailor("verdicts", base, *home, "--json").result["verdicts"]
    ours = [[row["label"] for row in item["verdict"]["rows"] if row["kind"] == "ours"] for item in found]
    assert sorted(ours, key=len) == [["Small-Q8_0"], ["Small-Q4_K_M"], ["Small-Q4_K_M", "Small-Q8_0"]]
