"""Damaged and odd Hugging Face directories: each gives one clear error."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantailor.errors import ModelError, ModelFormatError, TensorNotFoundError, UnsupportedModelError
from quantailor.models.convert.base import write_base
from quantailor.models.convert.vocabulary.sentencepiece import read_pieces
from quantailor.models.huggingface import HuggingFaceSource
from quantailor.models.opening import open_model
from quantailor.models.safetensors_file import SafetensorsFile
from tiny_models import write_tiny

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Llama 3 directory of one file."""
    return write_tiny("llama3", tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A small directory of two files with an index."""
    return write_tiny("llama3-tied", tmp_path)


def _edit(path: Path, change: Edit) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    change(stored)
    path.write_text(json.dumps(stored), encoding="utf-8")


def _edit_header(path: Path, change: Edit) -> None:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


# safetensors


def test_truncation_at_every_boundary_is_told(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    ends = [entry["data_offsets"][1] for name, entry in json.loads(data[8:start]).items() if name != "__metadata__"]
    for size in (0, 1, 7, 8, 9, start - 1, start, *(start + end - 1 for end in ends)):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFormatError, match=r"model\.safetensors"):
            SafetensorsFile(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["model.norm.weight"].update(data_offsets=[0, 2**62]), "outside the file"),
        (lambda h: h["model.norm.weight"].update(data_offsets=[-2, 126]), "the offsets"),
        (lambda h: h["model.norm.weight"].update(data_offsets=[128, 0]), "outside the file"),
        (lambda h: h["model.norm.weight"].update(data_offsets=[0.0, 128.0]), "the offsets"),
        (lambda h: h["model.norm.weight"].update(data_offsets=[0, 128]), "overlap"),
        (lambda h: h["model.norm.weight"].update(shape=[2**40, 2**40]), "the shape"),
        (lambda h: h["model.norm.weight"].update(shape=[True]), "the shape"),
        (lambda h: h["model.norm.weight"].update(shape=[1, 1, 1, 1, 64]), "the shape"),
        (lambda h: h["model.norm.weight"].pop("dtype"), "no dtype"),
        (lambda h: h["model.norm.weight"].update(dtype="F8_E8M0"), "F8_E8M0"),
        (lambda h: h["model.norm.weight"].update(dtype="I16"), "I16"),
        (lambda h: h.update({"model.norm.weight": [1, 2]}), "not an object"),
    ],
)
def test_contradictory_header_is_told(folder: Path, change: Edit, message: str) -> None:
    _edit_header(folder / "model.safetensors", change)
    with pytest.raises(ModelError, match=message):
        HuggingFaceSource(folder)


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}', b'{"\\ud800": 1}'])
def test_header_that_is_no_object_is_told(folder: Path, header: bytes) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ModelFormatError):
        SafetensorsFile(path)


def test_file_that_shrinks_meanwhile_is_an_error(folder: Path, tmp_path: Path) -> None:
    source = HuggingFaceSource(folder)
    path = source.files[0]
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    with pytest.raises(ModelFormatError, match="shorter"):
        write_base(source, tmp_path / "base.gguf")
    source.close()
    assert not list(tmp_path.glob("*base.gguf*"))


# The index


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..\\outside.safetensors",
        "C:model.safetensors",
        "..",
        "",
        7,
        None,
        "x.bin",
    ],
)
def test_index_never_leaves_the_directory(sharded: Path, name: object) -> None:
    _edit(sharded / "model.safetensors.index.json", lambda index: index["weight_map"].update({"model.norm.weight": name}))
    with pytest.raises(ModelFormatError, match="names the file"):
        HuggingFaceSource(sharded)


def test_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match="model-00002-of-00002"):
        HuggingFaceSource(sharded)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index["weight_map"].pop("model.norm.weight"),
        lambda index: index["weight_map"].update(extra=next(iter(index["weight_map"].values()))),
    ],
)
def test_index_and_shards_must_agree(sharded: Path, change: Edit) -> None:
    _edit(sharded / "model.safetensors.index.json", change)
    with pytest.raises(ModelFormatError, match="differ in 1 tensors"):
        HuggingFaceSource(sharded)


def test_index_without_weight_map_is_told(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelFormatError, match="weight_map"):
        HuggingFaceSource(sharded)


# config.json


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(architectures=["GPT2LMHeadModel"]), "GPT2LMHeadModel"),
        (lambda c: c.pop("architectures"), "architectures = 'None', which should list"),
        (lambda c: c.update(architectures="LlamaForCausalLM"), "architectures = 'LlamaForCausalLM', which should list"),
        (lambda c: c.update(hidden_act="gelu"), "hidden_act = 'gelu', and llama.cpp computes every Llama model with silu"),
        (lambda c: c.update(quantization_config={"quant_method": "gptq"}), "quantized by GPTQ"),
        (lambda c: c.update(num_attention_heads=0), "num_attention_heads"),
        (lambda c: c.update(num_attention_heads="four"), "num_attention_heads"),
        (lambda c: c.update(num_attention_heads=7), "7 heads"),
        (lambda c: c.update(num_key_value_heads=3), "3 heads"),
        (lambda c: c.update(vocab_size=2**31 - 1), "embedding"),
        (lambda c: c.update(vocab_size=2**70), "vocab_size"),
        (lambda c: c.update(num_hidden_layers=1), "num_hidden_layers = 1, but .* has a further layer"),
        (lambda c: c.update(num_hidden_layers=3), "3 layers"),
        (lambda c: c.update(head_dim=2**30), "head_dim"),
        (lambda c: c.update(rope_scaling={"rope_type": "longrope"}), "longrope"),
        (lambda c: c.update(rope_scaling={"rope_type": "llama3", "factor": 0}), "rope_parameters"),
        (lambda c: c.update(rope_scaling="text"), "rope_scaling"),
        (lambda c: c.update(rope_theta="text"), "rope_theta"),
        (lambda c: c.update(rope_theta=0), "rope_theta = '0.0'"),
        (lambda c: c.update(rms_norm_eps=float("inf")), "rms_norm_eps"),
        (lambda c: c.update(bos_token_id=-1), "bos"),
    ],
)
def test_odd_configuration_is_told(folder: Path, change: Edit, message: str) -> None:
    _edit(folder / "config.json", change)
    with pytest.raises(ModelError, match=message):
        HuggingFaceSource(folder)


def test_a_byte_order_mark_is_no_damage(folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + (folder / name).read_bytes())
    assert HuggingFaceSource(folder).metadata["tokenizer.ggml.bos_token_id"].value


def test_a_tensor_twice_in_a_header_is_told(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    name, entry = next(item for item in json.loads(data[8 : 8 + length]).items() if item[0] != "__metadata__")
    header = data[8 : 8 + length].rstrip().removesuffix(b"}") + f", {json.dumps(name)}: {json.dumps(entry)}}}".encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data[8 + length :])
    with pytest.raises(ModelFormatError, match=f"it has '{name}' twice"):
        HuggingFaceSource(folder)


def test_directory_without_configuration_or_weights_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="safetensors"):
        open_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UnsupportedModelError, match="pickle"):
        open_model(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"config\.json"):
        open_model(tmp_path / "empty")


def test_unknown_tensors_are_named(folder: Path) -> None:
    _edit_header(folder / "model.safetensors", lambda h: h.update({"model.vision.weight": h.pop("model.norm.weight")}))
    with pytest.raises(UnsupportedModelError, match=r"model\.vision\.weight"):
        HuggingFaceSource(folder)
    with pytest.raises(TensorNotFoundError):
        HuggingFaceSource(write_tiny("smollm", folder)).rows("nothing", 0, 1)


# Tokenizers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["model"].update(type="WordPiece"), "WordPiece"),
        (lambda t: t["model"].update(vocab=[]), "BPE"),
        (lambda t: t["model"]["vocab"].update(extra=-1), "token id"),
        (lambda t: t["model"]["vocab"].update(extra=2**23), "rows"),
        (lambda t: t["model"].update(merges=[["a"]]), "merge"),
        (lambda t: t["model"].update(merges=[1]), "merge"),
        (lambda t: t["added_tokens"][0].pop("content"), "added token"),
        (lambda t: t.update(pre_tokenizer=None), "pre-tokenizer"),
        (lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), "pre-tokenizer Whitespace"),
        (lambda t: t["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="x+"), r"Split\(x\+\)"),
        (lambda t: t.update(normalizer={"type": "Lowercase"}), "pre-tokenizer"),
    ],
)
def test_odd_tokenizer_is_told(folder: Path, change: Edit, message: str) -> None:
    _edit(folder / "tokenizer.json", change)
    with pytest.raises(ModelError, match=message):
        HuggingFaceSource(folder)


def test_missing_tokenizer_is_told(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="neither"):
        HuggingFaceSource(folder)


def test_truncated_sentencepiece_model_is_told(tmp_path: Path, books_llama_dir: Path) -> None:
    data = (books_llama_dir / "tokenizer.model").read_bytes()
    path = tmp_path / "tokenizer.model"
    first_piece = 2 + data[1]
    for size in (*range(first_piece), *range(first_piece + 1, first_piece + 2 + data[first_piece + 1])):
        path.write_bytes(data[:size])
        with pytest.raises(ModelFormatError, match=r"tokenizer\.model"):
            read_pieces(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", "---\na: [\n---\n"),
        ("README.md", "---\nlicense: {a: 1}\n---\n"),
        ("generation_config.json", '{"top_k": "x"}'),
        ("generation_config.json", '{"top_k": true}'),
        ("generation_config.json", '{"top_k": 1.5}'),
        ("generation_config.json", '{"temperature": false}'),
    ],
)
def test_odd_description_is_told(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(ModelFormatError, match=name):
        HuggingFaceSource(folder)
