"""What a tensor's error is expected to do to the output where nothing was probed: from what each block adds to the residual stream.

Attention and feed-forward network of a block add their outputs to one stream. An error there counts by the share that this
output has in the stream at that place, and so does an error in any tensor on the way to it: a relative error of `attn_v` or
`ffn_up` becomes one of the same size in the output. An error of the output matrix counts by how large the logits are. All of
this follows from the weights and the importance matrix; nothing runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from quantailor.analysis.importance.imatrix import TOKEN_EMBEDDINGS, Imatrix, error_weights
from quantailor.models.source import ModelSource
from quantailor.numerics import Doubles, Floats, Integers
from quantailor.qtypes import QType
from quantailor.records import TensorInfo

OUTPUT_ALPHA, EMBEDDING_ALPHA, WRITE_ALPHA = 0.25, 0.5, 0.25
"""Nats for a relative error of 1: of logits whose mean square is 1, of embeddings, and of an output that is all of the stream."""
USUAL_LOGIT_SQUARE, USUAL_SHARE = 10.0, 0.1
"""The mean square of logits, and the share of an output in the stream, where the importance matrix does not tell them."""
LEAST_SHARE = 1e-3
"""Of a branch that adds next to nothing on the calibration text; another text may use it."""
INPUT_ERROR: Mapping[int, float] = {256: 8e-5, 32: 2.5e-5}
"""The share of an input's energy that a kernel's rounding takes, by the block that shares a scale."""
PRODUCT_FACTOR = 7.0
"""How much larger it is for `ffn_down`, whose inputs are products with heavy tails."""

SHARPENING = ("attn_q", "attn_k")
SHARPNESS_FACTOR, MOST_SHARPNESS = 20.0, 8.0
"""How much an error in queries and keys counts beside one in what is attended to, for attention logits whose mean square is 1; and the
most that is believed, either way."""

OUTPUT, EMBEDDINGS = "output.weight", "token_embd.weight"
_SAMPLED_ROWS = 64
_SMALL_PART = 1 << 20
"""Weights that are read sooner than some of their rows one by one."""
_DOWN = re.compile(r"ffn_down(_\w+)?$")
_MIXED = re.compile(r"(attn_output|ssm_out|time_mix_output|shortconv\.out_proj|ffn_down(_\w+)?)$")
"""Roles whose product is added to the stream."""


def expected_alphas(source: ModelSource, imatrix: Imatrix | None) -> dict[str, float]:
    """The KLD that a relative error of 1 in each matrix is expected to make, nats."""
    shares = dict(_shares(source, imatrix))
    found = {tensor.name: WRITE_ALPHA * shares.get((tensor.layer, _branch(tensor)), USUAL_SHARE) for tensor in source.tensors}
    for layer, factor in _sharpness(source, imatrix).items():
        for role in SHARPENING:
            if (name := f"blk.{layer}.{role}.weight") in found:
                found[name] *= factor
    if EMBEDDINGS in found:
        found[EMBEDDINGS] = EMBEDDING_ALPHA
    output = OUTPUT if OUTPUT in found else EMBEDDINGS
    if output in found:
        found[output] = found[output] * (output == EMBEDDINGS) + OUTPUT_ALPHA * _logit_square(source, source.tensor(output), imatrix)
    return found


def expected_damage(role: str, qtype: QType, error: float, alpha: float) -> float:
    """What a type of a tensor is expected to add to the KLD, nats: the weights' rounding and that of the product's inputs."""
    return alpha * (error + expected_noise(role, qtype.activation_block, alpha))


def expected_noise(role: str, block: int, alpha: float) -> float:
    """What rounding a product's inputs in blocks of so many is expected to cost, as a share of alpha.

    Embeddings are looked up, not multiplied; where they are the output, too, that part of alpha counts.
    """
    share = INPUT_ERROR.get(block, 0.0) * (PRODUCT_FACTOR if _DOWN.match(role) else 1.0)
    if f"{role}.weight" in TOKEN_EMBEDDINGS:
        return share * max(0.0, 1 - EMBEDDING_ALPHA / alpha) if f"{role}.weight" == EMBEDDINGS and alpha > 0 else 0.0
    return share


def _branch(tensor: TensorInfo) -> str:
    """Which of a block's two additions to the stream a tensor takes part in."""
    return "ffn" if tensor.role.startswith(("ffn", "channel_mix", "exp_probs")) else "mixer"


def _shares(source: ModelSource, imatrix: Imatrix | None) -> Iterator[tuple[tuple[int | None, str], float]]:
    """(block, branch) -> what part its output has of the stream after it, where that can be told, from the first block to the last."""
    by_block: dict[tuple[int, str], list[TensorInfo]] = {}
    vectors = {}
    for tensor in source.tensors:
        if tensor.layer is not None and len(tensor.shape) > 1 and _MIXED.match(tensor.role):
            by_block.setdefault((tensor.layer, _branch(tensor)), []).append(tensor)
        elif tensor.layer is not None and tensor.role in ("post_attention_norm", "post_ffw_norm"):
            vectors[tensor.layer, "ffn" if tensor.role == "post_ffw_norm" else "mixer"] = tensor
    stream = _embedding_energy(source, imatrix)
    scale = _number(source, "residual_scale", 1.0) ** 2
    for place in sorted(by_block, key=lambda place: (place[0], place[1] == "ffn")):
        layer = place[0]
        if (layer, "ffn") in vectors and (layer, "mixer") in vectors:  # both outputs are normalized before they are added
            energy: float | None = float((source.rows(vectors[place].name, 0, 1).astype(np.float64) ** 2).sum())
        else:
            energies = [_product_energy(source, tensor, imatrix) for tensor in by_block[place]]
            energy = None if None in energies else sum(filter(None, energies))
        if energy is not None:
            stream += scale * energy
            yield place, max(LEAST_SHARE, scale * energy / stream) if stream > 0 else USUAL_SHARE


