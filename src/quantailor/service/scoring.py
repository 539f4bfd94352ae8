"""Mixes of a base scored and stored: what probes, sweeps and refinements have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantailor.analysis.corpus import Corpus, chunks, load_corpus, spread
from quantailor.analysis.importance.imatrix import Imatrix
from quantailor.analysis.scores.mix_scores import FileScorer, MixScorer
from quantailor.control import Control
from quantailor.records import ChunkScore, Mix
from quantailor.service import tasks
from quantailor.service.workspace import CALIBRATION_TEXT, OpenedModel, Workspace, gguf_path, quantizable_tensors
from quantailor.store import SwapKey

CHECKPOINT_CHUNKS = 4
"""Chunks of one mix after which its scores are stored; a mix that is finished is stored at once."""


@dataclass(frozen=True)
class Scoring:
    """A base in memory, a text, and where the scores go."""

    workspace: Workspace
    key: SwapKey
    scorer: MixScorer
    files: FileScorer
    corpus: Corpus
    order: tuple[int, ...]
    """All chunks, spread over the text."""

    def first(self, n_chunks: int) -> list[int]:
        """The chunks to use when so many are asked for."""
        return sorted(self.order[:n_chunks])

    def run(self, mixes: Sequence[Mix], indexes: Sequence[int], control: Control) -> None:
        """Score every mix on these chunks; what the store has is not scored again."""
        known = self.workspace.store.mix_scores(self.key)
        done = {mix: {score.index for score in scores} for mix, scores in known.items()}
        waiting: list[tuple[str, ChunkScore]] = []
        try:
            for mix, score in self.scorer.score(mixes, indexes, done=done, control=control):
                if waiting and (len(waiting) >= CHECKPOINT_CHUNKS or waiting[-1][0] != mix.id):
                    self._keep(waiting)
                waiting.append((mix.id, score))
        finally:
            self._keep(waiting)

    def run_file(self, mix: Mix, build: Callable[[], Path], indexes: Sequence[int], control: Control) -> None:
        """Score a mix as a file; `build` is called where a chunk is missing, and its file deleted afterwards."""
        key = self.file_key
        known = {score.index for score in self.workspace.store.mix_scores(key).get(mix.id, ())}
        missing = [index for index in indexes if index not in known]
        if not missing:
            return
        file = build()
        try:
            for score in self.files.score(file, missing, control=control):
                self.workspace.store.record_mix_scores(key, [(mix.id, score)])
        finally:
            file.unlink(missing_ok=True)

    @property
    def file_key(self) -> SwapKey:
        """What scores of built files are filed under."""
        return file_key(self.key)

    def _keep(self, waiting: list[tuple[str, ChunkScore]]) -> None:
        if waiting:
            self.workspace.store.record_mix_scores(self.key, waiting)
            waiting.clear()


def file_key(key: SwapKey) -> SwapKey:
    """The key of files, to that of mixes in memory."""
    return SwapKey(key.model, key.imatrix, key.corpus, key.n_ctx, "file", "as stored")


@contextmanager
def scoring(
    workspace: Workspace, model: OpenedModel, imatrix: Imatrix | None, task: tasks.ProbeTask | tasks.SweepTask | tasks.RefineTask
) -> Iterator[Scoring]:
    """Load a base to score mixes of it on the task's text; none is the calibration text that ships.

    Raises:
        InferenceError, CorpusError: the model or the text cannot be used.
    """
    path = gguf_path(model)
    corpus = load_corpus(path, Path(task.text) if task.text else CALIBRATION_TEXT)
    tokens: npt.NDArray[np.int32] = chunks(corpus, task.n_ctx)
    where = "-gpu" if task.n_gpu_layers else ""  # another backend rounds otherwise
    folder = workspace.home.base_logp / f"{model.fingerprint[:16]}-{corpus.sha256[:16]}-{task.n_ctx}{where}"
    names = [tensor.name for tensor in quantizable_tensors(model.source)]
    threads, layers = task.n_threads, task.n_gpu_layers
    files = FileScorer(path, tokens, folder, n_threads=threads, n_gpu_layers=layers)
    with MixScorer(model.source, path, names, tokens, folder, imatrix=imatrix, n_threads=threads, n_gpu_layers=layers) as scorer:
        fingerprint = imatrix.fingerprint if imatrix else ""
        key = SwapKey(model.fingerprint, fingerprint, corpus.sha256, task.n_ctx, "as built", scorer.base_kernels)
        yield Scoring(workspace, key, scorer, files, corpus, tuple(spread(len(tokens))))
