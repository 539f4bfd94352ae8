"""Checkpoints as people publish and train them: what converts, and what is refused with its cause before anything is set up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from commands import Command
from hub_server import HubServer
from test_families import write_small

from quantailor.errors import ConverterNeededError, ModelError, NonFiniteWeightError
from quantailor.models.convert.base import write_base
from quantailor.models.huggingface import HuggingFaceSource
from quantailor.models.safetensors_file import SafetensorsFile
from quantailor.records import MetadataValue
from tiny_models import BPE_SIZE, BYTE_FALLBACK_SIZE, SENTENCEPIECE_SIZE, added_token, numbers, packed, safetensors_bytes, write_tiny

Entry = tuple[str, Sequence[int], bytes]
Arrays = dict[str, Entry]
Values = npt.NDArray[np.float32]
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small Llama 3 in one file, with a byte-level vocabulary."""
    return write_tiny("llama3", tmp_path)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(stored)
    path.write_text(json.dumps(stored, ensure_ascii=False), encoding="utf-8")


def arrays_of(folder: Path) -> Arrays:
    found: Arrays = {}
    for path in sorted(folder.glob("model*.safetensors")):
        file = SafetensorsFile(path)
        found |= {name: (array.dtype, array.shape, array.read(0, array.size_bytes).tobytes()) for name, array in file.arrays.items()}
        file.close()
    return found


def write_arrays(folder: Path, arrays: Mapping[str, Entry]) -> None:
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays))


def metadata(folder: Path) -> Mapping[str, MetadataValue]:
    source = HuggingFaceSource(folder)
    source.close()
    return source.metadata


def notes(folder: Path) -> tuple[str, ...]:
    source = HuggingFaceSource(folder)
    source.close()
    return source.notes


def refusal(folder: Path) -> str:
    """The line that refuses a directory, which no converter could take either."""
    with pytest.raises(ModelError) as told:
        HuggingFaceSource(folder)
    assert not isinstance(told.value, ConverterNeededError)
    assert "quantailor convert" not in str(told.value)
    assert told.value.remedy
    return str(told.value)


# Rope parameters in two places

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": YARN},
        {"rope_parameters": {"rope_theta": 1e6}, "rope_scaling": {**YARN, "type": "yarn"}},
        {"rope_parameters": {**YARN, "rope_theta": 1e6}, "rope_scaling": {"rope_type": "default"}},
        {"rope_parameters": {**YARN, "rope_theta": 1e6}, "rope_scaling": YARN},
        {"rope_parameters": {"full_attention": {**YARN, "rope_theta": 1e6}}},
        {"rope_theta": 1e6, "rope_scaling": YARN, "rope_parameters": None},
    ],
)
def test_every_spelling_of_rope_is_the_same(rope: dict[str, Any], tmp_path: Path) -> None:
    newer = metadata(write_small("Qwen3ForCausalLM", tmp_path / "model", rope_parameters={**YARN, "rope_theta": 1e6}))
    found = metadata(write_small("Qwen3ForCausalLM", tmp_path / "model", **{"rope_theta": 1e4, **rope}))
    assert found == newer
    assert found["qwen3.rope.freq_base"].value == 1e6


@pytest.mark.parametrize("newer", [{"rope_type": "linear", "factor": 4.0}, {**YARN, "factor": 8.0}])
def test_ropes_that_contradict_each_other_are_told_with_both_keys(newer: dict[str, Any], tmp_path: Path) -> None:
    line = refusal(write_small("Qwen3ForCausalLM", tmp_path, rope_parameters=newer, rope_scaling=YARN))
    assert "in rope_parameters and" in line
    assert "in rope_scaling" in line


@pytest.mark.parametrize(
    ("family", "config", "is_told"),
    [
        ("Qwen2ForCausalLM", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1}, True),
        ("Qwen3ForCausalLM", {"sliding_window": 64, "use_sliding_window": True}, True),
        ("Qwen2ForCausalLM", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2}, False),
        ("Qwen2ForCausalLM", {"sliding_window": 64, "use_sliding_window": False}, False),
        ("Qwen2ForCausalLM", {"sliding_window": 512, "use_sliding_window": True}, False),
        ("Qwen2ForCausalLM", {"sliding_window": None, "use_sliding_window": True}, False),
    ],
)
def test_limited_attention_that_llama_cpp_does_not_limit_is_told(
    family: str, config: dict[str, Any], is_told: bool, tmp_path: Path
) -> None:
    said = " ".join(notes(write_small(family, tmp_path, **config)))
    assert ("limits attention to 64 tokens, which llama.cpp does not for" in said) == is_told


@pytest.mark.parametrize("rope", [{"partial_rotary_factor": 0.5}, {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}}])
def test_heads_that_are_rotated_in_part_are_refused_where_llama_cpp_rotates_them_whole(rope: dict[str, Any], tmp_path: Path) -> None:
    line = refusal(write_small("Qwen3ForCausalLM", tmp_path, **rope))
    assert "and llama.cpp rotates whole heads of every Qwen3 model" in line
    assert metadata(write_small("Qwen3ForCausalLM", tmp_path, partial_rotary_factor=1))


@pytest.mark.parametrize(
    ("rope", "place"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_parameters"),
        ({"rope_scaling": {**YARN, "rope_theta": 1e6}}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}}, "rope_parameters.full_attention"),
    ],
)
def test_a_base_of_rotation_that_is_overruled_is_told_with_both_values(
    rope: dict[str, Any], place: str, quantailor: Command, tmp_path: Path
) -> None:
    folder = write_small("Qwen3ForCausalLM", tmp_path / "model", **{"rope_theta": 1e4, **rope})
    done = quantailor("convert", folder, "-o", tmp_path / "base.gguf", "--home", tmp_path / "home")
    said = f"config.json has rope_theta = 10000.0 and, in {place}, rope_theta = 1000000.0: the latter is taken"
    assert said in " ".join((done.out + done.err).split())
    assert metadata(folder)["qwen3.rope.freq_base"].value == 1e6
    agreed = write_small("Qwen3ForCausalLM", tmp_path / "agreed", **{"rope_theta": 1_000_000, **rope})
    assert not notes(agreed)
    # What a model for pictures says of itself is not said of its text model.
    text = json.loads((agreed / "config.json").read_text(encoding="utf-8"))
    del text["rope_theta"]
    (agreed / "config.json").write_text(json.dumps({**text, "rope_theta": 1e4, "text_config": text}), encoding="utf-8")
    assert not notes(agreed)


