"""How many seconds counted work takes on this machine, by its trial (`trial`) alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from quantailor.analysis.weight_errors.sampling import PILOT_DRAWS
from quantailor.costs import machine
from quantailor.costs.machine import Range
from quantailor.costs.model_size import ModelSize
from quantailor.costs.trial import flops_per_second, inference_seconds, middle, seconds_per_weight, setup_seconds
from quantailor.ggml import library
from quantailor.qtypes import QType
from quantailor.records import TensorInfo

SAMPLED_DRAWS: Range = (0.7 * PILOT_DRAWS, 5.0 * PILOT_DRAWS)
"""Rows of a tensor that sampling measures at a type: hardly more than the pilot's where rows are alike, many where they are not."""
COMPENSATED_DRAWS: Range = (0.8 * PILOT_DRAWS, 4.0 * PILOT_DRAWS)
"""The same where errors are compensated, and what they do to outputs is sampled."""
ENERGY_SECONDS: Range = (1e-9, 6e-9)
"""Per weight, one thread: what it takes to read a weight and sum its square, which sampling does once for all types."""
CELL_SECONDS: Range = (0.5e-3, 8e-3)
"""Per cell, beside its weights: estimating, and storing it safely."""
THREADS_SHARE: Range = (1.0, 0.6)
"""What a thread among several does, compared with one alone."""
SETUP_SHARE: Range = (0.5, 1.5)
SCORE_SECONDS: Range = (2e-9, 8e-9)
"""Per token of the text and of the vocabulary: comparing a model's logits with the base's."""
COMPENSATION_FLOPS: Range = (1.0, 3.0)
"""For each pair of columns of a row."""
SCALAR_CODES: Range = (0.5, 1.5)
VECTOR_CODES: Range = (5.0, 13.0)
"""Choosing codes of a weight, looked at several times, over what quantizing one to Q4_K takes: alone, or in groups that share one."""
_IN_GROUPS = ("IQ1", "IQ2", "IQ3")
"""How the names of types begin whose weights share codes."""
COVARIANCE_FLOPS: Range = (0.5, 6.0)
"""For each sum and token: experts see a part of the tokens, and small products are slower than large ones."""
DISK_BYTES_PER_SECOND: Range = (2e9, 5e7)


@dataclass(frozen=True, slots=True)
class Seconds:
    """What work takes, at the least and at the most."""

    running: Range = (0.0, 0.0)
    """llama.cpp running the model."""
    beside: Range = (0.0, 0.0)
    """Everything else."""

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(added(self.running, other.running), added(self.beside, other.beside))

    def times(self, low: float, high: float | None = None) -> Seconds:
        """So much of it; at the most `high`, where that is more."""
        high = low if high is None else high
        return Seconds((self.running[0] * low, self.running[1] * high), (self.beside[0] * low, self.beside[1] * high))

    @property
    def all(self) -> Range:
        """Both together."""
        return added(self.running, self.beside)

    @property
    def middle(self) -> float:
        """The geometric one, part by part; half of the most where there is no least."""
        return sum(middle(part) if part[0] > 0 else part[1] / 2 for part in (self.running, self.beside))


def added(*ranges: Range) -> Range:
    """One after the other."""
    return sum(one for one, _ in ranges), sum(other for _, other in ranges)


def measure_seconds(
    cells: Mapping[TensorInfo, Collection[str]], *, exhaustive: bool, n_threads: int | None, compensated: bool = False
) -> Range:
    """Weight errors of these types of these tensors; on as many rows as compensated ones need, if so."""
    low = high = 0.0
    qtypes = library.types()
    for tensor, names in cells.items():
        types = [qtypes[name] for name in names if qtypes[name].divides(tensor.n_cols) and name != tensor.type_name]
        sampled = not exhaustive and tensor.n_rows > PILOT_DRAWS
        for qtype in types:
            fewest, most = _rows(tensor, qtype, sampled, COMPENSATED_DRAWS if compensated else SAMPLED_DRAWS)
            seconds = tensor.n_cols * seconds_per_weight(qtype.name)
            low, high = low + fewest * seconds, high + most * seconds
        if types and sampled:
            low, high = low + tensor.n_elements * ENERGY_SECONDS[0], high + tensor.n_elements * ENERGY_SECONDS[1]
    n_cells, setup = sum(map(len, cells.values())), setup_seconds(set().union(*map(set, cells.values())))
    low, high = (seconds / (_threads(n_threads) * share) for seconds, share in zip((low, high), THREADS_SHARE, strict=True))
    return (
        low + n_cells * CELL_SECONDS[0] + setup * SETUP_SHARE[0],
        high + n_cells * CELL_SECONDS[1] + setup * SETUP_SHARE[1],
    )


