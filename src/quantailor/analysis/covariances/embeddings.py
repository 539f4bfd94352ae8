"""What errors in token embeddings cost: embeddings are looked up, so they have no input, but matrices of the first layer read them.

An error d in a token's embedding changes what a matrix W of the first layer gives by W (g d), with g the gain of the norm before it, up to
the scale that the norm divides by. Summed over the matrices that read the stream, that is d^T G d with G = sum diag(g) W^T W diag(g). Later
layers read the embeddings too, through everything that was added meanwhile; for them, the identity stands (docs/LOG.md has what it gains).

Embeddings that are tied to the output do both: their errors cost what d^T H d says of the output and what d^T G d says of the stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quantailor.analysis.covariances.sums import add_diagonal, add_products, diagonal, trace_of_product
from quantailor.analysis.importance.imatrix import TOKEN_EMBEDDINGS
from quantailor.models.gguf_file import GGUFSource
from quantailor.numerics import Doubles, Floats

EMBEDDINGS = TOKEN_EMBEDDINGS[0]
LATER_LAYERS = 0.3
"""The identity's part, in units of G's mean diagonal."""
TIED_SHARE = 0.25
"""What a relative error of tied embeddings costs as they are looked up, over what it costs as the output. Of untied models alphas of both
are expected to have 0.2 at usual logits; Gemma 3 270M has 0.29 (docs/LOG.md)."""
_READERS = re.compile(r"blk\.0\.(?:attn_(?:q|k|v|qkv|q_a|kv_a_mqa)|ffn_(?:gate|up|gate_up)(?:_exps|_shexp)?)\.weight")
_BATCH_ROWS = 4096
_SAMPLED_ROWS = 1 << 14
"""Embeddings whose mean energies stand for all."""


def readers(names: Iterable[str]) -> list[str]:
    """Those matrices that read the embeddings through no more than a norm, or through that and the first layer's attention."""
    return sorted(name for name in names if _READERS.fullmatch(name))


def add_readers(pool: ThreadPoolExecutor, packed: Floats, source: GGUFSource, shares: Mapping[str, Doubles]) -> int:
    """Add the metric of token embeddings to a sum.

    Args:
        pool: does the products.
        packed: see `sums`, (packed_size,), zeros.
        source: the model.
        shares: of each reader, the part of tokens that go through each of its matrices, (n_slices,).

    Returns:
        How many rows read each token, on average.
    """
    n_rows = 0.0
    for name, parts in shares.items():
        tensor = source.tensor(name)
        gain = _gain(source, name)
        for index, share in enumerate(parts.tolist()):
            stop = (index + 1) * tensor.rows_per_slice
            for start in range(index * tensor.rows_per_slice, stop, _BATCH_ROWS):
                rows = source.rows(name, start, min(start + _BATCH_ROWS, stop)) * gain
                add_products(pool, [(packed, rows * np.float32(np.sqrt(share)))])
            n_rows += share * tensor.rows_per_slice
    n_cols = source.tensor(EMBEDDINGS).n_cols
    add_diagonal(packed, n_cols, LATER_LAYERS * float(diagonal(packed, n_cols).mean(dtype=np.float64)))
    return round(n_rows)


def with_lookups(pool: ThreadPoolExecutor, packed: Floats, source: GGUFSource, shares: Mapping[str, Doubles]) -> Floats:
    """The metric of tied embeddings, H + `TIED_SHARE` (mean w^T H w / mean w^T G w) G over embeddings w; G is the identity without readers.

    Args:
        pool: does the products.
        packed: H, the sum of the output's inputs; see `sums`, (packed_size,).
        source: the model.
        shares: of each reader, the part of tokens that go through each of its matrices, (n_slices,).

    Returns:
        The metric in units of that sum, (packed_size,).
    """
    tensor = source.tensor(EMBEDDINGS)
    looked_up = np.zeros_like(packed)
    if shares:
        add_readers(pool, looked_up, source, shares)
    else:
        add_diagonal(looked_up, tensor.n_cols, 1.0)
    embeddings = np.zeros_like(packed)
    every = -(-tensor.n_rows // _SAMPLED_ROWS)
    for start in range(0, tensor.n_rows, _BATCH_ROWS * every):
        rows = source.rows(EMBEDDINGS, start, min(start + _BATCH_ROWS * every, tensor.n_rows))
        add_products(pool, [(embeddings, rows[::every])])
    energy = trace_of_product(looked_up, embeddings, tensor.n_cols)
    scale = TIED_SHARE * trace_of_product(packed, embeddings, tensor.n_cols) / energy if energy > 0 else 0.0
    mixed: Floats = packed + np.float32(scale) * looked_up
    return mixed


def _gain(source: GGUFSource, name: str) -> Floats:
    """Of the norm before a reader, (n_cols,); ones where there is none."""
    norm = f"blk.0.{'attn' if '.attn_' in name else 'ffn'}_norm.weight"
    if norm not in {tensor.name for tensor in source.tensors}:
        return np.ones(source.tensor(name).n_cols, dtype=np.float32)
    gain: Floats = source.rows(norm, 0, 1)[0]
    return gain
