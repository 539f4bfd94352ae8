"""The importance matrix and the covariances of all inputs, computed in one run of a text through a model.

All work happens in the child process, which writes both results to files: nothing large crosses the pipe. Three files belong to a run
that ends in `PLACE.gguf`: `PLACE.state`, the sums as of some chunk, replaced whole every now and then; `PLACE.unfinished`, the file in
the making, to which what is summed up was written; and the file itself. A run that finds them goes on and ends in the same bytes.

The sums of all inputs may need more memory than there is. Then the matrices are summed in turns, as many at a time as fit, and the
text runs through the model once for each turn, as far as the last of these matrices; the importance matrix comes out of the first.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from quantailor import files
from quantailor.analysis.covariances.covariance_file import Description, Input, encoded, file_layout, plan_file
from quantailor.analysis.covariances.embeddings import EMBEDDINGS, add_readers, readers, with_lookups
from quantailor.analysis.covariances.sums import PANEL, add_products, diagonal, packed_size
from quantailor.analysis.importance.computing import ImatrixState, told_chunks
from quantailor.analysis.importance.imatrix import TOKEN_EMBEDDINGS, Imatrix, ImatrixEntry
from quantailor.control import Control
from quantailor.errors import CovarianceError, ImatrixError
from quantailor.ggml.devices import PROCESSOR, Devices
from quantailor.ggml.observing import Activation, Enough
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.gguf_format import aligned
from quantailor.models.gguf_writer import PartLayout
from quantailor.numerics import Doubles, Floats, Tokens
from quantailor.processes.messages import doing, remove_when_left
from quantailor.records import TensorInfo

BUDGET_BYTES = 3 << 29
"""Memory for sums, beside the model."""
SAVE_SECONDS = 20.0
"""Between two saved states, and at the least so many times what saving takes."""
SAVE_SHARE = 20.0
LOOK_TOKENS = 16
"""Enough to see which matrices share an input."""
_SHARING = re.compile(r"(attn|ffn)_(?:q|k|v|gate|up)(?=[_.])")
_STATE_VERSION = 4


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a computation is of; two with equal options end in the same bytes."""

    model_path: Path
    """A base GGUF."""
    model: str
    """The model's fingerprint."""
    place: Path
    """The file to write; the unfinished ones lie beside it."""
    names: frozenset[str] | None = None
    """Tensors whose inputs are wanted; None for all that are multiplied."""
    process_output: bool = False
    """See `compute_imatrix`."""
    dataset: str = ""
    """The text's name, kept in the files."""
    n_threads: int | None = None
    """None takes all processors; the results do not depend on it."""
    devices: Devices = PROCESSOR
    """What takes layers from the processor."""
    budget_bytes: int = BUDGET_BYTES
    """Memory for sums, beside the model; where they need more, the text runs several times."""
    save_seconds: float = SAVE_SECONDS
    """Between two saved states."""
    n_together: int = 1
    """Chunks that run side by side, where the model is larger than memory; no bit depends on it."""

    @property
    def state(self) -> Path:
        return self.place.with_suffix(".state")

    @property
    def unfinished(self) -> Path:
        return self.place.with_suffix(".unfinished")


def forget_run(output: Path) -> None:
    """Remove what a run left beside the file that it wrote."""
    for suffix in (".state", ".unfinished"):
        with files.writing(output):
            output.with_suffix(suffix).unlink(missing_ok=True)


def expected_bytes(tensors: Sequence[TensorInfo]) -> tuple[int, int]:
    """Memory for all sums at once and size of the file, from the tensors whose inputs are wanted.

    Attention's q, k and v are taken to share an input, and so are gate and up.
    """
    by_input: dict[tuple[str, int, int], Input] = {}
    for tensor in tensors:
        if tensor.name in TOKEN_EMBEDDINGS and tensor.name != EMBEDDINGS:
            continue
        key = _SHARING.sub(r"\1", tensor.name)
        by_input[key, tensor.n_slices, tensor.n_cols] = Input(key, (tensor.name,), tensor.n_slices, tensor.n_cols)
    in_memory = sum(4 * one.n_matrices * packed_size(one.n_cols) for one in by_input.values())
    return in_memory, sum(one.n_matrices * (4 * one.n_cols + 2 * one.n_pairs) for one in by_input.values())


@dataclass(eq=False)
class Sums:
    """One matrix that is summed in this turn."""

    number: int
    """Its input's."""
    index: int
    """Which of the input's matrices."""
    packed: Floats


