"""Small models of a large vocabulary in several families, whose last stages differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from tiny_models import numbers

N_VOCAB, HIDDEN, INNER, HEADS = 20_000, 64, 96, 2
FAMILIES: Mapping[str, tuple[str, Mapping[str, float], bool]] = {
    "plain": ("llama", {}, False),
    "tied": ("llama", {}, True),
    "capped": ("gemma2", {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 50.0}, True),
    "divided": ("granite", {"logit_scale": 8.0}, False),
    "biased": ("qwen2", {}, False),
}
"""Name -> architecture, metadata, whether the output matrix is that of the token embeddings."""


def write_model(folder: Path, family: str = "plain", kind: str = "F16") -> Path:
    """Write one with its matrices in that type."""
    architecture, figures, is_tied = FAMILIES[family]
    integers = {
        "block_count": 1,
        "context_length": 512,
        "embedding_length": HIDDEN,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "attention.key_length": HIDDEN // HEADS,
        "attention.value_length": HIDDEN // HEADS,
        "rope.dimension_count": HIDDEN // HEADS,
        "vocab_size": N_VOCAB,
    }
    path = folder / f"{family}-{kind}.gguf"
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_string("tokenizer.ggml.model", "none")
    for key, value in integers.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    for key, figure in {"attention.layer_norm_rms_epsilon": 1e-5, **figures}.items():
        writer.add_float32(f"{architecture}.{key}", figure)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (N_VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not is_tied:
        shapes["output.weight"] = (N_VOCAB, HIDDEN)
    matrices = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN), "attn_output": (HIDDEN, HIDDEN)}
    matrices |= {"ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER)}
    shapes |= {f"blk.0.{name}.weight": shape for name, shape in matrices.items()}
    norms = ("attn_norm", "ffn_norm", *(("post_attention_norm", "post_ffw_norm") if architecture == "gemma2" else ()))
    shapes |= {f"blk.0.{name}.weight": (HIDDEN,) for name in norms}
    if family == "biased":
        shapes |= {f"blk.0.attn_{letter}.bias": (HIDDEN,) for letter in "qkv"} | {"output.bias": (N_VOCAB,)}
    for name, shape in shapes.items():
        _add(writer, name, numbers(name, shape), kind if len(shape) > 1 else "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, values: npt.NDArray[np.float32], kind: str) -> None:
    # Norms around 1; matrices that leave the inputs about as large as they were, so that logits spread over some nats.
    values = np.float32(1) + values / np.float32(2) if name.endswith("norm.weight") else values / np.float32(4)
    if kind == "BF16":
        stored = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, gguf.quants.quantize(values, stored), raw_dtype=stored)
    else:
        writer.add_tensor(name, values.astype({"F16": np.float16, "F32": np.float32}[kind]))
