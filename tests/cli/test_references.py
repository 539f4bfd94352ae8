"""What is left of llama.cpp's presets when a verdict is told: what they are, not their files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import Command

from quantailor.app.products.verdicts import verify_cost
from quantailor.app.steps import VerifyStep
from quantailor.jobs import this_worker
from quantailor.session import Workspace

AGAINST = ("--against", "Q4_0,Q8_0", "--chunks", "2", "--imatrix", "none", "--json")


@pytest.fixture
def files(small_base: Path, tmp_path: Path, quantailor: Command) -> tuple[Path, Path]:
    """A base and two files of it."""
    base = Path(shutil.copy(small_base, tmp_path / "base.gguf"))
    for name in ("Q5_0", "Q4_1"):
        assert quantailor("build", base, name, "-o", tmp_path / f"{name}.gguf", "--home", tmp_path / "home").code == 0
    return tmp_path / "Q5_0.gguf", tmp_path / "Q4_1.gguf"


def made(home: Path, number: int) -> list[str]:
    """The references that a job of the home made, in the order of jobs."""
    with Workspace.open(home) as workspace:
        jobs = sorted(workspace.store.jobs.all(), key=lambda job: job.id)
        lines = [line.message for line in workspace.store.jobs.log_lines(jobs[number].id)]
    return [line.split()[1] for line in lines if line.startswith("reference ") and line.endswith(" begins")]


@pytest.mark.slow
def test_presets_are_made_once_and_leave_no_file(quantailor: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    base, home = tmp_path / "base.gguf", tmp_path / "home"
    first, second = (quantailor("verify", file, "--base", base, "--home", home, *AGAINST) for file in files)
    begun = [made(home, job) for job in (-2, -1)]
    assert begun == [["Q4_0", "Q8_0"], []], "all is known of them"
    assert not list((home / "references").glob("*.gguf"))

    rows = [{row["label"]: row for row in each.result["verdict"]["rows"]} for each in (first, second)]
    assert [list(each) for each in rows] == [["base", "Q5_0", "Q4_0", "Q8_0"], ["base", "Q4_1", "Q4_0", "Q8_0"]]
    assert all(rows[0][name] == rows[1][name] for name in ("base", "Q4_0", "Q8_0"))
    assert rows[0]["Q8_0"]["size_bytes"] > rows[0]["Q4_0"]["size_bytes"] > 0

    step = VerifyStep(file=str(files[1]), base=str(base), against=("Q4_0", "Q8_0"), chunks=2, imatrix="none")
    with Workspace.open(home) as workspace:
        cost = verify_cost(workspace, step)
        assert (cost.n_runs, cost.new_references) == (0, ())
    more = quantailor("verify", files[1], "--base", base, "--home", home, *AGAINST[:2], "--chunks", "3", *AGAINST[4:])
    assert made(home, -1) == ["Q4_0", "Q8_0"], "a chunk that no file was scored on needs the files"
    assert more.result["verdict"]["rows"][2]["statistics"]["n_chunks"] == 3
    assert not list((home / "references").glob("*.gguf"))


@pytest.mark.slow
def test_a_file_that_another_job_may_read_stays(quantailor: Command, files: tuple[Path, Path], tmp_path: Path) -> None:
    base, home = tmp_path / "base.gguf", tmp_path / "home"
    with Workspace.open(home) as workspace:
        other = workspace.store.jobs.create("verify", {})
        workspace.store.jobs.claim(other.id, this_worker())
    assert quantailor("verify", files[0], "--base", base, "--home", home, "--now", *AGAINST).code == 0
    assert len(list((home / "references").glob("*.gguf"))) == 2
