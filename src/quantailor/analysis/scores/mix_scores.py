"""Scores of mixes in memory: one loaded model, any number of mixes, every score as soon as it is known.

The unit is a mix on a chunk. All mixes see the same chunks, so that their noise cancels in comparisons, and what a mix
scores does not depend on what was scored before: a run that was stopped goes on with what is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal, cast

from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.scores.base_logp import BaseLogp
from quantailor.analysis.scores.fidelity import first_scored
from quantailor.analysis.scores.resting import RESTING, resting_types
from quantailor.analysis.scores.swapping import Kernels, Swapper
from quantailor.control import QUIET, Control, ProgressCounter
from quantailor.errors import InferenceError, TypeUnavailableError
from quantailor.ggml.devices import PROCESSOR, Devices
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.opening import open_model
from quantailor.models.source import ModelSource
from quantailor.numerics import Tokens
from quantailor.processes import apart
from quantailor.processes.crews import APART, HERE, Bench, Crew, Executor, ModelFiles, Work
from quantailor.processes.messages import doing
from quantailor.records import ChunkScore, Mix

Done = Mapping[str, Collection[int]]
MixTask = tuple[Mix, int]
"""A mix on a chunk."""
Scored = tuple[Mix, ChunkScore]

BaseKernels = Literal["as stored", "finer"]

logger = logging.getLogger(__name__)


def base_folder(folder: Path, base_kernels: BaseKernels) -> Path:
    """Where log-probabilities are kept of a base that runs that way."""
    return folder / base_kernels.replace(" ", "-")


class MixScorer(Swapper):
    """Scores mixes of one base on the chunks of one text. Use as a context manager.

    Where it can, the base rests in F16 (see `swapping`): on the CPU, where that has finer kernels, and where neither its
    weights nor its inputs overflow. Its log-probabilities are then those of the base run that way.

    Args:
        source: the base.
        path: the same base as a file that llama.cpp loads.
        names: the tensors that mixes may name.
        chunks: (n_chunks, n_ctx) from `corpus.chunks`.
        folder: where the base's log-probabilities on these chunks are kept.
        rounding: how weights become codes.
        kernels: whether mixes run with the kernels of a built file, or round weights alone (see `swapping`).
        resting: tensor -> type, of those that the file has in another than the source's (see `resting`).
        n_threads: None takes all processors.
        devices: what takes layers from the processor.

    Raises:
        InferenceError: llama.cpp cannot load or run the model.
    """

    def __init__(
        self,
        source: ModelSource,
        path: Path,
        names: Collection[str],
        chunks: Tokens,
        folder: Path,
        *,
        rounding: Rounding,
        kernels: Kernels = "as built",
        resting: Mapping[str, str] | None = None,
        n_threads: int | None = None,
        devices: Devices = PROCESSOR,
    ) -> None:
        super().__init__(
            source,
            path,
            names,
            rounding=rounding,
            n_ctx=chunks.shape[1],
            n_threads=n_threads,
            devices=devices,
            kernels=kernels,
            resting=resting,
        )
        self._chunks = chunks
        try:
            self.base_kernels: BaseKernels = self._settle() if devices.has_kernels_of_processors else "as stored"
        except BaseException:
            self.close()
            raise
        place = base_folder(folder, self.base_kernels)
        self._base = BaseLogp(place / RESTING if resting else place, chunks, source)

    def _settle(self) -> BaseKernels:
        try:
            self.rest_finer()
            doing(f"running chunk 1 through {self.path}")
            for _ in self.logit_parts(self._chunks[0], first=first_scored(self.n_ctx)):
                pass
        except (InferenceError, TypeUnavailableError) as error:
            logger.info("the base stays as it is stored: %s", error)
            self.rest_finer(back=True)
            return "as stored"
        return "finer"

    def prepare(self, indexes: Sequence[int], *, control: Control = QUIET) -> None:
        """Compute the base's log-probabilities on these chunks, where they are not on disk."""
        if self._base.missing(indexes):
            self.set_mix({})
            self._base.compute(self, indexes, control=control)

    def score(
        self, mixes: Sequence[Mix], indexes: Sequence[int], *, done: Done | None = None, control: Control = QUIET
    ) -> Iterator[Scored]:
        """Score every mix on every chunk of `indexes` that is not done (mix id -> chunks) yet, mix by mix.

        Yields:
            (mix, score), each as soon as it is known.

        Raises:
            TypeUnavailableError, TensorNotFoundError: a mix that the model cannot hold.
            InferenceError: llama.cpp failed, or gave NaN.
        """
        return self.do(_tasks(mixes, indexes, done), control=control)

    def do(self, tasks: Sequence[MixTask], *, control: Control = QUIET) -> Iterator[Scored]:
        """The score of every task, in order, each as soon as it is known; raises as `score`."""
        progress = ProgressCounter(control, len(tasks))
        self.prepare(sorted({index for _, index in tasks}), control=control)
        for mix, index in tasks:
            control.check()
            self.set_mix(mix.types)
            doing(f"running chunk {index + 1} through {self.path}, {_shown(mix)}")
            parts = self.logit_parts(self._chunks[index], first=first_scored(self.n_ctx))
            yield mix, self._base.chunk(index).score(parts, n_threads=self.n_threads)
            progress.add(1, _shown(mix))


def _tasks(mixes: Sequence[Mix], indexes: Sequence[int], done: Done | None) -> list[MixTask]:
    """Mix by mix, the chunks that are missing."""
    known = done or {}
    return [(mix, index) for mix in mixes for index in indexes if index not in known.get(mix.id, ())]


