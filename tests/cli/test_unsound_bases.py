"""GGUF bases that llama.cpp cannot run: norms that are no numbers, tensors that are missing. Refused before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from commands import Command

from gguf_models import HEADS, HIDDEN, write_gpt2, write_llama
from quantailor.app.library.opening import model_defect
from quantailor.app.library.projects import open_project
from quantailor.jobs import resolve
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.models.opening import open_model
from quantailor.session import Workspace
from quantailor.store import Store

NOT_A_NUMBER = "has 1 weight that is NaN or Inf. Get an intact copy of the model"
COMMANDS: Mapping[str, tuple[object, ...]] = {
    "measure": ("--types", "Q4_K"),
    "plan": ("--types-of", "Q4_K_M", "-o", "s.yaml"),
    "build": ("Q4_K_M", "-o", "built.gguf", "--imatrix", "none"),
    "imatrix": ("--chunks", 1),
    "convert": ("-o", "copy.gguf"),
}


def ones(value: float) -> npt.NDArray[np.float32]:
    """A vector of ones, and one other number."""
    values = np.ones(HIDDEN, np.float32)
    values[7] = value
    return values


def without(base: Path, name: str) -> Path:
    """A copy of a model that lacks a tensor."""
    source, path = open_model(base), base.with_name("lacking.gguf")
    tensors = [tensor for tensor in source.tensors if tensor.name != name]
    with GGUFWriter(path, layout(source.metadata, tensors)) as writer:
        for tensor in tensors:
            writer.write(source.raw_rows(tensor.name, 0, tensor.n_rows))
    source.close()
    return path


UNSOUND: Mapping[str, tuple[Callable[[Path], Path], str]] = {
    "a norm": (
        lambda path: write_llama(path, arrays={"blk.0.attn_norm.weight": ones(np.nan)}),
        f"blk.0.attn_norm.weight {NOT_A_NUMBER}",
    ),
    "the last norm": (
        lambda path: write_llama(path, arrays={"output_norm.weight": ones(-np.inf)}),
        f"output_norm.weight {NOT_A_NUMBER}",
    ),
    "a bias": (
        lambda path: write_llama(path, arrays={"blk.0.attn_q.bias": ones(np.inf)}),
        f"blk.0.attn_q.bias {NOT_A_NUMBER}",
    ),
    "no matrix": (
        lambda path: without(write_llama(path), "blk.0.ffn_down.weight"),
        "lacks the tensor blk.0.ffn_down.weight, which llama.cpp needs. Convert the model again, or get an intact copy of the file",
    ),
    "no norm": (
        lambda path: without(write_llama(path), "output_norm.weight"),
        "lacks the tensor output_norm.weight, which llama.cpp needs",
    ),
    "no bias": (lambda path: without(write_gpt2(path, positions=64), "blk.0.ffn_up.bias"), "lacks the tensor blk.0.ffn_up.bias"),
    "another shape": (
        lambda path: write_llama(path, arrays={"blk.0.attn_norm.weight": np.ones(32, np.float32)}),
        f"has the tensor blk.0.attn_norm.weight in the shape 32, 1, 1, 1, where llama.cpp needs {HIDDEN}",
    ),
}


@pytest.mark.parametrize("kind", UNSOUND)
def test_a_base_that_cannot_run_is_named_before_any_work(run: Command, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write, said = UNSOUND[kind]
    base = write(tmp_path / "base.gguf")
    for command, words in COMMANDS.items():
        assert said in run(command, base, *words).error_line
    with Store(resolve(tmp_path / "home").database) as store:
        assert not store.result_rows()["cells"]
    assert not {"s.yaml", "built.gguf", "copy.gguf"} & {path.name for path in tmp_path.iterdir()}
    assert said in run("inspect", base, "--json").result["defect"]
    assert "This model cannot be used as it is" in run("inspect", base).out
    with Workspace.open(tmp_path / "home") as workspace:
        assert said in (model_defect(workspace, open_project(workspace, base)) or "")


def test_what_a_model_may_do_without_is_not_missed(run: Command, tmp_path: Path) -> None:
    """An output matrix where the embedding is tied, and rotations that infinite factors turn off."""
    tied = without(write_llama(tmp_path / "base.gguf"), "output.weight")
    factors = np.ones(HIDDEN // HEADS // 2, np.float32)
    factors[-3:] = np.inf
    partial = write_llama(tmp_path / "partial.gguf", arrays={"rope_freqs.weight": factors})
    unknown = write_llama(tmp_path / "unknown.gguf", architecture="not-in-llama-cpp")
    for base in (tied, partial, unknown):
        assert run("inspect", base, "--json").result["defect"] is None
        assert run("measure", base, "--types", "Q8_0", "--tensors", "attn_q").code == 0
    factors[0] = np.nan
    broken = write_llama(tmp_path / "broken.gguf", arrays={"rope_freqs.weight": factors})
    assert f"rope_freqs.weight {NOT_A_NUMBER}" in run("measure", broken, "--types", "Q8_0").error_line


def test_llama_cpp_is_asked_once_of_a_sound_base(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, asked = write_llama(tmp_path / "base.gguf"), list[Path]()
    monkeypatch.setattr("quantailor.session.opened.unmet_tensor", asked.append)
    for command in ("measure", "measure", "plan"):
        words = {"measure": ("--types", "Q8_0"), "plan": ("--bpw", 9)}[command]
        assert run(command, base, *words).code == 0
    assert asked == [base]
    write_llama(base, arrays={"blk.0.attn_norm.weight": ones(2)})
    assert run("measure", base, "--types", "Q8_0").code == 0
    assert asked == [base, base]