def compensation_seconds(cells: Mapping[TensorInfo, Collection[str]], *, exhaustive: bool, n_threads: int | None) -> Range:
    """What compensated rounding takes beside plain: products with each input's covariance, and its factor once for each tensor.

    A tensor that is sampled also takes the output energies of all its rows, once for all types: n_cols multiply-adds a weight.
    """
    low = high = chosen_low = chosen_high = 0.0
    qtypes = library.types()
    for tensor, names in cells.items():
        sampled = not exhaustive and tensor.n_rows > PILOT_DRAWS
        for name in names:
            if qtypes[name].divides(tensor.n_cols) and qtypes[name].is_quantized:
                fewest, most = _rows(tensor, qtypes[name], sampled, COMPENSATED_DRAWS)
                low, high = low + fewest * tensor.n_cols**2, high + most * tensor.n_cols**2
                choosing = VECTOR_CODES if name.startswith(_IN_GROUPS) else SCALAR_CODES
                chosen_low, chosen_high = (
                    chosen + n_rows * tensor.n_cols * each
                    for chosen, n_rows, each in zip((chosen_low, chosen_high), (fewest, most), choosing, strict=True)
                )
        if sampled and names:
            low, high = low + 2 * tensor.n_rows * tensor.n_cols**2, high + 2 * tensor.n_rows * tensor.n_cols**2
        factor = tensor.n_slices * tensor.n_cols**3 if names else 0
        low, high = low + factor, high + factor
    one = seconds_per_weight("Q4_K") / _threads(n_threads)
    choosing = (chosen_low * one / THREADS_SHARE[0], chosen_high * one / THREADS_SHARE[1])
    return added(_products(low, high, COMPENSATION_FLOPS, n_threads), choosing)


def covariance_seconds(n_tokens: float, sums_bytes: float, *, n_threads: int | None) -> Range:
    """Adding so many tokens to sums, 32-bit triangles of so many bytes."""
    n_sums = n_tokens * sums_bytes / 4
    return _products(n_sums, n_sums, COVARIANCE_FLOPS, n_threads)


def _products(low: float, high: float, flops: Range, n_threads: int | None) -> Range:
    """So many multiply-adds by numpy; `flops` is what each takes, with all that lies around it."""
    speed = flops_per_second() * _threads(n_threads)
    return low * flops[0] / (speed * THREADS_SHARE[0]), high * flops[1] / (speed * THREADS_SHARE[1])


def _rows(tensor: TensorInfo, qtype: QType, sampled: bool, draws: Range) -> Range:
    if not sampled or not qtype.is_quantized:
        return tensor.n_rows, tensor.n_rows
    return min(tensor.n_rows, draws[0]), min(tensor.n_rows, draws[1])


def _threads(n_threads: int | None) -> int:
    return min(n_threads or machine.n_threads(), machine.n_threads())


def quantize_seconds(n_weights_by_type: Mapping[str, float], *, n_threads: int | None) -> float:
    """Quantizing so many weights at each type, with all threads."""
    total = sum(n_weights * seconds_per_weight(name) for name, n_weights in n_weights_by_type.items())
    return total / _threads(n_threads)


def score_seconds(
    size: ModelSize, n_chunks: float, n_ctx: int, *, n_threads: int | None, n_gpu_layers: int, base_is_held: bool = False
) -> Seconds:
    """Running so many chunks and comparing their logits with the base's, which are computed again where large unless they are held."""
    flops = n_chunks * size.score_flops(n_ctx, base_is_held=base_is_held)
    running = inference_seconds(flops, n_threads=n_threads, n_gpu_layers=n_gpu_layers)
    logits = n_chunks * size.n_vocab * n_ctx / 2
    return Seconds(running, (logits * SCORE_SECONDS[0] / _threads(n_threads), logits * SCORE_SECONDS[1]))


def write_seconds(n_bytes: float) -> Range:
    """Reading and writing a file of that size."""
    return n_bytes / DISK_BYTES_PER_SECOND[0], n_bytes / DISK_BYTES_PER_SECOND[1]
