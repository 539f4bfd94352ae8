"""What must be alike on all machines, so that they round alike."""

from __future__ import annotations

import functools
import hashlib
import importlib
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.rounding.metric import Metric
from quantailor.ggml import codec, library

_SAMPLE = ("Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
"""Types whose quantizers need no tables that take long to make; all come from one library."""
_SHAPE = (8, 256)


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How a machine calculates."""

    engine: str
    """llama-cpp-python's version."""
    processor: str
    """The instructions that llama.cpp's kernels use, as it lists them."""
    quantizers: str
    """A digest of codes of made-up weights."""
    algebra: str
    """A digest of a made-up metric, whose factor compensated rounding goes by."""

    def difference(self, other: Arithmetic) -> str | None:
        """What another machine does otherwise, in words that follow its name; None where it is nothing."""
        if other.engine != self.engine:
            return f"has {other.engine}, and this machine {self.engine}: install the same version"
        if other.processor != self.processor:
            return f"runs other kernels of llama.cpp ({other.processor}) than this machine ({self.processor})"
        if other.quantizers != self.quantizers:
            return "quantizes the same weights to other codes than this machine: install the same build of llama-cpp-python"
        if other.algebra != self.algebra:
            return "rounds linear algebra differently from this machine: install the same versions of numpy and scipy"
        return None


@functools.cache
def arithmetic() -> Arithmetic:
    """This machine's. Takes a moment, once per process."""
    numbers = np.random.default_rng(1)
    weights = (numbers.lognormal(0, 1, _SHAPE) * numbers.choice([-1.0, 1.0], _SHAPE)).astype(np.float32)
    importance = numbers.lognormal(0, 1, _SHAPE[1]).astype(np.float32)
    codes = hashlib.sha256()
    for name in _SAMPLE:
        codes.update(codec.quantize(weights, library.type_named(name), importance).tobytes())
    inputs = numbers.normal(0, 1, (3 * _SHAPE[1], _SHAPE[1])).astype(np.float32)
    importlib.import_module("scipy.linalg")  # it brings a BLAS of its own, and the limit is one of those that are loaded
    with threadpool_limits(1, user_api="blas"):
        matrix = (inputs.T @ inputs / np.float32(len(inputs))).astype(np.float32)
        metric = Metric(InputCovariance("made up", matrix, len(inputs)))
        algebra = hashlib.sha256(metric.factor(_SHAPE[1]).spans[0].lower.tobytes() + metric.output_errors(weights).tobytes())
    return Arithmetic(library.engine(), library.processor(), codes.hexdigest()[:16], algebra.hexdigest()[:16])
