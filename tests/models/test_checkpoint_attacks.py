"""Directories made by somebody who means harm: pipes and devices for files, links, endless or huge files, bombs."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint_fuzzer import write_model

from quantailor.errors import ModelError, ModelFormatError, QuantailorError
from quantailor.models.convert.vocabulary.fingerprint import PATIENCE_S, splitter
from quantailor.models.huggingface import HuggingFaceSource
from quantailor.models.opening import open_model
from tiny_models import write_tiny

pytestmark = pytest.mark.timeout(60)
needs_pipes = pytest.mark.skipif(sys.platform == "win32", reason="no named pipes, devices or odd names")

SPARSE_BYTES = 2 << 30
SLOW = r"(?:.|[^a])*(?:.|[^b])*(?:.|[^c])*(?<=L)(?=3)"
"""Cubic in a text, and no letter that must be there tells so at once."""
TIMES_FILE, CONSTANT_BYTES = 40, 16 << 20
"""Memory that reading may take: JSON becomes Python objects, an empty list of two letters among them."""
TEXT_FILES = ("tokenizer_config.json", "generation_config.json", "added_tokens.json", "README.md", "chat_template.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Llama with a SentencePiece vocabulary and every file that may lie beside it."""
    return write_model("LlamaForCausalLM", tmp_path / "model")


@pytest.fixture
def byte_level(tmp_path: Path) -> Path:
    """A small OLMo 2 with a tokenizer.json."""
    return write_model("Olmo2ForCausalLM", tmp_path / "model")


def edit(path: Path, change: Callable[[Any], object]) -> Path:
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(stored)
    path.write_text(json.dumps(stored), encoding="utf-8")
    return path


def told(folder: Path) -> str:
    """What is said of a directory; empty where it opens."""
    try:
        open_model(folder).close()
    except QuantailorError as error:
        message = str(error)
    else:
        return ""
    assert message.isprintable()
    assert 0 < len(message) < 500
    return message


