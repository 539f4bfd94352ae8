"""Tiny GGUF models of several architectures, small enough to run in milliseconds; the weights are random."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter

from tiny_models import byte_letters

HIDDEN, INNER, HEADS = 256, 256, 4
SPECIAL = 2
N_BPE = 256 + SPECIAL
N_WORD_PIECES = 5 + 2 * 26

Arrays = dict[str, npt.NDArray[np.generic]]


class _Weights:
    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def __call__(self, *shape: int) -> npt.NDArray[np.generic]:
        return (self._rng.standard_normal(shape, dtype=np.float32) * np.float32(0.04)).astype(np.float16)


def write_llama(
    path: Path,
    *,
    pre: str = "gpt-2",
    context: int = 1024,
    architecture: str = "llama",
    metadata: Mapping[str, int | bool] | None = None,
    more: Mapping[str, tuple[int, ...]] | None = None,
    flat: bool = False,
    arrays: Mapping[str, npt.NDArray[np.generic]] | None = None,
    tensors_per_shard: int = 0,
    specials: tuple[str, str] = ("<s>", "</s>"),
    tokens: Sequence[str] | None = None,
) -> Path:
    """A Llama of one layer with a byte-level vocabulary and two `specials`; `metadata`, `more` (name -> shape), `arrays` come on top.

    The output matrix of a `flat` one is zero; 256 `tokens` take the place of the bytes.
    """
    writer, weight = _begin(path, architecture, context, tensors_per_shard), _Weights()
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-5)
    _add(writer, metadata or {})
    _add_bytes(writer, pre, specials, tokens)
    tensors: Arrays = {
        "token_embd.weight": weight(N_BPE, HIDDEN),
        "output_norm.weight": np.ones(HIDDEN, np.float32),
        "output.weight": np.zeros((N_BPE, HIDDEN), np.float16) if flat else weight(N_BPE, HIDDEN),
    }
    tensors |= {f"blk.0.{name}.weight": np.ones(HIDDEN, np.float32) for name in ("attn_norm", "ffn_norm")}
    tensors |= {f"blk.0.{name}.weight": weight(HIDDEN, HIDDEN) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    tensors |= {f"blk.0.{name}.weight": weight(INNER, HIDDEN) for name in ("ffn_gate", "ffn_up")}
    tensors["blk.0.ffn_down.weight"] = weight(HIDDEN, INNER)
    return _finish(writer, path, tensors | {name: weight(*shape) for name, shape in (more or {}).items()} | dict(arrays or {}))


def write_nextn(path: Path) -> Path:
    """A GLM 4.5 of one dense layer, and of one with experts behind it that predicts a further token."""
    writer, weight = _begin(path, "glm4moe", 512, n_blocks=2), _Weights()
    writer.add_float32("glm4moe.attention.layer_norm_rms_epsilon", 1e-5)
    counts = {"expert_count": 4, "expert_used_count": 2, "expert_shared_count": 1, "expert_feed_forward_length": INNER}
    counts |= {"expert_gating_func": 2, "leading_dense_block_count": 1, "nextn_predict_layers": 1}
    _add(writer, {f"glm4moe.{name}": number for name, number in counts.items()})
    _add_bytes(writer, "gpt-2")
    norms = [f"blk.{block}.{name}" for block in range(2) for name in ("attn_norm", "post_attention_norm")]
    norms += [f"blk.1.nextn.{name}" for name in ("enorm", "hnorm", "shared_head_norm")]
    matrices = {f"blk.{block}.{name}": (HIDDEN, HIDDEN) for block in range(2) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
    for name, rows, cols in (("gate", INNER, HIDDEN), ("up", INNER, HIDDEN), ("down", HIDDEN, INNER)):
        matrices |= {f"blk.0.ffn_{name}": (rows, cols), f"blk.1.ffn_{name}_shexp": (rows, cols)}
    tensors: Arrays = {
        "token_embd.weight": weight(N_BPE, HIDDEN),
        "output.weight": weight(N_BPE, HIDDEN),
        **{f"{name}.weight": np.ones(HIDDEN, np.float32) for name in ("output_norm", *norms)},
        **{f"{name}.weight": weight(*shape) for name, shape in matrices.items()},
        **{f"blk.1.ffn_{name}_exps.weight": weight(4, HIDDEN, HIDDEN) for name in ("gate", "up", "down")},
        "blk.1.ffn_gate_inp.weight": weight(4, HIDDEN).astype(np.float32),
        "blk.1.exp_probs_b.bias": np.zeros(4, np.float32),
        "blk.1.nextn.eh_proj.weight": weight(HIDDEN, 2 * HIDDEN),
    }
    return _finish(writer, path, tensors)


def write_gpt2(path: Path, *, positions: int) -> Path:
    """A GPT-2 of one layer with so many learned positions."""
    writer, weight = _begin(path, "gpt2", positions), _Weights()
    writer.add_float32("gpt2.attention.layer_norm_epsilon", 1e-5)
    _add_bytes(writer, "gpt-2")
    tensors: Arrays = {
        "token_embd.weight": weight(N_BPE, HIDDEN),
        "position_embd.weight": weight(positions, HIDDEN).astype(np.float32),
        "output.weight": weight(N_BPE, HIDDEN),
    }
    tensors |= _norms("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
    for name, rows in (("attn_qkv", 3 * HIDDEN), ("attn_output", HIDDEN), ("ffn_up", INNER), ("ffn_down", HIDDEN)):
        tensors |= {f"blk.0.{name}.weight": weight(rows, HIDDEN), f"blk.0.{name}.bias": np.zeros(rows, np.float32)}
    return _finish(writer, path, tensors)


def write_bert(path: Path, *, positions: int = 512) -> Path:
    """A BERT of one layer: an encoder without an output matrix."""
    writer, weight = _begin(path, "bert", positions), _Weights()
    writer.add_float32("bert.attention.layer_norm_epsilon", 1e-12)
    _add(writer, {"bert.attention.causal": False, "bert.pooling_type": 1, "tokenizer.ggml.token_type_count": 2})
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"\u2581{letter}" for letter in letters), *letters]
    writer.add_string("tokenizer.ggml.model", "bert")
    writer.add_string("tokenizer.ggml.pre", "default")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.scores", [-1000.0] * len(tokens))
    writer.add_array("tokenizer.ggml.token_type", [3] * 5 + [1] * (len(tokens) - 5))
    special = {"bos": 2, "eos": 3, "unknown": 1, "seperator": 3, "padding": 0, "cls": 2, "mask": 4}
    _add(writer, {f"tokenizer.ggml.{name}_token_id": number for name, number in special.items()})
    tensors: Arrays = {
        "token_embd.weight": weight(len(tokens), HIDDEN),
        "token_types.weight": weight(2, HIDDEN).astype(np.float32),
        "position_embd.weight": weight(positions, HIDDEN).astype(np.float32),
    }
    tensors |= _norms("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm")
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"):
        tensors |= {f"blk.0.{name}.weight": weight(HIDDEN, HIDDEN), f"blk.0.{name}.bias": np.zeros(HIDDEN, np.float32)}
    return _finish(writer, path, tensors)


def _norms(*names: str) -> Arrays:
    ones: Arrays = {f"{name}.weight": np.ones(HIDDEN, np.float32) for name in names}
    return ones | {f"{name}.bias": np.zeros(HIDDEN, np.float32) for name in names}


def _begin(path: Path, architecture: str, context: int, tensors_per_shard: int = 0, n_blocks: int = 1) -> GGUFWriter:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(path), architecture, split_max_tensors=tensors_per_shard)
    writer.add_string("general.name", path.stem)
    sizes = {"block_count": n_blocks, "context_length": context, "embedding_length": HIDDEN, "feed_forward_length": INNER}
    _add(writer, {f"{architecture}.{name}": number for name, number in (sizes | {"attention.head_count": HEADS}).items()})
    return writer


def _add(writer: GGUFWriter, metadata: Mapping[str, int | bool]) -> None:
    for name, value in metadata.items():
        (writer.add_bool if isinstance(value, bool) else writer.add_uint32)(name, value)


def _add_bytes(writer: GGUFWriter, pre: str, specials: tuple[str, str] = ("<s>", "</s>"), tokens: Sequence[str] | None = None) -> None:
    """A vocabulary of bytes, and two control tokens."""
    letters = byte_letters()
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", pre)
    writer.add_array("tokenizer.ggml.tokens", [*(tokens or (letters[byte] for byte in range(256))), *specials])
    writer.add_array("tokenizer.ggml.token_type", [1] * 256 + [3] * SPECIAL)
    writer.add_array("tokenizer.ggml.merges", ["a b"])
    _add(writer, {"tokenizer.ggml.bos_token_id": 256, "tokenizer.ggml.eos_token_id": 257, "tokenizer.ggml.add_bos_token": False})


def _finish(writer: GGUFWriter, path: Path, tensors: Arrays) -> Path:
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
