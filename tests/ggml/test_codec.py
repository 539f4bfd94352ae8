"""Rows through ggml's own quantizers: the same for any split, refused where ggml would end the process."""

from __future__ import annotations

import numpy as np
import pytest

from quantailor.errors import ImatrixError, NonFiniteWeightError, TypeUnavailableError
from quantailor.ggml import codec, library
from quantailor.qtypes import QType

TYPES = list(library.types().values())
ROWS = (np.random.default_rng(0).standard_normal((6, 512)) * 0.02).astype(np.float32)
IMPORTANCE = np.random.default_rng(1).lognormal(0, 1, 512).astype(np.float32)


def _slow_tables(qtype: QType) -> bool:
    """ggml takes seconds to make the tables of these types, once per process."""
    return qtype.name in ("IQ1_S", "IQ1_M", "IQ2_S", "IQ2_XS", "IQ2_XXS")


every_type = pytest.mark.parametrize(
    "qtype", [pytest.param(t, id=t.name, marks=[pytest.mark.slow] if _slow_tables(t) else []) for t in TYPES]
)


@every_type
def test_a_split_into_rows_gives_the_same_bytes(qtype: QType) -> None:
    whole = codec.quantize(ROWS, qtype, IMPORTANCE)
    assert whole.shape == (6, qtype.row_bytes(512))
    apart = np.concatenate([codec.quantize(ROWS[:1], qtype, IMPORTANCE), codec.quantize(ROWS[1:], qtype, IMPORTANCE)])
    assert np.array_equal(whole, apart)


@every_type
def test_dequantized_rows_resemble_the_weights(qtype: QType) -> None:
    data = codec.quantize(ROWS, qtype, IMPORTANCE)
    assert codec.is_valid(data, qtype)
    again = codec.dequantize(data, qtype, 512)
    assert again.shape == ROWS.shape
    assert float(((again - ROWS) ** 2).sum() / (ROWS**2).sum()) < 0.7


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_floats_survive(name: str) -> None:
    rows = np.array([[0.5, -2.0, 0.0, 1.0]], dtype=np.float32)
    qtype = library.types()[name]
    assert np.array_equal(codec.dequantize(codec.quantize(rows, qtype), qtype, 4), rows)


def test_no_rows_are_fine() -> None:
    qtype = library.types()["Q4_K"]
    assert codec.quantize(ROWS[:0], qtype).shape == (0, 288)


def test_a_row_that_the_block_does_not_divide_is_refused() -> None:
    with pytest.raises(TypeUnavailableError, match="a row of 300 weights is not a multiple of Q4_K's block of 256"):
        codec.quantize(np.ones((1, 300), dtype=np.float32), library.types()["Q4_K"])


def test_bytes_that_are_no_whole_rows_are_refused() -> None:
    with pytest.raises(TypeUnavailableError, match="not a whole number of Q8_0 rows"):
        codec.dequantize(np.zeros(33, dtype=np.uint8), library.types()["Q8_0"], 32)


@pytest.mark.parametrize("name", ["IQ2_XXS", "IQ2_XS", "IQ1_S"])
def test_types_that_need_importance_are_refused_without(name: str) -> None:
    with pytest.raises(TypeUnavailableError, match=f"{name} cannot be written without"):
        codec.quantize(ROWS, library.types()[name])


def test_importance_of_another_width_is_refused() -> None:
    with pytest.raises(ImatrixError, match=r"importance of shape \(256,\) for rows of 512"):
        codec.quantize(ROWS, library.types()["Q4_K"], IMPORTANCE[:256])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2e6])
def test_weights_ggml_must_not_see_are_refused(bad: float) -> None:
    rows = ROWS.copy()
    rows[2, 3] = bad
    with pytest.raises(NonFiniteWeightError, match=r"blk\.0"):
        codec.check_weights(rows, "blk.0")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 1e30])
def test_importance_ggml_must_not_see_is_refused(bad: float) -> None:
    with pytest.raises(ImatrixError, match=r"blk\.0"):
        codec.check_importance(np.array([1.0, bad], dtype=np.float32), "blk.0")
