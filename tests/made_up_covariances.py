"""Input covariances that no model gave: correlated columns, the same for every process that asks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.numerics import Bytes, Floats
from quantailor.qtypes import QType
from quantailor.records import TensorInfo

N_TOKENS = 4096
UNKNOWN = ("token_embd.weight",)


@dataclass(frozen=True)
class MadeUpCovariances:
    """Of every matrix but the token embeddings and those in `without`; another `seed` gives other figures."""

    seed: str = ""
    without: tuple[str, ...] = UNKNOWN

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"{self.seed} {self.without}".encode()).hexdigest()

    def key_of(self, tensor: TensorInfo, index: int = 0) -> str | None:
        return None if tensor.name in self.without else f"{tensor.name}/{index}"

    def of(self, tensor: TensorInfo, index: int = 0) -> InputCovariance | None:
        key = self.key_of(tensor, index)
        return None if key is None else InputCovariance(key, correlated(f"{self.seed} {key}", tensor.n_cols), N_TOKENS)


def correlated(seed: str, n_cols: int) -> Floats:
    """E[x x^T] of inputs that a few directions dominate, (n_cols, n_cols)."""
    generator = np.random.default_rng(list(hashlib.sha256(seed.encode()).digest()))
    mixing = generator.normal(size=(n_cols, n_cols // 4)) * generator.lognormal(0, 1, (1, n_cols // 4))
    scales = generator.lognormal(0, 0.5, (n_cols, 1))
    matrix: Floats = ((scales * mixing) @ (scales * mixing).T + np.diag(scales[:, 0] ** 2)).astype(np.float32)
    return matrix


def rounded(rounding: Rounding, tensor: TensorInfo, values: Floats, qtype: QType) -> Bytes:
    """What `Rounding.quantize` gives, as a function that another process can be asked for."""
    return rounding.quantize(tensor, 0, values, qtype)


def output_errors(deltas: Floats, matrices: Sequence[Floats]) -> float:
    """Sum of dw^T H dw over the rows of some slices, (n_slices, n_rows, n_cols), in float64."""
    return float(sum(np.einsum("ij,jk,ik->", d.astype(np.float64), h.astype(np.float64), d) for d, h in zip(deltas, matrices, strict=True)))
