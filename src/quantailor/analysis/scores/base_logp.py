"""The base's log-probabilities, computed once and kept on disk.

One file per chunk, written whole or not at all: a killed run goes on with the next chunk. A file holds, for every scored
token, the probability of the token that followed, the most likely one, and one of two:

    codes     of the base's probabilities, 16 bits each (`numerics.pack_probabilities`), memory-mapped when they are read
    inputs    of the output matrix, from which the codes are computed again (`output_stage`): a chunk of a vocabulary of
              262,144 tokens takes 134 MB as codes and, of a model 1,152 wide, 0.6 MB as inputs. Codes that were computed
              stay in files without names as long as they fit into `CACHE_BYTES`: their pages give way where memory is wanted,
              and they end with the process.

Inputs are kept where codes would take more than `LARGE_BYTES` a chunk and where they were seen to give the same logits.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from quantailor import files, numerics, paged
from quantailor.analysis.scores.fidelity import chunk_score, first_scored, in_place
from quantailor.analysis.scores.output_stage import KeptInputs, OutputStage
from quantailor.control import QUIET, Control
from quantailor.errors import InferenceError
from quantailor.ggml.runtime import LoadedModel
from quantailor.models.source import ModelSource
from quantailor.numerics import Codes, Doubles, Floats, Tokens
from quantailor.processes.messages import doing
from quantailor.records import ChunkScore

LARGE_BYTES = 8 << 20
"""Codes of one chunk that take more are not kept on disk: a vocabulary of 16,384 tokens at 512 tokens a chunk."""
CACHE_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class BaseChunk:
    """What the base says about the scored tokens of one chunk."""

    index: int
    targets: Tokens
    """The tokens that followed, (n_scored,)."""
    codes: Codes
    """(n_scored, n_vocab), usually a view of a file."""
    mass: Doubles
    observed: Floats
    """ln p of the targets."""
    top: Tokens

    @classmethod
    def of(cls, index: int, targets: Tokens, n_vocab: int, parts: Iterable[Floats], *, n_threads: int = 1) -> BaseChunk:
        """From the base's logits of the scored positions, some after the other, (n_rows, n_vocab) each; what is more is ignored."""
        n_scored = len(targets)
        codes, mass = np.empty((n_scored, n_vocab), dtype=np.uint16), np.empty(n_scored, dtype=np.float64)
        observed, top = np.empty(n_scored, dtype=np.float32), np.empty(n_scored, dtype=np.int32)
        for place, part in in_place(parts, n_scored):

            def work(rows: slice, part: Floats = part, start: int = place.start) -> None:
                logp = numerics.log_softmax(part[rows])
                of = slice(start + rows.start, start + rows.start + len(logp))
                codes[of], mass[of] = numerics.pack_probabilities(logp)
                observed[of] = logp[np.arange(len(logp)), targets[of]]
                top[of] = logp.argmax(axis=1)

            numerics.over_rows(part.shape, work, n_threads)
        return cls(index, targets, codes, mass, observed, top)

    def score(self, parts: Iterable[Floats], *, n_threads: int = 1) -> ChunkScore:
        """Another model's score on this chunk, without the divergences of single tokens.

        Args:
            parts: the model's logits of the same positions, some after the other, (n_rows, n_vocab) each; what is more is ignored.
            n_threads: that share the positions.

        Raises:
            InferenceError: a logit is NaN or Inf, or the model has another vocabulary.
        """
        n_scored, n_vocab = self.codes.shape
        observed, klds, n_same_top = np.empty(n_scored), np.empty(n_scored), 0
        for rows, logits in in_place(parts, n_scored):
            if logits.shape[1] != n_vocab:
                message = f"the model has {logits.shape[1]} tokens, the base has {n_vocab}"
                raise InferenceError(message, remedy="Compare files of the same model")
            klds[rows], log_sums = numerics.divergence_from_packed(self.codes[rows], self.mass[rows], logits, n_threads=n_threads)
            if not (np.isfinite(log_sums) & np.isfinite(klds[rows])).all():
                raise InferenceError("the model gives logits that are NaN or Inf", remedy="Leave out the type that breaks it")
            observed[rows] = logits[np.arange(len(logits)), self.targets[rows]].astype(np.float64) - log_sums
            n_same_top += int(np.count_nonzero(logits.argmax(axis=1) == self.top[rows]))
            paged.let_go(self.codes)
        return chunk_score(self.index, observed, self.observed, klds, n_same_top)

    @property
    def base_score(self) -> ChunkScore:
        """The base's own perplexity on this chunk."""
        return chunk_score(self.index, self.observed, self.observed, np.zeros(len(self.observed)), len(self.observed))