def test_ropes_by_kind_of_layer_are_read_where_they_are_one_and_refused_where_the_family_has_one(tmp_path: Path) -> None:
    kinds = {"full_attention": {"rope_theta": 5e5}, "sliding_attention": {"rope_theta": 1e4}}
    assert "rope_parameters" in refusal(write_small("Qwen3ForCausalLM", tmp_path / "qwen", rope_parameters=kinds))
    flat = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    found = metadata(write_small("Gemma3ForCausalLM", tmp_path / "gemma", rope_theta=None, rope_scaling=None, rope_parameters=flat))
    assert found["gemma3.rope.freq_base"].value == 5e5
    assert found["gemma3.rope.scaling.factor"].value == 2.0


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"rope_scaling": YARN, "original_max_position_embeddings": 64},
            "rope_scaling of config.json has original_max_position_embeddings = 128, and beside it the value is 64: the latter is taken",
        ),
        (
            {"rope_parameters": {**YARN, "type": "linear", "rope_theta": 1e4}},
            "rope_parameters of config.json has rope_type = 'yarn' and type = 'linear': the former is taken, as transformers does",
        ),
    ],
)
def test_what_ropes_say_twice_and_differently_is_told(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in " ".join(notes(write_small("Qwen3ForCausalLM", tmp_path, **changed)))


def test_a_length_that_only_the_rope_of_a_phi_has_is_told_to_be_overruled(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "long_factor": [2.0] * 8, "short_factor": [1.0] * 8, "original_max_position_embeddings": 64}
    folder = write_small("Phi3ForCausalLM", tmp_path, rope_parameters=rope, rope_scaling=None)
    edit(folder / "config.json", lambda config: config.pop("original_max_position_embeddings"))
    said = " ".join(notes(folder))
    assert "rope_parameters of config.json has original_max_position_embeddings = 64, and beside it the value is 4096, which" in said


def test_both_names_of_one_rope_type_agree(tmp_path: Path) -> None:
    factors = {"long_factor": [2.0] * 8, "short_factor": [1.0] * 8}
    newer, older = {"rope_type": "longrope", **factors}, {"type": "su", **factors}
    folder = write_small("Phi3ForCausalLM", tmp_path, rope_parameters=newer, rope_scaling=older)
    assert not notes(folder)
    assert "rope_factors_long.weight" in [tensor.name for tensor in HuggingFaceSource(folder).tensors]


@pytest.mark.parametrize(
    ("family", "rope", "said"),
    [
        ("Qwen3ForCausalLM", {"rope_scaling": LLAMA3}, "has the rope type 'llama3', which llama.cpp does not have for this family"),
        ("Gemma3ForCausalLM", {"rope_scaling": LLAMA3}, "has the rope type 'llama3', which llama.cpp does not have for this family"),
        (
            "Gemma3ForCausalLM",
            {"rope_scaling": None, "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}},
            "has the rope type 'linear' for sliding attention, which llama.cpp does not have for this family",
        ),
        ("Qwen3ForCausalLM", {"rope_scaling": {**YARN, "factor": "4.0"}}, "has factor = '4.0', which is no number"),
    ],
)
def test_a_rope_that_llama_cpp_would_not_turn_is_refused(family: str, rope: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refusal(write_small(family, tmp_path, **rope))


# Vocabularies and rows


def rows_of(name: str, rows: int, tmp_path: Path) -> Path:
    """A model whose embedding and output have that many rows, as its configuration says."""
    folder = write_tiny(name, tmp_path)
    arrays = arrays_of(folder)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        dtype, shape, _ = arrays[key]
        arrays[key] = (dtype, (rows, shape[1]), packed(numbers(key, (rows, shape[1])), dtype))
    for path in folder.glob("model*"):
        path.unlink()
    write_arrays(folder, arrays)
    edit(folder / "config.json", lambda config: config.update(vocab_size=rows))
    return folder


@pytest.mark.parametrize(("name", "size"), [("byte-fallback", BYTE_FALLBACK_SIZE), ("llama3", BPE_SIZE), ("llama2", SENTENCEPIECE_SIZE)])
def test_spare_rows_get_unused_tokens_and_tokens_without_a_row_are_told(name: str, size: int, tmp_path: Path) -> None:
    tokens = metadata(rows_of(name, size + 7, tmp_path / "more"))["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, tuple)
    assert len(tokens) == size + 7
    assert tokens[-1] == f"[PAD{size + 6}]"
    line = refusal(rows_of(name, size - 1, tmp_path / "fewer"))
    assert f"{size:,} tokens" in line
    assert f"{size - 1:,} rows" in line


CHAT = ("<|turn|>", "<|end_turn|>")


def with_chat_tokens(place: Path, n_rows: int, **files: dict[str, Any]) -> Path:
    """A SentencePiece model with so many rows beyond its pieces, whose end is the second chat token."""
    folder = rows_of("biases", SENTENCEPIECE_SIZE + n_rows, place)
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": CHAT[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    edit(folder / "config.json", lambda config: config.update(eos_token_id=SENTENCEPIECE_SIZE + n_rows - 1))
    for name, content in files.items():
        edit(folder / f"{name}.json", lambda stored, content=content: stored.update(content))  # type: ignore[misc]
    return folder


ADDED_TOKENS = {text: SENTENCEPIECE_SIZE + place for place, text in enumerate(CHAT)}
TOKENIZER = {
    "added_tokens": [added_token(number, text) for text, number in ADDED_TOKENS.items()],
    "model": {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": []},
}
DECODER = {"added_tokens_decoder": {str(number): {"content": text, "special": True} for text, number in ADDED_TOKENS.items()}}


@pytest.mark.parametrize("files", [{"tokenizer": TOKENIZER}, {"added_tokens": ADDED_TOKENS}, {"tokenizer_config": DECODER}])
def test_tokens_added_to_sentencepiece_are_found_wherever_they_stand(files: dict[str, Any], tmp_path: Path) -> None:
    found = metadata(with_chat_tokens(tmp_path, 2, **files))
    tokens = found["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, tuple)
    assert tokens[-2:] == CHAT
    assert found["tokenizer.ggml.eos_token_id"].value == SENTENCEPIECE_SIZE + 1


@pytest.mark.parametrize("files", [{"tokenizer": TOKENIZER}, {"added_tokens": ADDED_TOKENS}, {"tokenizer_config": DECODER}])
def test_the_end_that_the_tokenizer_names_counts_wherever_its_id_stands(files: dict[str, Any], tmp_path: Path) -> None:
    folder = with_chat_tokens(tmp_path, 2, **files)
    edit(folder / "config.json", lambda config: config.update(eos_token_id=2))
    assert metadata(folder)["tokenizer.ggml.eos_token_id"].value == SENTENCEPIECE_SIZE + 1


def test_an_end_that_only_the_older_map_names_counts(tmp_path: Path) -> None:
    folder = with_chat_tokens(tmp_path, 2, added_tokens=ADDED_TOKENS, special_tokens_map={"eos_token": {"content": CHAT[1]}})
    edit(folder / "config.json", lambda config: config.update(eos_token_id=2))
    edit(folder / "tokenizer_config.json", lambda settings: settings.pop("eos_token"))
    assert metadata(folder)["tokenizer.ggml.eos_token_id"].value == SENTENCEPIECE_SIZE + 1
    edit(folder / "tokenizer_config.json", lambda settings: settings.update({"eos_token": "</s>"}))
    assert metadata(folder)["tokenizer.ggml.eos_token_id"].value == 2


@pytest.mark.parametrize("ends", [BPE_SIZE - 4, [BPE_SIZE - 4, BPE_SIZE - 3]])
def test_an_end_that_only_the_generation_settings_name_counts_and_none_is_told(ends: object, folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.pop("eos_token_id"))
    edit(folder / "tokenizer_config.json", lambda settings: settings.pop("eos_token"))
    assert "no file names the token that ends a text" in " ".join(notes(folder))
    edit(folder / "generation_config.json", lambda settings: settings.update(eos_token_id=ends))
    assert metadata(folder)["tokenizer.ggml.eos_token_id"].value == BPE_SIZE - 4
    assert notes(folder) == ()


def test_a_token_without_a_row_is_named(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(extra_special_tokens={"image_token": "<image>"}))
    assert f"but the embedding has {BPE_SIZE} rows: '<image>' has none" in refusal(folder)


def test_of_several_ends_the_first_is_written(folder: Path) -> None:
    ends = [BPE_SIZE - 3, BPE_SIZE - 4]
    edit(folder / "config.json", lambda config: config.update(eos_token_id=ends))
    edit(folder / "tokenizer_config.json", lambda settings: settings.pop("eos_token"))
    assert metadata(folder)["tokenizer.ggml.eos_token_id"].value == ends[0]


@pytest.mark.parametrize("files", [{"tokenizer": TOKENIZER}, {"added_tokens": ADDED_TOKENS}, {"tokenizer_config": DECODER}, {}])
def test_an_end_of_text_without_a_row_is_refused(files: dict[str, Any], tmp_path: Path) -> None:
    line = refusal(with_chat_tokens(tmp_path, 0, **files))
    assert CHAT[1] in line
    assert f"{SENTENCEPIECE_SIZE:,}" in line


def test_further_tokens_without_a_row_are_told(quantailor: Command, tmp_path: Path) -> None:
    folder = with_chat_tokens(tmp_path, 0, added_tokens=ADDED_TOKENS)
    edit(folder / "tokenizer_config.json", lambda settings: settings.update({"eos_token": "</s>"}))
    shown = quantailor("convert", folder, "-o", tmp_path / "base.gguf", "--home", tmp_path / "home").out
    assert "2 tokens without a row in the embedding were left out: <|turn|>, <|end_turn|>" in shown


def test_files_that_disagree_about_a_token_are_told(tmp_path: Path) -> None:
    other = {"added_tokens_decoder": {str(SENTENCEPIECE_SIZE): {"content": "<|other|>"}}}
    line = refusal(with_chat_tokens(tmp_path, 2, added_tokens=ADDED_TOKENS, tokenizer_config=other))
    assert "disagree about token 4096: '<|turn|>' and '<|other|>'" in line


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("spiece.model", "Name it tokenizer.model"),
        ("tokenizer.model.v3", "Name it tokenizer.model"),
        *((name, "Save the tokenizer as tokenizer.json") for name in ("vocab.json", "tekken.json", "qwen.tiktoken")),
    ],
)
@pytest.mark.parametrize("family", ["Qwen3ForCausalLM", "Phi3ForCausalLM"])
def test_a_tokenizer_in_another_file_is_named(name: str, remedy: str, family: str, folder: Path, tmp_path: Path) -> None:
    for place in (folder, write_small(family, tmp_path / family)):
        for stored in ("tokenizer.model", "tokenizer.json"):
            (place / stored).unlink(missing_ok=True)
        (place / name).write_text("{}", encoding="utf-8")
        if place == folder or family.startswith("Phi"):
            assert f"has neither tokenizer.model nor tokenizer.json, but {name}. {remedy}" in refusal(place)


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "GPT2TokenizerFast", "TokenizersBackend", None])
def test_what_a_tokenizer_is_its_file_tells(kind: str | None, tmp_path: Path) -> None:
    folder = write_small("Phi3ForCausalLM", tmp_path / "phi")
    (folder / "tokenizer.model").unlink()
    for path in write_tiny("llama3", tmp_path).glob("tokenizer*.json"):
        path.rename(folder / path.name)
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(tokenizer_class=kind))
    assert metadata(folder)["tokenizer.ggml.model"].value == "gpt2"


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_another_kind_of_tokenizer_is_refused_without_trying_llama_cpp(kind: str, folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda stored: stored["model"].update(type=kind))
    assert kind in refusal(folder)


def test_tokens_of_added_tokens_json_alone_have_their_ids_in_byte_level_vocabularies_too(tmp_path: Path) -> None:
    folder = rows_of("llama3", BPE_SIZE + 3, tmp_path)
    edit(folder / "added_tokens.json", lambda stored: stored.update({"<|turn|>": BPE_SIZE + 1}))
    tokens = metadata(folder)["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, tuple)
    assert tokens[-3:] == (f"[PAD{BPE_SIZE}]", "<|turn|>", f"[PAD{BPE_SIZE + 2}]")
    edit(folder / "added_tokens.json", lambda stored: stored.update({"<|other|>": BPE_SIZE - 1}))
    assert f"has the token '<|other|>' as {BPE_SIZE - 1} in added_tokens.json, and tokenizer.json has '<|odd|>' there" in refusal(folder)


def test_an_embedding_that_was_padded_says_what_vocab_size_is(folder: Path) -> None:
    arrays = arrays_of(folder)
    rows = BPE_SIZE + 64
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        arrays[key] = ("BF16", (rows, 64), bytes(2 * rows * 64))
    write_arrays(folder, arrays)
    assert f"Set vocab_size to {rows} in config.json" in refusal(folder)
    edit(folder / "config.json", lambda config: config.update(vocab_size=rows))
    assert metadata(folder)


# Parts that do not belong together


def split_in_two(folder: Path, last: Sequence[str] = ("lm_head.weight", "model.norm.weight")) -> dict[str, str]:
    """Two parts without an index; returns what an index would say."""
    arrays = arrays_of(folder)
    (folder / "model.safetensors").unlink()
    (folder / FIRST).write_bytes(safetensors_bytes({name: entry for name, entry in arrays.items() if name not in last}))
    (folder / SECOND).write_bytes(safetensors_bytes({name: arrays[name] for name in last}))
    return {name: SECOND if name in last else FIRST for name in arrays}


def test_an_index_of_files_that_are_not_there_says_what_to_delete(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(arrays_of(folder), FIRST)}), encoding="utf-8")
    line = refusal(folder)
    assert (
        f"names {FIRST}, which is not there, while model.safetensors is. To convert model.safetensors instead, delete {index.name}" in line
    )
    index.unlink()
    assert metadata(folder)


