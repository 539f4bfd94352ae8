"""The base's log-probabilities, computed once and kept on disk in 16 bits.

One file per chunk, written whole or not at all and memory-mapped when it is read: a killed run goes on with the next
chunk, and a vocabulary of 256 k takes no memory. A file holds, for every scored token, the codes of the base's
probabilities (`numerics.pack_probabilities`), the sum they stand for, the probability of the token that followed and
the most likely one. The last two are kept as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quantailor import files, numerics
from quantailor.analysis.scores.fidelity import chunk_score, first_scored
from quantailor.control import QUIET, Control
from quantailor.errors import InferenceError
from quantailor.ggml.runtime import LoadedModel
from quantailor.numerics import Codes, Doubles, Floats, Tokens
from quantailor.processes.messages import doing
from quantailor.records import ChunkScore


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
    def of(cls, index: int, tokens: Tokens, logits: Floats) -> BaseChunk:
        """From the base's logits of the positions from `first_scored` on, (n_tokens - first, n_vocab)."""
        targets = tokens[first_scored(len(tokens)) + 1 :]
        logp = numerics.log_softmax(logits[: len(targets)])
        codes, mass = numerics.pack_probabilities(logp)
        rows = np.arange(len(targets))
        return cls(index, targets, codes, mass, logp[rows, targets], logp.argmax(axis=1).astype(np.int32))

    def score(self, logits: Floats) -> ChunkScore:
        """Another model's score on this chunk, without the divergences of single tokens.

        Args:
            logits: the model's, of the same positions, (n_scored, n_vocab); one row more is ignored.

        Raises:
            InferenceError: a logit is NaN or Inf, or the model has another vocabulary.
        """
        n_vocab = self.codes.shape[1]
        if logits.shape[1] != n_vocab:
            message = f"the model has {logits.shape[1]} tokens, the base has {n_vocab}"
            raise InferenceError(message, remedy="Compare files of the same model")
        logits = logits[: len(self.targets)]
        klds, log_sums = numerics.divergence_from_packed(self.codes, self.mass, logits)
        if not (np.isfinite(log_sums) & np.isfinite(klds)).all():
            raise InferenceError("the model gives logits that are NaN or Inf", remedy="Leave out the type that breaks it")
        observed = logits[np.arange(len(self.targets)), self.targets].astype(np.float64) - log_sums
        n_same_top = int(np.count_nonzero(logits.argmax(axis=1) == self.top))
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
    """

    def __init__(self, folder: Path, chunks: Tokens) -> None:
        self._folder, self._chunks = folder, chunks

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
            tokens = self._chunks[index]
            doing(f"running chunk {index + 1} through the base")
            self._write(BaseChunk.of(index, tokens, model.logits(tokens, first=first_scored(len(tokens)))))
            control.advance(n_done + 1, len(missing), f"base, chunk {index + 1}")

    def chunk(self, index: int) -> BaseChunk:
        """One chunk from its file.

        Raises InferenceError where the file is damaged or gone.
        """
        path, tokens = self._path(index), self._chunks[index]
        targets = tokens[first_scored(len(tokens)) + 1 :]
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(rows, np.ndarray) or rows.dtype.names != _FIELDS or rows.shape != targets.shape:
                raise ValueError("its layout is different")
            return BaseChunk(index, targets, rows["codes"], rows["mass"].copy(), rows["observed"].copy(), rows["top"].copy())
        except (OSError, ValueError, EOFError) as error:
            raise InferenceError(f"{path} cannot be read ({error})", remedy="Delete it; it is computed again") from error

    def _path(self, index: int) -> Path:
        return self._folder / f"chunk-{index:06d}.npy"

    def _write(self, chunk: BaseChunk) -> None:
        n_rows, n_vocab = chunk.codes.shape
        rows = np.empty(n_rows, dtype=[("mass", "<f8"), ("observed", "<f4"), ("top", "<i4"), ("codes", "<u2", (n_vocab,))])
        for name in _FIELDS:
            rows[name] = getattr(chunk, name)
        with files.whole_file(self._path(chunk.index)) as stream:
            np.save(stream, rows, allow_pickle=False)


_FIELDS = ("mass", "observed", "top", "codes")
