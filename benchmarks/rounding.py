"""Speed of compensated rounding: `python -m benchmarks.rounding`, or `make bench`.

For rows of several widths and every usual type: processor seconds per 10^9 weights of one thread, plain and compensated, beside the bound
of n_cols^2 multiply-adds a row at the rate that this machine's matrix product reaches in the same process; the factor of one input; and
from these what a model of 8 B weights (shapes of Llama 3.1 8B) takes on two cores, the factors included. The sums of input covariances
are timed the same way. Inputs are random with correlations; speed does not depend on their values beyond how many codes change.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.rounding.compensation import round_rows
from quantailor.analysis.rounding.metric import Metric
from quantailor.ggml import codec, library
from quantailor.numerics import Floats

GOAL_OF_BOUND, GOAL_HOURS = 0.5, 1.5
TYPES = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "IQ4_XS", "IQ3_XXS", "IQ3_S", "IQ2_S")
N_ROWS = 256
LAYER_8B = {4096: 4096 + 1024 + 1024 + 4096 + 2 * 14336, 14336: 4096}
"""n_cols -> rows of one layer's matrices with so many columns."""
INPUTS_8B = {4096: 3, 14336: 1}
N_LAYERS_8B, N_CHUNKS, N_CTX = 32, 128, 512


def best_seconds(work: Callable[[], object], *, repeat: int = 3) -> float:
    """The least processor time of this thread that some work takes: other programs disturb it least."""
    times = []
    for _ in range(repeat):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return max(min(times), 1e-9)


def product_rate() -> float:
    """Multiply-adds per second of a large float32 matrix product on one core."""
    one = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    return float(1024**3 / best_seconds(lambda: one @ one, repeat=5))


def inputs(n_cols: int) -> Floats:
    """Correlated inputs of 2 n_cols tokens: (n_tokens, n_cols)."""
    rng = np.random.default_rng(1)
    common = rng.normal(size=(n_cols, 64)).astype(np.float32)
    noise = rng.normal(size=(2 * n_cols, n_cols)).astype(np.float32)
    return noise + rng.normal(size=(2 * n_cols, 64)).astype(np.float32) @ common.T / np.float32(8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the figures; 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--widths", nargs="+", type=int, default=[1024, 4096])
    parser.add_argument("--rows", type=int, default=N_ROWS)
    asked = parser.parse_args(arguments)
    with threadpool_limits(1, user_api="blas"):
        return measure(asked.types, asked.widths, asked.rows)


def measure(type_names: Sequence[str], widths: Sequence[int], n_rows: int) -> int:
    """Print the figures of these types at these widths; 1 where a goal is missed."""
    missed = False
    for n_cols in widths:
        x = inputs(n_cols)
        rate = product_rate()
        sums = best_seconds(functools.partial(np.matmul, x.T, x), repeat=1) / len(x)
        metric = Metric(InputCovariance("bench", x.T @ x / np.float32(len(x)), 1 << 20))
        values = np.random.default_rng(2).normal(scale=0.02, size=(n_rows, n_cols)).astype(np.float32)
        importance = np.ascontiguousarray(np.diagonal(metric.covariance.matrix))
        print(f"{n_cols} columns: {rate / 1e9:.1f} G multiply-adds/s; covariances {sums * 1e6:.1f} us a token")
        for name in type_names:
            qtype = library.types()[name]
            start = time.thread_time()
            metric.factor(qtype.block_size)
            factor = time.thread_time() - start
            round_rows(values[:64], qtype, metric)
            plain = best_seconds(functools.partial(codec.quantize, values, qtype, importance))
            spent = best_seconds(functools.partial(round_rows, values, qtype, metric))
            share, hours = n_rows * n_cols**2 / rate / spent, hours_of_8b(spent / values.size, n_cols, rate)
            missed |= share < GOAL_OF_BOUND or hours > GOAL_HOURS
            print(
                f"  {name:8} plain {plain / values.size * 1e9:5.0f} s, compensated {spent / values.size * 1e9:5.0f} s per 10^9 weights: "
                f"{share:.2f} of the bound; factor {factor:.1f} s; 8 B weights in {hours:.2f} h"
            )
    print(
        f"Goals: {GOAL_OF_BOUND} of the bound, and {GOAL_HOURS} h beyond inference for 8 B weights on two cores, with covariances from "
        f"{N_CHUNKS} chunks of {N_CTX} tokens"
    )
    return int(missed)


def hours_of_8b(seconds_per_weight: float, n_cols: int, rate: float) -> float:
    """Covariances, factors and rounding of a model of 8 B weights on two cores, from what a weight took in rows of `n_cols`.

    Products grow with the width, what is done within blocks does not. A factor is n_cols^3 / 3 multiply-adds.
    """
    within = seconds_per_weight - n_cols / 2 / rate
    rounding = sum(width * rows * (within + width / 2 / rate) for width, rows in LAYER_8B.items())
    factors = sum(count * width**3 / 3 / rate for width, count in INPUTS_8B.items())
    sums = sum(count * N_CHUNKS * N_CTX * width**2 / 2 / rate for width, count in INPUTS_8B.items())
    return N_LAYERS_8B * (rounding + factors + sums) / 2 / 3600


if __name__ == "__main__":
    sys.exit(main())