@pytest.mark.parametrize("gone", [FIRST, SECOND])
def test_a_part_that_is_missing_is_named(gone: str, folder: Path) -> None:
    weight_map = split_in_two(folder)
    assert metadata(folder)
    (folder / gone).unlink()
    assert f"not {gone}" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    assert gone in refusal(folder)


def test_a_tensor_in_two_parts_is_told_with_both(folder: Path) -> None:
    split_in_two(folder)
    arrays = arrays_of(folder)
    (folder / SECOND).write_bytes(
        safetensors_bytes({name: arrays[name] for name in ("model.norm.weight", "lm_head.weight", f"{QUERY}.weight")})
    )
    assert f"{QUERY}.weight twice, in {FIRST} and {SECOND}" in refusal(folder)


def test_a_whole_file_and_another_copy_of_a_part_beside_the_indexed_ones_are_told(folder: Path, run: Command, tmp_path: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": split_in_two(folder)}), encoding="utf-8")
    assert notes(folder) == ()
    (folder / "model.safetensors").write_bytes(whole)
    said = "model.safetensors.index.json names other files, so model.safetensors is not read, while transformers takes model.safetensors"
    assert said in " ".join(notes(folder))
    assert said in " ".join(run("convert", folder, "-o", tmp_path / "base.gguf").out.split())
    (folder / "model.safetensors").rename(folder / "model-00002-of-00002 (1).safetensors")
    assert "so model-00002-of-00002 (1).safetensors is not read" in " ".join(notes(folder))


def test_an_adapter_beside_the_weights_is_told(folder: Path) -> None:
    edit(folder / "adapter_config.json", lambda stored: stored.update(base_model_name_or_path="org/base"))
    assert "an adapter lies beside the weights" in " ".join(notes(folder))


@pytest.mark.parametrize("inner", ["checkpoint-500", "snapshots/0123abcd"])
def test_a_directory_around_the_model_names_the_one_in_it(inner: str, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "outer" / inner
    place.parent.mkdir(parents=True)
    folder.rename(place)
    assert f"outer has no config.json, but there is one in {inner}. Give {place}" in refusal(tmp_path / "outer")
    other = tmp_path / "outer" / "checkpoint-600"
    other.mkdir()
    (other / "config.json").write_text("{}")
    assert "Give one of these directories" in refusal(tmp_path / "outer")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("consolidated.00.pth", "has consolidated.00.pth, which is in a program's own format, and no model*.safetensors"),
        ("last.ckpt", "has last.ckpt, which is in a program's own format"),
        ("iter_0000500/mp_rank_00/model_optim_rng.pt", "has the parts of sharded training (iter_0000500)"),
        ("optimizer.pt", "has no model*.safetensors"),
    ],
)
def test_weights_in_a_program_s_own_format_are_named(name: str, said: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"PK")
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tf_model.h5", "has tf_model.h5, which is in a program's own format"),
        ("onnx/model.onnx", "has onnx/model.onnx, which is in a program's own format"),
        ("original/consolidated.00.pth", "has original/consolidated.00.pth, which is in a program's own format"),
        ("model.safetensors.crdownload", "the weights are not there yet. Finish the download"),
        ("model.safetensors.dvc", "the weights are not there yet. Run `dvc pull` for model.safetensors.dvc"),
        ("tiny.gguf", "tiny.gguf and no model*.safetensors. Give the GGUF file: "),
        ("adapter_model.safetensors", "has only an adapter, and no adapter_config.json"),
        ("adapter_model.bin", "has only an adapter, and no adapter_config.json"),
    ],
)
def test_what_lies_in_place_of_the_weights_is_named(name: str, said: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / "model.safetensors").rename(folder / name)
    assert said in refusal(folder)


