"""A calibration, here in one process of its own or in turns that others take.

Where the sums of all inputs do not fit the memory that they are given, the text runs once for each turn (see `capture`). Others then take
whole turns: each matrix is summed by one of them over the whole text, so that no sum depends on who does it, nor on how many they are. The
importance matrix, whose mean squares every turn needs, comes first, chunk by chunk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
from threadpoolctl import threadpool_limits

from quantailor import files
from quantailor.analysis.covariances.capture import (
    LOOK_TOKENS,
    Calibration,
    Matrix,
    RunProgress,
    Sums,
    Watching,
    begin_file,
    calibrate,
    expected_bytes,
    finish,
    identity_of,
    matrices_of,
    save,
    saved,
    turns_of,
    write_matrices,
)
from quantailor.analysis.covariances.covariance_file import Input
from quantailor.analysis.covariances.sums import packed_size
from quantailor.analysis.importance.computing import ImatrixState, ImatrixWork, compute_imatrix
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.control import QUIET, Control
from quantailor.ggml.devices import PROCESSOR, Devices
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.opening import model_files
from quantailor.numerics import Tokens
from quantailor.processes import apart
from quantailor.processes.crews import HERE, Bench, Executor, ModelFiles, Work
from quantailor.processes.messages import doing

_SAVE_CHUNKS = 4
"""Between two saved states of an importance matrix that others compute."""
_CHUNK_PATIENCE_SECONDS = 60.0


def compute_calibration(run: Calibration, chunks: Tokens, *, control: Control = QUIET, executor: Executor = HERE) -> Imatrix:
    """Run the chunks, (n_chunks, n_ctx), through the model, write the covariances of its inputs and return the importance matrix.

    The matrix is that of `compute_imatrix`, bit for bit. An interrupted run goes on where its state was saved; `forget_run` removes
    what is left beside the file when both results are kept. Others than this machine are asked where the text runs several times: then each
    takes whole turns, so that no sum depends on how many they are.

    Raises:
        ImatrixError: inputs that are not finite.
        CovarianceError: nothing is multiplied with any of these tensors.
        InferenceError: llama.cpp cannot load or run the model.
        OutputError: a file cannot be written.
    """
    control.check()
    n_turns = 1 if executor is HERE else _expected_turns(run)
    if n_turns == 1:
        return apart.call(calibrate, run, chunks, control=control).result(run.dataset)
    return _calibrate_elsewhere(run, chunks, n_turns, control, executor).result(run.dataset)


@dataclass(frozen=True, eq=False, slots=True)
class Turn:
    """What came of one turn."""

    number: int
    matrices: tuple[Matrix, ...]
    n_rows: tuple[tuple[int, int], ...]
    """Inputs with how many rows they had, all of their matrices together."""


@dataclass(frozen=True, eq=False)
class TurnWork(Work[int, Turn]):
    """Turns of a calibration; a task is a turn's number."""

    model: ModelFiles
    chunks: Tokens
    """(n_chunks, n_ctx)."""
    imatrix: Imatrix
    """Of these chunks."""
    names: frozenset[str] | None
    budget_bytes: int
    n_threads: int | None = None
    devices: Devices = PROCESSOR
    is_apart: ClassVar[bool] = True

    @property
    def patience_seconds(self) -> float:
        """A turn runs the whole text."""
        return max(_CHUNK_PATIENCE_SECONDS * len(self.chunks), super().patience_seconds)

    def bench(self) -> _TurnBench:
        """Load the model. Raises InferenceError where llama.cpp cannot."""
        return _TurnBench(self)

    def on_threads(self, n_threads: int) -> TurnWork:
        """The same with so many threads, unless it says how many."""
        return replace(self, n_threads=self.n_threads or n_threads)

    def key(self, task: int) -> int:
        """The turn's number."""
        return task

    def key_of(self, item: Turn) -> int:
        """The same."""
        return item.number

    def group(self, task: int) -> int:
        """Each by itself."""
        return task

    def weight(self, task: int) -> float:
        """In chunks; a turn runs all of them."""
        del task
        return float(len(self.chunks))

    def label(self, task: int) -> str:
        """The turn."""
        return f"turn {task + 1}"