@contextlib.contextmanager
def memory_of(path: Path) -> Iterator[None]:
    """Whatever happens takes no more memory than a file of that size justifies."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < TIMES_FILE * path.stat().st_size + CONSTANT_BYTES


# Files that are none


@needs_pipes
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model"])
def test_a_pipe_in_place_of_a_file_is_told_at_once(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert name in told(folder)


@needs_pipes
@pytest.mark.parametrize("name", [*TEXT_FILES, "special_tokens_map.json", "model.safetensors.index.json", "merges.txt"])
def test_a_pipe_in_place_of_a_file_that_may_be_missing_is_not_waited_for(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert told(folder) == ""


@needs_pipes
def test_a_pipe_among_the_chat_templates_is_told(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    os.mkfifo(folder / "additional_chat_templates" / "tools.jinja")
    assert "tools.jinja" in told(folder)


@needs_pipes
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full"])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model", "README.md"])
def test_a_link_to_a_device_is_never_read(name: str, device: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(device)
    assert name in told(folder) or name == "README.md"


@needs_pipes
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model"])
def test_links_in_a_circle_are_told(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(folder / name)
    assert name in told(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.model", "README.md", "model.safetensors.index.json"])
def test_a_folder_in_place_of_a_file_is_told(name: str, folder: Path) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert name in told(folder) or name in ("README.md", "model.safetensors.index.json")


@needs_pipes
def test_a_link_out_of_the_folder_gives_nothing_away(tmp_path: Path) -> None:
    folder = write_tiny("llama3-tied", tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("hunter2 " * 100, encoding="utf-8")
    (folder / "link.safetensors").symlink_to(secret)
    edit(folder / "model.safetensors.index.json", lambda index: index["weight_map"].update({"model.norm.weight": "link.safetensors"}))
    assert "link.safetensors" in told(folder)
    assert "hunter2" not in told(folder)


@needs_pipes
@pytest.mark.parametrize(
    "name", ["model-\x1b[2J.safetensors", "model-\n.safetensors", "model-\udcff.safetensors", "model-\u202e.safetensors"]
)
def test_odd_file_names_do_not_reach_the_terminal(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"")
    assert "model-" in told(folder)


@needs_pipes
def test_an_odd_folder_name_does_not_reach_the_terminal(folder: Path) -> None:
    odd = folder.rename(folder.with_name("model\x1b[2J\nx"))
    source = HuggingFaceSource(odd)
    assert source.name.isprintable()
    source.close()
    (odd / "config.json").write_text("{}", encoding="utf-8")
    assert "\\x1b[2J" in told(odd)


def test_a_path_that_cannot_be_looked_at_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        HuggingFaceSource(tmp_path / ("x" * 5000))


# Files that are too large


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", *TEXT_FILES, "model.safetensors.index.json"])
def test_a_huge_text_is_refused_unread(name: str, folder: Path) -> None:
    small = folder / "small"
    small.write_bytes(b"")
    with (folder / name).open("wb") as stream:
        stream.truncate(SPARSE_BYTES)
    with memory_of(small):
        assert name in told(folder)


@pytest.mark.parametrize("length", [2**31, 2**60, 2**63, 2**64 - 1])
def test_a_header_that_claims_more_than_there_is_takes_no_memory(length: int, folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    with memory_of(path):
        assert "header" in told(folder)


def test_a_header_of_the_largest_size_over_nothing_takes_no_more_than_it_has(folder: Path) -> None:
    path = folder / "model.safetensors"
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", 100_000_001))
        stream.truncate(SPARSE_BYTES)
    with memory_of(folder / "config.json"):
        assert "header" in told(folder)


@pytest.mark.parametrize("size", [(10**12, 10**12), (2**62, 1), (1, 2**62), (10**30, 10**30)])
def test_blocks_of_scales_that_are_larger_than_the_matrix_take_no_memory(size: tuple[int, int], tmp_path: Path) -> None:
    folder = write_model("float8-single", tmp_path / "model")
    path = edit(folder / "config.json", lambda config: config["quantization_config"].update(weight_block_size=list(size)))
    with memory_of(path), contextlib.suppress(ModelError), contextlib.closing(HuggingFaceSource(folder)) as source:
        assert source.raw_rows("blk.0.attn_q.weight", 0, 1).nbytes == 128


@pytest.mark.parametrize("model", ["SmolLM3ForCausalLM", "DeepseekV3ForCausalLM", "GptOssForCausalLM"])
@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "vocab_size", "num_experts", "n_routed_experts", "head_dim"])
def test_a_count_takes_no_memory(model: str, key: str, tmp_path: Path) -> None:
    folder = write_model(model, tmp_path / "model")
    path = edit(folder / "config.json", lambda config: config.update({key: 2**31 - 1}))
    with memory_of(path):
        told(folder)


# Bombs


@pytest.mark.parametrize(
    "head",
    [
        "a0: &a0 {x: y, z: w}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)),
        "a0: &a0 [x, y]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)) + "name: *a39\ntags: *a39\n",
        "a0: &a0 [x, y]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)) + "language: *a39\nname: [x]\n",
        "x: &x [*x]\nbase_model: *x\n",
        "[" * 100_000,
        "name: " + "1:" * 20_000 + "1",
        "- a\n" * 200_000,
        'license: "\\ud800"',
        'license: "\\UFFFFFFFF"',
        *(f"name: !!{tag} ''" for tag in ("int", "float", "bool", "timestamp")),
    ],
)
def test_a_model_card_is_no_bomb(head: str, folder: Path) -> None:
    path = folder / "README.md"
    path.write_text(f"---\n{head}\n---\n", encoding="utf-8")
    with memory_of(path):
        message = told(folder)
    assert "README.md" in message or head.startswith("x:")


@pytest.mark.parametrize(
    "pattern",
    [
        ".?" * 40 + "Z",
        r"(?:.|[^a])" * 40 + "Z",
        r"\s?\S?" * 30 + "Z",
        r"[^Z]*" * 5 + "Z",
        pytest.param("|".join([r"[^Z]*[^Z]*Z"] * 200), marks=pytest.mark.slow),
        r"(?=.*.*.*Z)",
        SLOW,
        "(?R)",
    ],
)
def test_a_pattern_that_backtracks_is_given_up(pattern: str, byte_level: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    edit(byte_level / "tokenizer.json", lambda stored: stored.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, bytes_]}))
    started = time.process_time()
    assert "pre-tokenizer" in told(byte_level)
    assert time.process_time() - started < 10 * PATIENCE_S


def test_a_pattern_has_a_time_limit() -> None:
    deadline = time.monotonic() + PATIENCE_S
    assert [*splitter(r"\p{L}+|\p{N}+", deadline, keep_rest=False)("abc 123")] == ["abc", "123"]
    assert list(splitter(r"\p{L}*\p{L}*\p{L}*x", deadline, keep_rest=False)("abx")) == ["abx"]
    with pytest.raises(TimeoutError):
        list(splitter(SLOW, time.monotonic() + 0.1)("L" + "a" * 500 + "3"))


def test_ids_around_a_text_do_not_multiply(byte_level: Path) -> None:
    part, many = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}, [1] * 20_000
    processor = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, *[part] * 20_000],
        "special_tokens": {"<|end|>": {"id": "<|end|>", "ids": many, "tokens": []}},
    }
    path = edit(byte_level / "tokenizer.json", lambda stored: stored.update(post_processor=processor))
    with memory_of(path):
        assert told(byte_level) == ""


# Many of something


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "name", "change", "message"),
    [
        ("Olmo2ForCausalLM", "tokenizer.json", lambda t: t["model"].update(merges=t["model"]["merges"] * 2_000), ""),
        (
            "Olmo2ForCausalLM",
            "tokenizer.json",
            lambda t: t["model"]["vocab"].update({f"a{i}": 300_000 + i for i in range(300_000)}),
            "rows",
        ),
        ("Olmo2ForCausalLM", "tokenizer.json", lambda t: t.update(added_tokens=[{"content": f"a{i}"} for i in range(300_000)]), "rows"),
        (
            "Olmo2ForCausalLM",
            "tokenizer_config.json",
            lambda t: t.update(extra_special_tokens=[f"a{i}" for i in range(300_000)]),
            "rows",
        ),
        ("LlamaForCausalLM", "added_tokens.json", lambda t: t.update({f"a{i}": i for i in range(300_000)}), "disagree"),
        ("LlamaForCausalLM", "config.json", lambda c: c.update(x=[[]] * 10**6), ""),
        ("LlamaForCausalLM", "config.json", lambda c: c.update(_name_or_path="a-" * 10**6), ""),
    ],
)
def test_very_many_entries_are_read_in_one_go(model: str, name: str, change: Callable[[Any], object], message: str, tmp_path: Path) -> None:
    folder = write_model(model, tmp_path / "model")
    path = edit(folder / name, change)
    with memory_of(path):
        found = told(folder)
    assert message in found
    assert bool(message) == bool(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "message"), [("model-00001-of-00002.safetensors", "differ in 100000 tensors"), ("model-{}.safetensors", "model-0.")]
)
def test_an_index_of_many_names_is_told(file: str, message: str, tmp_path: Path) -> None:
    folder = write_tiny("llama3-tied", tmp_path)
    names = {f"t{number}": file.format(number) for number in range(100_000)}
    path = edit(folder / "model.safetensors.index.json", lambda index: index["weight_map"].update(names))
    with memory_of(path):
        assert message in told(folder)


@pytest.mark.slow
def test_more_parts_than_may_be_open_are_told(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    folder = write_tiny("llama3-tied", tmp_path)
    few = resource.getrlimit(resource.RLIMIT_NOFILE)
    names = {f"t{number}": f"model-{number}.safetensors" for number in range(300)}
    for file in names.values():
        (folder / file).write_bytes(struct.pack("<Q", 2) + b"{}")
    edit(folder / "model.safetensors.index.json", lambda index: index["weight_map"].update(names))
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, few[1]))
    try:
        assert "Too many open files" in told(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, few)


def test_weights_of_every_bit_pattern_are_read_without_a_warning(tmp_path: Path) -> None:
    """Infinite and NaN weights are the business of whoever quantizes them."""
    for model in ("float8", "Gemma2ForCausalLM", "DeepseekV2ForCausalLM"):
        folder = write_model(model, tmp_path / model)
        path = folder / "model.safetensors"
        data = path.read_bytes()
        start = 8 + struct.unpack("<Q", data[:8])[0]
        path.write_bytes(data[:start] + (b"\x7f\xff\x80\xff\x01\x7c" * len(data))[: len(data) - start])
        with contextlib.closing(HuggingFaceSource(folder)) as source:
            for tensor in source.tensors:
                assert source.rows(tensor.name, 0, tensor.n_rows).shape == (tensor.n_rows, tensor.n_cols)


def test_a_matrix_in_eight_bits_where_none_belongs_is_told(tmp_path: Path) -> None:
    folder = write_model("GptOssForCausalLM", tmp_path / "model")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    name = "model.layers.0.mlp.experts.gate_up_proj_bias"
    shape, (start, stop) = header[name]["shape"], header[name]["data_offsets"]
    half = (stop - start) // 2
    header[name] = {"dtype": "F8_E4M3", "shape": shape, "data_offsets": [start, start + half]}
    header[f"{name}_scale_inv"] = {"dtype": "F32", "shape": [1, 1], "data_offsets": [start + half, start + half + 4]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    assert name in told(folder)


def test_a_rope_that_lacks_its_length_is_told(tmp_path: Path) -> None:
    folder = write_model("Gemma3ForCausalLM", tmp_path / "model")
    edit(folder / "config.json", lambda config: config.update(rope_scaling={"rope_type": "yarn", "factor": 8.0}))
    with pytest.raises(ModelFormatError, match="original_max_position_embeddings"):
        HuggingFaceSource(folder)
