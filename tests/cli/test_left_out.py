"""A strategy edited by hand: what it leaves out is told, not kept in silence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import Command, Workbench


@pytest.fixture
def strategy(quantailor: Command, workbench: Workbench, tmp_path: Path) -> Path:
    place = tmp_path / "s.yaml"
    assert quantailor("plan", workbench.base, "--bpw", "8", "--allow", "Q4_K,Q5_K,Q8_0", "-o", place, "--home", workbench.home).code == 0
    return place


def without(strategy: Path, *names: str) -> Path:
    lines = strategy.read_text(encoding="utf-8").splitlines(keepends=True)
    left = [line for line in lines if line.strip().partition(":")[0] not in names]
    assert len(left) == len(lines) - len(names)
    strategy.write_text("".join(left), encoding="utf-8")
    return strategy


@pytest.mark.slow
def test_a_line_that_was_deleted_is_named_by_every_command(
    quantailor: Command, workbench: Workbench, strategy: Path, tmp_path: Path
) -> None:
    out, home = tmp_path / "out.gguf", ("--home", workbench.home)
    assert quantailor("build", workbench.base, strategy, "-o", out, *home).code == 0
    without(strategy, "blk.3.ffn_up.weight")
    for words in (
        ("build", workbench.base, strategy, "-o", tmp_path / "other.gguf"),
        ("check", out, strategy, "--base", workbench.base),
        ("export", strategy, "--base", workbench.base, "-o", tmp_path / "types.txt"),
        ("diff", workbench.base, strategy, "Q4_K_M"),
        ("edit", workbench.base, strategy, "--set", "output=Q8_0", "-o", tmp_path / "edited.yaml"),
    ):
        line = quantailor(*words, *home).error_line
        assert "the strategy says nothing about blk.3.ffn_up.weight, which would stay BF16" in line, words
        assert "`blk.3.ffn_up.weight: Q8_0`" in line
    assert {path.name for path in tmp_path.iterdir()} == {"s.yaml", "out.gguf"}
    text = strategy.read_text(encoding="utf-8")
    strategy.write_text(f"{text.rstrip()}\n  blk.3.ffn_up.weight: BF16\n", encoding="utf-8")
    assert quantailor("build", workbench.base, strategy, "-o", tmp_path / "other.gguf", *home).code == 0


def test_several_lines_are_counted(quantailor: Command, workbench: Workbench, strategy: Path, tmp_path: Path) -> None:
    without(strategy, "blk.3.ffn_up.weight", "output.weight")
    line = quantailor("build", workbench.base, strategy, "-o", tmp_path / "out.gguf", "--home", workbench.home).error_line
    assert re.search(r"nothing about 2 tensors, \S+ among them, which would stay BF16", line)


@pytest.mark.slow
def test_a_strategy_saved_while_measuring_is_whole(quantailor: Command, books_llama_base: Path, tmp_path: Path) -> None:
    home, strategy, edited = ("--home", tmp_path / "home"), tmp_path / "s.yaml", tmp_path / "edited.yaml"
    assert quantailor("measure", books_llama_base, "--types", "Q8_0,Q4_K", "--tensors", "attn_*", *home).code == 0
    text = f"model: {{fingerprint: {quantailor('inspect', books_llama_base, '--json').result['fingerprint']}}}\ntensors:\n"
    tensors = quantailor("inspect", books_llama_base, "--json").result["tensors"]
    types = {item["name"]: "Q4_K" if item["role"].startswith("attn_") else "BF16" for item in tensors if len(item["available_types"]) > 1}
    text += "".join(f"  {name}: {type_name}\n" for name, type_name in types.items())
    strategy.write_text(text)
    words = ("edit", books_llama_base, strategy, "--set", "attn_v=Q8_0", "-o", edited, *home)
    assert quantailor(*words).code == 0
    assert quantailor("build", books_llama_base, edited, "-o", tmp_path / "out.gguf", *home).code == 0
    assert quantailor("check", tmp_path / "out.gguf", edited, "--base", books_llama_base, *home).code == 0
