"""Small Hugging Face directories, the same on every machine, made with numpy alone.

Between them they have what llama.cpp's converter treats differently: each family, both kinds of vocabulary, rope
scaling, shards, tied embeddings, biases, mixed weight types, model cards and sampling defaults.
"""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SENTENCEPIECE_MODEL = Path(__file__).parent.parent / "demo" / "books-llama" / "tokenizer.model"
SENTENCEPIECE_SIZE = 4096
LLAMA3_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WORDS = ("the", "and", "tailor", "measure", "cloth", "of", "quantum", "1234", "naïve", "Größe", "нитка")

Json = dict[str, Any]


def numbers(name: str, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """Numbers in [-1, 1) that depend on the name and the place only."""
    return _numbers(name, tuple(shape)).copy()


@lru_cache(maxsize=512)
def _numbers(name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    count = int(np.prod(shape))
    mixed = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))) % np.uint64(2**32)
    mixed = (mixed ^ (mixed >> np.uint64(13))) * np.uint64(1540483477) % np.uint64(2**32)
    return (mixed.astype(np.float64) / 2**31 - 1).astype(np.float32).reshape(shape)


def packed(values: npt.NDArray[np.float32], dtype: str) -> bytes:
    """Numbers as a safetensors dtype; BF16 by truncation."""
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype]).tobytes()


def safetensors_bytes(arrays: Mapping[str, tuple[str, Sequence[int], bytes]]) -> bytes:
    """A safetensors file: name -> dtype, shape, data."""
    header: Json = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in arrays.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in arrays.values())


@dataclass(frozen=True)
class Tiny:
    """One small model; `config` is added to the defaults below."""

    config: Json
    dtype: str = "BF16"
    norm_dtype: str | None = None
    tokenizer: Callable[[Path], None] | None = None
    pre: str | None = None
    """The pre-tokenizer of a BPE vocabulary, which llama.cpp's converter knows for published vocabularies only."""
    n_shards: int = 1
    biases: bool = False
    files: Mapping[str, str | Json] = field(default_factory=dict)
    """Further files by name."""
    folder_name: str | None = None


_CONFIG: Json = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "vocab_size": SENTENCEPIECE_SIZE,
    "tie_word_embeddings": False,
}


def write_tiny(name: str, folder: Path) -> Path:
    """Write one of `TINY` below `folder` and return its directory."""
    tiny = TINY[name]
    place = folder / (tiny.folder_name or name)
    place.mkdir(parents=True)
    config = {**_CONFIG, **tiny.config}
    (place / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    _write_weights(place, _arrays(config, tiny), tiny.n_shards)
    (tiny.tokenizer or sentencepiece_tokenizer)(place)
    for file, content in tiny.files.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False)
        (place / file).write_text(text, encoding="utf-8")
    return place


def _shapes(config: Json, biases: bool) -> dict[str, tuple[int, ...]]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    q, kv, inner = heads * head_dim, (config.get("num_key_value_heads") or heads) * head_dim, config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        block = f"model.layers.{layer}"
        shapes |= {f"{block}.{norm}_layernorm.weight": (hidden,) for norm in ("input", "post_attention")}
        for part, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{block}.self_attn.{part}_proj.weight"] = (rows, hidden)
            if biases:
                shapes[f"{block}.self_attn.{part}_proj.bias"] = (rows,)
        shapes[f"{block}.self_attn.o_proj.weight"] = (hidden, q)
        if "num_local_experts" in config:
            shapes[f"{block}.block_sparse_moe.gate.weight"] = (config["num_local_experts"], hidden)
            for expert in range(config["num_local_experts"]):
                for part in ("w1", "w2", "w3"):
                    shape = (hidden, inner) if part == "w2" else (inner, hidden)
                    shapes[f"{block}.block_sparse_moe.experts.{expert}.{part}.weight"] = shape
        else:
            shapes |= {f"{block}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
            shapes[f"{block}.mlp.down_proj.weight"] = (hidden, inner)
    return shapes


def _arrays(config: Json, tiny: Tiny) -> dict[str, tuple[str, Sequence[int], bytes]]:
    arrays: dict[str, tuple[str, Sequence[int], bytes]] = {}
    for name, shape in _shapes(config, tiny.biases).items():
        dtype = tiny.norm_dtype if tiny.norm_dtype and len(shape) == 1 else tiny.dtype
        arrays[name] = (dtype, shape, packed(numbers(name, shape), dtype))
    return arrays


def _write_weights(place: Path, arrays: Mapping[str, tuple[str, Sequence[int], bytes]], n_shards: int) -> None:
    if n_shards == 1:
        (place / "model.safetensors").write_bytes(safetensors_bytes(arrays))
        return
    names, weight_map = list(arrays), dict[str, str]()
    for number in range(n_shards):
        file = f"model-{number + 1:05d}-of-{n_shards:05d}.safetensors"
        part = names[number::n_shards]
        (place / file).write_bytes(safetensors_bytes({name: arrays[name] for name in part}))
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(len(data) for _, _, data in arrays.values())}, "weight_map": dict(sorted(weight_map.items()))}
    (place / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


# Vocabularies


def sentencepiece_tokenizer(place: Path) -> None:
    """The demo model's vocabulary."""
    shutil.copyfile(SENTENCEPIECE_MODEL, place / "tokenizer.model")


def byte_letters() -> dict[int, str]:
    """The letters that stand for bytes in byte-level BPE."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def merges_of(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges that build each word, with a space before it, from left to right."""
    letters = byte_letters()
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        shown = [letters[byte] for byte in f" {word}".encode()]
        for end in range(1, len(shown)):
            merges["".join(shown[:end]), shown[end]] = None
    return list(merges)


def added_token(number: int, text: str, *, special: bool = True, normalized: bool = False) -> Json:
    return {
        "id": number,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": normalized,
        "special": special,
    }


def split(pattern: str) -> Json:
    """A pre-tokenizer: this pattern, then bytes."""
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    return {"type": "Sequence", "pretokenizers": steps}


def template(*, bos: tuple[str, int] | None = None, eos: tuple[str, int] | None = None) -> Json:
    """A post-processor that puts tokens around a text."""
    single: list[Json] = [{"Sequence": {"id": "A", "type_id": 0}}]
    pair: list[Json] = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {text: {"id": text, "ids": [number], "tokens": [text]} for text, number in filter(None, (bos, eos))}
    if bos:
        single.insert(0, {"SpecialToken": {"id": bos[0], "type_id": 0}})
    if eos:
        single.append({"SpecialToken": {"id": eos[0], "type_id": 0}})
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}