def test_weights_in_folders_of_one_training_are_named_in_its_order(folder: Path) -> None:
    weights = folder / "model.safetensors"
    for name in ("checkpoint-500", "checkpoint-1000"):
        (folder / name).mkdir()
    weights.rename(folder / "checkpoint-1000" / weights.name)
    assert f"there are some in checkpoint-1000. Give {folder / 'checkpoint-1000'}" in refusal(folder)
    (folder / "checkpoint-500" / "model-00001-of-00002.safetensors").touch()
    assert "there are some in checkpoint-500, checkpoint-1000. Give one of these directories" in refusal(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_small_file_in_place_of_its_directory_names_the_directory(name: str, folder: Path, quantailor: Command) -> None:
    line = quantailor("inspect", folder / name).error_line
    assert "is one file of a Hugging Face directory. Give the directory: " in " ".join(line.split())


def test_a_file_that_is_still_downloaded_is_not_whole(folder: Path, quantailor: Command, tmp_path: Path) -> None:
    base = tmp_path / "base.gguf"
    assert quantailor("convert", folder, "-o", base, "--home", tmp_path / "home").code == 0
    for path, command in ((base, "measure"), (folder / "model.safetensors", "convert")):
        control = path.with_name(f"{path.name}.aria2")
        control.write_bytes(b"\0\1")
        given = folder if command == "convert" else path
        output = ("-o", tmp_path / "other.gguf") if command == "convert" else ()
        line = quantailor(command, given, *output, "--home", tmp_path / "home").error_line
        assert f"{path} is not whole: {control.name} beside it says that aria2 has not finished" in line
        assert not (tmp_path / "other.gguf").exists()
        control.unlink()


def test_a_directory_of_gguf_files_names_one(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).touch()
    assert f"has no config.json, but a.gguf and 1 more GGUF files. Give the GGUF file: {tmp_path / 'a.gguf'}" in refusal(tmp_path)


def test_files_beside_the_model_are_not_read(folder: Path) -> None:
    (folder / "consolidated.safetensors").write_bytes(b"none")
    (folder / "pytorch_model.bin").write_bytes(b"none")
    assert metadata(folder)


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.k_proj.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight"])
def test_a_missing_tensor_is_named_by_every_command(name: str, folder: Path, quantailor: Command, tmp_path: Path) -> None:
    write_arrays(folder, {other: entry for other, entry in arrays_of(folder).items() if other != name})
    base, home = tmp_path / "base.gguf", ("--home", tmp_path / "home")
    lines = {
        quantailor("inspect", folder).error_line,
        quantailor("convert", folder, "-o", base, *home).error_line,
        quantailor("measure", folder, *home).error_line,
        quantailor("plan", folder, "--bpw", 5, *home).error_line,
        quantailor("make", folder, "--bpw", 5, "-o", tmp_path / "out", *home).error_line,
    }
    assert len(lines) == 1
    assert f"lacks the tensor {name}" in lines.pop()
    assert not base.exists()


def test_an_output_is_missing_unless_it_is_the_embedding(folder: Path) -> None:
    write_arrays(folder, {name: entry for name, entry in arrays_of(folder).items() if name != "lm_head.weight"})
    assert "no output matrix (lm_head.weight)" in refusal(folder)
    edit(folder / "config.json", lambda config: config.update(tie_word_embeddings=True))
    assert metadata(folder)


def test_a_tied_output_with_other_weights_than_the_embedding_is_told(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(tie_word_embeddings=True))
    assert "lm_head.weight differs from it: both are kept" in " ".join(notes(folder))
    arrays = arrays_of(folder)
    write_arrays(folder, {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"]})
    assert notes(folder) == ()


def test_bytes_after_the_last_array_are_refused(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(bytes(7))
    assert "7 bytes follow its last array" in refusal(folder)


# Rope


def test_dynamic_rope_scaling_is_told(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(rope_scaling={"rope_type": "dynamic", "factor": 2.0}))
    assert "llama.cpp has no dynamic rope scaling" in " ".join(notes(folder))


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": None, "factor": 8.0}, "has the rope factor 8.0 and no rope type"),
        ({"factor": 8.0}, "has the rope factor 8.0 and no rope type"),
        ({"rope_type": "linear"}, "has the rope type linear without a factor"),
        ({"type": "yarn", "factor": None}, "has the rope type yarn without a factor"),
        ({"rope_type": "llama3"}, "has the rope type llama3 without factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "has the rope type llama3 without high_freq_factor"),
        ({"type": "linear", "factor": 0}, "has factor = '0.0'"),
        ({"type": "yarn", "factor": -4.0}, "has factor = '-4.0'"),
        ({"rope_theta": 0, "rope_type": "linear", "factor": 2.0}, "has rope_theta = '0.0'"),
    ],
)
def test_rope_scaling_that_says_half_of_it_is_refused(folder: Path, rope: dict[str, Any], said: str) -> None:
    edit(folder / "config.json", lambda config: config.update(rope_scaling=rope))
    assert said in refusal(folder)


@pytest.mark.parametrize("family", ["Qwen3ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM"])
@pytest.mark.parametrize("base", [0, -1e4])
def test_a_rope_base_that_none_can_have_is_refused(family: str, base: float, tmp_path: Path) -> None:
    assert f"has rope_theta = '{float(base)}'" in refusal(write_small(family, tmp_path, rope_theta=base))


@pytest.mark.parametrize(
    ("kind", "factor"), [("longrope", math.sqrt(1 + math.log(4) / math.log(128))), ("su", None), ("yarn", 1 + 0.1 * math.log(4))]
)
def test_how_much_phi_scales_attention_goes_by_its_rope_type(kind: str, factor: float | None, tmp_path: Path) -> None:
    """`factor` is None where it is that of longrope."""
    sizes: dict[str, Any] = {"max_position_embeddings": 512, "original_max_position_embeddings": 128}
    factors = {"long_factor": [2.0] * 8, "short_factor": [1.0] * 8}
    folder = write_small("Phi3ForCausalLM", tmp_path / "long", rope_scaling={"type": kind, **factors}, **sizes)
    assert metadata(folder)["phi3.rope.scaling.attn_factor"].value == pytest.approx(factor or math.sqrt(1 + math.log(4) / math.log(128)))
    short = write_small("Phi3ForCausalLM", tmp_path / "none", rope_scaling={"type": kind, "factor": 4.0}, **sizes)
    assert f"has the rope type {kind} without long_factor" in refusal(short)


@pytest.mark.parametrize("rope", [None, {}, {"rope_type": "default"}, {"type": None, "factor": 1.0}])
def test_rope_scaling_that_says_nothing_changes_nothing(folder: Path, rope: dict[str, Any] | None) -> None:
    before = metadata(folder)
    edit(folder / "config.json", lambda config: config.update(rope_scaling=rope))
    assert metadata(folder) == before
    assert notes(folder) == ()


def test_two_tokens_with_one_id_are_refused(folder: Path) -> None:
    """Whichever is kept, the other's text would be read as something else."""

    def change(stored: dict[str, Any]) -> None:
        stored["model"]["vocab"]["B"] = stored["model"]["vocab"]["A"]

    edit(folder / "tokenizer.json", change)
    assert "has two tokens with the id 32: 'A' and 'B'" in refusal(folder)


@pytest.mark.parametrize(
    ("merges", "said"),
    [
        ([], "has no merges, which llama.cpp needs"),
        (None, "has no merges, which llama.cpp needs"),
        (["Ġ t", "q zz"], "has the merge 'q zz', which its vocabulary does not have"),
        ([["Ġ", "t"], ["z", "q"]], "which its vocabulary does not have"),
        (["Ġ t", "a b c"], "has the merge 'a b c'"),
        (["Ġ t", 7], "has the merge '7'"),
    ],
)
def test_merges_that_make_no_vocabulary_are_refused(merges: object, said: str, folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda stored: stored["model"].update(merges=merges))
    assert said in refusal(folder)


def test_a_vocabulary_of_added_tokens_alone_is_refused(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda stored: stored["model"].update(vocab={}))
    assert "tokenizer.json has no token" in refusal(folder)


def test_two_added_tokens_with_one_id_are_refused(folder: Path) -> None:
    def change(stored: dict[str, Any]) -> None:
        first = stored["added_tokens"][0]
        stored["added_tokens"].append({**first, "content": "<other>"})

    edit(folder / "tokenizer.json", change)
    assert "two added tokens with the id" in refusal(folder)
    assert "'<other>'" in refusal(folder)


# Weights beyond the 16 bits


@pytest.mark.parametrize(
    ("dtype", "weight", "fits"), [("F32", 60_000, True), ("F32", -70_000, False), ("F32", 3e9, False), ("BF16", 7e4, True)]
)
def test_no_infinity_is_written_that_the_checkpoint_did_not_have(
    dtype: str, weight: float, fits: bool, folder: Path, tmp_path: Path
) -> None:
    arrays: Arrays = {}
    for name, (_, shape, _data) in arrays_of(folder).items():
        values = numbers(name, shape)
        if name == f"{QUERY}.weight":
            values.reshape(-1)[77] = weight
        arrays[name] = (dtype, shape, packed(values, dtype))
    write_arrays(folder, arrays)
    source = HuggingFaceSource(folder)
    if fits:
        write_base(source, tmp_path / "base.gguf")
        assert np.abs(source.rows("blk.0.attn_q.weight", 0, 64)).max() == pytest.approx(abs(weight), rel=0.01)
    else:
        with pytest.raises(
            NonFiniteWeightError, match=rf"blk.0.attn_q.weight has the weight {weight:,.6g}, which F16 .*bfloat16".replace("+", r"\+")
        ):
            write_base(source, tmp_path / "base.gguf")
        assert not (tmp_path / "base.gguf").exists()
    source.close()


def small_row(values: Values) -> None:
    values[5] = 1e-10


def small_matrix(values: Values) -> None:
    values *= 1e-9


def coarse_matrix(values: Values) -> None:
    """Numbers up to the size of float16's least step: half of them become zero, the others are doubled or halved."""
    values *= 6e-8


def small_numbers(values: Values) -> None:
    """One in ten, as weight decay leaves them; a row of zeros; and a row that float16 holds well."""
    values.reshape(-1)[::10] = 1e-10
    values[3] = 0
    values[4] *= 1e-3


def with_query(folder: Path, dtype: str, change: Callable[[Values], None]) -> None:
    """A checkpoint of one type whose query matrix was changed."""
    arrays: Arrays = {}
    for name, (_, shape, _data) in arrays_of(folder).items():
        values = numbers(name, shape)
        if name == f"{QUERY}.weight":
            change(values)
        arrays[name] = (dtype, shape, packed(values, dtype))
    write_arrays(folder, arrays)


def all_but_one_row(values: Values) -> None:
    values[1:] *= 1e-10


@pytest.mark.parametrize(
    ("dtype", "change", "n_lost"),
    [
        ("F32", small_row, 1),
        ("F32", all_but_one_row, 63),
        ("F32", small_numbers, 0),
        ("BF16", small_matrix, 0),
    ],
)
def test_rows_that_float16_loses_are_told_and_single_weights_are_not(
    dtype: str, change: Callable[[Values], None], n_lost: int, quantailor: Command, folder: Path, tmp_path: Path
) -> None:
    with_query(folder, dtype, change)
    said = f"blk.0.attn_q.weight has {n_lost} of 64 rows whose weights are too small for F16" if n_lost else ""
    home = ("--home", tmp_path / "home")
    measuring = ("measure", folder, "--types", "Q8_0", "--tensors", "attn_k", *home)
    for words in (("convert", folder, "-o", tmp_path / "base.gguf", *home), measuring, measuring):
        done = quantailor(*words)
        assert done.code == 0
        assert said in done.err
        assert ("too small" in done.err) == bool(n_lost)
        assert ("save the checkpoint in bfloat16" in done.err) == bool(n_lost)
    assert ("too small" in quantailor("inspect", folder).out) == bool(n_lost)
    planned = quantailor("plan", folder, "--types-of", "Q8_0", "-o", tmp_path / "s.yaml", *home)
    assert (planned.code, "too small" in planned.out) == (0, bool(n_lost))
    built = quantailor("build", folder, tmp_path / "s.yaml", "-o", tmp_path / "built.gguf", *home)
    assert (built.code, "too small" in built.err) == (0, bool(n_lost))
    base = quantailor("measure", tmp_path / "base.gguf", "--types", "Q8_0", "--tensors", "attn_k", *home)
    assert (base.code, "too small" in base.err) == (0, False)


def small_matrix_and_rows_of_zeros(values: Values) -> None:
    values *= 1e-9
    values[:10] = 0


@pytest.mark.parametrize("change", [small_matrix, coarse_matrix, small_matrix_and_rows_of_zeros])
def test_a_matrix_of_which_float16_holds_nothing_is_refused_by_every_command(
    change: Callable[[Values], None], quantailor: Command, folder: Path, tmp_path: Path
) -> None:
    with_query(folder, "F32", change)
    said, base, home = "all weights of blk.0.attn_q.weight are too small for F16", tmp_path / "base.gguf", ("--home", tmp_path / "home")
    for _ in range(2):  # as it is read, and as it is remembered
        for words in (
            ("convert", folder, "-o", base),
            ("measure", folder, "--types", "Q8_0"),
            ("plan", folder, "--types-of", "Q8_0"),
            ("build", folder, "Q8_0", "-o", tmp_path / "built.gguf"),
            ("make", folder, "--bpw", "9", "-o", tmp_path / "made"),
        ):
            error = quantailor(*words, *home).error_line
            assert said in error, words
            assert "bfloat16" in error, words
    assert said in quantailor("inspect", folder).out
    assert not base.exists()
    with_query(folder, "BF16", change)
    assert quantailor("convert", folder, "-o", base, *home).code == 0


@pytest.mark.parametrize(("name", "found"), [("model.norm.weight", "output_norm.weight"), (f"{QUERY}.weight", "blk.0.attn_q.weight")])
@pytest.mark.parametrize("weight", [math.nan, -math.inf])
def test_a_checkpoint_with_weights_that_are_no_numbers_is_not_converted(
    name: str, found: str, weight: float, quantailor: Command, folder: Path, tmp_path: Path
) -> None:
    arrays = arrays_of(folder)
    dtype, shape, _ = arrays[name]
    values = numbers(name, shape)
    values.reshape(-1)[7] = weight
    write_arrays(folder, {**arrays, name: (dtype, shape, packed(values, dtype))})
    line = quantailor("convert", folder, "-o", tmp_path / "base.gguf", "--home", tmp_path / "home").error_line
    assert f"{found} has 1 weight that is NaN or Inf" in line
    assert not (tmp_path / "base.gguf").exists()


# Quantized already

U8: Entry = ("U8", (4, 4), bytes(16))
I32: Entry = ("I32", (4, 4), bytes(64))
FLOATS: Entry = ("F16", (4, 4), bytes(32))
PACKED: Mapping[str, tuple[str, dict[str, Entry]]] = {
    "bitsandbytes NF4": ("bitsandbytes", {".weight": U8, ".weight.absmax": FLOATS, ".weight.quant_state.bitsandbytes__nf4": U8}),
    "bitsandbytes int8": ("bitsandbytes", {".weight": ("I8", (4, 4), bytes(16)), ".SCB": FLOATS}),
    "GPTQ": ("GPTQ", {".qweight": I32, ".qzeros": I32, ".scales": FLOATS, ".g_idx": I32}),
    "AWQ": ("AWQ", {".qweight": I32, ".qzeros": I32, ".scales": FLOATS}),
    "MLX": ("MLX", {".weight": ("U32", (4, 4), bytes(64)), ".scales": FLOATS, ".biases": FLOATS}),
    "HQQ": ("HQQ", {".W_q": U8, ".scale": FLOATS, ".zero": FLOATS}),
    "AQLM": ("AQLM", {".codes": U8, ".codebooks": FLOATS, ".scales": FLOATS}),
    "compressed-tensors": ("compressed-tensors", {".weight_packed": I32, ".weight_scale": FLOATS, ".weight_shape": I32}),
    "NVFP4 of ModelOpt": ("ModelOpt", {".weight": U8, ".weight_scale": ("F8_E4M3", (4, 4), bytes(16)), ".weight_scale_2": FLOATS}),
    "NVFP4": ("compressed-tensors", {".weight_packed": U8, ".weight_global_scale": FLOATS}),
    "EETQ": ("EETQ", {".weight": ("I8", (4, 4), bytes(16)), ".weight_scales": FLOATS}),
    "Quanto": ("Quanto", {".weight._data": U8, ".weight._scale": FLOATS}),
    "sparse": ("compressed-tensors", {".compressed": FLOATS, ".bitmask": U8, ".shape": ("I64", (2,), bytes(16))}),
    "SpQR": ("SpQR", {".dense_weights": ("I64", (4, 4), bytes(128)), ".col_vals": ("I32", (4,), bytes(16))}),
    "ExLlamaV2": ("ExLlamaV2", {".q_weight": I32, ".q_scale": I32, ".q_groups": ("I16", (4, 4), bytes(32))}),
}


@pytest.mark.parametrize("method", PACKED)
def test_packed_weights_are_told_with_their_method_also_where_the_configuration_is_lost(method: str, folder: Path) -> None:
    title, more = PACKED[method]
    stated = {"quant_method": title.lower().replace("exllamav", "exl")}
    arrays = arrays_of(folder)
    del arrays[f"{QUERY}.weight"]
    write_arrays(folder, {**arrays, **{QUERY + end: entry for end, entry in more.items()}})
    line = refusal(folder)
    assert f"quantized by {title} already" in line
    assert "Start from the 16-bit model" in line
    edit(folder / "config.json", lambda config: config.update(quantization_config=stated))
    assert f"quantized by {title} already" in refusal(folder)


@pytest.mark.parametrize("dtype", ["I8", "U8"])
def test_packed_weights_whose_method_nothing_tells(dtype: str, folder: Path) -> None:
    write_arrays(folder, {**arrays_of(folder), f"{QUERY}.weight": (dtype, (4, 4), bytes(16))})
    assert f"is quantized already: it has {QUERY}.weight ({dtype}). Start from the 16-bit model" in refusal(folder)
    edit(folder / "config.json", lambda config: config.update(quantization_config={"bits": 4}))
    assert "is quantized already: it has" in refusal(folder)


def test_codes_in_place_of_a_weight_are_quantized_whatever_they_are_called(folder: Path) -> None:
    arrays = arrays_of(folder)
    write_arrays(folder, {**arrays, f"{QUERY}.codes_of_tomorrow": U8, f"{QUERY}.scale": FLOATS})
    assert "quantized" not in refusal(folder)  # beside the weight they are no more than a tensor that nobody knows
    del arrays[f"{QUERY}.weight"]
    write_arrays(folder, {**arrays, f"{QUERY}.codes_of_tomorrow": U8, f"{QUERY}.scale": FLOATS})
    assert f"is quantized already: it has {QUERY}.codes_of_tomorrow (U8). Start from the 16-bit model" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "entry"),
    [("h.attn.bias", ("U8", (1, 1, 4, 4), bytes(16))), ("h.attn.mask", U8), ("h.position_ids", ("I64", (1, 4), bytes(32)))],
)
def test_masks_and_positions_are_no_codes(name: str, entry: Entry, folder: Path) -> None:
    write_arrays(folder, {**arrays_of(folder), name: entry, f"{name.rpartition('.')[0]}.class_embedding": FLOATS})
    assert "quantized" not in refusal(folder)


@pytest.mark.parametrize("entry", [{}, None, []])
def test_an_empty_entry_about_quantization_says_nothing(entry: object, folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(quantization_config=entry))
    assert metadata(folder)


@pytest.mark.parametrize("way", [(), ("--way", "native"), ("--way", "llama.cpp")])
def test_no_way_of_conversion_sets_anything_up_for_a_quantized_checkpoint(
    way: tuple[str, ...], folder: Path, quantailor: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path / "nowhere"))
    write_arrays(folder, {**arrays_of(folder), f"{QUERY}.weight.absmax": FLOATS})
    line = quantailor("convert", folder, "-o", tmp_path / "base.gguf", *way, "--home", tmp_path / "home").error_line
    assert "quantized by bitsandbytes already" in line


