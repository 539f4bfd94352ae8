"""Pure mathematics: log-softmax, KL divergence, standard errors over chunks, bootstrap, quantiles.

Everything works on plain arrays and knows nothing of models or files. Reductions that decide a figure run in
float64; the large arrays (tokens x vocabulary) stay in float32 and are processed a few rows at a time, so that
a block stays in the cache.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from quantailor.records import Estimate

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.integer]

BLOCK_ELEMENTS = 1 << 18
"""Elements of a block of rows: 1 MiB of float32."""
BOOTSTRAP_DRAWS = 10_000
_DRAWS_PER_BLOCK = 500


def log_softmax(logits: Floats) -> Floats:
    """ln softmax of every row: (n_rows, n_vocab) -> the same shape, float32.

    The sum of exponentials is taken in float64, so the error is that of rounding the result to float32.
    """
    result = np.empty(logits.shape, dtype=np.float32)
    for rows in _row_blocks(logits.shape):
        shifted = logits[rows] - logits[rows].max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))
        np.subtract(shifted, log_sums[:, None], out=result[rows], casting="same_kind")
    return result


def kl_divergence(base_logp: Floats, logp: Floats) -> Doubles:
    """KL(base || other) of every row, nats: sum_i p_i (ln p_i - ln q_i); (n_rows, n_vocab) twice -> (n_rows,).

    Both arguments are log-probabilities. Rounding gives equal distributions exactly 0 and nearly equal ones
    values down to about -1e-7.
    """
    result = np.empty(len(base_logp), dtype=np.float64)
    for rows in _row_blocks(base_logp.shape):
        terms = np.exp(base_logp[rows])
        terms *= base_logp[rows] - logp[rows]
        result[rows] = terms.sum(axis=1, dtype=np.float64)
    return result


def _row_blocks(shape: tuple[int, ...]) -> list[slice]:
    n_rows, n_cols = shape
    step = max(1, BLOCK_ELEMENTS // max(1, n_cols))
    return [slice(start, start + step) for start in range(0, n_rows, step)]


def mean_over_chunks(values: npt.ArrayLike) -> Estimate:
    """Mean of one value per chunk with its standard error, s / sqrt(n).

    One chunk says nothing about the spread between chunks: its standard error is given as 0.
    """
    chunks = np.asarray(values, dtype=np.float64)
    if chunks.size < 2:
        return Estimate(float(chunks.mean()) if chunks.size else 0.0)
    return Estimate(float(chunks.mean()), float(chunks.std(ddof=1) / math.sqrt(chunks.size)))


def ratio_over_chunks(numerators: npt.ArrayLike, denominators: npt.ArrayLike) -> Estimate:
    """sum(numerators) / sum(denominators) with the ratio estimator's standard error over chunks.

    se = sqrt(n / (n - 1) * sum((a_i - r b_i)^2)) / sum(b_i); with equal denominators this is the mean's.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    total = below.sum()
    if not total:
        return Estimate(0.0)
    ratio = float(above.sum() / total)
    n_chunks = above.size
    if n_chunks < 2:
        return Estimate(ratio)
    residual = float(np.square(above - ratio * below).sum())
    return Estimate(ratio, math.sqrt(residual * n_chunks / (n_chunks - 1)) / float(total))


def bootstrap_ln_ratio(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    draws: int = BOOTSTRAP_DRAWS,
    level: float = 0.95,
    floor: float = 0.0,
    seed: int = 0,
) -> tuple[float, tuple[float, float]]:
    """ln(sum a / sum b) of paired chunks with its percentile bootstrap interval.

    Args:
        numerators: one sum per chunk, (n_chunks,).
        denominators: the same chunks' other sums, (n_chunks,).
        draws: resamples of the chunks, with replacement, both columns together.
        level: coverage of the interval.
        floor: sums below this count as this, so that a divergence of zero has a logarithm; in units of a sum.
        seed: of the random generator; equal seeds give equal intervals.

    Returns:
        The logarithm, and the interval's ends.
    """
    pairs = np.stack([np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)], axis=1)
    least = max(floor, np.finfo(np.float64).tiny)
    n_chunks = len(pairs)
    logs = np.log(np.maximum(pairs.sum(axis=0), least))
    generator = np.random.default_rng(seed)
    ratios = []
    for start in range(0, draws, _DRAWS_PER_BLOCK):
        picks = generator.integers(n_chunks, size=(min(_DRAWS_PER_BLOCK, draws - start), n_chunks))
        sums = np.log(np.maximum(pairs[picks].sum(axis=1), least))  # (draws of this block, 2)
        ratios.append(sums[:, 0] - sums[:, 1])
    low, high = np.quantile(np.concatenate(ratios), [(1 - level) / 2, (1 + level) / 2])
    return float(logs[0] - logs[1]), (float(low), float(high))


def weighted_quantile(values: npt.ArrayLike, weights: npt.ArrayLike, probabilities: npt.ArrayLike) -> Doubles:
    """Quantiles of weighted values: the least value at which the share of weight reaches each probability.

    Args:
        values: (n,), in any order, not empty.
        weights: (n,), not negative, with a positive sum.
        probabilities: 0 to 1, (m,).

    Returns:
        (m,) float64.
    """
    points, mass = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    order = np.argsort(points, kind="stable")
    cumulative = np.cumsum(mass[order])
    targets = np.asarray(probabilities, dtype=np.float64) * cumulative[-1]
    found = np.searchsorted(cumulative, targets, side="left")
    result: Doubles = points[order][np.minimum(found, points.size - 1)]
    return result
