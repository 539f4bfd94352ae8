"""Tiny Llama models with published BPE vocabularies."""

from __future__ import annotations

import json
from pathlib import Path

from sdist_vocabularies import BYTE_LEVEL, SdistVocabulary

from tiny_models import numbers, packed, safetensors_bytes

PUBLISHED = tuple(BYTE_LEVEL)
HIDDEN = 16


def write_published(name: str, llama_cpp: Path, folder: Path) -> Path:
    """Write a model of one layer with the vocabulary of `ggml-vocab-NAME.gguf`."""
    vocabulary = SdistVocabulary(name, llama_cpp)
    place = folder / name
    place.mkdir(parents=True)
    bos = vocabulary.id("bos")
    assert bos is not None
    _write_model(place, len(vocabulary), bos)
    vocabulary.write(place, {})
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