def bpe_tokenizer(
    pre_tokenizer: Json,
    *,
    added: Sequence[tuple[str, bool]],
    settings: Json,
    post_processor: Json | None = None,
    pairs: bool = False,
    normalizer: Json | None = None,
) -> Callable[[Path], None]:
    """A byte-level vocabulary: 256 letters, merges, then the added tokens (text, special)."""

    def write(place: Path) -> None:
        merges = merges_of(WORDS)
        texts = [*byte_letters().values(), *dict.fromkeys(a + b for a, b in merges)]
        tokenizer = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [added_token(len(texts) + place, text, special=special) for place, (text, special) in enumerate(added)],
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "post_processor": post_processor,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": True,
                "vocab": {text: number for number, text in enumerate(texts)},
                "merges": [list(merge) if pairs else " ".join(merge) for merge in merges],
            },
        }
        (place / "tokenizer.json").write_text(json.dumps(tokenizer, indent=1, ensure_ascii=False), encoding="utf-8")
        chosen = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
        (place / "tokenizer_config.json").write_text(json.dumps(chosen, indent=2, ensure_ascii=False), encoding="utf-8")

    return write


BPE_FIRST_ADDED = 256 + len({a + b for a, b in merges_of(WORDS)})
"""The id of a BPE vocabulary's first added token."""
BPE_SIZE = BPE_FIRST_ADDED + 5


