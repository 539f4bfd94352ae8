"""Scales of blocks: what is packed is what was meant, and no other scale would be better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantailor.analysis.covariances.covariances import InputCovariance
from quantailor.analysis.rounding.block_scales import BlockScales, block_scales
from quantailor.analysis.rounding.codes import scalar_codes
from quantailor.analysis.rounding.compensation import round_rows
from quantailor.analysis.rounding.metric import Metric
from quantailor.ggml import codec, library
from quantailor.numerics import Doubles
from quantailor.qtypes import QType

OTHERS = {"MXFP4", "NVFP4"}
"""Their scales are no float16."""
SCALAR = (
    *("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
    *("TQ1_0", "TQ2_0", "Q1_0", "Q2_0", "MXFP4", "NVFP4"),
)
TYPES = [pytest.param(library.type_named(name), id=name) for name in SCALAR if name not in OTHERS]


def known(qtype: QType) -> BlockScales:
    scales = block_scales(qtype)
    assert scales is not None
    return scales


@pytest.mark.slow
def test_types_whose_scales_are_known() -> None:
    scalar = [qtype for qtype in library.types().values() if qtype.is_quantized and scalar_codes(qtype) is not None]
    assert {qtype.name for qtype in scalar} == set(SCALAR)
    assert {qtype.name for qtype in scalar if block_scales(qtype) is None} == OTHERS


@pytest.mark.parametrize(
    ("name", "n_sub", "steps", "offsets"),
    [
        ("Q2_K", 16, (0, 15), (0, 15)),
        ("Q3_K", 16, (-32, 31), None),
        ("Q4_K", 8, (0, 63), (0, 63)),
        ("Q5_K", 8, (0, 63), (0, 63)),
        ("Q6_K", 16, (-128, 127), None),
        ("IQ4_XS", 8, (-32, 31), None),
        ("Q4_0", 1, (1, 1), None),
        ("Q4_1", 1, (1, 1), (1, 1)),
    ],
)
def test_numbers_are_those_that_the_type_can_hold(name: str, n_sub: int, steps: tuple[int, int], offsets: tuple[int, int] | None) -> None:
    scales = known(library.types()[name])
    assert len(scales.members) == n_sub
    assert scales.steps.ends == steps
    assert (None if scales.offsets is None else scales.offsets.ends) == offsets


@pytest.mark.parametrize("qtype", TYPES)
@given(seed=st.integers(0, 2**32 - 1))
def test_packed_scales_are_what_was_meant(qtype: QType, seed: int) -> None:
    scales, rng, n_rows, n_blocks = known(qtype), np.random.default_rng(seed), 3, 2
    grid, n_sub = scales.grid, len(scales.members)
    found = rng.uniform(-2, 2, (n_blocks, 2, n_rows)).astype(np.float16).astype(np.float32)
    numbers = np.stack([rng.integers(low, high + 1, (n_blocks, n_sub, n_rows)) for low, high in grid.numbers], axis=2).astype(np.float32)
    codes = rng.integers(0, scales.layout.n_codes, (n_rows, n_blocks, qtype.block_size)).astype(np.uint8)
    data = scales.pack(found, numbers, codes)
    assert codec.is_valid(data.reshape(n_rows, -1), qtype)
    meant = np.empty(codes.shape, dtype=np.float64)
    for sub, weights in enumerate(scales.members):
        step = grid.unit * found[:, 0] * numbers[:, sub, 0]
        offset = grid.sign * found[:, 1] * numbers[:, sub, 1] * grid.has_offsets
        meant[:, :, weights] = (offset.T[:, :, None] + step.T[:, :, None] * (grid.zero + grid.table[codes[:, :, weights]])).astype(
            np.float64
        )
    values = codec.dequantize(data.reshape(-1, qtype.type_size), qtype, qtype.block_size).reshape(codes.shape)
    np.testing.assert_allclose(values, meant, rtol=1e-5, atol=1e-5 * float(np.abs(meant).max()))


@pytest.mark.parametrize("name", ["Q2_K", "IQ4_XS", *(pytest.param(name, marks=pytest.mark.slow) for name in ("Q3_K", "Q4_K", "Q6_K"))])
def test_no_other_number_would_be_better_for_the_codes(name: str) -> None:
    """Each sub-block's scale one more or one less, its codes as they are. After few rounds a little is left here and there."""
    qtype = library.types()[name]
    scales, size, rng = known(qtype), qtype.block_size, np.random.default_rng(5)
    mixed = rng.normal(size=(size, size)) / np.sqrt(size) + np.eye(size)
    metric = Metric(InputCovariance("blk.0", (mixed.T @ mixed).astype(np.float32), 1 << 20))
    weights = rng.normal(scale=0.02, size=(16, size)).astype(np.float32)
    damped = metric.damped().astype(np.float64)

    def lost(data: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Doubles:
        errors = (codec.dequantize(data, qtype, size) - weights).astype(np.float64)
        found: Doubles = ((errors @ damped) * errors).sum(axis=1)
        return found

    data = round_rows(weights, qtype, metric)
    best, better = lost(data), []
    for each in (scales.steps, scales.offsets):
        if each is None or each.fields is None:
            continue
        numbers = each.values[each.fields.take(data)]
        scale = np.ascontiguousarray(data[:, each.place : each.place + 2]).view(np.float16)[:, 0].astype(np.float32)
        for sub in range(numbers.shape[1]):
            for step in (-1, 1):
                other, changed = data.copy(), numbers.copy()
                changed[:, sub] = np.clip(numbers[:, sub] + step, *each.ends)
                each.write(other, scale, changed.astype(np.float32))
                better.append(lost(other) < 0.999 * best)
    assert np.mean(better) < 0.1
