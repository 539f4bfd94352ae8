"""GGUF bases that llama.cpp cannot run: norms that are no numbers, tensors that are missing. Refused before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from commands import Command

from gguf_models import HEADS, HIDDEN, N_BPE, write_gpt2, write_llama
from quantailor.app.library.opening import model_reservations
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
    """A copy of a model that lacks a tensor, or a metadata key."""
    source, path = open_model(base), base.with_name("lacking.gguf")
    tensors = [tensor for tensor in source.tensors if tensor.name != name]
    with GGUFWriter(path, layout({key: value for key, value in source.metadata.items() if key != name}, tensors)) as writer:
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
        (sentence,) = model_reservations(workspace, open_project(workspace, base))
        assert sentence.startswith("This model cannot be used as it is: ")
        assert said in sentence


def test_what_a_model_may_do_without_is_not_missed(run: Command, tmp_path: Path) -> None:
    """An output matrix where the embedding is tied, and rotations that infinite factors turn off."""
    tied = without(write_llama(tmp_path / "base.gguf"), "output.weight")
    factors = np.ones(HIDDEN // HEADS // 2, np.float32)
    factors[-3:] = np.inf
    partial = write_llama(tmp_path / "partial.gguf", arrays={"rope_freqs.weight": factors})
    unknown = write_llama(tmp_path / "unknown.gguf", architecture="not-in-llama-cpp")
    for base in (tied, partial, unknown):
        report = run("inspect", base, "--json").result
        assert report["defect"] is None
        assert (report["unrunnable"] is None) == (base != unknown)
        assert run("measure", base, "--types", "Q8_0", "--tensors", "attn_q").code == 0
    factors[0] = np.nan
    broken = write_llama(tmp_path / "broken.gguf", arrays={"rope_freqs.weight": factors})
    assert f"rope_freqs.weight {NOT_A_NUMBER}" in run("measure", broken, "--types", "Q8_0").error_line


def test_llama_cpp_is_asked_once_of_a_sound_base(run: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, asked = write_llama(tmp_path / "base.gguf"), list[Path]()
    monkeypatch.setattr("quantailor.session.opened.refusal", asked.append)
    for command in ("measure", "measure", "plan"):
        words = {"measure": ("--types", "Q8_0"), "plan": ("--bpw", 9)}[command]
        assert run(command, base, *words).code == 0
    assert asked == [base]
    write_llama(base, arrays={"blk.0.attn_norm.weight": ones(2)})
    assert run("measure", base, "--types", "Q8_0").code == 0
    assert asked == [base, base]


WRONG_TYPE = "with which llama.cpp cannot compute"
AGAIN = "Convert the model again, or get an intact copy of the file"
UNRUNNABLE: Mapping[str, tuple[Callable[[Path], Path], str, str]] = {
    "no key": (
        lambda path: without(write_llama(path), "llama.attention.layer_norm_rms_epsilon"),
        "lacks the metadata key llama.attention.layer_norm_rms_epsilon, which llama.cpp needs",
        AGAIN,
    ),
    "no vocabulary's kind": (
        lambda path: without(write_llama(path), "tokenizer.ggml.model"),
        "lacks the metadata key tokenizer.ggml.model, which llama.cpp needs",
        AGAIN,
    ),
    "a key of another type": (
        lambda path: write_llama(path, metadata={"llama.rope.dimension_count": True}),
        "has the metadata key llama.rope.dimension_count as bool, where llama.cpp needs u32",
        AGAIN,
    ),
    "a tensor that is not known": (
        lambda path: write_llama(path, more={"blk.0.odd.weight": (HIDDEN, HIDDEN)}),
        "holds 13 tensors, of which llama.cpp knows 12",
        "if it is newer than the llama.cpp installed here, update llama-cpp-python",
    ),
    **{
        f"{name} as {kind.__name__}": (
            partial(write_llama, arrays={f"{name}.weight": np.ones(shape, kind)}),
            f"holds {name}.weight as {stored}, {WRONG_TYPE}",
            "with these weights in F32, F16 or BF16",
        )
        for name, shape, kind, stored in (
            ("blk.0.attn_norm", (HIDDEN,), np.float64, "F64"),
            ("blk.0.attn_k", (HIDDEN, HIDDEN), np.int8, "I8"),
            ("token_embd", (N_BPE, HIDDEN), np.int16, "I16"),
        )
    },
    "another architecture": (
        lambda path: write_llama(path, architecture="notyet"),
        "unknown model architecture: 'notyet'",
        "if it is newer than the llama.cpp installed here, update llama-cpp-python",
    ),
    "another tokenizer": (
        lambda path: write_llama(path, pre="notyet"),
        "unknown pre-tokenizer type: 'notyet'",
        "if it is newer than the llama.cpp installed here, update llama-cpp-python",
    ),
}
RUNNING: Mapping[str, tuple[object, ...]] = {
    "imatrix": ("--chunks", 1),
    "probe": ("--chunks", 1),
    "speed": ("--types", "Q8_0"),
    "study": ("--level", "balanced", "--imatrix", "none"),
    "make": ("--bpw", 9, "--imatrix", "none", "-o", "made"),
}


@pytest.mark.parametrize("kind", UNRUNNABLE)
def test_what_llama_cpp_cannot_run_is_measured_with_a_word_and_refused_before_it_is_to_run(
    run: Command, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write, said, remedy = UNRUNNABLE[kind]
    base = write(tmp_path / "base.gguf")
    for command, words in RUNNING.items():
        line = run(command, base, *words).error_line
        assert said in line, command
        assert remedy in line
        assert str(base) in line
    with Store(resolve(tmp_path / "home").database) as store:
        assert not store.result_rows()["cells"]
    outcome = run("measure", base, "--types", "Q8_0", "--tensors", "attn_q")
    assert outcome.code == 0, outcome.err
    told = " ".join(outcome.err.split())
    assert said in told
    assert f"(it can be measured and built, but not run). {AGAIN if remedy == AGAIN else 'Convert the model again'}" in told
    report = run("inspect", base, "--json").result
    assert report["defect"] is None
    assert said in report["unrunnable"]
    assert said in " ".join(run("inspect", base).out.split())
    with Workspace.open(tmp_path / "home") as workspace:
        assert model_reservations(workspace, open_project(workspace, base)) == (report["unrunnable"],)


def test_a_file_to_judge_that_cannot_run_is_refused_before_the_base_is_scored(run: Command, tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base.gguf")
    theirs = without(write_llama(tmp_path / "theirs.gguf"), "llama.attention.layer_norm_rms_epsilon")
    line = run("verify", theirs, "--base", base, "--against", "Q8_0", "--chunks", 1).error_line
    assert f"{theirs} lacks the metadata key llama.attention.layer_norm_rms_epsilon, which llama.cpp needs. {AGAIN}" in line
    assert run("jobs", "show", 1, "--json").result["state"] == "failed"


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64, np.float64])
def test_a_plan_reads_an_embedding_of_any_plain_type_and_advises_nothing_that_cannot_run(
    run: Command, kind: type[np.generic], tmp_path: Path
) -> None:
    base = write_llama(tmp_path / "base.gguf", arrays={"token_embd.weight": np.ones((N_BPE, HIDDEN), kind)})
    assert run("measure", base, "--types", "Q8_0,Q2_K").code == 0
    planned = run("plan", base, "--bpw", 20, "--basis", "ranking", "-o", tmp_path / "s.yaml", "--json")
    assert planned.result["probe_command"] is None
    assert any(WRONG_TYPE in note for note in planned.result["notes"])
    assert run("build", base, tmp_path / "s.yaml", "-o", tmp_path / "built.gguf").code == 0
    source, built = open_model(base), open_model(tmp_path / "built.gguf")
    assert np.array_equal(source.raw_rows("token_embd.weight", 0, N_BPE), built.raw_rows("token_embd.weight", 0, N_BPE))
    assert np.all(built.rows("token_embd.weight", 0, N_BPE) == 1)
    source.close()
    built.close()


def test_a_plan_for_a_model_without_predictions_advises_no_probes(run: Command, tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base.gguf", metadata={"llama.pooling_type": 3})
    assert run("measure", base, "--types", "Q8_0,Q2_K").code == 0
    planned = run("plan", base, "--bpw", 6, "--basis", "ranking", "-o", tmp_path / "s.yaml", "--json")
    assert planned.result["probe_command"] is None
