"""Computing the importance matrix: sums over what a model's matrices multiply, chunk by chunk.

Computed as llama-imatrix computes it: the same chunks, every token of a chunk counted, one sum of squares per
input column, one set of sums and a count per expert. Sums are kept in float64 while they grow and become float32 in the
finished matrix. A state written to bytes and read back continues to the same bits as a run that was never interrupted.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np
import numpy.typing as npt

from quantailor.analysis.importance.imatrix import BLOCK_PREFIX, Imatrix, ImatrixEntry
from quantailor.control import QUIET, Control, Watched
from quantailor.errors import ImatrixError
from quantailor.ggml.devices import PROCESSOR, Devices
from quantailor.ggml.observing import Activation
from quantailor.ggml.runtime import LoadedModel
from quantailor.numerics import Doubles, Floats, Integers, Tokens
from quantailor.processes.crews import HERE, Bench, Executor, ModelFiles, Work
from quantailor.processes.messages import doing

_OUTPUT = "output.weight"
_STATE_VERSION = 1


Totals = tuple[Doubles, Doubles, Integers]
"""Of one matrix's inputs, by slice: sums of squares and sums, (n_slices, n_cols), and how many inputs, (n_slices,)."""


class InputTotals:
    """Adds up inputs; matrices that share one (attention's q, k and v) are added up once."""

    def __init__(self) -> None:
        self._source: tuple[int, int] | None = None
        self._latest: dict[int, Totals] = {}
        """By the chunk, of those that run side by side."""

    def of(self, activation: Activation) -> Totals:
        """Totals of an activation, the very object for the same input. Raises ImatrixError where it is not finite."""
        if self._source != activation.source:
            self._source, self._latest = activation.source, {}
        if activation.sequence not in self._latest:
            ids = activation.slice_ids
            totals = _plain_totals(activation.x[:, 0]) if ids is None else _sliced_totals(activation.x, ids, activation.n_slices)
            if not np.isfinite(totals[0]).all():
                raise ImatrixError(f"the inputs of {activation.name} are NaN or Inf", remedy="Check the model file; it may be damaged")
            self._latest[activation.sequence] = totals
        return self._latest[activation.sequence]


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
        self._totals = InputTotals()
        self._within_chunk = False

    def add(self, activation: Activation) -> None:
        """Add the inputs of one matrix. Raises ImatrixError where they are not finite or change their shape."""
        self.add_totals(activation.name, self._totals.of(activation))

    def add_totals(self, name: str, totals: Totals) -> None:
        """The same where its totals are known. Raises ImatrixError where they change their shape."""
        sum2, total, counts = totals
        self._within_chunk = True
        sums = self._sums.get(name)
        if sums is None:
            self._sums[name] = _Sums(sum2.copy(), total.copy(), counts.copy())
            return
        if sums.sum2.shape != sum2.shape:
            raise ImatrixError(f"{name} has inputs of {sum2.shape} after {sums.sum2.shape}", remedy="Compute it from the start")
        sums.sum2 += sum2
        sums.sum += total
        sums.counts += counts

    def finish_chunk(self, tokens: Tokens, n_vocab: int) -> None:
        """Count a chunk of tokens, (n_ctx,), as done."""
        if not self._token_counts.size:
            self._token_counts = np.zeros(n_vocab, dtype=np.int64)
        self._token_counts += np.bincount(tokens, minlength=n_vocab)
        self.n_chunks_done += 1
        self._totals = InputTotals()
        self._within_chunk = False

    def check_whole(self) -> None:
        """Raise ImatrixError where a chunk failed half-way, so that the sums hold a part of it."""
        if self._within_chunk:
            raise ImatrixError("this unfinished importance matrix stopped within a chunk", remedy="Go on from the last saved state")

    def result(self, dataset: str) -> Imatrix:
        """The importance matrix of the chunks so far."""
        entries = {name: _entry(sums) for name, sums in sorted(self._sums.items())}
        counted = {name for name in entries if name.startswith(BLOCK_PREFIX) or (name == _OUTPUT and self.process_output)}
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


def _plain_totals(x: Floats) -> Totals:
    """Sums over all rows: x is (n_tokens, n_cols)."""
    sum2 = np.einsum("ij,ij->j", x, x).astype(np.float64)
    return sum2[None], x.sum(axis=0, dtype=np.float64)[None], np.array([len(x)], dtype=np.int64)