def _sharpness(source: ModelSource, imatrix: Imatrix | None) -> dict[int, float]:
    """Layer -> how much errors in its queries and keys count: by the mean square of attention logits, where the matrix tells it.

    A relative error of a query or a key becomes one of the same size in the logits; how much that moves depends on how large they are.
    """
    by_name = {tensor.name: tensor for tensor in source.tensors}
    n_heads = _number(source, "attention.head_count", math.inf)  # some models have another number in every layer
    n_key_heads = _number(source, "attention.head_count_kv", n_heads)
    found = {}
    for layer in {tensor.layer for tensor in source.tensors if tensor.layer is not None}:
        query, key = (by_name.get(f"blk.{layer}.{role}.weight") for role in SHARPENING)
        if query is None or key is None or not math.isfinite(n_heads) or f"blk.{layer}.attn_q_norm.weight" in by_name:
            continue
        energies = _product_energy(source, query, imatrix), _product_energy(source, key, imatrix)
        if energies[0] and energies[1]:
            n_cols = query.n_rows / n_heads  # of a head
            square = energies[0] / n_heads * energies[1] / n_key_heads / n_cols**2
            found[layer] = min(MOST_SHARPNESS, max(1 / MOST_SHARPNESS, SHARPNESS_FACTOR * square))
    return found


def _logit_square(source: ModelSource, tensor: TensorInfo, imatrix: Imatrix | None) -> float:
    """The mean square of a logit over the calibration text."""
    energy = _product_energy(source, tensor, imatrix)
    scale = _number(source, "logit_scale", 1.0)
    factor = scale if source.architecture in ("command-r", "cohere2") else 1 / scale
    return energy / tensor.n_rows * factor**2 if energy else USUAL_LOGIT_SQUARE


def _embedding_energy(source: ModelSource, imatrix: Imatrix | None) -> float:
    """Mean energy of a token's embedding as it enters the stream, over tokens as frequent as in the calibration text."""
    tensor = next((tensor for tensor in source.tensors if tensor.name == EMBEDDINGS), None)
    if tensor is None:
        return 0.0
    counts = None if imatrix is None else imatrix.token_counts
    weights = np.ones(tensor.n_rows) if counts is None or len(counts) != tensor.n_rows else counts + 1.0
    at = np.searchsorted(np.cumsum(weights), (np.arange(4 * _SAMPLED_ROWS) + 0.5) / (4 * _SAMPLED_ROWS) * weights.sum())
    squares = _some_rows(source, tensor, 0, tensor.n_rows, at).astype(np.float64) ** 2
    own = tensor.n_cols**0.5 if source.architecture.startswith("gemma") else 1.0
    return float(squares.sum(axis=1).mean()) * _number(source, "embedding_scale", own) ** 2


def _product_energy(source: ModelSource, tensor: TensorInfo, imatrix: Imatrix | None) -> float | None:
    """Mean energy of a matrix' product over the calibration text, from some of its rows; None where the input is not known."""
    weighting = error_weights(imatrix, tensor)
    if weighting.columns is None:
        return None
    n_rows = max(1, _SAMPLED_ROWS // tensor.n_slices)
    rows = np.unique(np.linspace(0, tensor.rows_per_slice - 1, n_rows).astype(int))
    means: Doubles = np.zeros(tensor.n_slices)
    for index, inputs in enumerate(weighting.columns.astype(np.float64)):
        first = index * tensor.rows_per_slice
        means[index] = np.mean(_some_rows(source, tensor, first, tensor.rows_per_slice, rows) ** 2 @ inputs)
    shares = np.full(tensor.n_slices, 1 / tensor.n_slices) if weighting.slice_shares is None else weighting.slice_shares
    # Of k experts each adds its output with a weight of about 1/k.
    n_used = _number(source, "expert_used_count", 1.0) if tensor.n_slices > 1 else 1.0
    return float(means @ shares) * tensor.rows_per_slice / n_used


def _some_rows(source: ModelSource, tensor: TensorInfo, first: int, n_rows: int, rows: Integers) -> Floats:
    """Rows of a part that has so many, from `first` on: (len(rows), n_cols). A small part is read at once."""
    if n_rows * tensor.n_cols <= _SMALL_PART:
        return source.rows(tensor.name, first, first + n_rows)[rows]
    return np.concatenate([source.rows(tensor.name, first + row, first + row + 1) for row in rows.tolist()])


def _number(source: ModelSource, key: str, otherwise: float) -> float:
    stored = source.metadata.get(f"{source.architecture}.{key}")
    return float(stored.value) if stored is not None and isinstance(stored.value, int | float) and stored.value > 0 else otherwise
