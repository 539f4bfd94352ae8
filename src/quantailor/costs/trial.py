"""How fast this machine is, from a trial of a fraction of a second, once per process.

    weights       a few thousand normal weights are quantized and read back with ggml's own code at every type, and their errors
                  summed, in one thread. Four types have tables that take ggml seconds to set up; they are not tried, but count as
                  multiples of what Q4_K takes, which differ by a quarter or so between processors.
    passes        a few tokens are run through the model itself, where it is small enough to be loaded at once. Where it is not:
    products      small products of two 32-bit matrices with numpy, in one thread. llama.cpp's kernels reach a part of that in
                  each thread, between `INFERENCE_SHARE`'s ends: much depends on whether the processor knows 16-bit floats.

Better than a trial is what was recorded of earlier jobs on this machine, see `paces`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np

from quantailor.analysis.weight_errors import weight_error
from quantailor.costs import machine
from quantailor.costs.machine import Range
from quantailor.errors import QuantailorError
from quantailor.ggml import codec, library
from quantailor.ggml.devices import Devices
from quantailor.ggml.runtime import LoadedModel
from quantailor.numerics import Floats
from quantailor.processes import apart
from quantailor.qtypes import QType

_COLUMNS = 256
_FEW, _MANY = 2, 16
"""Rows of a trial: few first, many where that was too short to time."""
_LEAST_SECONDS = 0.0002
_TRIALS = 5
"""Of which the fastest counts: other programs take turns with this one."""
_SCALE = 0.02
"""Standard deviation of the weights that are tried, like a model's."""
_REFERENCE = "Q4_K"
_TABLES = {"IQ2_XXS": (3.3, 3e6), "IQ2_XS": (6.6, 7e6), "IQ2_S": (1.2, 9e6), "IQ1_S": (1.6, 24e6), "IQ1_M": (1.6, 0.0)}
"""Types that are not tried: how many times longer a weight takes than at Q4_K, and how many Q4_K weights setting up the tables takes."""
_MATRIX = 64
"""Small enough that numpy takes one thread, whose speed says more than that of many that wait for each other."""
_PRODUCTS = 60
INFERENCE_SHARE: Range = (0.15, 0.6)
"""What llama.cpp reaches of numpy's floating point operations per second."""


def seconds_per_weight(type_name: str) -> float:
    """One thread's time to quantize a weight, read it back and sum its error."""
    if type_name in _TABLES:
        return _TABLES[type_name][0] * seconds_per_weight(_REFERENCE)
    return _tried(type_name)


def setup_seconds(type_names: Collection[str]) -> float:
    """What ggml's tables for these types take, once per process."""
    return sum(weights for name, (_, weights) in _TABLES.items() if name in type_names) * seconds_per_weight(_REFERENCE)


@functools.cache
def _tried(type_name: str) -> float:
    qtype = library.types()[type_name]
    weights = np.random.default_rng(0).standard_normal((_MANY, _COLUMNS), dtype=np.float32) * np.float32(_SCALE)
    importance = np.ones(_COLUMNS, dtype=np.float32)
    _errors(weights[:1], qtype, importance)
    seconds = _timed(lambda: _errors(weights[:_FEW], qtype, importance))
    n_rows = _FEW if seconds >= _LEAST_SECONDS else _MANY
    return min(_timed(lambda: _errors(weights[:n_rows], qtype, importance)) for _ in range(_TRIALS)) / (n_rows * _COLUMNS)


def _errors(weights: Floats, qtype: QType, importance: Floats) -> float:
    _, squares = weight_error.quantization_error(weights, qtype, lambda: codec.quantize(weights, qtype, importance))
    return float(squares.sum(axis=1).sum() + weight_error.fine_bins(squares).max())


@functools.cache
def flops_per_second() -> float:
    """Floating point operations per second of a product of 32-bit matrices, in one thread."""
    rng = np.random.default_rng(0)
    one, other = (rng.standard_normal((_MATRIX, _MATRIX), dtype=np.float32) for _ in range(2))
    one @ other
    return 2.0 * _MATRIX**3 / min(_timed(lambda: one @ other) for _ in range(_PRODUCTS))


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return max(time.perf_counter() - start, 1e-9)


TRIAL_BYTES = 2 << 30
"""A larger model is not loaded for a trial."""
_TRIAL_SECONDS = 0.3
_FEWEST_TOKENS = 32
"""Fewer would be multiplied with the weights in another way."""
_MOST_TOKENS = 512


@functools.cache
def model_flops_per_second(path: Path, decode_flops: float, n_threads: int | None, n_gpu_layers: int) -> float | None:
    """What llama.cpp reaches with this model, from one short chunk; None where it cannot run it. `decode_flops` are of a token."""
    reach = _TRIAL_SECONDS * flops_per_second() * min(n_threads or machine.n_threads(), machine.n_threads()) * INFERENCE_SHARE[0]
    n_tokens = max(_FEWEST_TOKENS, min(_MOST_TOKENS, round(reach / decode_flops)))
    try:
        seconds = apart.call(_decode_seconds, path, n_tokens, n_threads, n_gpu_layers)
    except QuantailorError:
        return None
    return n_tokens * decode_flops / seconds


def _decode_seconds(path: Path, n_tokens: int, n_threads: int | None, n_gpu_layers: int) -> float:
    tokens = np.arange(n_tokens, dtype=np.int32)
    with LoadedModel(path, n_ctx=n_tokens, n_threads=n_threads, devices=Devices(n_gpu_layers)) as model:
        tokens %= model.n_vocab
        model.decode(tokens, first=n_tokens - 1)  # reads the weights
        return min(_timed(lambda: model.decode(tokens, first=n_tokens - 1)) for _ in range(2))


TRIED_SPREAD: Range = (0.8, 1.4)
"""What a chunk takes, compared with what a trial of the same model says."""


def inference_seconds(flops: float, *, n_threads: int | None, n_gpu_layers: int) -> Range:
    """How long llama.cpp takes for so many operations, by the trial of products. By that a GPU may be two hundred times as fast."""
    threads = min(n_threads or machine.n_threads(), machine.n_threads())
    full = flops / (flops_per_second() * threads)
    low, high = full / INFERENCE_SHARE[1], full / INFERENCE_SHARE[0]
    return (low / 200, high) if n_gpu_layers else (low, high)


def middle(seconds: Range) -> float:
    """The geometric middle of a range."""
    return math.sqrt(seconds[0] * seconds[1])
