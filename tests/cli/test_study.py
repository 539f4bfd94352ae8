"""`quantailor study` and `quantailor models`, from a directory to everything that measuring gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import Command, validate

from tiny_models import write_tiny

TYPES = ("--types", "Q4_0,Q5_0,Q8_0", "--threads", 1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny("llama2", tmp_path / "models")


@pytest.fixture
def text(tmp_path: Path, calibration_text: Path) -> Path:
    """Eight chunks or so."""
    path = tmp_path / "short.txt"
    path.write_text(calibration_text.read_text(encoding="utf-8")[:16_000], encoding="utf-8")
    return path


def test_a_quick_study_goes_from_a_directory_to_weight_errors(quantailor: Command, model: Path, text: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    outcome = quantailor("study", model, "--level", "quick", "-f", text, *TYPES, *home, "--json")
    validate(outcome.out)
    found = outcome.result
    assert Path(found["base"]).parent == tmp_path / "home" / "bases"
    assert re.fullmatch(re.escape(model.name) + r"-[0-9a-f]{8}\.gguf", Path(found["base"]).name)
    assert Path(found["base"]).is_file()
    assert found["imatrix_chunks"] > 0
    assert found["n_cells"] == 3 * found["n_tensors"]
    assert found["basis"] == "ranking only"
    planned = quantailor("plan", found["base"], "--bpw", "7", "--allow", "Q4_0,Q5_0,Q8_0", *home, "--json").result
    assert planned["basis"] == "ranking only"


@pytest.mark.slow
def test_a_second_study_takes_what_is_there(quantailor: Command, model: Path, text: Path, tmp_path: Path) -> None:
    words = ("study", model, "--level", "quick", "-f", text, *TYPES, "--home", tmp_path / "home", "--json")
    first = quantailor(*words).result
    base = Path(first["base"]).stat().st_mtime_ns
    assert quantailor(*words).result == first
    assert Path(first["base"]).stat().st_mtime_ns == base
    cost = quantailor(*words, "--cost").result
    assert [stage["stage"] for stage in cost["stages"]] == ["calibrate", "measure"]
    assert all(stage["share_done"] == 1 and stage["seconds"] == [0, 0] for stage in cost["stages"])


@pytest.mark.parametrize("is_whole", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_base_of_which_nothing_is_recorded_is_in_nobodys_way(
    quantailor: Command, model: Path, text: Path, tmp_path: Path, *, is_whole: bool
) -> None:
    """A study that was killed when its base had its name, but before the home said so; or a file that was damaged since."""

    def study(home: Path) -> str:
        options = ("--level", "quick", "--imatrix", "none", "--rounding", "plain", "-f", text)
        return quantailor("study", model, *options, *TYPES, "--home", home, "--json").out.replace(str(home), "HOME")

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected = study(whole)
    base = next((whole / "bases").iterdir())
    content, left = base.read_bytes(), killed / "bases" / base.name
    left.parent.mkdir(parents=True)
    left.write_bytes(content if is_whole else content[:1000])
    assert study(killed) == expected
    assert left.read_bytes() == content


def test_a_base_that_is_there_is_not_written_again(quantailor: Command, model: Path, tmp_path: Path) -> None:
    """As after `jobs resume` of a conversion that was killed at its end. What is another file stays."""
    home, base = ("--home", tmp_path / "home"), tmp_path / "base.gguf"
    first = quantailor("convert", model, "-o", base, "--home", tmp_path / "another home", "--json").result
    written = base.stat()
    assert quantailor("convert", model, "-o", base, *home, "--json").result == first
    assert (base.stat().st_ino, base.stat().st_mtime_ns) == (written.st_ino, written.st_mtime_ns)
    base.write_bytes(base.read_bytes()[:1000])
    assert f"{base} exists" in quantailor("convert", model, "-o", base, *home).error_line
    assert base.stat().st_size == 1000


@pytest.mark.slow
def test_its_stages_are_numbered(quantailor: Command, model: Path, text: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    quantailor("study", model, "--level", "quick", "-f", text, *TYPES, *home)
    job = quantailor("jobs", "show", 1, *home, "--json").result
    assert (job["stage"], job["stage_number"], job["n_stages"], job["unit"]) == ("measure", 3, 3, "weights")
    assert job["elapsed_seconds"] > 0


def test_without_an_importance_matrix_none_is_made(quantailor: Command, model: Path, text: Path, tmp_path: Path) -> None:
    words = ("study", model, "--level", "quick", "--imatrix", "none", *TYPES, "--home", tmp_path / "home", "--json")
    found = quantailor(*words).result
    assert found["imatrix_fingerprint"] is None
    assert found["imatrix_chunks"] == 0


@pytest.mark.slow
def test_an_exhaustive_study_goes_all_the_way(quantailor: Command, model: Path, text: Path, tmp_path: Path) -> None:
    text.write_text(text.read_text(encoding="utf-8")[:4_000], encoding="utf-8")  # two chunks: every cell is measured on them
    home = ("--home", tmp_path / "home")
    found = quantailor("study", model, "--level", "exhaustive", "-f", text, *TYPES, *home, "--json").result
    assert found["settings"] == "exhaustive"
    assert found["basis"] == "probes"
    assert found["n_probed"] > 0
    assert found["n_swept"] >= 3 * (found["n_tensors"] - 1)
    cost = quantailor("study", model, "--level", "exhaustive", "-f", text, *TYPES, "--cost", *home, "--json").result
    assert [stage["stage"] for stage in cost["stages"]] == ["calibrate", "measure", "probes", "mixes", "sweep"]
    assert cost["share_done"] > 0.9
    (project,) = quantailor("models", *home, "--json").result
    assert project["level"] == "exhaustive"
    assert project["is_probed"]


@pytest.mark.parametrize(("level", "stages"), [("quick", 3), ("balanced", 5), ("exhaustive", 6)])
def test_the_cost_is_told_before_anything_starts(quantailor: Command, model: Path, tmp_path: Path, level: str, stages: int) -> None:
    words = ("study", model, "--level", level, "--cost", "--home", tmp_path / "home")
    outcome = quantailor(*words, "--json")
    validate(outcome.out)
    cost = outcome.result
    assert len(cost["stages"]) == stages
    assert 0 < cost["seconds"][0] < cost["seconds"][1]
    assert cost["share_done"] == 0
    assert cost["shortfalls"] == []
    assert quantailor("jobs", "--home", tmp_path / "home", "--json").result == []
    assert "in all" in quantailor(*words).out


@pytest.mark.slow
def test_models_are_listed_with_what_is_known(quantailor: Command, model: Path, text: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    assert "No models yet" in quantailor("models", *home).out
    found = quantailor("study", model, "--level", "quick", "-f", text, *TYPES, *home, "--json").result
    listed = quantailor("models", *home, "--json")
    validate(listed.out)
    (project,) = listed.result
    assert project["fingerprint"] == found["model_fingerprint"]
    assert (project["source"], project["base"]) == (str(model), found["base"])
    assert (project["n_cells"], project["level"], project["has_imatrix"]) == (found["n_cells"], "quick", True)
    shown = quantailor("models", *home).out
    assert found["model_fingerprint"][:12] in shown
    assert f"{found['n_cells']} cells" in shown
