"""Made-up Llama models with the shapes of real ones: heavy-tailed random weights behind the demo model's vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from quantailor.ggml import codec, library
from quantailor.models.gguf_writer import GGUFWriter, layout
from quantailor.models.source import ModelSource
from quantailor.numerics import Bytes
from quantailor.records import MetadataValue, TensorInfo

POOL_WEIGHTS = 1 << 22
"""Distinct weights of a row length; every tensor begins at a place of its own among them."""
DEGREES_OF_FREEDOM = 4
"""Of Student's distribution, which has tails about as heavy as trained weights."""
UNUSED_TOKEN = 5


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama."""

    n_layers: int
    n_hidden: int
    n_inner: int
    n_heads: int
    n_heads_kv: int
    n_vocab: int

    def tensors(self, type_name: str) -> tuple[TensorInfo, ...]:
        """All tensors, matrices in this type and norms in F32, in the order of a file."""
        head = self.n_hidden // self.n_heads
        matrices = {"attn_q": (self.n_hidden, self.n_hidden), "attn_output": (self.n_hidden, self.n_hidden)}
        matrices |= dict.fromkeys(("attn_k", "attn_v"), (self.n_heads_kv * head, self.n_hidden))
        matrices |= dict.fromkeys(("ffn_gate", "ffn_up"), (self.n_inner, self.n_hidden)) | {"ffn_down": (self.n_hidden, self.n_inner)}
        shapes: dict[str, tuple[int, ...]] = {"token_embd": (self.n_vocab, self.n_hidden), "output": (self.n_vocab, self.n_hidden)}
        for layer in range(self.n_layers):
            shapes |= {f"blk.{layer}.{name}": (self.n_hidden,) for name in ("attn_norm", "ffn_norm")}
            shapes |= {f"blk.{layer}.{name}": shape for name, shape in matrices.items()}
        shapes["output_norm"] = (self.n_hidden,)
        qtypes = library.types()
        plain = [TensorInfo(f"{name}.weight", shape, "F32", 4 * math.prod(shape)) for name, shape in shapes.items()]
        return tuple(tensor if len(tensor.shape) == 1 else qtypes[type_name].retyped(tensor) for tensor in plain)


SHAPES: Mapping[str, Shape] = {
    "1B": Shape(16, 2048, 8192, 32, 8, 128_256),
    "8B": Shape(32, 4096, 14_336, 32, 8, 128_256),
}
"""As the published 1 B and 8 B models of the third Llama generation, output and embeddings apart."""


def write_shape(path: Path, name: str, type_name: str, vocabulary: ModelSource, *, shape: Shape | None = None) -> Path:
    """Write a model, unless it is there.

    Args:
        path: the file.
        name: one of `SHAPES`, or what `shape` is to be called.
        type_name: the type of its matrices.
        vocabulary: whose tokens it has; unused ones follow until there are as many as the shape says.
        shape: another one.
    """
    if path.exists():
        return path
    sizes = shape or SHAPES[name]
    tensors = sizes.tensors(type_name)
    with GGUFWriter(path, layout(_metadata(name, sizes, vocabulary.metadata), tensors)) as writer:
        pools: dict[int, Bytes] = {}
        for number, tensor in enumerate(tensors):
            for part in _parts(tensor, number, pools):
                writer.write(part)
    return path


def _metadata(name: str, shape: Shape, of: Mapping[str, MetadataValue]) -> dict[str, MetadataValue]:
    head = shape.n_hidden // shape.n_heads
    sizes = {"context_length": 8192, "block_count": shape.n_layers, "embedding_length": shape.n_hidden}
    sizes |= {"feed_forward_length": shape.n_inner, "vocab_size": shape.n_vocab}
    sizes |= {"attention.head_count": shape.n_heads, "attention.head_count_kv": shape.n_heads_kv}
    sizes |= dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), head)
    found = {"general.architecture": MetadataValue("string", "llama"), "general.name": MetadataValue("string", f"Llama shapes, {name}")}
    found |= {f"llama.{key}": MetadataValue("uint32", value) for key, value in sizes.items()}
    found |= {"llama.rope.freq_base": MetadataValue("float32", 500_000.0)}
    found |= {"llama.attention.layer_norm_rms_epsilon": MetadataValue("float32", 1e-5)}
    found |= {key: value for key, value in of.items() if key.startswith("tokenizer.")}
    missing = shape.n_vocab - len(_values(of["tokenizer.ggml.tokens"]))
    fillers: dict[str, tuple[bool | int | float | str, ...]] = {
        "tokenizer.ggml.tokens": tuple(f"<unused{index}>" for index in range(missing)),
        "tokenizer.ggml.scores": (0.0,) * missing,
        "tokenizer.ggml.token_type": (UNUSED_TOKEN,) * missing,
    }
    return found | {key: replace(of[key], value=_values(of[key]) + filler) for key, filler in fillers.items() if key in of}


def _values(entry: MetadataValue) -> tuple[bool | int | float | str, ...]:
    return entry.value if isinstance(entry.value, tuple) else (entry.value,)


def _parts(tensor: TensorInfo, number: int, pools: dict[int, Bytes]) -> Iterator[Bytes]:
    """The bytes of a tensor, piece by piece."""
    if len(tensor.shape) == 1:
        yield np.ones(tensor.n_elements, dtype=np.float32).view(np.uint8)
        return
    qtype, n_cols = library.types()[tensor.type_name], tensor.n_cols
    if n_cols not in pools:
        values = np.random.default_rng(n_cols).standard_t(DEGREES_OF_FREEDOM, (POOL_WEIGHTS // n_cols, n_cols)).astype(np.float32)
        pools[n_cols] = codec.quantize(values / np.float32(math.sqrt(DEGREES_OF_FREEDOM / (DEGREES_OF_FREEDOM - 2) * n_cols)), qtype)
    pool = pools[n_cols].reshape(-1, qtype.row_bytes(n_cols))
    turned, missing = np.roll(pool, 37 * number, axis=0), tensor.n_rows
    while missing > 0:
        yield turned[:missing].reshape(-1)
        missing -= len(turned)
