"""Hostile rows through the codec, in a process of its own: `codec_fuzzer.py SEED CASES ROUNDING [all]`.

With `all` of every type, else of one among those for which ggml makes tables for seconds (`SLOW_TO_BEGIN`), and of all others.

Prints the number of cases that passed the checks and were quantized. A C assertion ends the process instead,
after the case's number and recipe were written to standard error. Rows whose rounding is compensated must be valid
wherever ggml's own rounding with the same importances is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.rounding.compensation import round_rows
from quantailor.analysis.rounding.metric import Metric
from quantailor.errors import QuantailorError
from quantailor.ggml import codec, library
from quantailor.numerics import Floats
from quantailor.qtypes import QType

Maker = Callable[[np.random.Generator, int], Floats]
WIDTHS = (1, 32, 64, 100, 128, 256, 256, 256, 512, 768)


def _wide_range(rng: np.random.Generator, n: int) -> Floats:
    return np.asarray(10.0 ** rng.uniform(-45, 6, n) * rng.choice([-1.0, 1.0], n), dtype=np.float32)


def _single(rng: np.random.Generator, n: int) -> Floats:
    values = np.zeros(n, dtype=np.float32)
    values[rng.integers(n)] = rng.choice([1e6, -1e6, 65504, 7e4, 1e-38, 1e-45])
    return values


def _with_bad(rng: np.random.Generator, n: int) -> Floats:
    values = rng.standard_normal(n).astype(np.float32)
    values[rng.integers(n)] = rng.choice([np.nan, np.inf, -np.inf, 1e7, 3e38])
    return values


WEIGHTS: dict[str, Maker] = {
    "normal": lambda rng, n: rng.standard_normal(n).astype(np.float32),
    "scaled": lambda rng, n: (rng.standard_normal(n) * 10.0 ** rng.uniform(-45, 5)).astype(np.float32),
    "zeros": lambda rng, n: np.zeros(n, dtype=np.float32),
    "constant": lambda rng, n: np.full(n, 10.0 ** rng.uniform(-45, 6) * rng.choice([-1, 1]), dtype=np.float32),
    "extremes": lambda rng, n: rng.choice([-1e6, 1e6], n).astype(np.float32),
    "denormal": lambda rng, n: (rng.standard_normal(n) * 1e-40).astype(np.float32),
    "wide range": _wide_range,
    "single": _single,
    "integers": lambda rng, n: rng.integers(-3, 4, n).astype(np.float32),
    "any bits": lambda rng, n: rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32),
    "bad": _with_bad,
}
IMPORTANCE: dict[str, Maker | None] = {
    "none": None,
    "ones": lambda rng, n: np.ones(n, dtype=np.float32),
    "zeros": lambda rng, n: np.zeros(n, dtype=np.float32),
    "lognormal": lambda rng, n: rng.lognormal(0, 3, n).astype(np.float32),
    "wide range": lambda rng, n: (10.0 ** rng.uniform(-45, 20, n)).astype(np.float32),
    "constant": lambda rng, n: np.full(n, 10.0 ** rng.uniform(-45, 20), dtype=np.float32),
    "sparse": lambda rng, n: np.where(rng.random(n) < 0.95, 0, 1e20).astype(np.float32),
    "bad": lambda rng, n: rng.choice([1.0, np.nan, np.inf, -1.0, 1e30], n).astype(np.float32),
    "too long": lambda rng, n: np.ones(n + 1, dtype=np.float32),
}


CORRELATED_WITH = (0, 1, 4, 512)
"""Directions that inputs have in common; 0 for none."""
N_TOKENS = (1, 64, 1 << 30)
SLOW_TO_BEGIN = (("IQ2_XXS",), ("IQ2_XS",), ("IQ2_S",), ("IQ1_S", "IQ1_M"))
"""Types with a table each, or one for both, that ggml makes once in a process: 15 seconds of a processor in all."""


def fuzzed(seed: int, every: bool) -> list[QType]:
    """The types to try: of those that are slow to begin another one with each seed, where not all are wanted."""
    left_out = {name for number, names in enumerate(SLOW_TO_BEGIN) if not every and number != seed % len(SLOW_TO_BEGIN) for name in names}
    return [qtype for name, qtype in library.types().items() if name not in left_out]


def plainly(rng: np.random.Generator, values: Floats, qtype: QType, other: str) -> None:
    """Quantize with hostile importances."""
    maker = IMPORTANCE[other]
    with np.errstate(all="ignore"):
        importance = None if maker is None else maker(rng, values.shape[1])
    if importance is not None:
        codec.check_importance(importance, "rows")
    codec.dequantize(codec.quantize(values, qtype, importance), qtype, values.shape[1])


def compensated(rng: np.random.Generator, values: Floats, qtype: QType, other: str) -> None:
    """Quantize with covariances that have hostile importances as their diagonal, and the correlations that a file can hold."""
    n, maker = values.shape[1], IMPORTANCE[other]
    with np.errstate(all="ignore"):
        squares = np.ones(n) if maker is None else maker(rng, n)[:n].astype(np.float64)
    codec.check_importance(squares.astype(np.float32), "rows")
    directions = rng.normal(size=(n, rng.choice(CORRELATED_WITH)))
    lengths = np.sqrt(np.maximum(np.square(directions).sum(axis=1), 1e-300))
    correlations = directions @ directions.T / np.outer(lengths, lengths) * (1 - 2**-12)
    np.fill_diagonal(correlations, 1)
    matrix = (correlations * np.sqrt(np.outer(squares, squares))).astype(np.float32)
    metric = Metric(InputCovariance("rows", matrix, int(rng.choice(N_TOKENS))))
    data = round_rows(values, qtype, metric)
    plain = codec.quantize(values, qtype, np.diagonal(metric.damped()).copy())
    assert codec.is_valid(data, qtype) or not codec.is_valid(plain, qtype)
    codec.dequantize(data, qtype, n)


def main(seed: int, n_cases: int, quantize: Callable[[np.random.Generator, Floats, QType, str], None], every: bool) -> int:
    """Run the cases; the number that reached the quantizer and came back."""
    rng = np.random.default_rng(seed)
    qtypes, passed = [qtype for qtype in fuzzed(seed, every) if qtype.is_quantized or quantize is plainly], 0
    for case in range(n_cases):
        qtype, n = qtypes[rng.integers(len(qtypes))], WIDTHS[rng.integers(len(WIDTHS))]
        kind = list(WEIGHTS)[rng.integers(len(WEIGHTS))]
        other = list(IMPORTANCE)[rng.integers(len(IMPORTANCE))]
        sys.stderr.write(f"{case} {qtype.name} {n} {kind} / {other}\n")
        with np.errstate(all="ignore"):
            values = WEIGHTS[kind](rng, n)[None]
        try:
            codec.check_weights(values, "rows")
            quantize(rng, values, qtype, other)
        except QuantailorError:
            continue
        passed += 1
    return passed


if __name__ == "__main__":
    rounding = {"plain": plainly, "compensated": compensated}[sys.argv[3]]
    sys.stdout.write(f"{main(int(sys.argv[1]), int(sys.argv[2]), rounding, 'all' in sys.argv[4:])}\n")
