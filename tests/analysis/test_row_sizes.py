"""Compensated rows keep their size: as built by `Rounding.quantize`, for every type whose scales are float16."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_up_covariances import MadeUpCovariances
from quantailor.analysis.importance.imatrix import TOKEN_EMBEDDINGS
from quantailor.analysis.rounding.compensation import round_rows
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.analysis.rounding.scales import MOST, keep_sizes, scale_places
from quantailor.ggml import codec, library
from quantailor.numerics import Doubles, Floats
from quantailor.qtypes import QType
from quantailor.records import TensorInfo
from quantized_types import every_quantized_type

COARSE = {"IQ1_M", "MXFP4", "NVFP4"}
"""Their scales are no float16 of a block's own."""
N_COLS = 512
PRECISION = 1e-3
"""Of a row's scales, each a float16, together."""


def importance(seed: int = 3) -> Floats:
    return np.exp(np.random.default_rng(seed).normal(size=N_COLS)).astype(np.float32)


def weights(seed: int = 4, n_rows: int = 8) -> Floats:
    return np.random.default_rng(seed).normal(scale=0.2, size=(n_rows, N_COLS)).astype(np.float32)


def kept(data: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], values: Floats, qtype: QType) -> Doubles:
    """How much of each row's size is left, with importances: (n_rows,)."""
    weighed = values * importance().astype(np.float64)
    found: Doubles = (weighed * codec.dequantize(data, qtype, N_COLS)).sum(axis=1) / (weighed * values).sum(axis=1)
    return found


@every_quantized_type
def test_every_type_tells_where_its_scales_are_but_those_that_have_no_float16(qtype: QType) -> None:
    assert bool(scale_places(qtype)) is (qtype.name not in COARSE)


@every_quantized_type
def test_a_row_is_as_large_as_what_it_stands_for(qtype: QType) -> None:
    values = weights()
    rounded = codec.quantize(values, qtype, importance())
    before = kept(rounded, values, qtype)
    after = kept(keep_sizes(rounded, values, importance(), qtype), values, qtype)
    if qtype.name in COARSE:
        np.testing.assert_array_equal(after, before)
    else:
        np.testing.assert_allclose(after, np.maximum(before, np.minimum(1, before * MOST)), rtol=PRECISION)


@every_quantized_type
def test_codes_stay_and_all_weights_of_a_row_grow_alike(qtype: QType) -> None:
    values = weights()
    rounded = codec.quantize(values, qtype, importance())
    before, after = (codec.dequantize(each, qtype, N_COLS) for each in (rounded, keep_sizes(rounded, values, importance(), qtype)))
    gain = np.maximum(1, np.minimum(MOST, 1 / kept(rounded, values, qtype))) if qtype.name not in COARSE else np.ones(len(values))
    np.testing.assert_allclose(after, before * gain[:, None], rtol=5 * PRECISION, atol=2 * PRECISION * float(np.abs(before).max()))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_a_row_s_scales_depend_on_the_row_alone(seed: int, n_rows: int) -> None:
    qtype, values = library.types()["Q2_K"], weights(seed, n_rows)
    rounded = codec.quantize(values, qtype, importance())
    together = keep_sizes(rounded, values, importance(), qtype)
    for row in range(n_rows):
        alone = keep_sizes(rounded[row : row + 1], values[row : row + 1], importance(), qtype)
        np.testing.assert_array_equal(together[row : row + 1], alone)


def test_rows_that_say_nothing_or_would_overflow_stay_as_they_are() -> None:
    qtype, largest = library.types()["Q4_0"], np.array([np.finfo(np.float16).max]).view(np.uint8)
    zeros, against = np.zeros((1, N_COLS), dtype=np.float32), weights(n_rows=1)
    full = codec.quantize(against, qtype, importance()).reshape(-1, qtype.type_size)
    full[:, [scale_places(qtype)[0], scale_places(qtype)[0] + 1]] = largest
    full = full.reshape(1, -1)
    for data, values, v in (
        (codec.quantize(zeros, qtype), zeros, importance()),
        (codec.quantize(-against, qtype), against, importance()),
        (codec.quantize(against, qtype), against, np.zeros(N_COLS, dtype=np.float32)),
        (full, codec.dequantize(full, qtype, N_COLS) * np.float32(1.05), importance()),
    ):
        np.testing.assert_array_equal(keep_sizes(data, values, v, qtype), data)


@pytest.mark.parametrize("name", ["blk.0.ffn_up.weight", TOKEN_EMBEDDINGS[0]])
def test_compensated_rows_keep_their_size_but_embeddings_which_a_norm_rescales(name: str) -> None:
    values, qtype = weights(n_rows=4), library.types()["Q3_K"]
    tensor = TensorInfo(name, values.shape, "F32", values.nbytes)
    rounding = Rounding(covariances=MadeUpCovariances(without=()), compensated=True)
    metric = rounding.metric(tensor, 0)
    assert metric is not None
    data = rounding.quantize(tensor, 0, values, qtype)
    codes = round_rows(values, qtype, metric)
    weighed = values * np.diagonal(metric.covariance.matrix).astype(np.float64)
    left = (weighed * codec.dequantize(data, qtype, N_COLS)).sum(axis=1) / (weighed * values).sum(axis=1)
    if name in TOKEN_EMBEDDINGS:
        np.testing.assert_array_equal(data, codes)
    else:
        np.testing.assert_allclose(left, 1, atol=PRECISION)
