"""Tiny models with published BPE vocabularies, made from the vocabulary files that llama.cpp ships for its own tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from tiny_models import LLAMA3_SPLIT, added_token, numbers, packed, safetensors_bytes, split, template

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_USER_DEFINED = 4


@dataclass(frozen=True)
class Published:
    """How a published tokenizer.json splits text, and whether it puts a token before it."""

    pre_tokenizer: dict[str, Any]
    begins_with_bos: bool = False
    normalizer: dict[str, Any] | None = None


PUBLISHED: Mapping[str, Published] = {
    "llama-bpe": Published(split(LLAMA3_SPLIT), begins_with_bos=True),
    "qwen2": Published(split(LLAMA3_SPLIT.replace("{1,3}", "")), normalizer={"type": "NFC"}),
    "gpt-2": Published(_BYTES),
}
HIDDEN = 16


def write_published(name: str, llama_cpp: Path, folder: Path) -> Path:
    """Write a model of one layer with the vocabulary of `ggml-vocab-NAME.gguf`."""
    fields = GGUFReader(llama_cpp / "models" / f"ggml-vocab-{name}.gguf").fields
    tokens, kinds, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges"))
    place = folder / name
    place.mkdir(parents=True)
    added = {number for number, kind in enumerate(kinds) if kind not in (1, 5)}
    bos = int(fields["tokenizer.ggml.bos_token_id"].contents())
    stored = PUBLISHED[name]
    tokenizer = {
        "version": "1.0",
        "added_tokens": [added_token(number, tokens[number], special=kinds[number] != _USER_DEFINED) for number in sorted(added)],
        "normalizer": stored.normalizer,
        "pre_tokenizer": stored.pre_tokenizer,
        "post_processor": template(bos=(tokens[bos], bos)) if stored.begins_with_bos else None,
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "ignore_merges": name == "llama-bpe",
            "byte_fallback": False,
            "vocab": {text: number for number, text in enumerate(tokens) if number not in added},
            "merges": merges,
        },
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": tokens[bos], "eos_token": tokens[bos]}
    _write_model(place, len(tokens), bos)
    (place / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (place / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return place


def _write_model(place: Path, vocab_size: int, bos: int) -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "vocab_size": vocab_size,
        "bos_token_id": bos,
        "eos_token_id": bos,
    }
    block = "model.layers.0"
    matrices = [f"{block}.self_attn.{part}_proj.weight" for part in "qkvo"] + [
        f"{block}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    ]
    norms = ["model.norm.weight", *(f"{block}.{part}_layernorm.weight" for part in ("input", "post_attention"))]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab_size, HIDDEN)}
    shapes |= dict.fromkeys(matrices, (HIDDEN, HIDDEN)) | dict.fromkeys(norms, (HIDDEN,))
    arrays = {name: ("BF16", shape, packed(numbers(name, shape), "BF16")) for name, shape in shapes.items()}
    (place / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