@dataclass(eq=False)
class RunProgress:
    """How far a run is: what its state file holds."""

    imatrix: ImatrixState
    inputs: tuple[Input, ...] = ()
    n_rows: list[int] = field(default_factory=list)
    """Rows of each input so far, all of its matrices together; of token embeddings, rows that read them."""
    turn: int = 0
    n_chunks_done: int = 0
    """In this turn."""
    digests: list[str] = field(default_factory=list)
    """Of the matrices that were written."""
    sums: list[Sums] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    """Turns that others have taken, in any order."""
    sees_all: bool = True
    """Whether rows are counted in this turn."""


def calibrate(run: Calibration, chunks: Tokens, *, control: Control) -> ImatrixState:
    """What happens in the child process, with chunks (n_chunks, n_ctx). Gives the state of the importance matrix at the end."""
    n_chunks, n_ctx = chunks.shape
    identity = identity_of(run, chunks)
    progress = saved(run, identity) or RunProgress(ImatrixState(chunk_size=n_ctx, process_output=run.process_output))
    if not progress.inputs or progress.turn < len(turns_of(run, progress.inputs)):
        watching = Watching(run)
        with (
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(run.n_threads or os.cpu_count() or 1) as pool,
            LoadedModel(
                run.model_path,
                n_ctx=n_ctx,
                n_threads=run.n_threads,
                devices=run.devices,
                capture=watching.see,
                ends_before_output=True,
                n_together=run.n_together,
            ) as model,
        ):
            if not progress.inputs:
                doing(f"looking at the inputs of {run.model_path}")
                model.decode(chunks[0, :LOOK_TOKENS])
                progress.inputs = watching.inputs()
                progress.n_rows = [0] * len(progress.inputs)
            for turn in turns_of(run, progress.inputs)[progress.turn :]:
                if not progress.sums:
                    progress.sums = [
                        Sums(number, index, np.zeros(packed_size(progress.inputs[number].n_cols), dtype=np.float32))
                        for number, index in turn
                    ]
                watching.begin(progress, pool)
                for _ in _finished_chunks(run, progress, chunks, model, control):
                    save(run, progress, identity)
                _write_turn(run, progress, n_chunks, pool)
                progress.turn, progress.n_chunks_done, progress.sums, progress.sees_all = progress.turn + 1, 0, [], False
                save(run, progress, identity)
    finish(run, progress, n_chunks)
    return progress.imatrix


def _finished_chunks(run: Calibration, progress: RunProgress, chunks: Tokens, model: LoadedModel, control: Control) -> Iterator[None]:
    """Run the rest of a turn; pauses whenever the state should be saved."""
    n_turns, n_chunks = len(turns_of(run, progress.inputs)), len(chunks)
    saved, took = time.monotonic(), 0.0
    for begin in range(progress.n_chunks_done, n_chunks, run.n_together):
        number = min(n_chunks, begin + run.n_together)
        doing(f"running {told_chunks(range(begin, number))} through {run.model_path}")
        model.decode_together(chunks[begin:number])
        for tokens in chunks[begin:number] if progress.turn == 0 else ():
            progress.imatrix.finish_chunk(tokens, model.n_vocab)
        progress.n_chunks_done = number
        now = time.monotonic()
        if number < n_chunks and now - saved >= max(run.save_seconds, SAVE_SHARE * took):
            yield
            saved = time.monotonic()
            took = saved - now
        where = f"chunk {number} of {n_chunks}" + (f", turn {progress.turn + 1} of {n_turns}" if n_turns > 1 else "")
        control.advance(progress.turn * n_chunks + number, n_turns * n_chunks, where)


def turns_of(run: Calibration, inputs: tuple[Input, ...]) -> list[list[tuple[int, int]]]:
    """The matrices, (input, index), that are summed together, as many as the budget allows and at least one."""
    turns: list[list[tuple[int, int]]] = []
    room = 0
    for number, one in enumerate(inputs):
        size = 4 * packed_size(one.n_cols)
        for index in range(one.n_matrices):
            if not turns or size > room:
                turns.append([])
                room = run.budget_bytes
            turns[-1].append((number, index))
            room -= size
    return turns


