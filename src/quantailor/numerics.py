"""Pure mathematics: log-softmax, KL divergence, standard errors over chunks, bootstrap, quantiles.

Everything works on plain arrays and knows nothing of models or files. Reductions that decide a figure run in
float64; the large arrays (tokens x vocabulary) stay in float32 and are processed a few rows at a time, so that
a block stays in the cache. Blocks may be shared among threads: no row's result depends on how many there are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from quantailor.records import Estimate

Floats = npt.NDArray[np.float32]
"""Weights, inputs, logits, log-probabilities: float32."""
Doubles = npt.NDArray[np.float64]
"""Sums and what follows from them: float64."""
Integers = npt.NDArray[np.int64]
"""Counts, sizes in bytes, numbers of rows: int64."""
Tokens = npt.NDArray[np.int32]
"""Tokens of a vocabulary, and other numbers that llama.cpp keeps in int32."""
Bytes = npt.NDArray[np.uint8]
"""Quantized rows as they stand in a file: uint8."""
Codes = npt.NDArray[np.uint16]
"""Probabilities in 16 bits, see `pack_probabilities`."""

MAX_CODE = 65535

BLOCK_ELEMENTS = 1 << 18
"""Elements of a block of rows: 1 MiB of float32."""
_COVERAGE = 0.95
BOOTSTRAP_DRAWS = 10_000
_DRAWS_PER_BLOCK = 500


def log_softmax(logits: Floats, *, n_threads: int = 1) -> Floats:
    """ln softmax of every row: (n_rows, n_vocab) -> the same shape, float32.

    The sum of exponentials is taken in float64, so the error is that of rounding the result to float32.
    """
    result = np.empty(logits.shape, dtype=np.float32)

    def work(rows: slice) -> None:
        shifted = logits[rows] - logits[rows].max(axis=1, keepdims=True)
        log_sums = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))
        np.subtract(shifted, log_sums[:, None], out=result[rows], casting="same_kind")

    over_rows(logits.shape, work, n_threads)
    return result


def kl_divergence(base_logp: Floats, logp: Floats, *, n_threads: int = 1) -> Doubles:
    """KL(base || other) of every row, nats: sum_i p_i (ln p_i - ln q_i); (n_rows, n_vocab) twice -> (n_rows,).

    Both arguments are log-probabilities. Rounding gives equal distributions exactly 0 and nearly equal ones
    values down to about -1e-7.
    """
    result = np.empty(len(base_logp), dtype=np.float64)

    def work(rows: slice) -> None:
        terms = np.exp(base_logp[rows])
        terms *= base_logp[rows] - logp[rows]
        result[rows] = terms.sum(axis=1, dtype=np.float64)

    over_rows(base_logp.shape, work, n_threads)
    return result


def logit_spread(logits: Floats, others: Floats) -> float:
    """How far two sets of logits are apart where it matters: the standard deviation of their difference under softmax(logits).

    The root of its mean square over rows, in nats; (n_rows, n_vocab) twice. A constant added to a row makes no difference. KL
    divergences taken from one or from the other differ by at most this times the standard deviation of ln p/q, in every row.
    """
    variances = np.empty(len(logits))
    for rows in _row_blocks(logits.shape):
        p = np.exp(log_softmax(logits[rows]))
        apart = others[rows] - logits[rows]
        apart -= (p * apart).sum(axis=1, dtype=np.float64).astype(np.float32)[:, None]
        variances[rows] = (p * np.square(apart)).sum(axis=1, dtype=np.float64)
    return math.sqrt(float(variances.mean()))


# Log-probabilities in 16 bits


def pack_probabilities(logp: Floats, *, n_threads: int = 1) -> tuple[Codes, Doubles]:
    """Log-probabilities as 16-bit codes of the cube root of p: code = round(65535 p^(1/3)).

    The step in ln p is 4.6e-5 at p = 1 and grows as p^(-1/3): fine where a divergence is made, coarse in the tail.
    Against float64 a KL divergence taken from codes (see `divergence_from_packed`) is off by up to 2.3e-5 |ln p/q|, either
    way, in a row that rests on one token; the mean over some hundred rows by less than 1e-6 nats and 1e-6 of itself.

    Args:
        logp: (n_rows, n_vocab) float32.
        n_threads: that share the rows.

    Returns:
        Codes (n_rows, n_vocab) uint16, and the sum of the probabilities that each row's codes stand for, (n_rows,).
    """
    codes, mass = np.empty(logp.shape, dtype=np.uint16), np.empty(len(logp), dtype=np.float64)

    def work(rows: slice) -> None:
        codes[rows] = np.rint(np.exp(logp[rows] * np.float32(1 / 3)) * np.float32(MAX_CODE)).clip(max=MAX_CODE)
        mass[rows] = _probabilities(codes[rows]).sum(axis=1, dtype=np.float64)

    over_rows(logp.shape, work, n_threads)
    return codes, mass


def divergence_from_packed(codes: Codes, mass: Doubles, logits: Floats, *, n_threads: int = 1) -> tuple[Doubles, Doubles]:
    """KL(base || model) of every row, nats, from the base's packed probabilities p and the model's logits.

    sum_i p_i (ln p_i - ln q_i) + 1 - sum_i p_i: the last two terms take out what rounding p does to first order.

    Args:
        codes: the base's, (n_rows, n_vocab), from `pack_probabilities`.
        mass: the sums of the probabilities they stand for, (n_rows,).
        logits: the model's, (n_rows, n_vocab) float32.
        n_threads: that share the rows.

    Returns:
        The divergences, and ln sum exp of the logits, both (n_rows,). NaN or Inf among the logits shows in both, -Inf in
        the divergences alone.
    """
    divergences, log_sums = np.empty(len(codes)), np.empty(len(codes))
    logarithms = _packed_logarithms()

    def work(rows: slice) -> None:
        block, part = codes[rows], logits[rows]
        largest = part.max(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # Inf - Inf: the caller sees it
            apart = part - largest
        log_sum = np.log(np.exp(apart).sum(axis=1, dtype=np.float64))
        rounded = log_sum.astype(np.float32)
        apart -= rounded[:, None]
        np.subtract(np.take(logarithms, block, mode="clip"), apart, out=apart)  # ln p - ln q, small where p is large
        apart *= _probabilities(block)
        divergences[rows] = apart.sum(axis=1, dtype=np.float64) + (log_sum - rounded) * mass[rows] + (1 - mass[rows])
        log_sums[rows] = largest[:, 0] + log_sum

    over_rows(codes.shape, work, n_threads)
    return divergences, log_sums


def _probabilities(codes: Codes) -> Floats:
    """p of every code."""
    roots = codes * np.float32(1 / MAX_CODE)
    cubes: Floats = roots * roots
    cubes *= roots
    return cubes


@functools.cache
def _packed_logarithms() -> Floats:
    """ln p of every code (that of a quarter step for the code 0, which weighs nothing)."""
    roots = np.arange(MAX_CODE + 1) / MAX_CODE
    logarithms: Floats = (3 * np.log(np.maximum(roots, 0.25 / MAX_CODE))).astype(np.float32)
    return logarithms


def over_rows(shape: tuple[int, ...], work: Callable[[slice], None], n_threads: int) -> None:
    """Call `work` for all blocks of rows of a matrix, (n_rows, n_cols), of a few million numbers each."""
    blocks = _row_blocks(shape)
    if min(n_threads, len(blocks)) <= 1:
        for rows in blocks:
            work(rows)
        return
    with ThreadPoolExecutor(min(n_threads, len(blocks))) as pool:
        for done in [pool.submit(work, rows) for rows in blocks]:
            done.result()


def _row_blocks(shape: tuple[int, ...]) -> list[slice]:
    n_rows, n_cols = shape
    step = max(1, BLOCK_ELEMENTS // max(1, n_cols))
    return [slice(start, start + step) for start in range(0, n_rows, step)]


def ratio_over_chunks(numerators: npt.ArrayLike, denominators: npt.ArrayLike) -> Estimate:
    """sum(numerators) / sum(denominators), both (n_chunks,), with the ratio estimator's standard error over chunks.

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