def byte_fallback_tokenizer(place: Path) -> None:
    """A SentencePiece vocabulary as tokenizer.json holds it: Llama 2 without its tokenizer.model."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij", "ab", "▁ab", "▁abc"]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            *(added_token(number, text) for number, text in enumerate(texts[:3])),
            added_token(len(texts), "<pad>"),
            added_token(len(texts) + 1, "<tool>", special=False),
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
        },
        "pre_tokenizer": None,
        "post_processor": template(bos=("<s>", 1)),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {text: number for number, text in enumerate(texts)},
            "merges": ["a b", "▁ ab", "▁ab c"],
        },
    }
    settings = {
        "tokenizer_class": "LlamaTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
    }
    (place / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (place / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


BYTE_FALLBACK_SIZE = 3 + 256 + 1 + 10 + 3 + 2


# The models

_LLAMA3_ADDED = (("<|begin_of_text|>", True), ("<|end_of_text|>", True), ("<|eot_id|>", True), ("<tool call>", False), ("<|odd|>", False))
_LLAMA3_IDS = {"bos_token_id": BPE_FIRST_ADDED, "eos_token_id": BPE_FIRST_ADDED + 1}
_LLAMA3_SETTINGS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "chat_template": "{{ bos_token }}{{ messages }}"}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

TINY: Mapping[str, Tiny] = {
    "llama2": Tiny(
        {"max_position_embeddings": 2048, "rope_scaling": None, "pad_token_id": None, "rms_norm_eps": 1e-6},
        dtype="F16",
        n_shards=3,
        files={
            "tokenizer_config.json": {
                "tokenizer_class": "LlamaTokenizer",
                "add_bos_token": True,
                "add_eos_token": False,
                "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False},
                "eos_token": "</s>",
                "chat_template": [
                    {"name": "default", "template": "{{ messages }}"},
                    {"name": "tool use", "template": "{{ tools }}"},
                ],
            },
            "generation_config.json": {"temperature": 0.6, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1, "do_sample": True},
        },
        folder_name="Tiny-Llama-2-7b-chat-hf",
    ),
    "llama3": Tiny(
        {
            **_LLAMA3_IDS,
            "vocab_size": BPE_SIZE,
            "num_key_value_heads": 2,
            "rope_theta": 500000.0,
            "rope_scaling": _LLAMA3_ROPE,
            "torch_dtype": "bfloat16",
        },
        tokenizer=bpe_tokenizer(
            split(LLAMA3_SPLIT),
            added=_LLAMA3_ADDED,
            settings=_LLAMA3_SETTINGS,
            post_processor={"type": "Sequence", "processors": [_BYTES, template(bos=("<|begin_of_text|>", BPE_FIRST_ADDED))]},
        ),
        pre="llama-bpe",
        files={
            "README.md": "---\nlicense: llama3\nlanguage:\n- en\n- de\ntags:\n- tiny\n- made up\npipeline_tag: text-generation\n"
            "base_model: example/Larger-Llama-3-8B\ndatasets:\n- example/cloth\n---\n# A model card\n",
        },
        folder_name="Tiny-Llama-3.1-8B-Instruct-v2",
    ),
    "llama3-tied": Tiny(
        {
            **_LLAMA3_IDS,
            "vocab_size": BPE_SIZE + 11,
            "head_dim": 32,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {**_LLAMA3_ROPE, "factor": 32.0, "rope_theta": 500000.0},
        },
        tokenizer=bpe_tokenizer(
            split(LLAMA3_SPLIT),
            added=_LLAMA3_ADDED,
            settings={**_LLAMA3_SETTINGS, "add_bos_token": True},
            post_processor=template(bos=("<|begin_of_text|>", BPE_FIRST_ADDED), eos=("<|eot_id|>", BPE_FIRST_ADDED + 2)),
            pairs=True,
        ),
        pre="llama-bpe",
        n_shards=2,
    ),
    "mistral": Tiny(
        {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "head_dim": 32,
            "num_key_value_heads": 2,
            "rope_theta": 1000000.0,
            "sliding_window": 128,
        },
        files={
            "tokenizer_config.json": {
                "tokenizer_class": "LlamaTokenizer",
                "add_prefix_space": False,
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "added_tokens_decoder": {
                    "0": {"content": "<unk>", "special": True},
                    "1": {"content": "<s>", "special": True},
                    "2": {"content": "</s>", "special": True},
                    "4095": {"content": "▁tool", "special": False},
                },
            },
        },
    ),
    "mistral-tekken": Tiny(
        {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "vocab_size": BPE_SIZE,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
            **_LLAMA3_IDS,
        },
        dtype="F32",
        tokenizer=bpe_tokenizer(
            split(TEKKEN_SPLIT),
            added=_LLAMA3_ADDED,
            settings={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "add_bos_token": True, "add_eos_token": False},
            post_processor=template(bos=("<|begin_of_text|>", BPE_FIRST_ADDED)),
            pairs=True,
        ),
        pre="tekken",
    ),
    "mixtral": Tiny(
        {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_key_value_heads": 2,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_theta": 1000000.0,
        },
        n_shards=3,
        folder_name="tiny-8x7B-v0.1",
    ),
    "linear-rope": Tiny(
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 10000.0, "num_key_value_heads": 4, "vocab_size": 4100},
        dtype="F32",
        files={"added_tokens.json": {"<extra>": 4096, "<more>": 4098}, "generation_config.json": {"temperature": 1, "min_p": 0.05}},
    ),
    "yarn": Tiny(
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
            "num_key_value_heads": 2,
        },
        norm_dtype="F32",
    ),
    "biases": Tiny(
        {"attention_bias": True, "num_key_value_heads": 2, "hidden_size": 48, "intermediate_size": 80}, dtype="F16", biases=True
    ),
    "byte-fallback": Tiny({"vocab_size": BYTE_FALLBACK_SIZE}, dtype="F16", tokenizer=byte_fallback_tokenizer),
    "smollm": Tiny(
        {"vocab_size": BPE_SIZE, "tie_word_embeddings": True, "num_key_value_heads": 1, **_LLAMA3_IDS},
        tokenizer=bpe_tokenizer(
            {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTES]},
            added=_LLAMA3_ADDED,
            settings={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "unk_token": "<|end_of_text|>"},
        ),
        pre="smollm",
    ),
    "named-tokens": Tiny(
        {"vocab_size": BPE_SIZE + 8, "_name_or_path": "workshop/Tailor-Base-13B", "num_key_value_heads": 4, **_LLAMA3_IDS},
        tokenizer=bpe_tokenizer(
            _BYTES,
            added=_LLAMA3_ADDED,
            settings={
                **_LLAMA3_SETTINGS,
                "pad_token": "<pad here>",
                "unk_token": "the",
                "additional_special_tokens": ["<tool call>", "<new>"],
                "added_tokens_decoder": {
                    str(BPE_FIRST_ADDED + 2): {"content": "<|eot_id|>", "special": False, "normalized": True},
                    str(BPE_FIRST_ADDED + 4): {"content": "<|odd|>", "special": True},
                    "9": {"content": "<fresh>", "special": False},
                },
            },
        ),
        pre="gpt-2",
    ),
}
