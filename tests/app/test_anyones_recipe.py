"""Types that others chose, built with better codes: presets by name and files of tensor types."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command

from gguf_models import write_llama
from made_up_covariances import MadeUpCovariances
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.evidence import roundings
from quantailor.evidence.presets import types_of_preset
from quantailor.ggml.reference import quantize_reference
from quantailor.making.building import build
from quantailor.models.opening import open_model
from quantailor.session import Workspace, quantizable_tensors
from quantailor.strategy.file import loads
from quantailor.strategy.interchange import tensor_type_lines
from small_base import write_small_base

COVARIANCES = MadeUpCovariances()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_small_base(tmp_path / "small.gguf")


def types_in(path: Path) -> dict[str, str]:
    source = open_model(path)
    found = {tensor.name: tensor.type_name for tensor in quantizable_tensors(source)}
    source.close()
    return found


def recorded(path: Path) -> dict[str, object]:
    source = open_model(path)
    inputs = loads(str(source.metadata["quantailor.strategy"].value)).inputs
    source.close()
    return dict(inputs)


@pytest.mark.slow
def test_a_preset_is_built_with_better_codes(quantailor: Command, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roundings, "covariances_of", lambda workspace, model, wanted: COVARIANCES)
    out, home = tmp_path / "out.gguf", ("--home", tmp_path / "home")
    assert quantailor("build", base, "q8_0", "--rounding", "compensated", "-o", out, *home).code == 0
    with Workspace.open(tmp_path / "home") as workspace, workspace.model(base) as model:
        expected = types_of_preset(model, "Q8_0", None)
        assert types_in(out) == {tensor.name: expected[tensor.name] for tensor in quantizable_tensors(model.source)}
        strategy = loads(str(open_model(out).metadata["quantailor.strategy"].value))
        build(model.source, strategy, tmp_path / "again.gguf", rounding=Rounding(None, COVARIANCES, compensated=True))
    assert (tmp_path / "again.gguf").read_bytes() == out.read_bytes()
    assert recorded(out) == {"imatrix": None, "rounding": "compensated", "covariances": COVARIANCES.fingerprint[:16]}
    assert (strategy.method, strategy.target) == ("preset", {"like": "Q8_0"})


def test_tensor_types_of_llama_quantize_are_built(quantailor: Command, base: Path, tmp_path: Path) -> None:
    wanted = {name: "Q4_0" if "attn" in name else "Q8_0" for name in types_in(base)}
    (tmp_path / "types.txt").write_text("\n".join(tensor_type_lines(wanted)) + "\n", encoding="utf-8")
    assert quantailor("build", base, tmp_path / "types.txt", "-o", tmp_path / "out.gguf", "--home", tmp_path / "home").code == 0
    assert types_in(tmp_path / "out.gguf") == wanted
    (tmp_path / "types.txt").write_text("attn=q4_0\n", encoding="utf-8")
    refused = quantailor("build", base, tmp_path / "types.txt", "-o", tmp_path / "no.gguf", "--home", tmp_path / "home")
    assert "the strategy says nothing about" in refused.error_line


def test_types_of_a_file_that_another_program_made_are_built(
    quantailor: Command, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, out, home = tmp_path / "theirs.gguf", tmp_path / "out.gguf", ("--home", tmp_path / "home")
    quantize_reference(base, theirs, preset="Q4_K_M", n_threads=1)
    monkeypatch.setattr(roundings, "covariances_of", lambda workspace, model, wanted: COVARIANCES)
    assert quantailor("build", base, theirs, "--rounding", "compensated", "-o", out, *home).code == 0
    assert types_in(out) == types_in(theirs)
    assert len(set(types_in(out).values())) > 1
    assert recorded(out)["rounding"] == "compensated"
    other = write_llama(tmp_path / "other.gguf")
    refused = quantailor("build", other, theirs, "-o", tmp_path / "no.gguf", *home).error_line
    assert f"{theirs} is of another model than" in refused
    assert "has other sizes" in refused
    refused = quantailor("build", theirs, "Q8_0", "-o", tmp_path / "no.gguf", *home).error_line
    assert "is quantized already (Q4_K, Q6_K)" in refused
    assert "--allow-requantize" in refused


def test_what_is_neither_a_file_nor_a_preset_is_told(quantailor: Command, base: Path, tmp_path: Path) -> None:
    home = ("--home", tmp_path / "home")
    assert "Q9_X" in quantailor("build", base, "Q9_X", "-o", tmp_path / "out.gguf", *home).error_line
    said = quantailor("build", base, "Q8_0", "--rounding", "compensated", "-o", tmp_path / "out.gguf", *home).error_line
    assert f"needs input covariances, and there are none of Small. Run `quantailor calibrate {base}" in said
