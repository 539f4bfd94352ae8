"""The importance matrix: E[x_j^2] of every weight matrix's input over a calibration text.

It holds what llama-imatrix's holds, and two things that llama.cpp's readers ignore: the sums of x itself (`sum`), and inputs
that only weigh errors (`error_only`): the output matrix, which llama-imatrix leaves out unless asked, so that the quantizer
must not see it.

Where a model multiplies by its token embeddings (tied output), that product is the `error_only` entry of
`token_embd.weight`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from quantailor.analysis.importance.error_weights import UNWEIGHTED, ErrorWeights
from quantailor.errors import ImatrixError
from quantailor.ggml import codec
from quantailor.ggml.reference_worker import MAX_TEXT_BYTES
from quantailor.numerics import Floats, Integers
from quantailor.records import TensorInfo

TOKEN_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
"""Looked up, not multiplied: llama-quantize ignores entries of a wrong length for these."""
BLOCK_PREFIX = "blk."
_GROUP = 8
"""Columns whose weights share a code in the types of fewest bits."""


@dataclass(frozen=True, eq=False)
class ImatrixEntry:
    """Sums over the tokens that one tensor's matrices saw."""

    sum2: Floats
    """Sums of squared inputs, (n_mat, n_cols)."""
    counts: Integers
    """Tokens behind each row, (n_mat,)."""
    sum: Floats | None = None
    """Sums of the inputs, (n_mat, n_cols); None in files of other programs."""


@dataclass(frozen=True, eq=False)
class Imatrix:
    """An importance matrix. Two with the same figures have the same `fingerprint`."""

    entries: Mapping[str, ImatrixEntry]
    """What llama-quantize would find, by tensor name."""
    error_only: Mapping[str, ImatrixEntry] = field(default_factory=dict)
    """Inputs that weigh errors and are never handed to a quantizer."""
    token_counts: Integers | None = None
    """How often each token was an input, (n_vocab,)."""
    datasets: tuple[str, ...] = ()
    chunk_count: int = 0
    chunk_size: int = 0
    """Tokens per chunk; 0 where a legacy file does not say."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over all figures; the names of the texts do not count."""
        digest = hashlib.sha256(f"{self.chunk_count} {self.chunk_size}".encode())
        for kind, entries in (("entries", self.entries), ("error_only", self.error_only)):
            for name in sorted(entries):
                entry = entries[name]
                digest.update(f"\n{kind} {name} {entry.sum2.shape} {entry.sum is not None}\n".encode())
                for array in (entry.sum2, entry.counts) if entry.sum is None else (entry.sum2, entry.counts, entry.sum):
                    digest.update(np.ascontiguousarray(array).tobytes())
        if self.token_counts is not None:
            digest.update(b"\ntokens\n" + self.token_counts.tobytes())
        return digest.hexdigest()


def holds(imatrix: Imatrix | None, tensor: TensorInfo) -> bool:
    """Whether the quantizer gets importances for this tensor, as `quantizer_importance` has them."""
    entry = None if imatrix is None else imatrix.entries.get(tensor.name)
    return entry is not None and (tensor.name not in TOKEN_EMBEDDINGS or fits(entry, tensor))


def quantizer_importance(imatrix: Imatrix, tensor: TensorInfo) -> Floats | None:
    """The importances that llama-quantize hands to the quantizer: (n_slices, n_cols), or None where it has none.

    Mean squares; ones for an expert that no token reached. Where columns beside each other have no importance at all, they get
    the smallest of their expert's: a quantizer would give up a block that weighs nothing, and write zeros.

    Raises:
        ImatrixError: the entry's length does not fit the tensor, or a value is not usable.
    """
    entry = imatrix.entries.get(tensor.name)
    if entry is None:
        return None
    if not fits(entry, tensor):
        if tensor.name in TOKEN_EMBEDDINGS:
            return None
        raise _misfit(tensor, entry)
    importance = _mean_squares(seen_part(entry, tensor)).reshape(tensor.n_slices, tensor.n_cols)
    codec.check_importance(importance, tensor.name)
    return _without_holes(importance)


def fits(entry: ImatrixEntry, tensor: TensorInfo) -> bool:
    """Whether an entry has a value for every column of every matrix of a tensor."""
    return entry.sum2.size == tensor.n_slices * tensor.n_cols


def seen_part(entry: ImatrixEntry, tensor: TensorInfo) -> ImatrixEntry:
    """An entry that fits, where importances of zero throughout a matrix are no tokens: older files do not count experts apart."""
    sums = entry.sum2.reshape(tensor.n_slices, tensor.n_cols)
    unseen = ~sums.any(axis=1)
    if not unseen.any():
        return entry
    per_entry, rest = divmod(tensor.n_slices, len(entry.counts))
    counts = np.repeat(entry.counts, per_entry) if not rest else np.full(tensor.n_slices, entry.counts.max())
    return ImatrixEntry(sums, np.where(unseen, 0, counts), None if entry.sum is None else entry.sum.reshape(sums.shape))


