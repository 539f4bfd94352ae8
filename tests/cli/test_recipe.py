"""`make -r`: a run is repeated by the recipe that it wrote, wherever its directory is by then."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from commands import Command

from small_base import write_small_base

QUICK = ("--types", "Q8_0,Q4_K,Q2_K", "--imatrix", "none", "--basis", "ranking", "--no-verify")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_base(tmp_path_factory.mktemp("base") / "base.gguf")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".gguf", ".yaml", ".md")}


@pytest.mark.slow
@pytest.mark.parametrize(
    "asked",
    [
        ("--sizes", "Q4_K_M,5bpw", "--name", "{model}-{bits}", "--pin", "output=Q8_0", "--max", "ffn_down=Q4_K", "--min", "3"),
        ("--bpw", "5", "--tie", "qkv", "--budget", "blk.*=500kB", "--probe-chunks", "7"),
    ],
)
def test_a_run_is_repeated_by_its_recipe(quantailor: Command, base: Path, tmp_path: Path, asked: tuple[str, ...]) -> None:
    place, home = tmp_path / "there" / "out", ("--home", tmp_path / "home")
    (tmp_path / "there").mkdir()
    shutil.copy(base, tmp_path / "there" / "base.gguf")
    assert quantailor("make", tmp_path / "there" / "base.gguf", *asked, *QUICK, "-o", place, *home).code == 0
    before = contents(place)
    told = yaml.safe_load(before["recipe.yaml"])
    assert told["model"] == "../base.gguf"
    assert told["made"].keys() == {"quantailor", "llama.cpp", "model", "sha256 of texts"}
    moved = (tmp_path / "there").rename(tmp_path / "elsewhere")
    again = moved / "again"
    outcome = quantailor("make", "-r", moved / "out" / "recipe.yaml", "-o", again, "--home", tmp_path / "new home")
    assert outcome.code == 0, outcome.err
    assert contents(again) == before


def test_what_is_typed_goes_before_the_recipe(quantailor: Command, base: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"model: {base}\nsizes: [Q4_K_M, 5bpw]\ntypes: [Q8_0, Q4_K]\nimatrix: none\nbasis: ranking\nverify: false\npin: output=Q8_0\n"
        "eval: greedy\nchunks: 3\ngroup: role\n"
    )
    words = ("make", "-r", recipe, "-o", tmp_path / "out", "--sizes", "6bpw", "--home", tmp_path / "home", "--json")
    outcome = quantailor(*words)
    assert [rung["size"] for rung in outcome.result["rungs"]] == ["6bpw"]
    assert "no effect of --eval and --chunks: --no-verify makes no verdict" in outcome.err
    assert "no effect of --group: --basis ranking makes no probes" in outcome.err
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["pin"] == ["output=Q8_0"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sise: [Q4_K_M]", "sise is not an option of make. Did you mean"),
        ("sizes: {a: 1}", "sizes has parts"),
        ("- Q4_K_M", "holds no options"),
        ("a: [", "is not YAML"),
        (None, "cannot read the recipe"),
    ],
)
def test_a_recipe_that_cannot_be_followed_is_refused(quantailor: Command, base: Path, tmp_path: Path, text: str | None, said: str) -> None:
    place = tmp_path / "recipe.yaml"
    if text is not None:
        place.write_text(text)
    line = quantailor("make", base, "-r", place, "-o", tmp_path / "out", *QUICK, "--home", tmp_path / "home").error_line
    assert said in line
    assert str(place) in line
