"""Input covariances: E[x x^T] of what a weight matrix is multiplied with, over a calibration text.

The diagonal is the importance matrix. The rest says which columns' errors can make up for each other: the output error of
a row w is dw^T H dw with H = E[x x^T].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from quantailor.numerics import Floats
from quantailor.records import TensorInfo


@dataclass(frozen=True, eq=False, slots=True)
class InputCovariance:
    """H of one input."""

    key: str
    """Names the input; matrices that are multiplied with the same one share it."""
    matrix: Floats
    """E[x x^T], (n_cols, n_cols), symmetric; of token embeddings, what `embeddings` says."""
    n_tokens: int
    """Tokens behind it; of token embeddings, which have no input but a metric of their own, rows of the matrices that read them."""
    origin: str = ""
    """The file that it was read from, for messages."""


class Covariances(Protocol):
    """The input covariances of one model on one text."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all figures."""

    def key_of(self, tensor: TensorInfo, index: int = 0) -> str | None:
        """The input of one of a tensor's matrices; None where it is not known."""

    def of(self, tensor: TensorInfo, index: int = 0) -> InputCovariance | None:
        """Its covariance, read now; None where there is none.

        Raises CovarianceError where it does not fit the tensor or the file is damaged.
        """
