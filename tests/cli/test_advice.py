"""A refusal names what was asked for and a value that works, and the value works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import Command, Workbench

from quantailor import read_strategy
from small_base import write_small_base


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A small model with measurements."""
    from quantailor import cli

    folder = tmp_path_factory.mktemp("small")
    base = write_small_base(folder / "base.gguf")
    arguments = ("measure", base, "--types", "Q8_0,Q4_K,Q2_K", "--home", folder / "home", "--json")
    assert cli.run([str(argument) for argument in arguments]) == 0
    return Workbench(folder / "home", base)


def advised(line: str, before: str = "Ask for ") -> str:
    found = re.search(rf"{before}([0-9.e-]*[0-9])", line)
    assert found is not None, line
    return found[1]


RULES = [(), ("--knee", "relative"), ("--greedy", "damage"), ("--bins", "50=Q4_K,100=Q2_K"), ("--pin", "output=Q8_0"), ("--tie", "layer")]


@pytest.mark.parametrize(
    "rule",
    [
        RULES[0],
        *(pytest.param(rule, marks=pytest.mark.slow) for rule in RULES[1:]),
        ("--budget", "ffn_*=10MB"),
        ("--budget", "ffn_*=10MB", "--budget", "*.0.*=10MB", "--allow", "Q4_K"),
    ],
)
def test_a_size_that_is_too_small_names_one_that_works(
    quantailor: Command, small: Workbench, tmp_path: Path, rule: tuple[str, ...]
) -> None:
    words = ("plan", small.base, *rule, "--basis", "ranking", "--home", small.home)
    line = quantailor(*words, "--size", "1000").error_line
    assert "1,000 bytes" in line
    size = advised(line)
    planned = quantailor(*words, "--size", size, "-o", tmp_path / "s.yaml", "--json").result
    assert planned["prediction"]["file_size_bytes"] == int(size)
    built = quantailor("build", small.base, tmp_path / "s.yaml", "-o", tmp_path / "q.gguf", "--home", small.home, "--json").result
    assert built["size_bytes"] == int(size)
    mebibytes = re.findall(r"bytes \(([0-9.]+ MiB)\) or more", line)
    assert quantailor(*words, "--size", *mebibytes).code == 0
    again = quantailor(*words, "--size", int(size) - 1).error_line
    assert f"{int(size) - 1:,} bytes" in again
    assert advised(again) == size


@pytest.mark.parametrize("rule", RULES)
def test_bits_that_are_too_few_name_what_works(quantailor: Command, small: Workbench, rule: tuple[str, ...]) -> None:
    words = ("plan", small.base, *rule, "--basis", "ranking", "--home", small.home)
    line = quantailor(*words, "--bpw", "1.2").error_line
    assert "1.2 bits per weight" in line
    assert quantailor(*words, "--bpw", advised(line)).code == 0


@pytest.mark.parametrize("rule", [(), ("--pin", "output=Q8_0"), ("--tie", "layer"), ("--budget", "ffn_*=10MB"), ("--allow", "Q4_K,Q8_0")])
def test_the_size_that_make_advises_before_any_work_is_enough_for_the_plan(
    quantailor: Command, small: Workbench, tmp_path: Path, rule: tuple[str, ...]
) -> None:
    ahead = ("make", small.base, *rule, "--types", "Q8_0,Q4_K,Q2_K", "--imatrix", "none", "-o", tmp_path / "out", "--home", small.home)
    size = advised(quantailor(*ahead, "--size", "1000").error_line)
    words = ("plan", small.base, *rule, "--basis", "ranking", "--home", small.home)
    assert quantailor(*words, "--size", size).code == 0
    # What make lets pass for certain fails no later than it must: the room for what the header may say is small.
    smallest = int(advised(quantailor(*words, "--size", "1000").error_line))
    assert smallest <= int(size) <= 1.02 * smallest + 4096
    assert quantailor(*ahead, "--size", smallest - 3000, "--basis", "ranking", "--no-verify").code == 1


def test_a_built_file_stands_for_its_strategy(quantailor: Command, small: Workbench, tmp_path: Path) -> None:
    home, strategy, built = ("--home", small.home), tmp_path / "s.yaml", tmp_path / "built.gguf"
    assert quantailor("plan", small.base, "--bpw", 6, "-o", strategy, *home).code == 0
    assert quantailor("build", small.base, strategy, "-o", built, *home).code == 0
    assert quantailor("build", small.base, built, "-o", tmp_path / "again.gguf", *home).code == 0
    assert (tmp_path / "again.gguf").read_bytes() == built.read_bytes()
    assert quantailor("edit", small.base, built, "--set", "output=Q8_0", "-o", tmp_path / "edited.yaml", *home).code == 0
    assert quantailor("check", built, tmp_path / "again.gguf", "--base", small.base, *home).code == 0
    assert "is the base itself" in quantailor("build", small.base, small.base, "-o", tmp_path / "none.gguf", *home).error_line
    line = quantailor("edit", small.base, small.base, "--set", "output=Q8_0", "-o", tmp_path / "none.yaml", *home).error_line
    assert "base.gguf is a GGUF file that carries no strategy: another program made it" in line
    assert read_strategy(built).types == read_strategy(strategy).types