class _TurnBench(Bench[int, Turn]):
    """A loaded model whose inputs were looked at."""

    def __init__(self, work: TurnWork) -> None:
        self._work, self._stack = work, ExitStack()
        self._run = Calibration(
            work.model.path, work.model.fingerprint, Path(), work.names, devices=work.devices, budget_bytes=work.budget_bytes
        )
        self._watching = Watching(self._run)
        n_ctx, see = work.chunks.shape[1], self._watching.see
        path, threads, devices = work.model.path, work.n_threads, work.devices
        self._model = LoadedModel(path, n_ctx=n_ctx, n_threads=threads, devices=devices, capture=see, ends_before_output=True)
        self._stack.callback(self._model.close)
        self._pool = self._stack.enter_context(ThreadPoolExecutor(work.n_threads or os.cpu_count() or 1))
        self._stack.enter_context(threadpool_limits(1, user_api="blas"))
        doing(f"looking at the inputs of {work.model.path}")
        self._model.decode(work.chunks[0, :LOOK_TOKENS])
        self._inputs = self._watching.inputs()

    def facts(self) -> tuple[Input, ...]:
        return self._inputs

    def do(self, tasks: Sequence[int], *, control: Control) -> Iterator[Turn]:
        for turn in tasks:
            yield self._taken(turn, control)

    def _taken(self, turn: int, control: Control) -> Turn:
        work = self._work
        progress = RunProgress(
            ImatrixState(chunk_size=work.chunks.shape[1], process_output=False), self._inputs, [0] * len(self._inputs), 1
        )
        matrices = turns_of(self._run, self._inputs)[turn]
        progress.sums = [Sums(*each, np.zeros(packed_size(self._inputs[each[0]].n_cols), dtype=np.float32)) for each in matrices]
        self._watching.begin(progress, self._pool)
        for number, tokens in enumerate(work.chunks):
            control.check()
            doing(f"running chunk {number + 1} through {work.model.path}")
            self._model.decode_together(tokens[None])
        found = tuple(matrices_of(self._run, progress, work.imatrix, len(work.chunks), self._pool))
        return Turn(turn, found, tuple((number, progress.n_rows[number]) for number in sorted({number for number, _ in matrices})))

    def close(self) -> None:
        self._stack.close()


def _expected_turns(run: Calibration) -> int:
    with closing(GGUFSource(run.model_path)) as source:
        wanted = [tensor for tensor in source.tensors if len(tensor.shape) > 1 and (run.names is None or tensor.name in run.names)]
        return max(1, -(-expected_bytes(wanted)[0] // run.budget_bytes))


def _calibrate_elsewhere(run: Calibration, chunks: Tokens, n_turns: int, control: Control, executor: Executor) -> ImatrixState:
    """The importance matrix first, chunk by chunk; then every turn. What has come back is written, so that it is not done again."""
    n_chunks, n_ctx = chunks.shape
    identity = f"{identity_of(run, chunks)} elsewhere"
    progress = saved(run, identity) or RunProgress(ImatrixState(chunk_size=n_ctx, process_output=run.process_output))
    model = ModelFiles(run.model_path, run.model, files.state_of(model_files(run.model_path)))
    compute_imatrix(
        ImatrixWork(model, chunks, run.n_threads, run.devices),
        state=progress.imatrix,
        on_chunk=lambda _: save(run, progress, identity),
        every=_SAVE_CHUNKS,
        control=_Share(control, 0, (1 + n_turns) * n_chunks),
        process_output=run.process_output,
        executor=executor,
    )
    work = TurnWork(model, chunks, progress.imatrix.result(""), run.names, run.budget_bytes, run.n_threads, run.devices)
    with executor.on(work) as crew:
        if not progress.inputs:
            progress.inputs = cast(tuple[Input, ...], crew.facts)
            progress.n_rows = [0] * len(progress.inputs)
            begin_file(run, progress, n_chunks)
        n_turns = len(turns_of(run, progress.inputs))
        left = [turn for turn in range(n_turns) if turn not in progress.done]
        before = (1 + n_turns - len(left)) * n_chunks
        for found in crew.do(left, control=_Share(control, before, (1 + n_turns) * n_chunks)):
            write_matrices(run, progress, found.matrices, n_chunks)
            for number, n_rows in found.n_rows:
                progress.n_rows[number] = n_rows
            progress.done.append(found.number)
            save(run, progress, identity)
    finish(run, progress, n_chunks)
    return progress.imatrix


class _Share:
    """A part of some work reports to the control of all of it."""

    def __init__(self, control: Control, before: float, total: float) -> None:
        self._control, self._before, self._total = control, before, total

    def check(self) -> None:
        """As the other control's."""
        self._control.check()

    def advance(self, done: float, total: float, message: str = "") -> None:
        """So much of the whole."""
        del total
        self._control.advance(self._before + done, self._total, message)
