"""From covariances to a file whose rounding is compensated, command by command."""

from __future__ import annotations

import random
import re
import shlex
from pathlib import Path

import pytest
from commands import Command, Outcome

from quantailor.analysis.covariances.covariance_file import CovarianceFile
from quantailor.models.opening import open_model
from quantailor.strategy.file import read
from small_base import write_small_base

SHORT = ("--chunks", 2, "--n-ctx", 128, "--threads", 1)
PROBES = (*SHORT, "--type", "Q4_0,Q8_0", "--mixes", 6, "--mix-chunks", 2, "--anchors", 1)


@pytest.mark.slow
def test_plans_know_one_covariance_file_from_another(quantailor: Command, tmp_path: Path, calibration_text: Path) -> None:
    base, text, home = write_small_base(tmp_path / "base.gguf"), tmp_path / "text.txt", ("--home", tmp_path / "home")
    text.write_text(calibration_text.read_text(encoding="utf-8")[:3_000], encoding="utf-8")
    short, long = tmp_path / "short.gguf", tmp_path / "long.gguf"
    for n_chunks, place in ((1, short), (2, long)):
        calibrate = ("calibrate", base, "-f", text, "--chunks", n_chunks, "--n-ctx", 64, "--threads", 1, "-o", place, *home)
        assert quantailor(*calibrate).code == 0
    matrix = ("--imatrix", "none")
    few = ("--types", "Q4_0,Q8_0", *matrix, "--rounding", "compensated")
    plan = ("plan", base, "--bpw", 6, "--basis", "ranking", *matrix, *home)

    def planned_with(*options: object) -> object:
        assert quantailor(*plan, *options, "-o", tmp_path / "s.yaml", "--force").code == 0
        return read(tmp_path / "s.yaml").inputs.get("covariances")

    assert quantailor("measure", base, *few, "--covariances", short, *home).code == 0
    refused = quantailor(*plan, "--covariances", long).error_line
    assert refused.startswith("error: nothing is measured without an importance matrix")
    assert quantailor("measure", base, *few, *home).code == 0
    names = [CovarianceFile(place).fingerprint[:16] for place in (short, long)]
    assert [planned_with("--covariances", place) for place in (short, long)] == names
    assert planned_with() == planned_with("--rounding", "compensated") == names[1], "that of the model's own, which saw more text"
    told = quantailor(*plan, "--covariances", short, "--rounding", "plain").error_line
    assert f"by the covariances {names[0]}" in told
    advised = re.search(r"`quantailor (measure .*?)`", told)
    assert advised is not None
    assert quantailor(*shlex.split(advised[1]), "--types", "Q4_0,Q8_0").code == 0
    assert quantailor(*plan, "--covariances", short, "--rounding", "plain").code == 0
    assert "measure" in quantailor(*plan, "--covariances", "none").error_line


@pytest.mark.long
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