@pytest.mark.parametrize(("shape", "method"), [((64,), "fbgemm_fp8"), ((64, 1), "compressed-tensors"), ((1,), "modelopt"), ((), "fp8")])
def test_float8_with_a_scale_for_each_row_or_for_all_is_read(shape: tuple[int, ...], method: str, folder: Path) -> None:
    scales = np.resize(np.array([0.5, 2, 4], np.float32), shape)
    codes = np.resize(np.array([0x38, 0xC0], np.uint8), (64, 64))
    more: Arrays = {f"{QUERY}.weight": ("F8_E4M3", (64, 64), codes.tobytes()), f"{QUERY}.weight_scale": ("F32", shape, scales.tobytes())}
    write_arrays(folder, {**arrays_of(folder), **more})
    edit(folder / "config.json", lambda config: config.update(quantization_config={"quant_method": method}))
    source = HuggingFaceSource(folder)
    first = np.resize(np.array([1, -2], np.float32), 64) * scales.reshape(-1)[0]
    assert np.array_equal(source.rows("blk.0.attn_q.weight", 0, 1)[0], first)
    source.close()


def test_scales_of_attention_and_of_caches_are_left_out(folder: Path) -> None:
    attention, one = "model.layers.0.self_attn", ("F32", (1,), bytes(4))
    plain = metadata(folder)
    names = ("attn.q_scale", "attn.prob_output_scale", "k_proj.k_scale", "kv_scale")
    write_arrays(folder, arrays_of(folder) | {f"{attention}.{name}": one for name in names})
    assert metadata(folder) == plain