class Watching:
    """Sees every input of the model: first to find out which matrices share one, then to sum what is wanted in this turn."""

    def __init__(self, run: Calibration) -> None:
        self._run = run
        self._seen: dict[str, tuple[list[str], int, int]] = {}
        self._latest: tuple[tuple[int, int], list[str]] | None = None
        self._summing: tuple[RunProgress, ThreadPoolExecutor] | None = None
        self._numbers: dict[str, int] = {}
        self._wanted: dict[int, list[Sums]] = {}
        self._last: int | None = None

    def inputs(self) -> tuple[Input, ...]:
        """What was seen, in the graph's order. Raises CovarianceError where it is nothing."""
        if not self._seen:
            raise CovarianceError(f"{self._run.model_path} has no weights whose inputs llama.cpp shows", remedy="Give a language model")
        inputs = tuple(Input(key, tuple(names), n_slices, n_cols) for key, (names, n_slices, n_cols) in self._seen.items())
        return (*self._embeddings(inputs), *inputs)  # in the first turn, which sees the whole text anyway

    def _embeddings(self, inputs: tuple[Input, ...]) -> Iterator[Input]:
        """Token embeddings that are wanted, if they are looked up alone and read by matrices that were seen."""
        if self._run.names is not None and EMBEDDINGS not in self._run.names:
            return
        widths = {one.n_cols for one in inputs if readers(one.tensors)}
        with closing(GGUFSource(self._run.model_path)) as source:
            wide = [tensor.n_cols for tensor in source.tensors if tensor.name == EMBEDDINGS]
        if set(wide) == widths and not any(EMBEDDINGS in one.tensors for one in inputs):
            yield Input(EMBEDDINGS, (EMBEDDINGS,), 1, wide[0])

    def begin(self, progress: RunProgress, pool: ThreadPoolExecutor) -> None:
        """From now on add to these sums, which may be others than before."""
        self._summing = progress, pool
        self._numbers = {one.key: number for number, one in enumerate(progress.inputs)}
        self._wanted = {}
        for sums in progress.sums:
            self._wanted.setdefault(sums.number, []).append(sums)
        # The importance matrix, which comes out of the first turn, needs all inputs; on a GPU a graph has several parts.
        self._last = max(self._wanted) if progress.turn and not self._run.devices.is_used else None

    def see(self, activation: Activation) -> None:
        """One activation. Raises ImatrixError where it is not finite."""
        if self._summing is None:
            self._look(activation)
        else:
            self._add(activation, *self._summing)

    def _look(self, activation: Activation) -> None:
        names = self._latest[1] if self._latest is not None and self._latest[0] == activation.source else []
        if self._run.names is None or activation.name in self._run.names:
            if not any(activation.name in known for known, _, _ in self._seen.values()):
                names.append(activation.name)
            if names == [activation.name]:
                self._seen[activation.name] = names, activation.n_slices, activation.x.shape[2]
        self._latest = activation.source, names

    def _add(self, activation: Activation, progress: RunProgress, pool: ThreadPoolExecutor) -> None:
        if progress.turn == 0:
            progress.imatrix.add(activation)
        number = self._numbers.get(activation.name)
        if number is None:  # not wanted, or summed under the first tensor with this input
            return
        everything = activation.x.reshape(-1, activation.x.shape[2])
        if progress.sees_all:
            progress.n_rows[number] += len(everything)
        wanted = self._wanted.get(number, [])
        if wanted and progress.inputs[number].n_slices == 1:
            add_products(pool, [(wanted[0].packed, everything)])
        elif wanted:
            rows = _rows_of_slices(activation)
            add_products(pool, [(sums.packed, everything if sums.index == activation.n_slices else rows(sums.index)) for sums in wanted])
        if number == self._last:
            raise Enough


