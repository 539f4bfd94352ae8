"""Verify refuses what is no pair of file and base, needs no more than it needs, and says what limits a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import Command

from quantailor import cli
from small_base import write_small_base

QUICK = ("--n-ctx", "64", "--chunks", "2", "--threads", "1")


@dataclass(frozen=True)
class Made:
    """A file that was made with an importance matrix, and what it was made from."""

    base: Path
    file: Path
    text: Path
    home: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make("imatrix", tmp_path_factory.mktemp("made"))


def make(command: str, folder: Path) -> Made:
    """A file whose importance matrix that command computed from a text of its own."""
    base, text, home = write_small_base(folder / "base.gguf"), folder / "text.txt", folder / "home"
    text.write_text("The tailor took the measure of the cloth, and cut it by the light of a lamp. " * 40, encoding="utf-8")
    for words in (
        (command, base, "-f", text, *QUICK),
        ("measure", base, "--types", "Q8_0,Q4_K"),
        ("plan", base, "--bpw", "6", "--basis", "ranking", "-o", folder / "s.yaml"),
        ("build", base, folder / "s.yaml", "-o", folder / "ours.gguf"),
    ):
        assert cli.run([str(word) for word in (*words, "--home", home)]) == 0
    return Made(base, folder / "ours.gguf", text, home)


def test_a_file_of_another_model_is_refused(quantailor: Command, made: Made, books_llama_base: Path, tmp_path: Path) -> None:
    other_words = write_small_base(tmp_path / "words.gguf", vocabulary="other")
    for base, said in (
        (write_small_base(tmp_path / "qwen2.gguf", architecture="qwen2"), "is of the architecture llama, and its base"),
        (books_llama_base, "is not made from"),
        (other_words, "tokenizer.ggml.tokens differs"),
    ):
        line = quantailor("verify", made.file, "--base", base, *QUICK, "--home", tmp_path / "home").error_line
        assert said in line
        assert "Give --base the model that the file was made from" in line
    assert quantailor("jobs", "list", "--home", tmp_path / "home", "--json").result == []


@pytest.mark.slow
def test_a_fresh_home_needs_no_importance_matrix(quantailor: Command, made: Made, heldout_text: Path, tmp_path: Path) -> None:
    words = ("verify", made.file, "--base", made.base, "-f", heldout_text, *QUICK, "--home", tmp_path / "home", "--json")
    alone = quantailor(*words, "--against", "", "-o", tmp_path / "alone").result["verdict"]
    assert alone["reservations"] == []
    beside = quantailor(*words, "--against", "Q4_K_M", "-o", tmp_path / "beside").result["verdict"]
    assert "was made with is not here" in beside["reservations"][0]
    assert beside["sentence"].endswith(beside["reservations"][0])
    assert quantailor(*words[:-3], "--home", made.home, "--json", "--against", "Q4_K_M").result["verdict"]["reservations"] == []


@pytest.mark.slow
def test_a_text_that_is_not_held_out_is_told_by_its_content(quantailor: Command, made: Made, tmp_path: Path) -> None:
    renamed = tmp_path / "heldout.txt"
    renamed.write_bytes(made.text.read_bytes())
    for home in (made.home, tmp_path / "fresh home"):
        words = ("verify", made.file, "--base", made.base, "-f", renamed, *QUICK, "--against", "", "--home", home, "--json")
        outcome = quantailor(*words, "-o", tmp_path / "verdict")
        assert (
            "heldout.txt is the text from which the file's importance matrix was computed: it is not held out"
            in (outcome.result["verdict"]["reservations"][0])
        )


@pytest.mark.slow
def test_the_text_of_the_covariances_is_not_held_out_either(quantailor: Command, made: Made, heldout_text: Path, tmp_path: Path) -> None:
    other, matrix, file = tmp_path / "other.txt", tmp_path / "matrix.gguf", tmp_path / "ours.gguf"
    other.write_text(heldout_text.read_text(encoding="utf-8")[:9000], encoding="utf-8")
    place = ("--home", tmp_path / "home")
    quantailor("imatrix", made.base, "-f", made.text, *QUICK, "-o", matrix, *place)
    quantailor("calibrate", made.base, "-f", other, *QUICK, *place)
    quantailor("build", made.base, "Q4_0", "--rounding", "compensated", "--imatrix", matrix, "-o", file, *place)
    words = ("verify", file, "--base", made.base, "-f", other, *QUICK, "--against", "", *place, "--json")
    (said,) = quantailor(*words, "-o", tmp_path / "verdict").result["verdict"]["reservations"]
    assert "other.txt is the text from which the file's input covariances were computed: it is not held out" in said


@pytest.mark.slow
@pytest.mark.parametrize("command", ["imatrix", "calibrate"])
def test_a_text_of_which_a_part_is_not_held_out_is_told(quantailor: Command, heldout_text: Path, tmp_path: Path, command: str) -> None:
    made = make(command, tmp_path)
    words = ("verify", made.file, "--base", made.base, *QUICK, "--against", "", "--home", made.home, "--json")
    seen, unseen = made.text.read_text(encoding="utf-8"), heldout_text.read_text(encoding="utf-8")[:3000]
    for name, text, said in (
        (
            "part",
            seen[100:1700].replace(" ", "\n"),
            "100 % of part.txt is also in text.txt, from which the file's importance matrix was computed",
        ),
        ("mixed", unseen + seen[:3000], "% of mixed.txt is also in text.txt"),
    ):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
        verdict = quantailor(*words, "-f", tmp_path / f"{name}.txt", "-o", tmp_path / name).result["verdict"]
        assert said in verdict["reservations"][0]
        assert "not held out" in verdict["sentence"]
    (tmp_path / "apart.txt").write_text(unseen, encoding="utf-8")
    assert quantailor(*words, "-f", tmp_path / "apart.txt", "-o", tmp_path / "apart").result["verdict"]["reservations"] == []


def test_a_text_that_is_too_short_is_refused_before_any_reference_is_made(quantailor: Command, made: Made, tmp_path: Path) -> None:
    short, home = tmp_path / "short.txt", tmp_path / "home"
    short.write_text("Too short.", encoding="utf-8")
    line = quantailor("verify", made.file, "--base", made.base, "-f", short, "--against", "Q4_K_M,Q8_0", *QUICK, "--home", home).error_line
    assert "short.txt has 11 tokens and fills no chunk of 64" in line
    assert not list((home / "references").glob("*.gguf"))


def test_make_refuses_a_text_that_is_too_short_before_it_measures(quantailor: Command, made: Made, tmp_path: Path) -> None:
    short, home = tmp_path / "short.txt", tmp_path / "home"
    short.write_text("Too short.", encoding="utf-8")
    for words in (
        ("make", made.base, "--bpw", "6", "-o", tmp_path / "out", "--imatrix", "none", "--verify-text", short),
        ("make", made.base, "--bpw", "6", "-o", tmp_path / "out", "--imatrix", "none", "--no-verify", "-f", short),
        ("study", made.base, "--imatrix", "none", "-f", short),
    ):
        assert "short.txt has 11 tokens and fills no chunk of 512" in quantailor(*words, "--home", home).error_line
    assert quantailor("status", made.base, "--home", home, "--json").result["n_cells"] == 0


@pytest.mark.slow
def test_a_quantized_base_is_told(quantailor: Command, made: Made, heldout_text: Path, tmp_path: Path) -> None:
    words = ("verify", made.file, "--base", made.file, "-f", heldout_text, *QUICK, "--against", "", "--home", tmp_path / "home", "--json")
    found = quantailor(*words, "-o", tmp_path / "verdict").result["verdict"]
    assert "The base ours.gguf is itself quantized" in found["reservations"][0]
    assert found["reservations"][0] in found["sentence"]


@pytest.mark.slow
def test_a_base_with_other_weights_than_the_file_was_made_from_is_told(
    quantailor: Command, made: Made, heldout_text: Path, tmp_path: Path
) -> None:
    other = write_small_base(tmp_path / "other.gguf", seed="other")
    words = ("verify", made.file, "--base", other, "-f", heldout_text, *QUICK, "--against", "", "--home", tmp_path / "home", "--json")
    found = quantailor(*words, "-o", tmp_path / "verdict").result["verdict"]
    assert "The file says that it was made from Small (" in found["reservations"][0]
    assert "and other.gguf is another model (" in found["sentence"]


def test_models_of_one_name_are_told_apart(quantailor: Command, made: Made, tmp_path: Path) -> None:
    other = write_small_base(tmp_path / "other.gguf", seed="other")
    strategy, home = made.file.parent / "s.yaml", ("--home", tmp_path / "home")
    ours, theirs = (quantailor("inspect", model, "--json").result["fingerprint"][:12] for model in (made.base, other))
    for words in (("check", made.file, strategy, "--base", other), ("build", other, strategy, "-o", tmp_path / "x.gguf")):
        assert f"was made for Small ({ours}), not for Small ({theirs})" in quantailor(*words, *home).error_line


def test_presets_of_a_quantized_base_are_refused_before_any_work(quantailor: Command, made: Made, tmp_path: Path) -> None:
    for against in ((), ("--against", "Q4_K_M")):
        line = quantailor("verify", made.file, "--base", made.file, *QUICK, *against, "--home", tmp_path / "home").error_line
        assert "and presets cannot be made from it" in line
        assert '--against ""' in line
    assert quantailor("jobs", "list", "--home", tmp_path / "home", "--json").result == []