def as_seen(imatrix: Imatrix, tensors: Sequence[TensorInfo]) -> Imatrix:
    """An importance matrix with the `seen_part` of every entry that fits one of these tensors."""
    by_name = {tensor.name: tensor for tensor in tensors}
    entries = {
        name: seen_part(entry, by_name[name]) if name in by_name and fits(entry, by_name[name]) else entry
        for name, entry in imatrix.entries.items()
    }
    return replace(imatrix, entries=entries)


def _without_holes(importance: Floats) -> Floats:
    """(n_slices, n_cols) with zeros in a row, as many as share a place in some type's code, replaced by the slice's smallest value."""
    zero = importance == 0
    if not zero.any():
        return importance
    n_slices, n_cols = importance.shape
    group = _GROUP if n_cols % _GROUP == 0 else 1
    holes = np.repeat(zero.reshape(n_slices, -1, group).all(axis=2), group, axis=1)
    smallest = np.where(zero, np.float32(np.inf), importance).min(axis=1, keepdims=True)
    filled: Floats = np.where(holes, smallest, importance)
    return filled


def quantize_metadata(imatrix: Imatrix) -> dict[str, str | int]:
    """The metadata that llama-quantize writes about the importance matrix, in its order.

    The file is named by the matrix' fingerprint, so that a copy elsewhere gives the same model file; names are cut
    to the length that llama.cpp can hold.
    """
    values: dict[str, str | int] = {"quantize.imatrix.file": f"{imatrix.fingerprint[:12]}.imatrix.gguf"}
    if imatrix.datasets:
        values["quantize.imatrix.dataset"] = imatrix.datasets[0].encode()[:MAX_TEXT_BYTES].decode(errors="ignore")
    values["quantize.imatrix.entries_count"] = len(imatrix.entries)
    if imatrix.chunk_count > 0:
        values["quantize.imatrix.chunks_count"] = imatrix.chunk_count
    return values


def error_weights(imatrix: Imatrix | None, tensor: TensorInfo) -> ErrorWeights:
    """How the errors of a tensor's weights count (METHODS 1), with what the quantizer gets beside it.

    Token embeddings: a row counts by its token's frequency plus one; where they are the output matrix too, their
    columns count as the output's do, because nearly all of the damage is done there.

    Raises:
        ImatrixError: the matrix does not fit the tensor.
    """
    if imatrix is None:
        return UNWEIGHTED
    quantizer = quantizer_importance(imatrix, tensor)
    entry = imatrix.error_only.get(tensor.name) or (imatrix.entries.get(tensor.name) if quantizer is not None else None)
    if entry is None:
        return ErrorWeights(row_weights=_row_weights(imatrix, tensor), quantizer=quantizer)
    if not fits(entry, tensor):
        raise _misfit(tensor, entry)
    entry = seen_part(entry, tensor)
    shape = (tensor.n_slices, tensor.n_cols)
    unseen = entry.counts == 0
    divisor = np.maximum(entry.counts, 1).astype(np.float32)[:, None]
    shares = None
    if tensor.n_slices > 1 and len(entry.counts) == tensor.n_slices and entry.counts.any():
        shares = (entry.counts / entry.counts.sum()).astype(np.float32)
    return ErrorWeights(
        columns=_mean_squares(entry).reshape(shape),
        means=None if entry.sum is None else (entry.sum / divisor).reshape(shape),
        slice_shares=shares,
        quantizer=quantizer,
        n_unseen_slices=int(unseen.sum()) * (tensor.n_slices // len(entry.counts)),
    )


def _mean_squares(entry: ImatrixEntry) -> Floats:
    """float32 sums over float32 counts, the arithmetic of llama-quantize."""
    counts = entry.counts.astype(np.float32)[:, None]
    seen = counts > 0
    means: Floats = np.where(seen, entry.sum2 / np.where(seen, counts, np.float32(1)), np.float32(1))
    return means


def _row_weights(imatrix: Imatrix, tensor: TensorInfo) -> Floats | None:
    if tensor.name not in TOKEN_EMBEDDINGS or imatrix.token_counts is None:
        return None
    if len(imatrix.token_counts) != tensor.n_rows:
        raise ImatrixError(
            f"the importance matrix counts {len(imatrix.token_counts)} tokens, {tensor.name} has {tensor.n_rows} rows",
            remedy="Use one of this model",
        )
    weights: Floats = (imatrix.token_counts + 1).astype(np.float32)
    return weights


def _misfit(tensor: TensorInfo, entry: ImatrixEntry) -> ImatrixError:
    return ImatrixError(
        f"the importance matrix has {entry.sum2.size} values for {tensor.name}, which needs {tensor.n_slices * tensor.n_cols}",
        remedy="Use one that was computed for this model",
    )