# What training leaves


def renamed(prefix: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {prefix + name: entry for name, entry in arrays.items()}


def more(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: FLOATS}


def emptied(arrays: Arrays) -> Arrays:
    return {name: (dtype, (0,), b"") if len(shape) > 1 else (dtype, shape, data) for name, (dtype, shape, data) in arrays.items()}


def inside(part: str, inner: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {name.replace(part, f"{part}.{inner}"): entry for name, entry in arrays.items()}


FOREIGN = {
    "Meta's": (("model.", ""), ("self_attn.q_proj", "attention.wq"), ("embed_tokens", "tok_embeddings")),
    "torchtune's": (("model.", ""), ("self_attn", "attn"), ("embed_tokens", "tok_embeddings")),
    "Megatron's": (("model.layers", "decoder.layers"), ("model.embed_tokens", "embedding.word_embeddings")),
}


@pytest.mark.parametrize("who", FOREIGN)
def test_names_of_another_program_are_called_so(who: str, folder: Path) -> None:
    arrays = arrays_of(folder)
    for old, new in FOREIGN[who]:
        arrays = {name.replace(old, new): entry for name, entry in arrays.items()}
    write_arrays(folder, arrays)
    line = refusal(folder)
    assert f"its tensors have {who} names" in line
    assert "Export the model to the format of transformers" in line


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        ("model.layers.0.self_attn.rotary_emb.cos_cached", FLOATS),
        ("model.layers.0.self_attn.masked_bias", FLOATS),
        ("model.rotary_emb.original_inv_freq", FLOATS),
        ("model.position_ids", ("I64", (1, 4), bytes(32))),
        ("model.causal_mask", ("BOOL", (4, 4), bytes(16))),
    ],
)
def test_what_a_model_computes_by_itself_is_left_out(name: str, entry: Entry, folder: Path) -> None:
    plain = metadata(folder)
    write_arrays(folder, {**arrays_of(folder), name: entry})
    assert metadata(folder) == plain


WRAPPERS = ("module.", "_orig_mod.", "_forward_module.", "base_model.model.", "policy.net.")
HEADS = ("value_head.weight", "score.weight", "v_head.summary.weight", "optimizer.state.exp_avg")


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        *((renamed(prefix), f"prefix '{prefix}'") for prefix in WRAPPERS),
        (inside("layers.0", "_fsdp_wrapped_module"), "of FSDP"),
        (more(f"{QUERY}.lora_A.default.weight"), "adapters that are not merged"),
        (more(f"{QUERY}.lora_a.weight"), "adapters that are not merged"),
        (more(f"{QUERY}.lora_magnitude_vector"), "adapters that are not merged"),
        (more("model.layers.0.mlp.down_proj.ia3_l"), "adapters that are not merged"),
        (more("lm_head.modules_to_save.default.weight"), "adapters that are not merged"),
        (inside("q_proj", "base_layer"), "adapters that are not merged"),
        (emptied, "ZeRO-3"),
        *((more(name), name) for name in HEADS),
    ],
)
def test_what_training_leaves_is_refused_with_its_cause(change: Callable[[Arrays], Arrays], cause: str, folder: Path) -> None:
    write_arrays(folder, change(arrays_of(folder)))
    assert cause in refusal(folder)


@pytest.mark.parametrize("prefix", ["", "language_model.", "model.language_model."])
def test_a_model_saved_without_its_outermost_name_converts_where_the_output_is_tied(prefix: str, folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(tie_word_embeddings=True))
    arrays = {name: entry for name, entry in arrays_of(folder).items() if name != "lm_head.weight"}
    write_arrays(folder, arrays)
    plain = HuggingFaceSource(folder)
    write_arrays(folder, {prefix + name.removeprefix("model."): entry for name, entry in arrays.items()})
    bare = HuggingFaceSource(folder)
    assert sorted(tensor.name for tensor in bare.tensors) == sorted(tensor.name for tensor in plain.tensors)
    plain.close()
    bare.close()


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors"])
def test_an_adapter_alone_names_its_base(gone: str, folder: Path) -> None:
    (folder / gone).unlink()
    edit(folder / "adapter_config.json", lambda stored: stored.update(base_model_name_or_path="org/base"))
    assert "only an adapter, for org/base" in refusal(folder)


def test_parts_of_sharded_training_are_called_so(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "global_step100").mkdir()
    assert "the parts of sharded training (global_step100)" in refusal(folder)


@pytest.mark.parametrize("name", ["LlamaForCausalLMWithValueHead", "LlamaForProcessRewardModel"])
def test_a_model_with_a_value_head_is_refused_before_anything_is_set_up(name: str, folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(architectures=[name]))
    assert f"has the architecture {name!r}, which scores texts" in refusal(folder)


