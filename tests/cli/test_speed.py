"""`speed`: types are timed in files that llama.cpp runs, each once; how fast they are is the machine's and nothing is asserted of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from commands import Command, Outcome, validate

from quantailor.analysis import racing
from quantailor.control import Control
from quantailor.errors import CrashError
from quantailor.evidence import speeds
from quantailor.making.timing_files import write_timing_file
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.processes import apart
from quantailor.steps import speed
from small_base import write_small_base


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files run as often as they must, and none a second time."""
    monkeypatch.setattr(racing, "SECONDS", 0.0)
    monkeypatch.setattr(racing, "LEAST_LAPS", 3)
    monkeypatch.setattr(speed, "disturbed", lambda timings: [])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_small_base(tmp_path / "base.gguf")


def timed(run: Command, base: Path, *words: object) -> Outcome:
    """`speed` with two types and a mix, unless told otherwise."""
    return run("speed", base, *(words or ("--types", "Q4_0,Q5_0")), "--mixes", 1, "--threads", 1, "--json")


def test_every_type_gets_tokens_per_second_and_nothing_is_left_behind(run: Command, base: Path, tmp_path: Path) -> None:
    outcome = timed(run, base)
    validate(outcome.out)
    found = outcome.result
    assert {row["type_name"] for row in found["types"]} == {"Q8_0", "Q4_0", "Q5_0"}
    assert all(row[f"{of}_tokens_per_second"] > 0 for row in found["types"] for of in ("prompt", "generation"))
    assert found["generation_error"] is not None
    assert (found["n_files"], found["n_already_timed"], found["failed"]) == (5, 0, [])  # dense and output at two types, and a mix
    assert not list((tmp_path / "home" / "timing").iterdir())
    assert "Predictions of random mixes are off by" in run("speed", base, "--types", "Q4_0", "--mixes", 1, "--threads", 1).out


def test_what_was_timed_is_not_timed_again_after_an_interruption(run: Command, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[Path]()

    def interrupted(source: ModelSource, path: Path, types: Mapping[str, str], *, n_layers: int | None, control: Control) -> None:
        written.append(path)
        if len(written) == 4:  # the reference and two files are there
            raise KeyboardInterrupt
        write_timing_file(source, path, types, n_layers=n_layers, control=control)

    with monkeypatch.context() as patched:
        patched.setattr(speed, "write_timing_file", interrupted)
        assert timed(run, base).code == 130
    assert timed(run, base).result["n_already_timed"] == 2
    again = timed(run, base).result
    assert again["n_already_timed"] == again["n_files"] == 5


def test_another_model_of_the_same_structure_shares_the_figures(run: Command, base: Path, tmp_path: Path) -> None:
    first = timed(run, base).result
    other = timed(run, write_small_base(tmp_path / "other.gguf", seed="other")).result
    assert other["model_fingerprint"] != first["model_fingerprint"]
    assert (other["n_already_timed"], other["types"]) == (5, first["types"])
    narrower = write_small_base(tmp_path / "narrower.gguf", changed={"attention.head_count": 2, "rope.dimension_count": 128})
    assert timed(run, narrower).result["n_already_timed"] == 0


@pytest.mark.slow
def test_experts_are_a_group_of_their_own_and_run_in_llama_cpp(run: Command, books_moe_base: Path) -> None:
    found = timed(run, books_moe_base, "--types", "Q4_K").result
    assert (found["n_files"], found["failed"]) == (4, [])


@pytest.mark.slow
def test_every_usual_type_is_timed(run: Command, base: Path) -> None:
    found = run("speed", base, "--threads", 1, "--mixes", 2, "--json").result
    assert found["failed"] == []
    assert {"Q2_K", "IQ1_S", "IQ4_XS", "Q6_K", "F16"} <= {row["type_name"] for row in found["types"]}


@pytest.mark.slow
def test_a_large_model_is_timed_by_its_first_layers(run: Command, books_llama_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "MOST_ELEMENTS", 2_500_000)
    source = open_model(books_llama_base)
    assert speeds.cut_of(source) == (3, 1)
    assert {source.tensor(name).layer for name in speeds.reference_file(source).types} == {None, 0, 1, 2}
    source.close()
    found = timed(run, books_llama_base, "--types", "Q4_K").result
    assert (found["n_files"], found["failed"]) == (4, [])
    assert len(found["types"]) == 2


def test_what_llama_cpp_ends_in_is_said_and_the_others_are_timed(run: Command, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crashes = iter([CrashError("timing tokens", "killed")])
    holding = apart.holding

    def crashing(*arguments: Any, **options: Any) -> object:
        for crash in crashes:
            raise crash
        return holding(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(apart, "holding", crashing)
        outcome = timed(run, base)
    assert len(outcome.result["failed"]) == 1
    assert f"{outcome.result['failed'][0]} was not timed" in outcome.err
    assert outcome.result["types"]
    again = timed(run, base).result
    assert (again["n_already_timed"], again["failed"]) == (4, [])


def test_an_unknown_type_is_refused_before_anything_is_written(run: Command, base: Path) -> None:
    assert "Q4_9" in run("speed", base, "--types", "Q4_9").error_line
