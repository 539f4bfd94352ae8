"""Scores of mixes in memory: one loaded model, any number of mixes, every score as soon as it is known.

The unit is a mix on a chunk. All mixes see the same chunks, so that their noise cancels in comparisons, and what a mix
scores does not depend on what was scored before: a run that was stopped goes on with what is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from quantailor.analysis.base_logp import BaseLogp
from quantailor.analysis.fidelity import first_scored
from quantailor.analysis.imatrix import Imatrix
from quantailor.analysis.swapping import Kernels, Swapper
from quantailor.control import Control, NullControl
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.source import ModelSource
from quantailor.records import ChunkScore, Mix

Tokens = npt.NDArray[np.int32]
Done = Mapping[str, Collection[int]]

_QUIET = NullControl()


class MixScorer:
    """Scores mixes of one base on the chunks of one text. Use as a context manager.

    Args:
        source: the base.
        path: the same base as a file that llama.cpp loads.
        names: the tensors that mixes may name.
        chunks: (n_chunks, n_ctx) from `corpus.chunks`.
        folder: where the base's log-probabilities on these chunks are kept.
        imatrix: importances for the quantizers.
        kernels: whether mixes run with the kernels of a built file, or round weights alone (see `swapping`).
        n_threads: None takes all processors.
        n_gpu_layers: layers on a GPU, -1 for all.
        control: asked before every chunk whether to go on.

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
        imatrix: Imatrix | None,
        kernels: Kernels = "as built",
        n_threads: int | None = None,
        n_gpu_layers: int = 0,
    ) -> None:
        self._chunks, self._base = chunks, BaseLogp(folder, chunks)
        self._swapper = Swapper(
            source,
            path,
            names,
            imatrix=imatrix,
            n_ctx=chunks.shape[1],
            n_threads=n_threads,
            n_gpu_layers=n_gpu_layers,
            kernels=kernels,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._swapper.__exit__(kind, error, trace)

    @property
    def weights(self) -> frozenset[str]:
        """Tensors that take part in the model's graph."""
        return self._swapper.weights

    def prepare(self, indexes: Sequence[int], *, control: Control = _QUIET) -> None:
        """Compute the base's log-probabilities on these chunks, where they are not on disk."""
        if self._base.missing(indexes):
            self._swapper.set_mix({})
            self._base.compute(self._swapper.model, indexes, control=control)

    def score(
        self, mixes: Sequence[Mix], indexes: Sequence[int], *, done: Done | None = None, control: Control = _QUIET
    ) -> Iterator[tuple[Mix, ChunkScore]]:
        """Score every mix on every chunk of `indexes` that is not done (mix id -> chunks) yet, mix by mix.

        Yields:
            (mix, score), each as soon as it is known.

        Raises:
            TypeUnavailableError, TensorNotFoundError: a mix that the model cannot hold.
            InferenceError: llama.cpp failed, or gave NaN.
        """
        missing = {mix.id: [index for index in indexes if index not in (done or {}).get(mix.id, ())] for mix in mixes}
        n_done, total = 0, sum(map(len, missing.values()))
        self.prepare(sorted(set().union(*missing.values())), control=control)
        for mix in mixes:
            for index in missing[mix.id]:
                control.check()
                self._swapper.set_mix(mix.types)
                yield mix, self._score(index)
                n_done += 1
                control.advance(n_done, total, _shown(mix))

    def _score(self, index: int) -> ChunkScore:
        tokens = self._chunks[index]
        return self._base.chunk(index).score(self._swapper.logits(tokens, first=first_scored(len(tokens))))


def score_file(
    path: Path,
    chunks: Tokens,
    folder: Path,
    indexes: Sequence[int],
    *,
    control: Control = _QUIET,
    n_threads: int | None = None,
    n_gpu_layers: int = 0,
) -> Iterator[ChunkScore]:
    """Score a built file, loaded as a user would load it, on chunks whose base log-probabilities are on disk."""
    base = BaseLogp(folder, chunks)
    with LoadedModel.open(path, n_ctx=chunks.shape[1], n_threads=n_threads, n_gpu_layers=n_gpu_layers) as model:
        for n_done, index in enumerate(indexes):
            control.check()
            tokens = chunks[index]
            yield base.chunk(index).score(model.logits(tokens, first=first_scored(len(tokens))))
            control.advance(n_done + 1, len(indexes), f"{path.name}, chunk {index + 1}")


def _shown(mix: Mix) -> str:
    return mix.id if len(mix.types) == 1 else f"a mix of {len(mix.types)} tensors" if mix.types else "null control"
