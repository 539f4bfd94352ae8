"""An importance matrix in figures, tensor by tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from quantailor.analysis.importance.imatrix import BLOCK_PREFIX, Imatrix, ImatrixEntry
from quantailor.records import layer_of

_ACTIVE_ABOVE = 1e-5


@dataclass(frozen=True, slots=True)
class ImatrixStatistics:
    """One tensor's mean squared inputs in figures, as `llama-imatrix --show-statistics` defines them.

    Experts that no token reached are left out of all figures.
    """

    tensor: str
    sum_of_squares: float
    """Sum of E[x^2] over the inputs."""
    minimum: float
    maximum: float
    mean: float
    standard_deviation: float
    active_share: float
    """Share of the inputs with E[x^2] above 1e-5."""
    n_values: int
    entropy_bits: float
    """Of the inputs' shares of `total`."""
    normalized_entropy: float
    """Entropy over log2(n_values): 1 where all inputs count alike."""
    zd_share: float
    """Share of the inputs more than one standard deviation above the mean."""
    cosine: float | None
    """Cosine similarity of the sums with the same tensor of the previous layer; None where there is none."""
    n_experts: int
    n_unseen_experts: int


def statistics(imatrix: Imatrix) -> tuple[ImatrixStatistics, ...]:
    """Statistics of every tensor that some token reached, in the entries' order."""
    return tuple(
        _statistics(name, entry, imatrix.entries.get(_previous_layer(name) or ""))
        for name, entry in imatrix.entries.items()
        if entry.counts.any()
    )


def _statistics(name: str, entry: ImatrixEntry, previous: ImatrixEntry | None) -> ImatrixStatistics:
    seen = entry.counts > 0
    values = (entry.sum2[seen] / entry.counts[seen, None].astype(np.float64)).reshape(-1)
    total, mean, deviation = float(values.sum()), float(values.mean()), float(values.std())
    shares = values[values > 0] / total if total > 0 else np.ones(1)
    entropy = float(-(shares * np.log2(shares)).sum())
    return ImatrixStatistics(
        tensor=name,
        sum_of_squares=total,
        minimum=float(values.min()),
        maximum=float(values.max()),
        mean=mean,
        standard_deviation=deviation,
        active_share=float((values > _ACTIVE_ABOVE).mean()),
        n_values=values.size,
        entropy_bits=entropy,
        normalized_entropy=entropy / math.log2(values.size) if values.size > 1 else 0.0,
        zd_share=float((values > mean + deviation).mean()) if deviation > 0 else 0.0,
        cosine=_cosine(entry, previous),
        n_experts=len(entry.counts),
        n_unseen_experts=int(np.count_nonzero(~seen)),
    )


def _previous_layer(name: str) -> str | None:
    layer = layer_of(name)
    return name.replace(f"{BLOCK_PREFIX}{layer}.", f"{BLOCK_PREFIX}{layer - 1}.", 1) if layer else None


def _cosine(entry: ImatrixEntry, previous: ImatrixEntry | None) -> float | None:
    if previous is None or previous.sum2.size != entry.sum2.size:
        return None
    ours, theirs = entry.sum2.astype(np.float64).reshape(-1), previous.sum2.astype(np.float64).reshape(-1)
    norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    return float(ours @ theirs) / norms if norms else None
