"""From covariances to a file whose rounding is compensated, command by command."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from commands import Command, Outcome

from quantailor.models.opening import open_model
from quantailor.strategy.file import read
from small_base import write_small_base

SHORT = ("--chunks", 2, "--n-ctx", 128, "--threads", 1)
PROBES = (*SHORT, "--type", "Q4_0,Q8_0", "--mixes", 6, "--mix-chunks", 2, "--anchors", 1)


@pytest.mark.slow
def test_the_way_to_a_compensated_file(quantailor: Command, tmp_path: Path) -> None:
    dice = random.Random(0)
    base, text, home = write_small_base(tmp_path / "base.gguf"), tmp_path / "text.txt", tmp_path / "home"
    text.write_text(" ".join("".join(dice.choice("abcdefgh") for _ in range(7)) for _ in range(400)), encoding="utf-8")

    def run(*words: object) -> Outcome:
        outcome = quantailor(*words, "--home", home)
        assert outcome.code == 0, outcome.err
        return outcome

    run("calibrate", base, "-f", text, *SHORT)
    run("measure", base, "--types", "Q4_0,Q8_0")
    run("probe", base, "-f", text, *PROBES)
    run("measure", base, "--types", "Q4_0,Q8_0", "--rounding", "compensated")
    run("plan", base, "--bpw", 6.0, "-o", tmp_path / "s.yaml")
    assert ", with plain rounding" in run("plan", base, "--bpw", 6.0).out, "its probes were made with plain weights"
    run("probe", base, "-f", text, *PROBES)
    planned = run("plan", base, "--bpw", 6.0, "-o", tmp_path / "s.yaml", "--force").out
    assert "with plain rounding" not in planned
    inputs = read(tmp_path / "s.yaml").inputs
    assert inputs["rounding"] == "compensated"
    assert "KLD" in run("predict", base, tmp_path / "s.yaml").out
    run("refine", base, tmp_path / "s.yaml", "-o", tmp_path / "better.yaml", "-f", text, *SHORT)
    assert read(tmp_path / "better.yaml").inputs == inputs
    size = {}
    for name, options in {"compensated": (), "plain": ("--rounding", "plain")}.items():
        file = tmp_path / f"{name}.gguf"
        run("build", base, tmp_path / "s.yaml", "-o", file, *options)
        assert "as the strategy says" in run("check", file, tmp_path / "s.yaml", "--base", base).out
        size[name] = file.stat().st_size
    said = re.search(r"\(([\d,]+) bytes\)", planned)
    assert said is not None
    assert size["compensated"] == int(said[1].replace(",", ""))
    one, other = (open_model(tmp_path / f"{name}.gguf") for name in size)
    assert [tensor.type_name for tensor in one.tensors] == [tensor.type_name for tensor in other.tensors]
    name = "blk.0.ffn_down.weight"
    assert one.raw_rows(name, 0, 1).tobytes() != other.raw_rows(name, 0, 1).tobytes()
    one.close()
    other.close()
    told = run("export", tmp_path / "s.yaml", "--base", base, "-o", tmp_path / "types.txt").out
    assert "llama-quantize cannot do" in " ".join(told.split())
    card = run("card", tmp_path / "compensated.gguf", "--base", base, "-o", tmp_path / "README.md")
    assert card.code == 0
    assert "Its rounding is compensated" in (tmp_path / "README.md").read_text(encoding="utf-8")