def _sliced_totals(x: Floats, ids: Tokens, n_slices: int) -> Totals:
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
    work: ImatrixWork,
    *,
    state: ImatrixState | None = None,
    on_chunk: Callable[[ImatrixState], None] | None = None,
    every: int = 1,
    control: Control = QUIET,
    process_output: bool = False,
    dataset: str = "",
    executor: Executor = HERE,
) -> Imatrix:
    """Run the chunks through the model and add up the squares of what its matrices multiply.

    Args:
        work: the chunks and a base GGUF.
        state: where an interrupted run of the same chunks stopped.
        on_chunk: called with the state after every `every` chunks; it may save `state.to_bytes()`.
        every: see `on_chunk`.
        control: asked before every chunk whether to go on.
        process_output: let the quantizer see the output matrix's inputs too, as `llama-imatrix --process-output`.
        dataset: the text's name, kept in the file.
        executor: who runs the chunks. Totals are added up in the text's order, so that the result does not depend on it.

    Raises:
        ImatrixError: inputs that are not finite, or a state of another run.
        InferenceError: llama.cpp cannot load or run the model.
    """
    n_chunks, n_ctx = work.chunks.shape
    state = state or ImatrixState(chunk_size=n_ctx, process_output=process_output)
    if (state.chunk_size, state.process_output) != (n_ctx, process_output) or state.n_chunks_done > n_chunks:
        raise ImatrixError("the unfinished importance matrix belongs to another run", remedy="Start again")
    state.check_whole()
    if state.n_chunks_done < n_chunks:
        control.check()
        with executor.on(work) as crew:
            early: dict[int, ChunkTotals] = {}
            for found in crew.do(range(state.n_chunks_done, n_chunks), control=Watched(control)):
                early[found.index] = found
                while (ours := early.pop(state.n_chunks_done, None)) is not None:
                    for name, number in ours.added:
                        state.add_totals(name, ours.totals[number])
                    state.finish_chunk(work.chunks[ours.index], cast(int, crew.facts))
                    if on_chunk is not None and state.n_chunks_done % every == 0:
                        on_chunk(state)
                    control.advance(state.n_chunks_done, n_chunks, f"chunk {state.n_chunks_done} of {n_chunks}")
    return state.result(dataset)


@dataclass(frozen=True, eq=False, slots=True)
class ChunkTotals:
    """What one chunk adds."""

    index: int
    totals: tuple[Totals, ...]
    """Of its distinct inputs."""
    added: tuple[tuple[str, int], ...]
    """Matrices with the number of their input, in the graph's order."""


@dataclass(frozen=True, eq=False)
class ImatrixWork(Work[int, ChunkTotals]):
    """Chunks of a text to run through a model; a task is a chunk's number."""

    model: ModelFiles
    chunks: Tokens
    """(n_chunks, n_ctx) from `corpus.chunks`."""
    n_threads: int | None = None
    """None takes all processors."""
    devices: Devices = PROCESSOR
    """What takes layers from the processor."""
    n_together: int = 1
    """Chunks that run side by side, where the model is larger than memory."""
    is_apart: ClassVar[bool] = True

    def bench(self) -> _ImatrixBench:
        """Load the model. Raises InferenceError where llama.cpp cannot."""
        return _ImatrixBench(self)

    def on_threads(self, n_threads: int) -> ImatrixWork:
        """The same with so many threads, unless it says how many."""
        return replace(self, n_threads=self.n_threads or n_threads)

    def key(self, task: int) -> int:
        """The chunk's number."""
        return task

    def key_of(self, item: ChunkTotals) -> int:
        """The same."""
        return item.index

    def group(self, task: int) -> int:
        """Each by itself."""
        return task

    def weight(self, task: int) -> float:
        """Chunks of one text take the same time."""
        del task
        return 1.0

    def label(self, task: int) -> str:
        """The chunk."""
        return f"chunk {task + 1}"


class _ImatrixBench(Bench[int, ChunkTotals]):
    """A loaded model whose inputs are added up chunk by chunk."""

    def __init__(self, work: ImatrixWork) -> None:
        self._chunks, self._path, self._n_together = work.chunks, work.model.path, work.n_together
        self._inputs = InputTotals()
        self._totals: list[list[Totals]] = []
        self._added: list[list[tuple[str, int]]] = []
        self._model = LoadedModel(
            self._path,
            n_ctx=work.chunks.shape[1],
            n_threads=work.n_threads,
            devices=work.devices,
            capture=self._see,
            ends_before_output=True,
            n_together=work.n_together,
        )

    def facts(self) -> int:
        return self._model.n_vocab

    def do(self, tasks: Sequence[int], *, control: Control) -> Iterator[ChunkTotals]:
        for begin in range(0, len(tasks), self._n_together):
            control.check()
            indexes = tasks[begin : begin + self._n_together]
            self._inputs, self._totals, self._added = InputTotals(), [[] for _ in indexes], [[] for _ in indexes]
            doing(f"running {told_chunks(indexes)} through {self._path}")
            self._model.decode_together(self._chunks[list(indexes)])
            for index, totals, added in zip(indexes, self._totals, self._added, strict=True):
                yield ChunkTotals(index, tuple(totals), tuple(added))

    def _see(self, activation: Activation) -> None:
        totals, own = self._inputs.of(activation), self._totals[activation.sequence]
        if not own or own[-1] is not totals:
            own.append(totals)
        self._added[activation.sequence].append((activation.name, len(own) - 1))

    def close(self) -> None:
        self._model.close()


def told_chunks(indexes: Sequence[int]) -> str:
    """ "chunk 3", or "chunks 3 to 6", counted from 1."""
    return f"chunk {indexes[0] + 1}" if len(indexes) == 1 else f"chunks {indexes[0] + 1} to {indexes[-1] + 1}"
