"""What one type does to the weights of one tensor: the definitions of METHODS 1, and the sums behind them.

W is the tensor's matrix, dW = Q(W) - W after quantizing with ggml and dequantizing again, x an input column
of that matrix on the calibration text. Sums run over all rows of all slices; row i of slice s has the weight
v_i = share of routed tokens of s (1 / n_slices where unknown) x the row's own weight (1 unless given).

    rmse           sqrt(mean dW^2)                                                    weight units
    max_abs_error  max |dW|; of a sample, a lower bound                               weight units
    relative_mse   sum dW^2 / sum W^2                                                 1
    sqnr_db        -10 log10(relative_mse); None where nothing is lost                dB
    weighted_mse   sum_i v_i sum_j dW_ij^2 E[x_j^2] / sum_i v_i sum_j W_ij^2 E[x_j^2]  1
    output_error   sum_i v_i (sum_j dW_ij^2 Var(x_j) + (sum_j dW_ij E[x_j])^2)        squared output units per token
    output_mse     sum_i v_i dW_i^T H dW_i / sum_i v_i W_i^T H W_i, H = E[x x^T]       1
    quantiles, histogram of |dW|: every weight counts once

Without column weights E[x_j^2] counts as 1; without E[x_j] there is no output_error. A tensor of zeros has
relative errors of 0. output_mse is there where input covariances are at hand; a matrix whose own H is not known counts with
the diagonal, so that all tensors have errors of one kind. Token embeddings have a metric in place of H (METHODS 2).

How the sums are taken: float32 within a row (rounding about 1e-6 of the sum), float64 across rows, in an order
that does not depend on threads. |dW| is counted in fine bins, the leading bits of the float32 dW^2: 16 bins per
octave of dW^2, at most 3 % wide in |dW|. Quantiles interpolate within a fine bin; a histogram bin that ends
inside a fine bin takes its share of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quantailor.analysis.importance.error_weights import ErrorWeights
from quantailor.analysis.rounding.metric import Metric
from quantailor.errors import ImatrixError
from quantailor.ggml import codec
from quantailor.numerics import Bytes, Doubles, Floats, Integers
from quantailor.qtypes import QType
from quantailor.records import Estimate, TensorInfo, WeightError

DEFINITION_VERSION = 1
"""Version of the definitions above; stored with every row."""

QUANTILES = (0.50, 0.90, 0.95, 0.99, 0.999)
N_HISTOGRAM_BINS = 64
HISTOGRAM_EDGES: tuple[float, ...] = tuple(2.0 ** (-24 + k / 2) for k in range(N_HISTOGRAM_BINS + 1))
"""Edges of the histogram in units of rms(W): half octaves from 2^-24 to 2^8. The end bins take all beyond."""

_FINE_SHIFT = 19
N_FINE_BINS = 1 << (31 - _FINE_SHIFT)


@dataclass(frozen=True, slots=True)
class Weighting:
    """Error weights brought into the form the sums need; columns are divided by their largest value.

    Rounding aside that changes nothing, and it keeps float32 sums clear of overflow and underflow.
    """

    columns: Floats | None
    """E[x_j^2] / scale, (n_slices, n_cols)."""
    variances: Floats | None
    """Var(x_j) / scale, (n_slices, n_cols)."""
    means: Floats | None
    """E[x_j] / sqrt(scale), (n_slices, n_cols)."""
    rows: Doubles
    """v_i x scale, (n_rows,)."""
    scale: float
    rows_per_slice: int
    uniform: bool
    """Whether the weighted sums are the plain ones."""


def weighting(tensor: TensorInfo, weights: ErrorWeights) -> Weighting:
    """Check the weights' shapes and values against the tensor and scale them.

    Raises:
        ImatrixError: an array of the wrong shape, a negative or non-finite weight.
    """
    n_slices, n_cols = tensor.n_slices, tensor.n_cols
    _check(tensor, "column weights", weights.columns, (n_slices, n_cols))
    _check(tensor, "means", weights.means, (n_slices, n_cols), signed=True)
    _check(tensor, "slice shares", weights.slice_shares, (n_slices,))
    _check(tensor, "row weights", weights.row_weights, (tensor.n_rows,))
    _check(tensor, "quantizer weights", weights.quantizer, (n_slices, n_cols))
    scale = 1.0 if weights.columns is None else float(weights.columns.max(initial=0.0)) or 1.0
    columns = None if weights.columns is None else (weights.columns.astype(np.float64) / scale).astype(np.float32)
    means = variances = None
    if weights.means is not None and weights.columns is not None:
        first = weights.means.astype(np.float64)
        means = (first / math.sqrt(scale)).astype(np.float32)
        variances = (np.maximum(weights.columns - first**2, 0.0) / scale).astype(np.float32)
    shares = np.full(n_slices, 1.0 / n_slices) if weights.slice_shares is None else weights.slice_shares.astype(np.float64)
    rows = np.repeat(shares * scale, tensor.rows_per_slice)
    if weights.row_weights is not None:
        rows = rows * weights.row_weights
    uniform = weights.columns is None and weights.row_weights is None and weights.slice_shares is None
    return Weighting(columns, variances, means, rows, scale, tensor.rows_per_slice, uniform)


def _check(tensor: TensorInfo, what: str, values: Floats | None, shape: tuple[int, ...], *, signed: bool = False) -> None:
    if values is None:
        return
    if values.shape != shape:
        raise ImatrixError(f"{tensor.name} has {what} of shape {values.shape}, not {shape}", remedy="Use the matrix of this model")
    codec.check_importance(np.abs(values) if signed else values, tensor.name)


class RowSums(NamedTuple):
    """Sums over the columns of some rows of one matrix, each (n_rows,) float64. Row weights are applied."""

    plain: Doubles
    weighted: Doubles
    output: Doubles
    """Zeros where E[x_j] is not known."""
    largest: Doubles
    """The largest square in each row."""
    full: Doubles
    """With all of H; `weighted` where it is not known."""


def row_sums(values: Floats, squares: Floats, scales: Weighting, rows: Integers, metric: Metric | None = None) -> RowSums:
    """Sums of `squares` (and of `values`, whose squares they are), both (n_rows, n_cols), for rows of one slice.

    `rows` are their indexes in the tensor, (n_rows,); `metric` is their slice's. A row's sums depend on nothing but the row.
    """
    slice_index, v = int(rows[0]) // scales.rows_per_slice, scales.rows[rows]
    plain = squares.sum(axis=1).astype(np.float64)
    weighted, output = plain, np.zeros(len(plain))
    if scales.columns is not None:
        weighted = np.einsum("ij,j->i", squares, scales.columns[slice_index]).astype(np.float64)
    if scales.variances is not None and scales.means is not None:
        spread = np.einsum("ij,j->i", squares, scales.variances[slice_index]).astype(np.float64)
        output = v * (spread + np.einsum("ij,j->i", values, scales.means[slice_index]).astype(np.float64) ** 2)
    full = v * weighted if metric is None else v / scales.scale * metric.output_errors(values)
    return RowSums(plain, v * weighted, output, squares.max(axis=1).astype(np.float64), full)


def quantization_error(values: Floats, qtype: QType, codes: Callable[[], Bytes]) -> tuple[Floats, Floats]:
    """dW and dW^2 of some rows with these codes, each (n_rows, n_cols) float32. Overflow gives Inf, not a warning."""
    with np.errstate(all="ignore"):
        error = codec.dequantize(codes(), qtype, values.shape[1])
        np.subtract(error, values, out=error)
        return error, np.multiply(error, error)


def fine_bins(squares: Floats) -> npt.NDArray[np.int32]:
    """The fine bin of every |dW|, from the leading bits of dW^2: (n_rows, n_cols) -> the same shape."""
    return squares.view(np.int32) >> _FINE_SHIFT


def fine_edges() -> Doubles:
    """Edges of the fine bins in |dW|, weight units, (n_bins + 1,); the last are infinite."""
    bits = (np.arange(N_FINE_BINS + 1, dtype=np.int64) << _FINE_SHIFT).clip(max=0x7F800000).astype(np.int32)
    return np.sqrt(bits.view(np.float32).astype(np.float64))


def quantiles(shares: Doubles, edges: Doubles) -> tuple[float, ...]:
    """p50, p90, p95, p99 and p99.9 of |dW|, interpolated within a bin, from the fine bins' shares (n_bins,) and edges (n_bins + 1,)."""
    cumulative = np.cumsum(shares)
    values = []
    for q in QUANTILES:
        k = min(int(np.searchsorted(cumulative, q * cumulative[-1])), len(shares) - 1)
        before = cumulative[k - 1] if k else 0.0
        inside = (q * cumulative[-1] - before) / shares[k] if shares[k] else 0.0
        values.append(0.0 if k == 0 else float(edges[k] + inside * (edges[k + 1] - edges[k])))
    return tuple(values)