@pytest.mark.parametrize("name", ["PeftModelForCausalLM", "OptimizedModule", "AutoModelForCausalLM", "FSDPLlamaForCausalLM"])
def test_a_wrapper_s_class_in_place_of_the_model_s_is_told(name: str, folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(architectures=[name]))
    line = refusal(folder)
    assert f"has the architecture {name!r}, a class around the model's own. Write the model's class there" in line
    assert '"architectures": ["LlamaForCausalLM"]' in line


@pytest.mark.parametrize("name", ["RWKV6Qwen2ForCausalLM", "Eagle3LlamaForCausalLM"])
def test_another_family_whose_name_ends_like_one_goes_to_llama_cpp_s_converter(name: str, folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(architectures=[name]))
    with pytest.raises(ConverterNeededError, match=name):
        HuggingFaceSource(folder)


@pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "RewardModel"])
def test_a_head_that_judges_texts_is_no_language_model(head: str, folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(architectures=[f"LlamaFor{head}"]))
    assert "does not predict next tokens" in refusal(folder)


# Models for embeddings


def pooled(folder: Path, way: str = "lasttoken") -> Path:
    """The same with what Sentence Transformers writes beside it."""
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    modules.append({"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    settings = {"pooling_mode_cls_token": False, f"pooling_mode_{way}": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("way", "number"), [("mean_tokens", 1), ("cls_token", 2), ("lasttoken", 3), ("max_tokens", None)])
def test_an_embedding_model_says_how_it_pools(way: str, number: int | None, tmp_path: Path) -> None:
    found = metadata(pooled(write_small("Qwen3ForCausalLM", tmp_path), way)).get("qwen3.pooling_type")
    assert (None if found is None else found.value) == number


def test_an_embedding_model_of_today_names_how_it_pools(tmp_path: Path) -> None:
    folder = pooled(write_small("Qwen3ForCausalLM", tmp_path))
    modules = [{"path": "1_Pooling", "type": "sentence_transformers.sentence_transformer.modules.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}), encoding="utf-8")
    assert metadata(folder)["qwen3.pooling_type"].value == 3


def test_an_embedding_model_is_not_probed_for_its_predictions(quantailor: Command, tmp_path: Path) -> None:
    folder = pooled(write_small("Qwen3ForCausalLM", tmp_path / "model"))
    line = quantailor("probe", folder, "--chunks", 1, "--home", tmp_path / "home").error_line
    assert "does not predict next tokens (it is made for embeddings or rankings, pooling type last token)" in line


def test_how_an_embedding_model_pools_is_told_where_its_file_cannot_say_so(folder: Path) -> None:
    assert "give llama.cpp's programs `--pooling last`" in " ".join(notes(pooled(folder)))


@pytest.mark.parametrize("entry", [{"is_causal": False}, {"use_bidirectional_attention": True}])
def test_attention_that_is_not_causal_is_kept_and_told(entry: dict[str, bool], folder: Path) -> None:
    assert "llama.attention.causal" not in metadata(folder)
    edit(folder / "config.json", lambda config: config.update(entry))
    assert metadata(folder)["llama.attention.causal"].value is False
    assert "`--attention non-causal`" in " ".join(notes(folder))


@pytest.mark.parametrize(("text", "said"), [("{", "modules.json is not valid JSON"), ("[]", ""), ('[{"type": 5}]', ""), ("{}", "")])
def test_modules_that_say_nothing_are_no_embedding_model(text: str, said: str, folder: Path) -> None:
    (folder / "modules.json").write_text(text, encoding="utf-8")
    if said:
        assert said in refusal(folder)
    else:
        assert notes(folder) == ()


# Pointers and links

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * "0" + "\nsize 1234\n"
XET = "# xet version 0\nfilesize = 1234\nhash = '" + 64 * "0" + "'\n"
READ = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "added_tokens.json", "special_tokens_map.json"),
    *("chat_template.jinja", "additional_chat_templates/tools.jinja", "README.md", "model.safetensors", "model.safetensors.index.json"),
)


@pytest.mark.parametrize("name", READ)
def test_a_pointer_and_a_dangling_link_are_called_so(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(POINTER, encoding="utf-8")
    line = refusal(folder)
    assert f"{name} is a Git LFS pointer" in line
    assert "git lfs pull" in line
    (folder / name).unlink()
    (folder / name).symlink_to("/nowhere/blob")
    assert f"{name} is a link to /nowhere/blob, which is not there" in refusal(folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version https://hawser.github.com/spec/v1\noid sha256:0\nsize 1\n", "is a Git LFS pointer"),
        ("<!DOCTYPE html>\n<html><body>Sign in</body></html>\n", "is a web page, not the file itself"),
        ("../../blobs/0123456789abcdef", "is the text of a link, not the file itself"),
        ("/annex/objects/SHA256E-s1--0", "is the text of a link, not the file itself"),
        (XET, "is a Xet pointer, not the file itself. Download the file"),
        ('{"hash": "' + 64 * "0" + '", "file_size": 1234}', "is a Xet pointer, not the file itself"),
        ("\ufeff  <html lang='en'><head><title>504 Gateway Time-out", "is a web page, not the file itself"),
        ('{"error":"Access to model org/x is restricted."}', 'is an error message of a server ("Access to model org/x is restricted")'),
        ('{\n  "message": "Not Found", "status": 404}', 'is an error message of a server ("Not Found"), not the file itself'),
        (
            "<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>",
            'is an error message of a server ("NoSuchKey"), not the file itself',
        ),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "generation_config.json"])
def test_what_stands_in_place_of_a_file_is_called_what_it_is(name: str, text: str, said: str, folder: Path) -> None:
    (folder / name).write_text(text, encoding="utf-8")
    assert f"{name} {said}" in refusal(folder)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"GGUF\x03\x00\x00\x00", "is a GGUF file, not a safetensors file. Give that file itself as the model"),
        (b"PK\x03\x04", "is a zip archive or a PyTorch checkpoint, not a safetensors file. Unpack it"),
        (b"\x1f\x8b\x08\x00", "is a gzip archive, not a safetensors file. Unpack it"),
        (b"\x1f\x8b\x08\x00" + bytes(560_000), "is a gzip archive, not a safetensors file. Unpack it"),
        (b"!<symlink>", "is a link of Cygwin or Samba, not a safetensors file. Copy what the link leads to"),
        (bytes(8), "is a file that begins with zeros alone, as an unfinished download does, not a safetensors file. Download"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f", "is not an intact safetensors file: its header says 9,223,372,036,854,775,807 bytes"),
    ],
)
def test_weights_in_another_format_are_called_by_its_name(start: bytes, said: str, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(start + bytes(1000))
    assert f"model.safetensors {said}" in refusal(folder)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1,\n  // ours\n  "b": 2}', "has a comment in line 2, which JSON does not allow. Remove the comment"),
        (b'# ours\n{"a": 1}', "has a comment in line 1, which JSON does not allow. Remove the comment"),
        (b'{\n<<<<<<< HEAD\n"a": 1\n=======\n"a": 2\n>>>>>>> b\n}', "holds both sides of a merge conflict (line 2). Resolve the conflict"),
        ('{"a": 1}'.encode("utf-16"), "is not UTF-8 text (it looks like UTF-16). Save it as UTF-8"),
        (b"\x1f\x8b\x08\x00" + bytes(100), "is a gzip archive, not JSON. Unpack it"),
        (bytes(600), "is a file that begins with zeros alone, as an unfinished download does, not JSON. Download the file again"),
        (b'{"a": 1', "is not valid JSON: Expecting ',' delimiter: line 1 column 8"),
    ],
)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "modules.json"])
def test_what_is_no_json_is_told_with_its_cause(name: str, data: bytes, said: str, folder: Path) -> None:
    (folder / name).write_bytes(data)
    assert f"{name} {said}" in refusal(folder)


def test_a_card_in_another_encoding_says_how_to_save_it(folder: Path) -> None:
    (folder / "README.md").write_bytes("---\nlicense: mit\n---\nÜber dieses Modell".encode("latin-1"))
    assert "README.md is not UTF-8 text. Save it as UTF-8" in refusal(folder)


