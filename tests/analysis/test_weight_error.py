"""The definitions of the weight errors, against plain float64 arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from benchmarks.in_memory import MemorySource, measure_model

from quantailor.analysis.importance.error_weights import UNWEIGHTED, ErrorWeights
from quantailor.analysis.weight_errors.measure import MeasureSettings
from quantailor.analysis.weight_errors.weight_error import HISTOGRAM_EDGES
from quantailor.errors import ImatrixError, NonFiniteWeightError
from quantailor.ggml import codec, library
from quantailor.numerics import Doubles, Floats
from quantailor.records import WeightError

EXHAUSTIVE = MeasureSettings(exhaustive=True)


def heavy_tailed(*shape: int) -> Floats:
    return (np.random.default_rng(1).standard_t(4, size=shape) * 0.02).astype(np.float32)


def random_weights(n_slices: int, n_cols: int) -> ErrorWeights:
    rng = np.random.default_rng(2)
    columns = rng.lognormal(0, 1.5, (n_slices, n_cols)).astype(np.float32)
    means = (rng.uniform(-1, 1, columns.shape) * np.sqrt(columns)).astype(np.float32)
    shares = rng.dirichlet(np.ones(n_slices)).astype(np.float32)
    return ErrorWeights(columns=columns, means=means, slice_shares=shares, quantizer=columns)


def measure(array: Floats, *type_names: str, weights: ErrorWeights = UNWEIGHTED, name: str = "w.weight") -> tuple[WeightError, ...]:
    return tuple(measure_model(MemorySource({name: array}), [name], type_names, weights_of=lambda _: weights, settings=EXHAUSTIVE))


def errors_of(array: Floats, type_name: str, weights: ErrorWeights) -> Doubles:
    """dW in float64, slice by slice."""
    qtype, parts = library.types()[type_name], []
    for index, matrix in enumerate(array.reshape(-1, *array.shape[-2:])):
        importance = None if weights.quantizer is None else weights.quantizer[index]
        parts.append(codec.dequantize(codec.quantize(matrix, qtype, importance), qtype, array.shape[-1]))
    return np.stack(parts).astype(np.float64) - array.reshape(-1, *array.shape[-2:])


@pytest.mark.parametrize("type_name", ["Q8_0", "Q4_K", "IQ3_XXS", "Q4_0", "TQ1_0", "F16"])
def test_every_metric_follows_its_definition(type_name: str) -> None:
    array, weights = heavy_tailed(3, 40, 512), random_weights(3, 512)
    (cell,) = measure(array, type_name, weights=weights)
    error, wide = errors_of(array, type_name, weights), array.astype(np.float64)
    assert weights.columns is not None
    assert weights.means is not None
    assert weights.slice_shares is not None
    share, second, mean = weights.slice_shares[:, None], weights.columns.astype(np.float64)[:, None], weights.means.astype(np.float64)
    assert cell.rmse == pytest.approx(math.sqrt((error**2).mean()), rel=1e-5)
    assert cell.max_abs_error == pytest.approx(np.abs(error).max(), rel=1e-6)
    assert cell.relative_mse == pytest.approx((error**2).sum() / (wide**2).sum(), rel=1e-5)
    assert cell.sqnr_db == pytest.approx(-10 * math.log10((error**2).sum() / (wide**2).sum()), rel=1e-5)
    lost, whole = (share * (error**2 * second).sum(axis=2)).sum(), (share * (wide**2 * second).sum(axis=2)).sum()
    assert cell.weighted_mse == pytest.approx(lost / whole, rel=1e-5)
    spread = (error**2 * np.maximum(0, second - mean[:, None] ** 2)).sum(axis=2)
    pull = np.einsum("sij,sj->si", error, mean) ** 2
    assert cell.output_error == pytest.approx((share * (spread + pull)).sum(), rel=1e-4)


def test_quantiles_and_histogram_describe_all_errors() -> None:
    array = heavy_tailed(64, 512)
    (cell,) = measure(array, "Q4_K")
    error = np.abs(errors_of(array, "Q4_K", UNWEIGHTED)).reshape(-1)
    assert list(cell.error_quantiles) == pytest.approx(list(np.quantile(error, [0.5, 0.9, 0.95, 0.99, 0.999])), rel=0.02)
    edges = np.array([0.0, *HISTOGRAM_EDGES[1:-1], np.inf]) * math.sqrt((array.astype(np.float64) ** 2).mean())
    assert list(cell.histogram) == pytest.approx(list(np.histogram(error, edges)[0] / error.size), abs=0.005)
    assert sum(cell.histogram) == pytest.approx(1)


def test_an_embedding_row_counts_by_its_frequency() -> None:
    array = heavy_tailed(64, 256)
    frequency = np.arange(1, 65, dtype=np.float32)
    (cell,) = measure(array, "Q4_0", weights=ErrorWeights(row_weights=frequency))
    error = errors_of(array, "Q4_0", UNWEIGHTED)[0]
    expected = (frequency * (error**2).sum(axis=1)).sum() / (frequency * (array.astype(np.float64) ** 2).sum(axis=1)).sum()
    assert cell.weighted_mse == pytest.approx(expected, rel=1e-5)
    assert cell.output_error is None


def test_sizes_are_those_of_the_file() -> None:
    (cell,) = measure(heavy_tailed(64, 512), "Q4_K")
    assert (cell.size_bytes, cell.bits_per_weight, cell.n_rows_measured, cell.sampled) == (64 * 288, 4.5, 64, False)


def test_a_type_that_keeps_every_weight_loses_nothing() -> None:
    own, single = measure(heavy_tailed(4, 32), "F32", "BF16")[0], measure(np.zeros((4, 32), dtype=np.float32), "Q4_0")[0]
    assert (own.weighted_mse, own.rmse, own.sqnr_db, own.histogram[0]) == (0.0, 0.0, None, 1.0)
    assert (single.weighted_mse, single.relative_mse, single.max_abs_error) == (0.0, 0.0, 0.0)


def test_columns_of_any_scale_give_the_same_shares() -> None:
    array = heavy_tailed(16, 256)
    columns = np.random.default_rng(3).lognormal(0, 1, (1, 256)).astype(np.float32)
    usual, tiny = (measure(array, "Q4_0", weights=ErrorWeights(columns=columns * np.float32(s)))[0] for s in (1.0, 1e-30))
    assert tiny.weighted_mse == pytest.approx(usual.weighted_mse, rel=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_weights_are_counted_and_refused(bad: float) -> None:
    array = heavy_tailed(300, 512)
    array[[3, 200, 299], 7] = bad
    with pytest.raises(NonFiniteWeightError, match=r"w\.weight has 3 weights that are NaN or Inf"):
        measure(array, "Q4_K")


def test_a_huge_weight_is_refused_with_its_value() -> None:
    array = heavy_tailed(4, 256)
    array[1, 1] = 3e7
    with pytest.raises(NonFiniteWeightError, match="3e\\+07"):
        measure(array, "Q4_K")


def test_a_type_that_overflows_is_unavailable_and_says_so() -> None:
    (cell,) = measure(np.full((4, 256), 1e6, dtype=np.float32), "F16")
    assert cell.unavailable == "the weights are too large for F16: its values overflow"
    assert cell.weighted_mse is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (ErrorWeights(columns=np.ones((1, 128), dtype=np.float32)), "w.weight has column weights of shape"),
        (ErrorWeights(row_weights=np.ones(3, dtype=np.float32)), "w.weight has row weights of shape"),
        (ErrorWeights(columns=np.full((1, 256), -1, dtype=np.float32)), "the value -1 for w.weight"),
        (ErrorWeights(quantizer=np.full((1, 256), np.nan, dtype=np.float32)), "the value nan for w.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(weights: ErrorWeights, message: str) -> None:
    with pytest.raises(ImatrixError, match=message):
        measure(heavy_tailed(4, 256), "Q4_0", weights=weights)
