"""Compensated rounding of rows: smaller output errors in the same types, and bytes that ggml accepts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.rounding.codes import scalar_codes
from quantailor.analysis.rounding.compensation import round_rows
from quantailor.analysis.rounding.metric import DAMPING, Metric
from quantailor.errors import CovarianceError
from quantailor.ggml import codec, library
from quantailor.numerics import Floats
from quantailor.qtypes import QType
from quantized_types import every_quantized_type

N_ROWS, N_COLS = 8, 512


def correlated(n_cols: int = N_COLS, n_tokens: int = 1 << 20, seed: int = 1) -> Metric:
    """Inputs with correlations, and importances that span three orders of magnitude."""
    rng = np.random.default_rng(seed)
    scales = np.exp(rng.normal(size=n_cols))
    mixed = (rng.normal(size=(n_cols, n_cols)) / np.sqrt(n_cols) + np.eye(n_cols)) * scales
    return Metric(InputCovariance(f"blk.{seed}", (mixed.T @ mixed).astype(np.float32), n_tokens))


@pytest.fixture(scope="module")
def metric() -> Metric:
    return correlated()


@pytest.fixture(scope="module")
def weights() -> Floats:
    return np.random.default_rng(2).normal(scale=0.02, size=(N_ROWS, N_COLS)).astype(np.float32)


def error(data: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], weights: Floats, qtype: QType, metric: Metric) -> float:
    return float(metric.output_errors(codec.dequantize(data, qtype, weights.shape[1]) - weights).sum())


def importances(metric: Metric) -> Floats:
    return np.ascontiguousarray(np.diagonal(metric.covariance.matrix))


@every_quantized_type
def test_every_type_loses_less_than_with_importances_alone(qtype: QType, metric: Metric, weights: Floats) -> None:
    """Those of fewer than 2.5 bits a weight no more, at least: these inputs are harder than those of trained models."""
    data = round_rows(weights, qtype, metric)
    assert codec.is_valid(data, qtype)
    plain = codec.quantize(weights, qtype, importances(metric))
    limit = 0.8 if qtype.bits_per_weight > 2.5 else 1.001
    assert error(data, weights, qtype, metric) < limit * error(plain, weights, qtype, metric)


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4", "Q4_K", pytest.param("IQ3_S", marks=pytest.mark.slow)])
def test_rows_of_zeros_stay_zero(name: str, metric: Metric, weights: Floats) -> None:
    qtype = library.types()[name]
    rows = weights[:4].copy()
    rows[1:3] = 0
    values = codec.dequantize(round_rows(rows, qtype, metric), qtype, N_COLS)
    assert not values[1:3].any()
    assert values[[0, 3]].any(axis=1).all()


@pytest.mark.parametrize("name", ["Q4_0", "Q3_K", "IQ4_XS"])
def test_no_other_code_would_be_much_better(name: str, weights: Floats) -> None:
    """With one block a row, codes are looked at again beside all others; a few sweeps leave little."""
    qtype = library.types()[name]
    metric, rows = correlated(qtype.block_size), np.ascontiguousarray(weights[:4, : qtype.block_size])
    data = round_rows(rows, qtype, metric)
    damped = metric.damped().astype(np.float64)

    def damped_errors(values: Floats) -> Floats:
        deltas = (values - rows).astype(np.float64)
        errors: Floats = np.einsum("ij,jk,ik->i", deltas, damped, deltas).astype(np.float32)
        return errors

    best = damped_errors(codec.dequantize(data, qtype, qtype.block_size))
    layout = scalar_codes(qtype)
    assert layout is not None
    codes = layout.unpack(data)
    for column in range(qtype.block_size):
        for step in (-1, 1):
            other = codes.copy()
            other[:, column] = np.clip(codes[:, column].astype(int) + step, 0, layout.n_codes - 1)
            values = codec.dequantize(layout.pack(data, other), qtype, qtype.block_size)
            assert (damped_errors(values) >= best * 0.995).all()


def test_a_row_s_bytes_depend_on_the_row_alone(metric: Metric, weights: Floats) -> None:
    qtype = library.types()["Q4_K"]
    whole = round_rows(weights, qtype, metric)
    rows = np.array([3, 4, 7])
    assert np.array_equal(round_rows(np.ascontiguousarray(weights[rows]), qtype, metric), whole[rows])
    assert np.array_equal(round_rows(weights[::-1].copy(), qtype, metric)[::-1], whole)


@pytest.mark.parametrize("n_tokens", [16, pytest.param(N_COLS, marks=pytest.mark.slow)])
def test_few_tokens_do_no_harm(n_tokens: int, weights: Floats) -> None:
    """Judged by what is true, and not by the few inputs that were seen."""
    true = correlated()
    factor = np.linalg.cholesky(true.covariance.matrix.astype(np.float64))
    seen = (np.random.default_rng(3).normal(size=(n_tokens, N_COLS)) @ factor.T).astype(np.float32)
    metric = Metric(InputCovariance("few", seen.T @ seen / np.float32(n_tokens), n_tokens))
    qtype = library.types()["Q4_0"]
    plain = codec.quantize(weights, qtype, importances(metric))
    assert error(round_rows(weights, qtype, metric), weights, qtype, true) < 1.01 * error(plain, weights, qtype, true)


def test_columns_that_no_token_used_are_rounded_too(weights: Floats) -> None:
    matrix = correlated().covariance.matrix.copy()
    matrix[:64] = 0
    matrix[:, :64] = 0
    metric, qtype = Metric(InputCovariance("holes", matrix, 1 << 20)), library.types()["Q4_K"]
    data = round_rows(weights, qtype, metric)
    errors = codec.dequantize(data, qtype, N_COLS) - weights
    assert np.abs(errors[:, :64]).max() < 0.02


def test_inputs_of_zeros_alone_round_as_if_all_counted_alike(weights: Floats) -> None:
    metric, qtype = Metric(InputCovariance("zeros", np.zeros((N_COLS, N_COLS), dtype=np.float32), 512)), library.types()["Q4_0"]
    errors = codec.dequantize(round_rows(weights, qtype, metric), qtype, N_COLS) - weights
    plain = codec.dequantize(codec.quantize(weights, qtype), qtype, N_COLS) - weights
    assert np.square(errors).sum() < 1.05 * np.square(plain).sum()


def test_what_ggml_can_write_overflows_nowhere() -> None:
    """Weights near the largest that a scale of 16 bits leaves: where compensated scales go beyond it, the row is rounded as ggml does."""
    qtype, metric = library.types()["Q5_0"], correlated(256)
    rows = np.zeros((64, 256), dtype=np.float32)
    rows[np.arange(64), np.arange(64)] = np.repeat(np.array([1e6, -1e6], dtype=np.float32), 32)
    plain = codec.quantize(rows, qtype, np.diagonal(metric.damped()).copy())
    can_write = [bool(np.isfinite(row).all()) for row in codec.dequantize(plain, qtype, 256)]
    assert any(can_write)
    assert np.isfinite(codec.dequantize(round_rows(rows, qtype, metric), qtype, 256)[can_write]).all()


def test_the_output_error_is_that_of_the_outputs(weights: Floats) -> None:
    inputs = np.random.default_rng(4).normal(size=(1000, N_COLS)).astype(np.float32)
    metric = Metric(InputCovariance("blk.0", inputs.T @ inputs / np.float32(1000), 1000))
    outputs = inputs.astype(np.float64) @ weights.T.astype(np.float64)
    assert np.allclose(metric.output_errors(weights), np.square(outputs).mean(axis=0), rtol=1e-4)


def test_a_matrix_that_is_not_positive_is_refused_in_one_line() -> None:
    matrix = np.eye(256, dtype=np.float32)
    matrix[0, 1] = matrix[1, 0] = 2.0
    with pytest.raises(CovarianceError, match=r"the covariance of blk\.0\.ffn_up\.weight is not positive"):
        Metric(InputCovariance("blk.0.ffn_up.weight", matrix, 1 << 20)).factor(32)


def test_the_diagonal_is_raised_by_a_part_of_its_mean() -> None:
    metric = correlated()
    raised = np.diagonal(metric.damped()) - np.diagonal(metric.covariance.matrix)
    assert np.allclose(raised, DAMPING * np.diagonal(metric.covariance.matrix).mean(), rtol=1e-2)


@pytest.mark.slow
def test_where_nothing_can_be_written_it_compiles_all_the_same(tmp_path: Path) -> None:
    """An installed package in folders that are for reading only, and a user without a home, as in many containers."""
    program = (
        "import numpy as np\n"
        "from quantailor.analysis.rounding.loops.lanes import turn\n"
        "rows = np.arange(256, dtype=np.float32).reshape(16, 16)\n"
        "columns = np.empty_like(rows)\n"
        "turn(rows, columns)\n"
        "print((columns == rows.T).all())\n"
    )
    nowhere = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=nowhere, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
