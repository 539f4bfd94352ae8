"""Numbers, sizes and names: every face refuses what is out of range, before any work."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Command, Workbench
from typer.main import get_command

import quantailor as q
from quantailor.app.steps import RANGES, kinds
from quantailor.cli.app import app
from quantailor.errors import OptionError
from quantailor.present.words import parse_size


def number_options(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every option of every command whose value is a number."""
    for name, each in getattr(command, "commands", {}).items():
        yield from number_options(each, f"{path} {name}")
    for parameter in command.params:
        if parameter.opts[0].startswith("-") and parameter.type_descriptor.annotation in (int, float):
            yield f"{path} {parameter.opts[0]}", parameter


def test_every_number_on_the_command_line_has_a_range() -> None:
    found = list(number_options(get_command(app)))
    assert len(found) > 30
    assert [name for name, option in found if option.min is None or option.max is None] == []


def numbers_of(record: type) -> Iterator[str]:
    for name, hint in typing.get_type_hints(record).items():
        if name not in {field.name for field in dataclasses.fields(record)}:
            continue
        for each in typing.get_args(hint) or (hint,):
            if each in (int, float):
                yield name
            elif isinstance(each, type) and dataclasses.is_dataclass(each):
                yield from numbers_of(each)


def test_every_number_of_every_step_has_a_range() -> None:
    fields = {name for kind, step in kinds().items() if step.__module__.startswith("quantailor.") for name in numbers_of(step)}
    assert {"n_threads", "chunks", "size_bytes", "kld_nats"} <= fields
    assert fields <= RANGES.keys()


@pytest.mark.parametrize(("field", "value"), [("threads", 1_000_000), ("threads", 0), ("gpu_layers", -1)])
def test_a_script_is_told_what_a_number_may_be(measured_home: Path, books_llama_base: Path, field: str, value: int) -> None:
    said = pytest.raises(OptionError, match=rf"n_{field} is {value}\. Give a number from")
    with q.open_model(books_llama_base, home=measured_home, **{field: value}) as model, said:  # type: ignore[arg-type]
        q.measure(model, types=["Q8_0"])
    with q.open_model(books_llama_base, home=measured_home) as model, pytest.raises(OptionError, match="chunks is -3"):
        q.imatrix(model, chunks=-3)


def test_numbers_out_of_range_are_wrong_usage(quantailor: Command) -> None:
    for words in (
        ("measure", "base.gguf", "--threads", "1000000"),
        ("imatrix", "base.gguf", "--chunks", "-3"),
        ("plan", "base.gguf", "--bpw", "nan"),
        ("plan", "base.gguf", "--kld", "inf"),
        ("probe", "base.gguf", "--n-ctx", "31"),
        ("build", "base.gguf", "s.yaml", "-o", "out.gguf", "--split-max-size", "0"),
    ):
        assert quantailor(*words).code == 2, words


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4G", 4_000_000_000),
        ("4GB", 4_000_000_000),
        ("4gb", 4_000_000_000),
        ("4GiB", 2**32),
        ("4 Gi", 2**32),
        ("4.2 GiB", int(4.2 * 2**30)),
        ("4096M", 4_096_000_000),
        ("4_000_000", 4_000_000),
        ("442,816", 442_816),
        ("1.5k", 1500),
        ("123456 B", 123_456),
        ("9007199254740993", 9_007_199_254_740_993),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "many", "4X", "4 G i B", "-3", "0", "1e9", "4,2GiB", "1__000", "nan", "9999999T"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(OptionError, match="is not a size"):
        parse_size(text)


def test_sizes_mean_the_same_everywhere(quantailor: Command, workbench: Workbench) -> None:
    words = ("plan", workbench.base, "--home", workbench.home, "--json")
    sizes = {quantailor(*words, "--size", text).result["prediction"]["file_size_bytes"] for text in ("4M", "4MB", "4000k", "4_000_000")}
    assert len(sizes) == 1
    with q.open_model(workbench.base, home=workbench.home) as model:
        limits = q.PlanOptions(size_bytes=4_000_000, budgets=("ffn_*=1.6M",))
        assert q.plan(model, options=limits).prediction is not None


