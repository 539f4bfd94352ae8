"""A folder holds one result, made by one process at a time; what is there is not replaced without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import Command

import quantailor as q
from small_base import write_small_base

QUICK = ("--types", "Q8_0,Q4_K,Q2_K", "--imatrix", "none", "--basis", "ranking", "--no-verify")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_base(tmp_path_factory.mktemp("base") / "base.gguf")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.slow
def test_another_result_in_the_folder_is_not_replaced(quantailor: Command, base: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", ("--home", tmp_path / "home")
    make = ("make", base, "-o", out, *QUICK, *home)
    first = quantailor(*make, "--bpw", "5", "--pin", "output=Q8_0", "--json").result
    before = contents(out)
    assert quantailor(*make, "--bpw", "5", "--pin", "output=Q8_0", "--json").result == first, "the same again"
    other = write_small_base(tmp_path / "other.gguf", seed="other")
    for words, said in (
        ((*make, "--bpw", "6"), "another result: at most 5 bits per weight"),
        ((*make, "--size", "600kB"), "at most 5 bits per weight"),
        ((*make, "--like", "Q4_K_M"), "at most 5 bits per weight"),
        ((*make, "--bpw", "5"), "other constraints"),
        (("make", other, "-o", out, *QUICK, *home, "--bpw", "5", "--pin", "output=Q8_0"), "another model, Small"),
    ):
        line = quantailor(*words).error_line
        assert f"{out} holds" in line, words
        assert said in line
        assert "-o, or give --force" in line
        assert contents(out) == before
    assert quantailor(*make, "--bpw", "6", "--force").code == 0
    assert contents(out)["strategy.yaml"] != before["strategy.yaml"]


def test_a_strategy_that_was_edited_is_not_replaced(quantailor: Command, base: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", ("--home", tmp_path / "home")
    make = ("make", base, "-o", out, *QUICK, *home, "--like", "Q4_K_M")
    assert quantailor(*make).code == 0
    assert quantailor(*make).code == 0, "the size of a preset is the same target"
    place = out / "strategy.yaml"
    assert quantailor("edit", base, place, "--set", "output=Q8_0", "-o", place, "--force", *home).code == 0
    assert "edited by hand" in quantailor(*make).error_line
    place.write_text("no strategy")
    assert "cannot be read" in quantailor(*make).error_line
    assert place.read_text() == "no strategy"


def test_the_second_of_two_at_once_is_told_who_is_at_it(quantailor: Command, base: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", list[str]()

    def meanwhile(*_: object) -> None:
        if not said:
            said.append("")
            said.append(quantailor("make", base, "-o", out, *QUICK, "--bpw", "6", "--home", tmp_path / "other home").error_line)

    with q.open_model(base, home=tmp_path / "home", on_progress=meanwhile) as model:
        plan = q.PlanOptions(bits_per_weight=5, basis="ranking")
        q.make(model, out, plan, types=("Q8_0", "Q4_K"), imatrix="none", verify=False)
    assert f"process {os.getpid()} (job 1 of {tmp_path / 'home'}) is working in {out}" in said[1]


HOLD = """
import sys
from pathlib import Path
from quantailor.session import Workspace
from quantailor.steps.checks.folder import alone_in

with Workspace.open(Path(sys.argv[1])) as workspace, alone_in(Path(sys.argv[2]), workspace):
    print("here", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_a_process_that_was_killed_holds_nothing(quantailor: Command, base: Path, tmp_path: Path) -> None:
    out, home = tmp_path / "out", tmp_path / "home"
    out.mkdir()
    make = ("make", base, "-o", out, *QUICK, "--bpw", "5", "--home", home)
    command = [sys.executable, "-c", HOLD, str(home), str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "here\n"
        assert f"process {other.pid} is working in {out}" in quantailor(*make).error_line
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert quantailor(*make).code == 0


def test_a_verdict_on_another_file_is_not_replaced(quantailor: Command, base: Path, tmp_path: Path) -> None:
    place = tmp_path / "verdict.json"
    place.write_text('{"rows": [{"kind": "base", "label": "base"}, {"kind": "ours", "label": "other"}]}')
    line = quantailor("verify", base, "--base", base, "-o", tmp_path / "verdict", "--home", tmp_path / "home").error_line
    assert f"{place} already exists and is the verdict on other" in line
    assert "--force" in line