def bootstrap_ln_product(
    columns: npt.ArrayLike, powers: npt.ArrayLike, *, draws: int = BOOTSTRAP_DRAWS, floor: float = 0.0, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """ln of a product of powers of columns' sums, sum_k p_k ln(sum a_k), with its 95 % percentile bootstrap interval over chunks.

    Args:
        columns: one sum per chunk and column, (n_chunks, n_columns); powers of 1 and -1 give the logarithm of a paired ratio.
        powers: one for each column, (n_columns,).
        draws: resamples of the chunks, with replacement, all columns together.
        floor: sums below this count as this, so that a divergence of zero has a logarithm; in units of a sum.
        seed: of the random generator; equal seeds give equal intervals.

    Returns:
        The logarithm, and the interval's ends.
    """
    values, weights = np.asarray(columns, dtype=np.float64), np.asarray(powers, dtype=np.float64)
    least = max(floor, np.finfo(np.float64).tiny)
    n_chunks = len(values)
    logs = np.log(np.maximum(values.sum(axis=0), least))
    drawn = _drawn(n_chunks, draws, seed)
    ratios = [
        np.log(np.maximum(drawn[start : start + _DRAWS_PER_BLOCK].astype(np.float64) @ values, least)) @ weights
        for start in range(0, draws, _DRAWS_PER_BLOCK)
    ]
    low, high = np.quantile(np.concatenate(ratios), [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2])
    return float(logs @ weights), (float(low), float(high))


def bootstrap_means(columns: npt.ArrayLike, *, draws: int = BOOTSTRAP_DRAWS, seed: int = 0) -> list[tuple[float, tuple[float, float]]]:
    """Each column's mean with its 95 % percentile bootstrap interval over rows; (n_items, n_columns), all columns drawn together."""
    values = np.asarray(columns, dtype=np.float64)
    drawn = _drawn(len(values), draws, seed)
    means = np.concatenate(
        [drawn[start : start + _DRAWS_PER_BLOCK].astype(np.float64) @ values for start in range(0, draws, _DRAWS_PER_BLOCK)]
    ) / len(values)
    low, high = np.quantile(means, [(1 - _COVERAGE) / 2, (1 + _COVERAGE) / 2], axis=0)
    return [(float(mean), (float(a), float(b))) for mean, a, b in zip(values.mean(axis=0), low, high, strict=True)]


@functools.lru_cache(maxsize=1)
def _drawn(n_chunks: int, draws: int, seed: int) -> npt.NDArray[np.uint16]:
    """How often each resample has each chunk, (draws, n_chunks); the comparisons of a verdict have it in common."""
    generator = np.random.default_rng(seed)
    found = np.empty((draws, n_chunks), dtype=np.uint16)
    for start in range(0, draws, _DRAWS_PER_BLOCK):
        picks = generator.integers(n_chunks, size=(min(_DRAWS_PER_BLOCK, draws - start), n_chunks))
        picks += n_chunks * np.arange(len(picks))[:, None]
        found[start : start + len(picks)] = np.bincount(picks.reshape(-1), minlength=picks.size).reshape(picks.shape)
    return found
