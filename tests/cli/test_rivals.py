"""`verify` of several files: all are looked at before anything runs, and every two are compared."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from commands import Command, validate

from small_base import write_small_base

QUICK = ("--n-ctx", "64", "--chunks", "2", "--threads", "1")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_base(tmp_path_factory.mktemp("base") / "base.gguf")


def test_a_file_of_another_vocabulary_stops_all_by_name(quantailor: Command, base: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours.gguf"
    shutil.copy(base, ours)
    other_words = write_small_base(tmp_path / "theirs.gguf", vocabulary="other")
    other_kind = write_small_base(tmp_path / "qwen.gguf", architecture="qwen2")
    home = ("--home", tmp_path / "home")
    for theirs, said in (
        (other_words, f"{other_words} is not made from {base}: tokenizer.ggml.tokens differs"),
        (other_kind, f"{other_kind} is of the architecture qwen2, and its base {base} of llama"),
        (ours, f"{ours} is given twice"),
    ):
        assert said in quantailor("verify", ours, theirs, "--base", base, *QUICK, *home).error_line
    assert quantailor("jobs", "list", *home, "--json").result == []


@pytest.mark.slow
def test_anyones_files_are_compared_with_each_other_and_presets(
    quantailor: Command, base: Path, heldout_text: Path, tmp_path: Path
) -> None:
    home = ("--home", tmp_path / "home")
    for name, preset in (("a", "Q4_K_M"), ("b", "Q5_K_M"), ("Q8_0", "Q8_0")):
        assert quantailor("build", base, preset, "-o", tmp_path / f"{name}.gguf", "--imatrix", "none", *home).code == 0
    (tmp_path / "there").mkdir()
    shutil.copy(tmp_path / "b.gguf", tmp_path / "there" / "a.gguf")
    files = (tmp_path / "a.gguf", tmp_path / "b.gguf", tmp_path / "Q8_0.gguf", tmp_path / "there" / "a.gguf")
    words = ("verify", *files, "--base", base, "-f", heldout_text, "--against", "Q8_0,Q3_K_M", *QUICK, "-o", tmp_path / "verdict", *home)
    outcome = quantailor(*words, "--json")
    validate(outcome.out)
    found = outcome.result["verdict"]
    assert [(row["label"], row["kind"]) for row in found["rows"]] == [
        *(("base", "base"), ("a", "ours"), ("b", "rival"), ("Q8_0 (theirs)", "rival"), ("there/a", "rival")),
        *(("Q8_0", "reference"), ("Q3_K_M", "reference")),
    ]
    assert len(found["pairs"]) == 6 * 5 / 2
    shown = quantailor(*words).out
    assert "KLD of the file on top" in shown
    assert "Compared with the presets' line at its size; a claim needs 200 chunks" in shown.replace("\n", " ")
    assert {path.name for path in tmp_path.iterdir()} >= {"verdict.json", "verdict.csv", "verdict.png", "verdict.svg"}
