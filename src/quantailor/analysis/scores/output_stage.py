"""The last stage of a model, from what its output matrix is multiplied with to its logits, outside of llama.cpp.

    logits = cap(scale * inputs @ output^T + bias),  cap(x) = c tanh(x / c) where the model caps its logits

The inputs of a position are its hidden state after the last norm, some thousand numbers where the logits are hundreds of
thousands. A kernel rounds them to the precision of the output matrix (F16, BF16), so that 16 bits are often all of them.
Whether a model's stage is this one is never assumed: `fits` tries, and compares what comes out with llama.cpp's own logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantailor import numerics
from quantailor.ggml.observing import OUTPUT_MATRICES
from quantailor.models.source import ModelSource
from quantailor.numerics import Floats

MAX_SPREAD_NATS = 1e-5
"""See `numerics.logit_spread`: keeps the mean divergence of a chunk within 1e-6 nats, and 1e-6 of itself where that is more."""
_BLOCK_WEIGHTS = 1 << 23
_BLOCK_LOGITS = 1 << 24

_Narrow = npt.NDArray[Any]
"""Inputs as they are kept: float16, float32, or the upper halves of float32 (BF16) as uint16."""


Way = tuple[str, float]
"""The kind of numbers that inputs are kept as, and the factor of the logits."""


@dataclass(frozen=True, eq=False)
class KeptInputs:
    """What the logits of some positions can be computed from again."""

    inputs: _Narrow
    """(n_positions, n_cols)."""
    scale: float


class OutputStage:
    """The stage of one model. Raises TensorNotFoundError where it has no output matrix."""

    def __init__(self, source: ModelSource) -> None:
        names = {tensor.name for tensor in source.tensors}
        self._source = source
        self._matrix = source.tensor(next((name for name in OUTPUT_MATRICES if name in names), OUTPUT_MATRICES[0]))
        self._bias = source.rows("output.bias", 0, 1)[0] if "output.bias" in names else None
        self._cap = _number(source, "final_logit_softcapping")
        scale = _number(source, "logit_scale")
        self._ways = [(kind, factor) for factor in ((scale, 1 / scale) if scale else (1.0,)) for kind in _KINDS]

    @property
    def n_vocab(self) -> int:
        """Logits of a position."""
        return self._matrix.n_rows

    def logits(self, kept: KeptInputs) -> Iterator[Floats]:
        """Of some positions after the other, (n_rows, n_vocab) float32 each: of all at once they may take hundreds of MB."""
        step = max(1, _BLOCK_LOGITS // self.n_vocab)
        for start in range(0, len(kept.inputs), step):
            yield self._logits(_widened(kept.inputs[start : start + step]) * np.float32(kept.scale))

    def _logits(self, inputs: Floats) -> Floats:
        found = np.empty((len(inputs), self.n_vocab), dtype=np.float32)
        step = max(1, _BLOCK_WEIGHTS // self._matrix.n_cols)
        for start in range(0, self.n_vocab, step):
            stop = min(start + step, self.n_vocab)
            found[:, start:stop] = inputs @ self._source.rows(self._matrix.name, start, stop).T
        if self._bias is not None:
            found += self._bias
        if self._cap:
            found /= np.float32(self._cap)
            np.tanh(found, out=found)
            found *= np.float32(self._cap)
        return found

    def keeping(self) -> Keeping:
        """To find the inputs to keep of one chunk."""
        return Keeping(self, self._ways)

    def fits(self, way: Way, inputs: Floats | None, logits: Floats) -> bool:
        """Whether inputs of some positions give llama.cpp's logits of them.

        Args:
            way: how they would be kept.
            inputs: (n_positions, n_cols); None where they are not known.
            logits: (n_positions, n_vocab).
        """
        if inputs is None or (inputs.shape[1], logits.shape[1]) != (self._matrix.n_cols, self._matrix.n_rows):
            return False
        kept = KeptInputs(_narrowed(inputs, way[0]), way[1])
        return bool(np.isfinite(_widened(kept.inputs)).all()) and self._spread(kept, logits) <= MAX_SPREAD_NATS

    def _spread(self, kept: KeptInputs, logits: Floats) -> float:
        """`numerics.logit_spread` of llama.cpp's logits, (n_positions, n_vocab), and those of kept inputs."""
        start, total = 0, 0.0
        for part in self.logits(kept):
            total += len(part) * numerics.logit_spread(logits[start : start + len(part)], part) ** 2
            start += len(part)
        return math.sqrt(total / start)


class Keeping:
    """The inputs of one chunk in the fewest bits that give its logits again, found while these go by.

    Args:
        stage: of the model.
        ways: kinds of numbers, each with the factor of the logits, the likeliest first; what fits is put there.
    """

    def __init__(self, stage: OutputStage, ways: list[Way]) -> None:
        self._stage, self._ways, self._left = stage, ways, list(ways)
        self._inputs: list[Floats] = []
        self._is_in_doubt = False

    def watch(self, parts: Iterable[tuple[Floats, Floats | None]]) -> Iterator[Floats]:
        """Logits, (n_rows, n_vocab) each, while they are compared with those that their inputs, (n_rows, n_cols), give."""
        self._inputs, self._is_in_doubt = [], False
        for logits, inputs in parts:
            while self._left and not self._stage.fits(self._left[0], inputs, logits):
                del self._left[0]
                self._is_in_doubt = bool(self._inputs)
            if inputs is not None:
                self._inputs.append(inputs)
            yield logits

    @property
    def needs_another_look(self) -> bool:
        """Whether a way was given up after some logits had gone by that the next one was not tried with."""
        return self._is_in_doubt and bool(self._left)

    def kept(self, n_positions: int) -> KeptInputs | None:
        """Inputs of so many positions; None where none give the logits."""
        if not self._left:
            return None
        kind, scale = way = self._left[0]
        self._ways.remove(way)
        self._ways.insert(0, way)  # what fits one chunk fits the next
        return KeptInputs(_narrowed(np.concatenate(self._inputs)[:n_positions], kind), scale)


_KINDS = ("F16", "BF16", "F32")


def _narrowed(inputs: Floats, kind: str) -> _Narrow:
    if kind == "F16":
        with np.errstate(over="ignore"):
            return inputs.astype(np.float16)
    if kind == "BF16":
        bits = np.ascontiguousarray(inputs).view(np.uint32)
        return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)
    return inputs


def _widened(inputs: _Narrow) -> Floats:
    if inputs.dtype == np.uint16:
        return (inputs.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return inputs.astype(np.float32)


def _number(source: ModelSource, key: str) -> float:
    """A number of the header above 0, else 0."""
    stored = source.metadata.get(f"{source.architecture}.{key}")
    value = 0.0 if stored is None or not isinstance(stored.value, int | float) else float(stored.value)
    return value if math.isfinite(value) and value > 0 else 0.0