def test_a_preset_that_is_too_small_is_named(quantailor: Command, small: Workbench) -> None:
    words = ("plan", small.base, "--allow", "Q8_0", "--home", small.home)
    line = quantailor(*words, "--like", "Q4_K_M").error_line
    assert "the size of Q4_K_M" in line
    assert quantailor(*words, "--size", advised(line)).code == 0


def test_make_refuses_a_preset_that_is_too_small_before_it_measures(quantailor: Command, small: Workbench, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    for more in (("--imatrix", "none"), ()):
        make = ("make", small.base, "--allow", "Q8_0", *more, "-o", tmp_path / "out", *home)
        line = quantailor(*make, "--like", "Q4_K_M").error_line
        assert "the size of Q4_K_M" in line
        size = advised(line)
        assert quantailor("plan", small.base, "--allow", "Q8_0", "--size", size, "--home", small.home).code == 0
    assert quantailor("jobs", "list", *home, "--json").result == []


def test_a_budget_that_is_too_small_names_one_that_works(quantailor: Command, small: Workbench) -> None:
    words = ("plan", small.base, "--bpw", "6", "--home", small.home, "--budget")
    for pattern, other in (("ffn_*", ()), ("blk.0.*", ("--budget", "ffn_*=2MB"))):
        line = quantailor(*words, f"{pattern}=10kB", *other).error_line
        assert f"{pattern}=10000 " in line
        assert quantailor(*words, f"{pattern}={advised(line, re.escape(f'Give {pattern}='))}", *other).code == 0


@pytest.mark.parametrize(("option", "value"), [("--min", "9"), ("--max", "2"), ("--min", "output=12"), ("--max", "ffn_*=1.5")])
def test_a_limit_that_no_type_meets_names_one_that_works(quantailor: Command, small: Workbench, option: str, value: str) -> None:
    words = ("plan", small.base, "--bpw", "12", "--allow", "Q8_0,Q4_K,Q2_K", "--home", small.home, option)
    line = quantailor(*words, value).error_line
    pattern = value.rpartition("=")[0]
    prefix = f"{pattern}=" if pattern else ""
    assert quantailor(*words, f"{prefix}{advised(line, re.escape(f'Give {option} {prefix}'))}").code == 0


def test_a_limit_that_was_given_as_a_type_is_called_by_it(quantailor: Command, small: Workbench) -> None:
    words = ("plan", small.base, "--bpw", "6", "--home", small.home)
    for limits, said in (
        (("--min", "ffn_*=q4_k", "--pin", "ffn_down=Q2_K"), "contradicts --min ffn_*=Q4_K: Q2_K has 2.625"),
        (("--min", "Q4_K", "--min", "Q8_0"), "--min Q4_K and --min Q8_0 contradict each other"),
        (("--max", "output=Q4_K", "--max", "output=8"), "--max output=Q4_K and --max output=8 contradict each other"),
        (("--max", "Q2_K", "--allow", "Q8_0,Q4_K"), "no type with at most the 2.625 bits of Q2_K"),
    ):
        assert said in quantailor(*words, *limits).error_line


def test_a_pin_that_leaves_the_allowed_types_is_told(quantailor: Command, small: Workbench) -> None:
    words = ("plan", small.base, "--bpw", "6", "--home", small.home, "--pin", "output=Q8_0")
    assert quantailor(*words, "--json").result["notes"] == []
    outcome = quantailor(*words, "--allow", "Q4_K,Q2_K")
    assert "--pin output=Q8_0 is an exception to --allow Q4_K,Q2_K." in outcome.out


@pytest.mark.slow
def test_a_divergence_that_no_mix_reaches_names_one_that_works(quantailor: Command, small: Workbench, calibration_text: Path) -> None:
    home = ("--home", small.home)
    probes = ("--type", "Q2_K", "--chunks", 2, "--group", "role", "--mixes", 24, "--mix-chunks", 4, "--anchors", 1)
    assert quantailor("probe", small.base, "-f", calibration_text, *probes, "--n-ctx", 64, "--threads", 1, *home).code == 0
    for rule in ((), ("--allow", "Q4_K,Q2_K"), ("--budget", "ffn_*=1MB", "--budget", "*.0.*=400kB", "--allow", "Q8_0,Q4_K,Q2_K")):
        words = ("plan", small.base, *rule, *home)
        line = quantailor(*words, "--kld", "1e-12").error_line
        assert "1e-12" in line
        assert quantailor(*words, "--kld", advised(line)).code == 0
