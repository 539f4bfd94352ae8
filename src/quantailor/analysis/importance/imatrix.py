"""The importance matrix: E[x_j^2] of every weight matrix's input over a calibration text.

Computed as llama-imatrix computes it: the same chunks, every token of a chunk counted, one sum of squares per
input column, one set of sums and a count per expert. Two things are added, both ignored by llama.cpp's readers:
the sums of x itself (`sum`), and inputs that only weigh errors (`error_only`): the output matrix, which
llama-imatrix leaves out unless asked, so that the quantizer must not see it.

Sums are kept in float64 while they grow and become float32 in the finished matrix. A state written to bytes and
read back continues to the same bits as a run that was never interrupted.

Where a model multiplies by its token embeddings (tied output), that product is the `error_only` entry of
`token_embd.weight`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantailor.analysis.importance.error_weights import UNWEIGHTED, ErrorWeights
from quantailor.control import QUIET, Control
from quantailor.errors import ImatrixError
from quantailor.ggml import codec
from quantailor.ggml.reference_worker import MAX_TEXT_BYTES
from quantailor.ggml.runtime import Activation, LoadedModel
from quantailor.numerics import Doubles, Floats, Integers, Tokens
from quantailor.processes import apart
from quantailor.processes.messages import doing
from quantailor.records import TensorInfo, layer_of

TOKEN_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
"""Looked up, not multiplied: llama-quantize ignores entries of a wrong length for these."""
_OUTPUT = "output.weight"
_BLOCK_PREFIX = "blk."
_GROUP = 8
"""Columns whose weights share a code in the types of fewest bits."""
_STATE_VERSION = 1


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


# What others make of it


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


# Computing it


@dataclass(eq=False)
class _Sums:
    sum2: Doubles
    sum: Doubles
    counts: Integers


class ImatrixState:
    """Sums that grow chunk by chunk; `to_bytes` and `from_bytes` lose nothing."""

    def __init__(self, *, chunk_size: int, process_output: bool) -> None:
        self.chunk_size = chunk_size
        self.process_output = process_output
        self.n_chunks_done = 0
        self._sums: dict[str, _Sums] = {}
        self._token_counts: Integers = np.zeros(0, dtype=np.int64)
        self._latest: tuple[tuple[int, int], Doubles, Doubles, Integers] | None = None
        self._within_chunk = False

    def add(self, activation: Activation) -> None:
        """Add the inputs of one matrix. Raises ImatrixError where they are not finite or change their shape."""
        sum2, total, counts = self._totals(activation)
        self._within_chunk = True
        sums = self._sums.get(activation.name)
        if sums is None:
            self._sums[activation.name] = _Sums(sum2.copy(), total.copy(), counts.copy())
            return
        if sums.sum2.shape != sum2.shape:
            raise ImatrixError(f"{activation.name} has inputs of {sum2.shape} after {sums.sum2.shape}", remedy="Compute it from the start")
        sums.sum2 += sum2
        sums.sum += total
        sums.counts += counts

    def _totals(self, activation: Activation) -> tuple[Doubles, Doubles, Integers]:
        """Sums of one activation; matrices that share an input (attention's q, k and v) are summed once."""
        if self._latest is None or self._latest[0] != activation.source:
            ids = activation.slice_ids
            totals = _plain_totals(activation.x[:, 0]) if ids is None else _sliced_totals(activation.x, ids, activation.n_slices)
            if not np.isfinite(totals[0]).all():
                raise ImatrixError(f"the inputs of {activation.name} are NaN or Inf", remedy="Check the model file; it may be damaged")
            self._latest = (activation.source, *totals)
        _, sum2, total, counts = self._latest
        return sum2, total, counts

    def finish_chunk(self, tokens: Tokens, n_vocab: int) -> None:
        """Count a chunk of tokens, (n_ctx,), as done."""
        if not self._token_counts.size:
            self._token_counts = np.zeros(n_vocab, dtype=np.int64)
        self._token_counts += np.bincount(tokens, minlength=n_vocab)
        self.n_chunks_done += 1
        self._latest = None
        self._within_chunk = False

    def check_whole(self) -> None:
        """Raise ImatrixError where a chunk failed half-way, so that the sums hold a part of it."""
        if self._within_chunk:
            raise ImatrixError("this unfinished importance matrix stopped within a chunk", remedy="Go on from the last saved state")

    def result(self, dataset: str) -> Imatrix:
        """The importance matrix of the chunks so far."""
        entries = {name: _entry(sums) for name, sums in sorted(self._sums.items())}
        counted = {name for name in entries if name.startswith(_BLOCK_PREFIX) or (name == _OUTPUT and self.process_output)}
        return Imatrix(
            entries={name: entries[name] for name in entries if name in counted},
            error_only={name: entries[name] for name in entries if name not in counted},
            token_counts=self._token_counts.copy() if self._token_counts.size else None,
            datasets=(dataset,),
            chunk_count=self.n_chunks_done,
            chunk_size=self.chunk_size,
        )

    def to_bytes(self) -> bytes:
        """All of it as an .npz archive without pickles. Raises ImatrixError within a chunk."""
        self.check_whole()
        header = {
            "version": _STATE_VERSION,
            "chunk_size": self.chunk_size,
            "process_output": self.process_output,
            "n_chunks_done": self.n_chunks_done,
            "names": list(self._sums),
        }
        arrays: dict[str, npt.NDArray[np.generic]] = {
            "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
            "token_counts": self._token_counts,
        }
        for index, sums in enumerate(self._sums.values()):
            arrays |= {f"sum2.{index}": sums.sum2, f"sum.{index}": sums.sum, f"counts.{index}": sums.counts}
        stream = io.BytesIO()
        np.savez(stream, allow_pickle=False, **arrays)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> ImatrixState:
        """The state that `to_bytes` wrote. Raises ImatrixError for anything else."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                header = json.loads(archive["header"].tobytes())
                if header["version"] != _STATE_VERSION:
                    raise ImatrixError(f"an unfinished importance matrix is of version {header['version']}", remedy="Start again")
                state = cls(chunk_size=int(header["chunk_size"]), process_output=bool(header["process_output"]))
                state.n_chunks_done = int(header["n_chunks_done"])
                state._token_counts = archive["token_counts"].astype(np.int64)
                for index, name in enumerate(header["names"]):
                    state._sums[str(name)] = _Sums(archive[f"sum2.{index}"], archive[f"sum.{index}"], archive[f"counts.{index}"])
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise ImatrixError("an unfinished importance matrix cannot be read", remedy="Start again") from error
        return state


def _entry(sums: _Sums) -> ImatrixEntry:
    # Files hold counts as float32; rounding them here keeps a matrix equal to the one read back.
    counts = sums.counts.astype(np.float32).astype(np.int64)
    return ImatrixEntry(sums.sum2.astype(np.float32), counts, sums.sum.astype(np.float32))


def _plain_totals(x: Floats) -> tuple[Doubles, Doubles, Integers]:
    """Sums over all rows: x is (n_tokens, n_cols)."""
    sum2 = np.einsum("ij,ij->j", x, x).astype(np.float64)
    return sum2[None], x.sum(axis=0, dtype=np.float64)[None], np.array([len(x)], dtype=np.int64)


def _sliced_totals(x: Floats, ids: Tokens, n_slices: int) -> tuple[Doubles, Doubles, Integers]:
    """Sums per slice: rows are sorted by slice and added up run by run. x is (n_tokens, n_inputs, n_cols)."""
    n_used, (_, n_inputs, n_cols) = ids.shape[1], x.shape
    flat = ids.reshape(-1)
    order = np.argsort(flat, kind="stable")
    rows = x[order // n_used, order % n_used % n_inputs]  # (n_tokens * n_used, n_cols), slice by slice
    counts = np.bincount(flat, minlength=n_slices).astype(np.int64)
    ends = np.cumsum(counts)
    sum2, total = np.zeros((n_slices, n_cols)), np.zeros((n_slices, n_cols))
    for index in np.flatnonzero(counts):
        part = rows[ends[index] - counts[index] : ends[index]]
        sum2[index] = np.einsum("ij,ij->j", part, part)
        total[index] = part.sum(axis=0, dtype=np.float64)
    return sum2, total, counts


def compute_imatrix(
    model_path: Path,
    chunks: Tokens,
    *,
    state: ImatrixState | None = None,
    on_chunk: Callable[[ImatrixState], None] | None = None,
    every: int = 1,
    control: Control = QUIET,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
    process_output: bool = False,
    dataset: str = "",
) -> Imatrix:
    """Run the chunks through the model and add up the squares of what its matrices multiply.

    Args:
        model_path: a base GGUF.
        chunks: (n_chunks, n_ctx) from `corpus.chunks`.
        state: where an interrupted run of the same chunks stopped.
        on_chunk: called with the state after every `every` chunks; it may save `state.to_bytes()`.
        every: see `on_chunk`.
        control: asked before every chunk whether to go on.
        n_threads: None takes all processors.
        n_gpu_layers: layers on a GPU, -1 for all.
        process_output: let the quantizer see the output matrix's inputs too, as `llama-imatrix --process-output`.
        dataset: the text's name, kept in the file.

    Raises:
        ImatrixError: inputs that are not finite, or a state of another run.
        InferenceError: llama.cpp cannot load or run the model.
    """
    n_chunks, n_ctx = chunks.shape
    state = state or ImatrixState(chunk_size=n_ctx, process_output=process_output)
    if (state.chunk_size, state.process_output) != (n_ctx, process_output) or state.n_chunks_done > n_chunks:
        raise ImatrixError("the unfinished importance matrix belongs to another run", remedy="Start again")
    state.check_whole()
    if state.n_chunks_done < n_chunks:
        control.check()
        step = every if on_chunk else n_chunks
        states = apart.stream(_states, model_path, chunks, state, step, n_threads=n_threads, n_gpu_layers=n_gpu_layers, control=control)
        for state in states:
            if on_chunk is not None and state.n_chunks_done % step == 0:
                on_chunk(state)
    return state.result(dataset)


def _states(
    model_path: Path, chunks: Tokens, state: ImatrixState, every: int, *, n_threads: int | None, n_gpu_layers: int, control: Control
) -> Iterator[ImatrixState]:
    """The state after every so many chunks, and after the last."""
    n_chunks, n_ctx = chunks.shape
    with LoadedModel(model_path, n_ctx=n_ctx, n_threads=n_threads, n_gpu_layers=n_gpu_layers, capture=state.add) as model:
        for index in range(state.n_chunks_done, n_chunks):
            doing(f"running chunk {index + 1} through {model_path}")
            model.decode(chunks[index])
            state.finish_chunk(chunks[index], model.n_vocab)
            if (index + 1) % every == 0 or index + 1 == n_chunks:
                yield state
            control.advance(index + 1, n_chunks, f"chunk {index + 1} of {n_chunks}")


# Statistics

_ACTIVE_ABOVE = 1e-5


@dataclass(frozen=True, slots=True)
class ImatrixStatistics:
    """One tensor's mean squared inputs in figures, as `llama-imatrix --show-statistics` defines them.

    Experts that no token reached are left out of all figures.
    """

    tensor: str
    sum_of_squares: float
    """Sum of E[x^2] over the inputs."""
    minimum: float
    maximum: float
    mean: float
    standard_deviation: float
    active_share: float
    """Share of the inputs with E[x^2] above 1e-5."""
    n_values: int
    entropy_bits: float
    """Of the inputs' shares of `total`."""
    normalized_entropy: float
    """Entropy over log2(n_values): 1 where all inputs count alike."""
    zd_share: float
    """Share of the inputs more than one standard deviation above the mean."""
    cosine: float | None
    """Cosine similarity of the sums with the same tensor of the previous layer; None where there is none."""
    n_experts: int
    n_unseen_experts: int


def statistics(imatrix: Imatrix) -> tuple[ImatrixStatistics, ...]:
    """Statistics of every tensor that some token reached, in the entries' order."""
    return tuple(
        _statistics(name, entry, imatrix.entries.get(_previous_layer(name) or ""))
        for name, entry in imatrix.entries.items()
        if entry.counts.any()
    )


def _statistics(name: str, entry: ImatrixEntry, previous: ImatrixEntry | None) -> ImatrixStatistics:
    seen = entry.counts > 0
    values = (entry.sum2[seen] / entry.counts[seen, None].astype(np.float64)).reshape(-1)
    total, mean, deviation = float(values.sum()), float(values.mean()), float(values.std())
    shares = values[values > 0] / total if total > 0 else np.ones(1)
    entropy = float(-(shares * np.log2(shares)).sum())
    return ImatrixStatistics(
        tensor=name,
        sum_of_squares=total,
        minimum=float(values.min()),
        maximum=float(values.max()),
        mean=mean,
        standard_deviation=deviation,
        active_share=float((values > _ACTIVE_ABOVE).mean()),
        n_values=values.size,
        entropy_bits=entropy,
        normalized_entropy=entropy / math.log2(values.size) if values.size > 1 else 0.0,
        zd_share=float((values > mean + deviation).mean()) if deviation > 0 else 0.0,
        cosine=_cosine(entry, previous),
        n_experts=len(entry.counts),
        n_unseen_experts=int(np.count_nonzero(~seen)),
    )


def _previous_layer(name: str) -> str | None:
    layer = layer_of(name)
    return name.replace(f"{_BLOCK_PREFIX}{layer}.", f"{_BLOCK_PREFIX}{layer - 1}.", 1) if layer else None


def _cosine(entry: ImatrixEntry, previous: ImatrixEntry | None) -> float | None:
    if previous is None or previous.sum2.size != entry.sum2.size:
        return None
    ours, theirs = entry.sum2.astype(np.float64).reshape(-1), previous.sum2.astype(np.float64).reshape(-1)
    norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(ours @ theirs) / norms if norms else None