def test_a_type_that_is_not_exact_is_answered_with_the_nearest(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    home = ("--home", workbench.home)
    for words in (
        ("status", workbench.base, "--type", "Q4K"),
        ("measure", workbench.base, "--types", "Q4K"),
        ("plan", workbench.base, "--bpw", "5", "--pin", "output=Q4K"),
        ("plan", workbench.base, "--bpw", "5", "--allow", "Q6_K,Q4K"),
        ("plan", workbench.base, "--bpw", "5", "--min", "Q4K"),
        ("plan", workbench.base, "--bins", "50=Q4K"),
        ("plan", workbench.base, "--bpw", "5", "--greedy", "damage:Q4K"),
        ("make", workbench.base, "--bpw", "5", "--types", "Q4K", "-o", tmp_path / "out"),
        ("study", workbench.base, "--types", "Q4K"),
        ("probe", workbench.base, "--type", "Q4K"),
        ("sweep", workbench.base, "--types", "Q4K"),
    ):
        assert "Did you mean Q4_K" in quantailor(*words, *home).error_line, words
    presets: tuple[tuple[object, ...], ...] = (
        ("plan", workbench.base, "--like", "Q4KM"),
        ("make", workbench.base, "--like", "Q4KM", "-o", tmp_path / "out"),
        ("make", workbench.base, "--bpw", "5", "--against", "Q4KM", "-o", tmp_path / "out"),
        ("verify", workbench.base, "--base", workbench.base, "--against", "Q4KM"),
    )
    for preset in presets:
        assert "Did you mean Q4_K_M" in quantailor(*preset, *home).error_line, preset
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_is_refused_before_any_work(quantailor: Command, workbench: Workbench, tmp_path: Path) -> None:
    home, out = ("--home", tmp_path / "home"), tmp_path / "out"
    strategy, quantized, there = tmp_path / "s.yaml", tmp_path / "q.gguf", tmp_path / "there.gguf"
    quantailor("plan", workbench.base, "--bpw", "8", "-o", strategy, "--home", workbench.home)
    quantailor("build", workbench.base, strategy, "-o", quantized, "--home", workbench.home)
    there.touch()
    missing = tmp_path / "missing.txt"
    make = ("make", workbench.base, "-o", out)
    for words, said in (
        (("make", quantized, "-o", out, "--bpw", "5"), "quantizing it again loses quality twice"),
        (("study", quantized), "loses quality twice"),
        ((*make, "--size", "1000"), "the smallest file that the constraints allow takes"),
        ((*make, "--bpw", "0.5"), "0.5 bits per weight or fewer"),
        ((*make, "--bpw", "5", "--pin", "no_such=Q4_K"), "matches no tensor"),
        ((*make, "--bpw", "5", "--pin", "output=Q4_K", "--min", "Q5_K"), "contradicts"),
        ((*make, "--bpw", "5", "-f", missing), "missing.txt"),
        ((*make, "--bpw", "5", "--verify-text", missing), "missing.txt"),
        ((*make, "--bpw", "5", "--imatrix", missing), "missing.txt"),
        (("study", workbench.base, "-f", missing), "missing.txt"),
        (("imatrix", workbench.base, "-f", missing), "missing.txt"),
        (("imatrix", workbench.base, "-o", there), "there.gguf exists"),
        (("probe", workbench.base, "-f", missing), "missing.txt"),
        (("verify", quantized, "--base", workbench.base, "-f", missing), "missing.txt"),
    ):
        assert said in quantailor(*words, *home).error_line, words
    assert quantailor("jobs", "list", *home, "--json").result == [], "no job was begun"
    assert not out.exists()
    size = quantailor(*make, "--size", "1000", *home).error_line.partition("Ask for ")[2].split()[0]
    plan = ("plan", workbench.base, "--home", workbench.home, "--size", size, "--json")
    assert quantailor(*plan).code in (0, 1)