def test_a_folder_of_templates_that_leads_nowhere_is_told(folder: Path) -> None:
    (folder / "additional_chat_templates").symlink_to("/nowhere/templates")
    assert "additional_chat_templates is a link to /nowhere/templates, which is not there" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [("weights.safetensors", "name them model.safetensors"), ("consolidated.safetensors", "Download the model*.safetensors files")],
)
def test_weights_under_another_name_are_told(name: str, said: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    line = refusal(folder)
    assert f"has {name}" in line
    assert said in line


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors", "matrix.dat", "matrix.gguf", "tokenizer.model"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (POINTER, "a Git LFS pointer"),
        (XET, "a Xet pointer"),
        ("<html><body>Sign in</body></html>", "a web page"),
        ('{"error":"Invalid username or password."}', 'an error message of a server ("Invalid username or password")'),
        ("Entry not found", 'a text ("Entry not found")'),
    ],
)
def test_what_stands_in_place_of_weights_is_called_what_it_is(
    name: str, text: str, said: str, folder: Path, quantailor: Command, tmp_path: Path
) -> None:
    place = (folder if name in ("model.safetensors", "tokenizer.model") else tmp_path) / name
    place.write_text(text, encoding="utf-8")
    if name == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
    words: dict[str, tuple[object, ...]] = {
        "model.gguf": ("measure", place),
        "model.safetensors": ("measure", folder),
        "tokenizer.model": ("convert", folder, "-o", tmp_path / "base.gguf"),
    }
    line = quantailor(*words.get(name, ("measure", folder, "--imatrix", place)), "--home", tmp_path / "home").error_line
    assert f"{place}" in line
    assert f" {said}" in line


def test_texts_that_begin_like_stand_ins_are_texts(quantailor: Command, folder: Path, tmp_path: Path) -> None:
    """Only pointers are refused as calibration texts, and cards may begin with a page."""
    (folder / "README.md").write_text("<html><body>card</body></html>", encoding="utf-8")
    assert quantailor("convert", folder, "-o", tmp_path / "base.gguf", "--home", tmp_path / "home").code == 0
    place = tmp_path / "text.txt"
    words = ("imatrix", tmp_path / "base.gguf", "-f", place, "--chunks", 1, "--n-ctx", 32, "--threads", 1, "--home", tmp_path / "home")
    place.write_text("<html><body>" + 40 * "a page of letters ", encoding="utf-8")
    assert quantailor(*words).code == 0
    place.write_text(XET, encoding="utf-8")
    assert "it is a Xet pointer, not the file itself. Download the file" in quantailor(*words).error_line


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "model.safetensors"])
def test_a_repository_with_a_name_and_no_content_is_not_whole_offline(
    name: str, hub: HubServer, run: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "generation_config.json").write_text('{"temperature": 0.6}', encoding="utf-8")
    hub.add("org/tiny", folder)
    kept = Path(run("download", "org/tiny", "--json").result["path"])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run("convert", "org/tiny", "-o", tmp_path / "whole.gguf").code == 0
    (kept / name).resolve().unlink()
    line = run("convert", "org/tiny", "-o", tmp_path / "part.gguf").error_line
    assert f"the cache has org/tiny only in part: {name} of org/tiny is in the cache by name alone" in line
    assert "Run it again where the hub can be reached" in line


def test_a_repository_that_nobody_can_convert_is_refused_before_its_weights_are_fetched(
    hub: HubServer, run: Command, folder: Path, tmp_path: Path
) -> None:
    write_arrays(folder, {**arrays_of(folder), f"{QUERY}.weight.absmax": FLOATS})
    repo = hub.add("org/nf4", folder)
    line = run("convert", "org/nf4", "-o", tmp_path / "base.gguf").error_line
    assert "org/nf4 is quantized by bitsandbytes already" in line
    assert not list(tmp_path.rglob(f"{repo.sha}/model.safetensors"))
    assert "quantized by bitsandbytes already" in " ".join(run("inspect", "org/nf4").out.split())


# Templates and model cards

OLD, NEW, TOOL = ("{{ bos_token }}" + name for name in ("old", "new", "tool"))


@pytest.mark.parametrize(
    ("setting", "files", "expected"),
    [
        (OLD, {}, {"": OLD}),
        (None, {"chat_template.jinja": NEW}, {"": NEW}),
        (OLD, {"chat_template.jinja": NEW}, {"": NEW}),
        ([{"name": "default", "template": OLD}, {"name": "rag", "template": TOOL}], {"chat_template.jinja": NEW}, {"": NEW, ".rag": TOOL}),
        ([{"name": "default", "template": OLD}, {"name": "rag", "template": None}], {}, {"": OLD}),
        (None, {"additional_chat_templates/tool_use.jinja": TOOL}, {".tool_use": TOOL}),
        (OLD, {"additional_chat_templates/tool_use.jinja": TOOL}, {"": OLD, ".tool_use": TOOL}),
        (None, {"chat_template.jinja": NEW, "additional_chat_templates/tool_use.jinja": TOOL}, {"": NEW, ".tool_use": TOOL}),
        (None, {"chat_template.json": json.dumps({"chat_template": NEW})}, {"": NEW}),
        ("", {"chat_template.json": json.dumps({"chat_template": NEW})}, {"": NEW}),
        ("", {}, {}),
        (OLD, {"chat_template.jinja": ""}, {"": OLD}),
        ({"default": OLD, "rag": TOOL}, {}, {"": OLD, ".rag": TOOL}),
    ],
)
def test_chat_templates_are_those_that_transformers_takes(
    setting: object, files: dict[str, str], expected: dict[str, str], folder: Path
) -> None:
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(chat_template=setting))
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    found = {key.removeprefix("tokenizer.chat_template"): entry.value for key, entry in metadata(folder).items() if "chat_template" in key}
    found.pop("s", None)
    assert found == expected


def test_a_chat_template_that_is_none_is_told(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(chat_template=7))
    assert "tokenizer_config.json has chat_template = '7'" in refusal(folder)


def test_a_file_s_name_is_no_chat_template(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(chat_template="templates/chat.jinja"))
    assert "has the chat template 'templates/chat.jinja', which is a file's name. Put the file's text there" in refusal(folder)
    (folder / "chat_template.jinja").write_text(NEW, encoding="utf-8")
    assert metadata(folder)["tokenizer.chat_template"].value == NEW


def test_special_tokens_that_no_file_numbers_are_told(tmp_path: Path) -> None:
    folder = write_tiny("llama2", tmp_path)
    edit(folder / "tokenizer_config.json", lambda settings: settings.update(additional_special_tokens=["<s>", "<|tool|>"]))
    told = " ".join(notes(folder))
    assert "1 special token of tokenizer_config.json was left out for want of an id: <|tool|>; added_tokens.json can give it" in told


@pytest.mark.parametrize(
    ("head", "languages"),
    [
        ("language: [en, no]", ("en", "no")),
        ("language: no", ("no",)),
        ("language:\n- no\n- en", ("no", "en")),
        ("language: [en, NO, on, y]", ("en", "NO", "on", "y")),
        ("language:\n- false\n- en", ("no", "en")),
    ],
)
def test_norwegian_is_a_language(head: str, languages: tuple[str, ...], folder: Path) -> None:
    (folder / "README.md").write_text(f"---\n{head}\n---\n", encoding="utf-8")
    assert metadata(folder)["general.languages"].value == languages


@pytest.mark.parametrize(
    ("head", "key", "expected"),
    [
        ("license: [mit, null, 3]", "license", "mit"),
        ('license: ""', "license", None),
        ("license: []", "license", None),
        ("author: []", "author", None),
        ('tags: [a, 1, null, {b: c}, "", [d]]', "tags", ("a",)),
        ("tags: {a: b}", "tags", None),
        ('tags: ["", " "]\npipeline_tag: " "', "tags", None),
        ("language: [en, null, {code: de}, 7]", "languages", ("en",)),
        ("base_model: [7, null, {a: 1}, org/Name-7B]", "base_model.count", 1),
        ("base_model: [null, {name: 5}, '']", "base_model.count", None),
        ("datasets: {a: 1}", "dataset.count", None),
    ],
)
def test_what_is_no_text_in_a_model_card_is_left_out(head: str, key: str, expected: object, folder: Path) -> None:
    (folder / "README.md").write_text(f"---\n{head}\n---\n", encoding="utf-8")
    found = metadata(folder).get(f"general.{key}")
    assert (found and found.value) == expected


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("license: {name: mit}", "has license = {'name': 'mit'}, which is not text. Write one text there"),
        ("license: [1, null]", "has license = [1, None], which is not text. Write one text there"),
        ("license_name: [a, b]", "has license_name = ['a', 'b'], which is not text. Write one text there"),
        ("model_creator: 5", "has model_creator = 5, which is not text. Put it in quotation marks"),
    ],
)
def test_a_card_that_names_a_licence_by_something_else_is_told(head: str, said: str, folder: Path) -> None:
    (folder / "README.md").write_text(f"---\n{head}\n---\n", encoding="utf-8")
    assert said in refusal(folder)