def histogram(shares: Doubles, edges: Doubles, rms: float) -> tuple[float, ...]:
    """Shares of |dW| in the 64 bins of HISTOGRAM_EDGES x rms, from the fine bins' shares (n_bins,) and edges (n_bins + 1,)."""
    if rms <= 0:
        return (float(shares.sum()),) + (0.0,) * (N_HISTOGRAM_BINS - 1)
    finite = np.isfinite(edges)
    at_edges = np.interp(np.asarray(HISTOGRAM_EDGES[1:-1]) * rms, edges[finite], np.concatenate(([0.0], np.cumsum(shares)))[finite])
    return tuple(float(share) for share in np.diff(at_edges, prepend=0.0, append=shares.sum()))


@dataclass(frozen=True, slots=True)
class Energy:
    """Sums of W^2 over a whole tensor, plain and weighted."""

    plain: float
    weighted: float
    full: float = 0.0


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums of dW^2 over a tensor, measured or estimated, for one type."""

    plain: Estimate
    weighted: Estimate
    output: Estimate | None
    largest_square: float
    shares: Doubles
    """Share of all |dW| in each fine bin, (N_FINE_BINS,)."""
    quantiles_se: tuple[float, ...]
    n_rows: int
    """Rows that were measured."""
    output_mse: Estimate | None = None
    """Of errors and energies with all of H; None without covariances."""


def weight_error(tensor: TensorInfo, qtype: QType, totals: Totals, energy: Energy, *, n_unseen: int) -> WeightError:
    """The record of one cell. A type whose values overflow is unavailable, with that as the reason."""
    if not (math.isfinite(totals.plain.value) and math.isfinite(totals.weighted.value) and math.isfinite(totals.largest_square)):
        return unavailable_cell(tensor, qtype, f"the weights are too large for {qtype.name}: its values overflow")
    edges = fine_edges()
    n = tensor.n_elements
    relative = ratio(totals.plain, energy.plain)
    weighted = ratio(totals.weighted, energy.weighted)
    rmse = math.sqrt(totals.plain.value / n)
    return WeightError(
        tensor=tensor.name,
        type_name=qtype.name,
        size_bytes=qtype.tensor_bytes(tensor),
        bits_per_weight=qtype.bits_per_weight,
        n_rows_measured=totals.n_rows,
        n_rows_total=tensor.n_rows,
        rmse=rmse,
        max_abs_error=math.sqrt(totals.largest_square),
        relative_mse=relative.value,
        sqnr_db=-10 * math.log10(relative.value) if relative.value > 0 else None,
        weighted_mse=weighted.value,
        output_error=None if totals.output is None else totals.output.value,
        output_mse=None if totals.output_mse is None else totals.output_mse.value,
        rmse_se=rmse * totals.plain.relative_se / 2,
        relative_mse_se=relative.se,
        weighted_mse_se=weighted.se,
        output_error_se=0.0 if totals.output is None else totals.output.se,
        output_mse_se=0.0 if totals.output_mse is None else totals.output_mse.se,
        error_quantiles=quantiles(totals.shares, edges),
        error_quantiles_se=totals.quantiles_se,
        histogram=histogram(totals.shares, edges, math.sqrt(energy.plain / n)),
        n_unseen_experts=n_unseen,
        definition_version=DEFINITION_VERSION,
    )


def ratio(total: Estimate, whole: float) -> Estimate:
    """A sum of errors as a share of that of the weights; 0 where these are all 0."""
    return Estimate(total.value / whole, total.se / whole) if whole > 0 else Estimate(0.0)


def unavailable_cell(tensor: TensorInfo, qtype: QType, reason: str) -> WeightError:
    """The record of a type that the tensor cannot take; its size is 0 where the block does not fit."""
    size = qtype.tensor_bytes(tensor) if qtype.divides(tensor.n_cols) else 0
    return WeightError(
        tensor=tensor.name,
        type_name=qtype.name,
        size_bytes=size,
        bits_per_weight=qtype.bits_per_weight,
        n_rows_total=tensor.n_rows,
        unavailable=reason,
        definition_version=DEFINITION_VERSION,
    )


def lossless_cell(tensor: TensorInfo, qtype: QType, weights: ErrorWeights, *, with_covariances: bool = False) -> WeightError:
    """The record of a type that keeps every weight as it is: the tensor's own, or F32. Nothing needs measuring."""
    zero = Estimate(0.0)
    output = zero if weights.means is not None and weights.columns is not None else None
    shares = np.zeros(N_FINE_BINS)
    shares[0] = 1.0
    output_mse = zero if with_covariances else None
    totals = Totals(zero, zero, output, 0.0, shares, (0.0,) * len(QUANTILES), tensor.n_rows, output_mse)
    return weight_error(tensor, qtype, totals, Energy(0.0, 0.0), n_unseen=weights.n_unseen_slices)