class BaseLogp:
    """A folder with the base's log-probabilities of one text's chunks.

    Args:
        folder: of this model, text and context alone.
        chunks: (n_chunks, n_ctx) from `corpus.chunks`.
        source: the base's weights; None keeps codes, whatever they take.
    """

    def __init__(self, folder: Path, chunks: Tokens, source: ModelSource | None = None) -> None:
        self._folder, self._chunks, self._source = folder, chunks, source
        self._cached: dict[int, BaseChunk] = {}

    @functools.cached_property
    def _stage(self) -> OutputStage | None:
        return None if self._source is None else OutputStage(self._source)

    def missing(self, indexes: Sequence[int]) -> list[int]:
        """Those chunks that have no file yet."""
        return [index for index in indexes if not self._path(index).exists()]

    def compute(self, model: LoadedModel, indexes: Sequence[int], *, control: Control = QUIET) -> None:
        """Run the base on the chunks that are missing; each is on disk before the next begins.

        Raises OutputError where the disk is full, InferenceError as `LoadedModel.logits` does.
        """
        missing = self.missing(indexes)
        for n_done, index in enumerate(missing):
            control.check()
            doing(f"running chunk {index + 1} through the base")
            self._compute(model, index)
            control.advance(n_done + 1, len(missing), f"base, chunk {index + 1}")

    def _compute(self, model: LoadedModel, index: int) -> None:
        tokens = self._chunks[index]
        first, stage = first_scored(len(tokens)), self._stage
        targets = tokens[first + 1 :]
        if stage is None or 2 * len(targets) * model.n_vocab <= LARGE_BYTES:
            parts = model.logit_parts(tokens, first=first)
            self._write(BaseChunk.of(index, targets, model.n_vocab, parts, n_threads=model.n_threads), None)
            return
        keeping = stage.keeping()
        while True:
            watched = keeping.watch(model.logit_parts_and_inputs(tokens, first=first))
            chunk = BaseChunk.of(index, targets, model.n_vocab, watched, n_threads=model.n_threads)
            if not keeping.needs_another_look:
                break
        kept = keeping.kept(len(targets))
        self._write(chunk, kept)
        if kept is not None:
            self._cached_or(chunk)

    def _cached_or(self, chunk: BaseChunk) -> BaseChunk:
        """The chunk, kept where there is room for it."""
        # What does not fit is computed each time: chunks are read in turn, so that giving one up for another gains nothing.
        if sum(known.codes.nbytes for known in self._cached.values()) + chunk.codes.nbytes <= CACHE_BYTES:
            with contextlib.suppress(OSError):  # no room on the disk
                self._cached[chunk.index] = replace(chunk, codes=paged.in_file(chunk.codes, self._folder))
        return self._cached.get(chunk.index, chunk)

    def chunk(self, index: int) -> BaseChunk:
        """One chunk from its file.

        Raises InferenceError where the file is damaged or gone.
        """
        if index in self._cached:
            return self._cached[index]
        path, tokens = self._path(index), self._chunks[index]
        targets = tokens[first_scored(len(tokens)) + 1 :]
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
            _check_digest(path)
            names = rows.dtype.names if isinstance(rows, np.ndarray) else None
            if names not in (_WITH_CODES, _WITH_INPUTS) or rows.shape != targets.shape:
                raise ValueError("its layout is different")
            if names == _WITH_CODES:
                return BaseChunk(index, targets, rows["codes"], rows["mass"].copy(), rows["observed"].copy(), rows["top"].copy())
            return self._recomputed(index, targets, rows)
        except (OSError, ValueError, EOFError) as error:
            raise InferenceError(f"{path} cannot be read ({error})", remedy="Delete it; it is computed again") from error

    def _path(self, index: int) -> Path:
        return self._folder / f"chunk-{index:06d}.npy"

    def _recomputed(self, index: int, targets: Tokens, rows: npt.NDArray[np.void]) -> BaseChunk:
        if self._stage is None:
            raise ValueError("it needs the base's weights")
        parts = self._stage.logits(KeptInputs(rows["inputs"], float(rows["scale"][0])))
        found = BaseChunk.of(index, targets, self._stage.n_vocab, parts)
        return self._cached_or(replace(found, observed=rows["observed"].copy(), top=rows["top"].copy()))

    def _write(self, chunk: BaseChunk, kept: KeptInputs | None) -> None:
        fields: dict[str, npt.NDArray[np.generic]] = {"mass": chunk.mass, "observed": chunk.observed, "top": chunk.top}
        if kept is None:
            fields["codes"] = chunk.codes
        else:
            fields |= {"scale": np.full(len(chunk.targets), kept.scale), "inputs": kept.inputs}
        kinds = [(name, values.dtype.newbyteorder("<"), values.shape[1:]) for name, values in fields.items()]
        rows = np.empty(len(chunk.targets), dtype=kinds)
        for name, values in fields.items():
            rows[name] = values
        content = io.BytesIO()
        np.save(content, rows, allow_pickle=False)
        with files.whole_file(self._path(chunk.index)) as stream:
            stream.write(content.getbuffer())
            stream.write(xxhash.xxh3_128_digest(content.getbuffer()))


def _check_digest(path: Path) -> None:
    """Raise ValueError where a file is not what was written: its last bytes are a digest of all others."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    if xxhash.xxh3_128_digest(content[:-_DIGEST_BYTES].data) != content[-_DIGEST_BYTES:].tobytes():
        raise ValueError("its digest is different")


_DIGEST_BYTES = 16
_WITH_CODES = ("mass", "observed", "top", "codes")
_WITH_INPUTS = ("mass", "observed", "top", "scale", "inputs")
