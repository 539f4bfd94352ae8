"""What errors in token embeddings cost: embeddings are looked up, so they have no input, but matrices of the first layer read them.

An error d in a token's embedding changes what a matrix W of the first layer gives by W (g d), with g the gain of the norm before it, up to
the scale that the norm divides by. Summed over the matrices that read the stream, that is d^T G d with G = sum diag(g) W^T W diag(g). Later
layers read the embeddings too, through everything that was added meanwhile; for them, the identity stands (docs/LOG.md has what it gains).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from quantailor.analysis.covariances.sums import add_products, diagonal, panels
from quantailor.analysis.importance.imatrix import TOKEN_EMBEDDINGS
from quantailor.models.gguf_file import GGUFSource
from quantailor.numerics import Doubles, Floats

EMBEDDINGS = TOKEN_EMBEDDINGS[0]
LATER_LAYERS = 0.3
"""The identity's part, in units of G's mean diagonal."""
_READERS = re.compile(r"blk\.0\.(?:attn_(?:q|k|v|qkv|q_a|kv_a_mqa)|ffn_(?:gate|up|gate_up)(?:_exps|_shexp)?)\.weight")
_BATCH_ROWS = 4096


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
    rest = np.float32(LATER_LAYERS * diagonal(packed, n_cols).mean(dtype=np.float64))
    for panel in panels(n_cols):
        own = np.arange(panel.stop - panel.start)
        panel.of(packed, n_cols)[own, own] += rest
    return round(n_rows)


def _gain(source: GGUFSource, name: str) -> Floats:
    """Of the norm before a reader, (n_cols,); ones where there is none."""
    norm = f"blk.0.{'attn' if '.attn_' in name else 'ffn'}_norm.weight"
    if norm not in {tensor.name for tensor in source.tensors}:
        return np.ones(source.tensor(name).n_cols, dtype=np.float32)
    gain: Floats = source.rows(norm, 0, 1)[0]
    return gain