@dataclass(frozen=True, eq=False)
class MixWork(Work[MixTask, Scored]):
    """Mixes of one base to score on the chunks of one text: a `MixScorer` that opens the base by itself, in a process of its own."""

    model: ModelFiles
    """The base, as a file that llama.cpp loads."""
    names: frozenset[str]
    """The tensors that mixes may name."""
    chunks: Tokens
    """(n_chunks, n_ctx) from `corpus.chunks`."""
    folder: Path
    """Where the base's log-probabilities on these chunks are kept."""
    rounding: Rounding
    n_threads: int | None = None
    devices: Devices = PROCESSOR
    at_8_bits: Path | None = None
    """The file of the base as it rests, if it does so at 8 bits (see `resting`)."""
    is_apart: ClassVar[bool] = True

    def bench(self) -> _OwnScorer:
        """Load the base. Raises InferenceError where llama.cpp cannot load or run it."""
        return _OwnScorer(self)

    def on_threads(self, n_threads: int) -> MixWork:
        """The same with so many threads, unless it says how many."""
        return replace(self, n_threads=self.n_threads or n_threads)

    def key(self, task: MixTask) -> tuple[str, int]:
        """The mix and the chunk."""
        return task[0].id, task[1]

    def key_of(self, item: Scored) -> tuple[str, int]:
        """The same of a score."""
        return item[0].id, item[1].index

    def group(self, task: MixTask) -> str:
        """A mix that is set stays for its next chunk."""
        return task[0].id

    def weight(self, task: MixTask) -> float:
        """Chunks of one text take the same time."""
        del task
        return 1.0

    def label(self, task: MixTask) -> str:
        """The mix."""
        return _shown(task[0])


class CrewScorer:
    """A `MixScorer`, or several, of whoever does the work; `stack` says when they end."""

    def __init__(self, work: MixWork, executor: Executor, stack: ExitStack) -> None:
        self._work, self._executor, self._stack = work, executor, stack
        self._crew = self._begun()
        self.weights, self.base_kernels = cast(tuple[frozenset[str], BaseKernels], self._crew.facts)

    def _begun(self) -> Crew[MixTask, Scored]:
        self._crew = self._stack.enter_context(self._executor.on(self._work))
        self._is_loaded = True
        return self._crew

    def make_way(self) -> None:
        """Unload the base until a mix is scored again, where another needs its place: memory, or an RPC server that serves one process."""
        if self._work.devices.rpc or self._executor in (HERE, APART):
            self._stack.close()
            self._is_loaded = False

    def score(
        self, mixes: Sequence[Mix], indexes: Sequence[int], *, done: Done | None = None, control: Control = QUIET
    ) -> Iterator[Scored]:
        """As `MixScorer.score`, in any order."""
        crew = self._crew if self._is_loaded else self._begun()
        return crew.do(_tasks(mixes, indexes, done), control=control)


@contextmanager
def scoring_mixes(work: MixWork, executor: Executor = HERE) -> Iterator[CrewScorer]:
    """Scorers of a base, which keep the model loaded until the block ends.

    Raises:
        InferenceError: llama.cpp cannot load or run the model.
    """
    with ExitStack() as stack:
        yield CrewScorer(work, executor, stack)


class _OwnScorer(MixScorer, Bench[MixTask, Scored]):
    """A scorer that opens the base by itself, and closes it."""

    def __init__(self, work: MixWork) -> None:
        path = work.model.path
        self._opened = open_model(path)
        super().__init__(
            self._opened,
            work.at_8_bits or path,
            work.names,
            work.chunks,
            work.folder,
            rounding=work.rounding,
            resting=None if work.at_8_bits is None else resting_types(self._opened),
            n_threads=work.n_threads,
            devices=work.devices,
        )

    def facts(self) -> tuple[frozenset[str], BaseKernels]:
        return self.weights, self.base_kernels

    def close(self) -> None:
        super().close()
        self._opened.close()


class FileScorer:
    """Scores built files, loaded as a user would load them, against the base loaded as it is stored.

    Args:
        path: the base.
        chunks: (n_chunks, n_ctx) from `corpus.chunks`.
        folder: where the base's log-probabilities on these chunks are kept.
        n_threads: None takes all processors.
        devices: what takes layers from the processor.
    """

    def __init__(self, path: Path, chunks: Tokens, folder: Path, *, n_threads: int | None = None, devices: Devices = PROCESSOR) -> None:
        self._path, self._chunks, self._n_threads, self._devices = path, chunks, n_threads, devices
        self._folder = base_folder(folder, "as stored")

    def score(self, file: Path, indexes: Sequence[int], *, control: Control = QUIET) -> Iterator[ChunkScore]:
        """Score a file on these chunks, in order. Raises InferenceError where llama.cpp cannot load or run it."""
        return apart.stream(self._score, file, indexes, control=control)

    def _score(self, file: Path, indexes: Sequence[int], *, control: Control) -> Iterator[ChunkScore]:
        with closing(open_model(self._path)) as source:
            kept = BaseLogp(self._folder, self._chunks, source)
            if kept.missing(indexes):
                with self._load(self._path) as base:
                    kept.compute(base, indexes, control=control)
            with self._load(file) as model:
                for n_done, index in enumerate(indexes):
                    tokens = self._chunks[index]
                    doing(f"running chunk {index + 1} through {file}")
                    parts = model.logit_parts(tokens, first=first_scored(len(tokens)))
                    yield kept.chunk(index).score(parts, n_threads=model.n_threads)
                    control.advance(n_done + 1, len(indexes), f"{file.name}, chunk {index + 1}")

    def _load(self, path: Path) -> LoadedModel:
        return LoadedModel(path, n_ctx=self._chunks.shape[1], n_threads=self._n_threads, devices=self._devices)


def _shown(mix: Mix) -> str:
    return mix.id if len(mix.types) == 1 else f"a mix of {len(mix.types)} tensors" if mix.types else "null control"