def _rows_of_slices(activation: Activation) -> Callable[[int], Floats]:
    """The rows of x that went through a slice, (n_rows, n_cols), by the slice's number."""
    ids, x = activation.slice_ids, activation.x
    if ids is None:
        raise CovarianceError(f"{activation.name} has several matrices that llama.cpp does not tell apart")
    n_used, n_inputs = ids.shape[1], x.shape[1]
    flat = ids.reshape(-1)
    order = np.argsort(flat, kind="stable")
    ends = np.searchsorted(flat[order], np.arange(activation.n_slices), side="right")

    def rows(index: int) -> Floats:
        places = order[ends[index - 1] if index else 0 : ends[index]]
        found: Floats = x[places // n_used, places % n_used % n_inputs]
        return found

    return rows


# What is written


@dataclass(frozen=True, eq=False, slots=True)
class Matrix:
    """One of an input's matrices as it goes into the file."""

    number: int
    """The input's."""
    index: int
    mean_squares: Floats
    """(n_cols,)."""
    correlations: npt.NDArray[np.int16]
    """(n_pairs,)."""
    digest: str


def matrices_of(run: Calibration, progress: RunProgress, imatrix: Imatrix, n_chunks: int, pool: ThreadPoolExecutor) -> Iterator[Matrix]:
    """What a turn summed. Raises ImatrixError where it is not finite."""
    entries = {**imatrix.entries, **imatrix.error_only}
    for sums in progress.sums:
        one, packed = progress.inputs[sums.number], sums.packed
        if _is_looked_up(one, entries):
            with closing(GGUFSource(run.model_path)) as source:
                progress.n_rows[sums.number] = add_readers(pool, packed, source, _readers_shares(progress, entries, n_chunks))
            mean_squares = diagonal(packed, one.n_cols)
        else:
            mean_squares = _mean_squares([entries[name] for name in one.tensors], one, sums.index)
        if not np.isfinite(diagonal(packed, one.n_cols)).all():
            raise ImatrixError(f"the inputs of {one.key} are NaN or Inf", remedy="Check the model file; it may be damaged")
        if EMBEDDINGS in one.tensors and not _is_looked_up(one, entries):
            with closing(GGUFSource(run.model_path)) as source:
                packed = with_lookups(pool, packed, source, _readers_shares(progress, entries, n_chunks))
            mean_squares = diagonal(packed, one.n_cols) / np.float32(max(1, int(entries[EMBEDDINGS].counts.sum())))
        yield Matrix(sums.number, sums.index, mean_squares, *encoded(packed, mean_squares))


def _write_turn(run: Calibration, progress: RunProgress, n_chunks: int, pool: ThreadPoolExecutor) -> None:
    """Write the matrices that this turn summed to their places in the unfinished file."""
    if progress.turn == 0:
        begin_file(run, progress, n_chunks)
    write_matrices(run, progress, matrices_of(run, progress, progress.imatrix.result(""), n_chunks, pool), n_chunks)


def begin_file(run: Calibration, progress: RunProgress, n_chunks: int) -> None:
    with files.writing(run.unfinished):
        run.unfinished.parent.mkdir(parents=True, exist_ok=True)
        run.unfinished.write_bytes(b"")
        os.truncate(run.unfinished, _plan(run, progress, n_chunks).size_bytes)
    progress.digests = [""] * sum(one.n_matrices for one in progress.inputs)


def write_matrices(run: Calibration, progress: RunProgress, matrices: Iterable[Matrix], n_chunks: int) -> None:
    planned = _plan(run, progress, n_chunks)
    firsts = [0, *itertools.accumulate(one.n_matrices for one in progress.inputs)]
    with files.writing(run.unfinished), run.unfinished.open("r+b") as stream:
        for each in matrices:
            progress.digests[firsts[each.number] + each.index] = each.digest
            for tensor, row in ((2 * each.number, each.mean_squares), (2 * each.number + 1, each.correlations)):
                stream.seek(_offset(planned, tensor) + each.index * row.nbytes)
                stream.write(np.ascontiguousarray(row).data)
        stream.flush()
        os.fsync(stream.fileno())


def _is_looked_up(one: Input, entries: Mapping[str, ImatrixEntry]) -> bool:
    """Whether these are token embeddings that nothing is multiplied with."""
    return one.key == EMBEDDINGS and EMBEDDINGS not in entries


def _readers_shares(progress: RunProgress, entries: Mapping[str, ImatrixEntry], n_chunks: int) -> dict[str, Doubles]:
    """Of each matrix that reads embeddings, the part of tokens that go through each of its slices, (n_slices,)."""
    n_tokens = n_chunks * progress.imatrix.chunk_size
    return {name: entries[name].counts / n_tokens for name in readers(name for one in progress.inputs for name in one.tensors)}


def _mean_squares(entries: list[ImatrixEntry], one: Input, index: int) -> Floats:
    """The diagonal of one of an input's matrices as the importance matrix has it, (n_cols,)."""
    first = entries[0]
    if any(not np.array_equal(entry.sum2, first.sum2) for entry in entries):
        raise CovarianceError(f"{', '.join(one.tensors)} no longer share an input", remedy="Please report this as a bug")
    chosen = slice(index, index + 1) if index < one.n_slices else slice(None)
    count = np.float32(max(1, int(first.counts[chosen].sum())))
    means: Floats = first.sum2[chosen].sum(axis=0, dtype=np.float64).astype(np.float32) / count
    return means


def _plan(run: Calibration, progress: RunProgress, n_chunks: int) -> PartLayout:
    return plan_file(
        progress.inputs, model=run.model, datasets=(run.dataset,), chunk_count=n_chunks, chunk_size=progress.imatrix.chunk_size
    )


def _offset(planned: PartLayout, number: int) -> int:
    """Where a tensor's data begin."""
    return len(planned.header) + sum(aligned(tensor.size_bytes, planned.alignment) for tensor in planned.tensors[:number])


def finish(run: Calibration, progress: RunProgress, n_chunks: int) -> None:
    """Put the header before the data and give the file its name; nothing where that was done before."""
    imatrix = progress.imatrix.result("")
    entries = {**imatrix.entries, **imatrix.error_only}
    counts, digests, taken = [], [], 0
    for one, n_rows in zip(progress.inputs, progress.n_rows, strict=True):
        own = (n_rows,) if _is_looked_up(one, entries) else tuple(entries[one.key].counts.tolist())
        counts.append(own if one.n_matrices == 1 else (*own, n_rows))
        digests.append(tuple(progress.digests[taken : taken + one.n_matrices]))
        taken += one.n_matrices
    description = Description(
        run.model, progress.inputs, tuple(counts), tuple(digests), (run.dataset,), n_chunks, progress.imatrix.chunk_size
    )
    if not run.unfinished.exists():
        return
    with files.writing(run.place):
        with run.unfinished.open("r+b") as stream:
            stream.write(file_layout(description).header)
            stream.flush()
            os.fsync(stream.fileno())
        run.unfinished.replace(run.place)
        files.sync_folder(run.place.parent)


# The state of a run


def identity_of(run: Calibration, chunks: Tokens) -> str:
    """What a saved state must be of; chunks are (n_chunks, n_ctx)."""
    names = None if run.names is None else sorted(run.names)
    options = [_STATE_VERSION, run.model, names, run.process_output, run.devices.is_used, run.budget_bytes, PANEL, chunks.shape]
    return hashlib.sha256(json.dumps(options).encode() + np.ascontiguousarray(chunks).tobytes()).hexdigest()


def save(run: Calibration, progress: RunProgress, identity: str) -> None:
    header = {
        "identity": identity,
        "inputs": [[one.key, one.tensors, one.n_slices, one.n_cols] for one in progress.inputs],
        "n_rows": progress.n_rows,
        "turn": progress.turn,
        "n_chunks_done": progress.n_chunks_done,
        "digests": progress.digests,
        "done": progress.done,
    }
    arrays: dict[str, npt.NDArray[np.generic]] = {
        "header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
        "imatrix": np.frombuffer(progress.imatrix.to_bytes(), dtype=np.uint8),
    }
    arrays |= {f"sums.{place}": sums.packed for place, sums in enumerate(progress.sums)}
    remove_when_left(files.temporary_path(run.state))
    with files.whole_file(run.state) as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    remove_when_left(None)


def saved(run: Calibration, identity: str) -> RunProgress | None:
    """The progress of a run of the same; None where there is none that can be read."""
    try:
        with np.load(run.state, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            if header["identity"] != identity:
                return None
            inputs = tuple(Input(key, tuple(names), n_slices, n_cols) for key, names, n_slices, n_cols in header["inputs"])
            progress = RunProgress(ImatrixState.from_bytes(archive["imatrix"].tobytes()), inputs, list(header["n_rows"]))
            progress.turn, progress.n_chunks_done = int(header["turn"]), int(header["n_chunks_done"])
            progress.digests, progress.done = list(header["digests"]), list(header["done"])
            progress.sees_all = progress.turn == 0
            turns = turns_of(run, inputs)
            if progress.n_chunks_done:
                progress.sums = [Sums(*one, archive[f"sums.{place}"]) for place, one in enumerate(turns[progress.turn])]
            is_written = run.unfinished.is_file() or (progress.turn == len(turns) and run.place.is_file())
            return progress if is_written or (progress.turn == 0 and not progress.done) else None
    except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile, ImatrixError):
        return None
