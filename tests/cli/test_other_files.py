"""GGUF files of something else than a language model, and tensors that are no weights, as a user meets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from commands import Command
from gguf import GGUFReader, GGUFWriter

import quantailor as q
from gguf_models import write_llama
from quantailor.app.library.projects import open_project
from quantailor.errors import UnsupportedModelError
from quantailor.ggml.reference import quantize_reference
from quantailor.making.judging import ensure_reference
from quantailor.session import Workspace

ONES = np.ones((32, 32), np.float32)
OTHERS: Mapping[str, tuple[str, Mapping[str, str], Sequence[str], str, str]] = {
    "mmproj": ("clip", {"general.type": "mmproj"}, ["v.blk.0.attn_q.weight", "mm.0.weight"], "a projector", "--mmproj"),
    "old projector": ("clip", {}, ["v.blk.0.attn_q.weight", "mm.0.weight"], "a projector", "--mmproj"),
    "adapter": ("llama", {"general.type": "adapter"}, ["blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"], "an adapter", "merged"),
    "unnamed adapter": ("llama", {}, ["blk.0.attn_q.weight.lora_a", "blk.0.attn_q.weight.lora_b"], "an adapter", "merged"),
    "imatrix": (
        "",
        {"general.type": "imatrix"},
        ["blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"],
        "an importance",
        "--imatrix",
    ),
    "vocabulary": ("llama", {"tokenizer.ggml.tokens": "yes"}, [], "a vocabulary without weights", "weights"),
    "empty": ("llama", {}, [], "an empty file", "intact"),
    "control vector": ("controlvector", {}, ["direction.1", "direction.2"], "a control vector", "the model's file"),
    "images": ("flux", {}, ["double_blocks.0.img_attn.qkv.weight"], "a model for images", "language model"),
    "speech": ("whisper", {}, ["encoder.conv1.weight"], "a model for images, video or sound", "language model"),
    "a head": ("bert", {}, ["cls.weight", "cls.output.weight"], "a file of other tensors", "language model"),
}


def write_other(path: Path, kind: str) -> Path:
    architecture, metadata, names, *_ = OTHERS[kind]
    writer = GGUFWriter(str(path), architecture)
    for key, value in metadata.items():
        if key == "tokenizer.ggml.tokens":
            writer.add_array(key, ["a", "b"])
        else:
            writer.add_string(key, value)
    for name in names:
        writer.add_tensor(name, ONES)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", OTHERS)
def test_inspect_tells_what_a_file_is_and_everything_else_refuses_it(run: Command, tmp_path: Path, kind: str) -> None:
    path, (*_, what, remedy) = write_other(tmp_path / "other.gguf", kind), OTHERS[kind]
    shown = run("inspect", path)
    assert shown.code == 0, shown.err
    words = " ".join(shown.out.split())
    assert f"This is {what}" in words
    assert remedy in words
    assert what in run("inspect", path, "--json").result["other_contents"]
    commands = (
        ("measure",),
        ("imatrix", "--chunks", 1),
        ("plan", "--bpw", 5, "--basis", "ranking"),
        ("make", "--bpw", 5, "-o", tmp_path / "out"),
        ("study",),
        ("probe",),
        ("status",),
    )
    for command, *options in commands:
        line = run(command, path, *options).error_line
        assert f"other.gguf is {what}" in line, command
        assert "not a language model" in line
        assert remedy in line


def test_the_library_and_the_gui_refuse_it_too(tmp_path: Path) -> None:
    path = write_other(tmp_path / "some.gguf", "imatrix")
    with (
        pytest.raises(UnsupportedModelError, match="an importance matrix, not a language model"),
        q.open_model(path, home=tmp_path / "home"),
    ):
        pass
    with Workspace.open(tmp_path / "home") as workspace, pytest.raises(UnsupportedModelError, match="--imatrix"):
        open_project(workspace, path)


# Tensors that are no weights

ARRAYS: Mapping[str, npt.NDArray[np.generic]] = {
    f"extra.{kind.name}.weight": np.arange(-64, 64).reshape(4, 32).astype(kind)
    for kind in map(np.dtype, (np.int8, np.int16, np.int32, np.int64, np.float64))
}
NAMES = {"int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64", "float64": "F64"}


@pytest.fixture
def table_model(tmp_path: Path) -> Path:
    """A model with a table of every type that holds no weights."""
    return write_llama(tmp_path / "tables.gguf", arrays={**ARRAYS, "blk.0.ffn_gate_tid2eid.weight": np.ones((8, 6), np.int32)})


def stored(path: Path) -> dict[str, tuple[str, bytes]]:
    found = {tensor.name: (tensor.tensor_type.name, tensor.data.tobytes()) for tensor in GGUFReader(path).tensors}
    return {name: value for name, value in found.items() if name.startswith("extra.") or "tid2eid" in name}


def test_tables_are_shown_and_pass_through_unchanged(run: Command, table_model: Path, tmp_path: Path) -> None:
    tensors = {tensor["name"]: tensor for tensor in run("inspect", table_model, "--json").result["tensors"]}
    for name in ARRAYS:
        kind = NAMES[name.split(".")[1]]
        assert (tensors[name]["type_name"], tensors[name]["available_types"]) == (kind, [kind])
        assert "which are not weights" in tensors[name]["unavailable_types"]["Q8_0"]
    assert tensors["blk.0.ffn_gate_tid2eid.weight"]["type_name"] == "I32"
    assert run("measure", table_model, "--types", "Q8_0,Q4_K").code == 0
    for number, target in enumerate((("--bpw", "6"), ("--like", "Q4_K_M"))):
        strategy, output = tmp_path / f"{number}.yaml", tmp_path / f"{number}.gguf"
        assert run("plan", table_model, *target, "--basis", "ranking", "-o", strategy).code == 0
        assert "extra." not in strategy.read_text()
        assert run("build", table_model, strategy, "-o", output).code == 0
        assert stored(output) == stored(table_model)
        assert run("check", output, strategy, "--base", table_model).code == 0
    line = run(
        "plan", table_model, "--bpw", 6, "--basis", "ranking", "--pin", "extra.int32.weight=Q8_0", "-o", tmp_path / "s.yaml"
    ).error_line
    assert "extra.int32.weight" in line


def test_llama_cpps_quantizer_leaves_them_too(table_model: Path, tmp_path: Path) -> None:
    reference = ensure_reference(table_model, "Q4_K_M", imatrix=None, folder=tmp_path / "references")
    assert stored(reference) == stored(table_model)
    with pytest.raises(q.QuantailorError):  # without being told to
        quantize_reference(table_model, tmp_path / "plain.gguf", preset="Q4_K_M")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (139, "the tensor type 139, which llama.cpp does not know"),
        (31, "the tensor type 31, which the llama.cpp installed here no longer supports"),
        (9, "the type Q8_1 (9), which ggml uses for inputs and cannot store"),
    ],
)
def test_a_type_that_cannot_be_read_is_refused_with_its_tensor_and_a_remedy(run: Command, tmp_path: Path, number: int, words: str) -> None:
    path = write_llama(tmp_path / "strange.gguf", arrays={"strange.weight": np.zeros((4, 32), np.int8)})
    data = bytearray(path.read_bytes())
    at = data.index(b"strange.weight", 200) + len("strange.weight") + 4 + 2 * 8
    assert data[at : at + 4] == (24).to_bytes(4, "little")
    data[at : at + 4] = number.to_bytes(4, "little")
    path.write_bytes(data)
    line = run("inspect", path).error_line
    assert f"strange.weight in {path} has {words}" in line
    assert "Start from the" in line
