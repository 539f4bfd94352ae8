"""`plan --like FILE` and `plan --types-of FILE`: somebody else's size, and somebody else's types."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command, Workbench

import quantailor as q
from quantailor import cli
from small_base import write_small_base


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A small model of which three types are measured."""
    folder = tmp_path_factory.mktemp("measured")
    base, home = write_small_base(folder / "base.gguf"), folder / "home"
    assert cli.run(["measure", str(base), "--types", "Q8_0,Q4_K,Q2_K", "--home", str(home)]) == 0
    assert cli.run(["build", str(base), "Q4_K_M", "-o", str(folder / "theirs.gguf"), "--imatrix", "none", "--home", str(home)]) == 0
    return Workbench(home, base)


def test_a_file_s_size_is_planned_for(quantailor: Command, measured: Workbench, tmp_path: Path) -> None:
    theirs = measured.base.with_name("theirs.gguf")
    words = ("plan", measured.base, "--basis", "ranking", "--home", measured.home, "--json")
    found = quantailor(*words, "--like", theirs).result
    assert found["prediction"] == quantailor(*words, "--size", theirs.stat().st_size).result["prediction"]
    assert found["prediction"]["file_size_bytes"] <= theirs.stat().st_size
    assert "nowhere.gguf" in quantailor(*words, "--like", tmp_path / "nowhere.gguf").error_line


def test_a_file_s_types_are_a_strategy(quantailor: Command, measured: Workbench, tmp_path: Path) -> None:
    theirs, words = measured.base.with_name("theirs.gguf"), ("--home", measured.home, "--json")
    found = quantailor("plan", measured.base, "--types-of", theirs, "-o", tmp_path / "s.yaml", *words).result
    with q.open_model(measured.base, home=measured.home) as model:
        assert q.plan(model, types_of=theirs).types == q.read_strategy(tmp_path / "s.yaml").types
    assert q.read_strategy(tmp_path / "s.yaml").types == q.read_strategy(theirs).types
    built = quantailor("build", measured.base, tmp_path / "s.yaml", "-o", tmp_path / "again.gguf", *words).result
    assert built["size_bytes"] == found["prediction"]["file_size_bytes"]
    line = quantailor("plan", measured.base, "--types-of", theirs, "-o", tmp_path / "s.yaml", *words[:2]).error_line
    assert "s.yaml" in line, "nothing is replaced without --force"


def test_a_published_recipe_may_have_comments(quantailor: Command, measured: Workbench, tmp_path: Path) -> None:
    recipe, words = tmp_path / "recipe.txt", ("--home", measured.home, "--json")
    recipe.write_text("## Made with a tool\n\n# attention\nattn=q8_0  # as large as can be\n// the rest\n.*=q4_K\n", encoding="utf-8")
    found = quantailor("plan", measured.base, "--types-of", recipe, *words).result
    assert found["type_counts"] == {"Q8_0": 8, "Q4_K": 8}
    assert found["prediction"]["no_prediction"]
    assert quantailor("build", measured.base, recipe, "-o", tmp_path / "out.gguf", *words).code == 0
    recipe.write_text("# nothing but attention\nattn=q8_0\n", encoding="utf-8")
    assert "says nothing about" in quantailor("plan", measured.base, "--types-of", recipe, *words[:2]).error_line


def test_what_leaves_no_choice_takes_no_limits(quantailor: Command, measured: Workbench) -> None:
    for more in (("--bpw", "5"), ("--knee", "relative"), ("--pin", "output=Q8_0")):
        outcome = quantailor("plan", measured.base, "--types-of", "Q4_K_M", *more, "--home", measured.home)
        assert outcome.code == 2
        assert "--types-of takes the types as they are" in outcome.err
