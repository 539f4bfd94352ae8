"""A small Llama base as a GGUF file: rows of 256 weights, which every type divides, and a byte-level vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from tiny_models import byte_letters, numbers

HIDDEN, INNER, N_LAYERS, HEADS = 256, 512, 2, 4
ROWS = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN), "attn_output": (HIDDEN, HIDDEN)}
ROWS |= {"ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}


def write_small_base(
    path: Path,
    *,
    seed: str = "",
    vocabulary: str = "",
    architecture: str = "llama",
    changed: Mapping[str, int | float] | None = None,
    template: str = "",
) -> Path:
    """Write one; another `seed` gives other weights, another `vocabulary` another token at the end; `changed` hyperparameters."""
    writer = GGUFWriter(str(path), architecture)
    writer.add_string("general.name", "Small")
    counts: dict[str, int | float] = {
        "block_count": N_LAYERS,
        "context_length": 512,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "rope.dimension_count": HIDDEN // HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    for key, value in {**counts, **(changed or {})}.items():
        if isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        else:
            writer.add_uint32(f"{architecture}.{key}", value)
    letters = [*byte_letters().values(), f"<s>{vocabulary}"]
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "llama-bpe")
    writer.add_array("tokenizer.ggml.tokens", letters)
    writer.add_array("tokenizer.ggml.token_type", [1] * 256 + [3])
    writer.add_array("tokenizer.ggml.merges", ["h e"])
    if template:
        writer.add_chat_template(template)
    writer.add_uint32("tokenizer.ggml.bos_token_id", 256)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 256)
    shapes = {"token_embd": (len(letters), HIDDEN), "output": (len(letters), HIDDEN)}
    shapes |= {f"blk.{layer}.{name}": shape for layer in range(N_LAYERS) for name, shape in ROWS.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", (numbers(seed + name, shape) / 20).astype(np.float16))
    for name in ("output_norm", *(f"blk.{layer}.{part}_norm" for layer in range(N_LAYERS) for part in ("attn", "ffn"))):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
