"""What the bits of a block say: codes of weights and of vectors are read, written and valued as ggml's dequantizer, and another, do."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fuzzing
from quantailor.analysis.rounding.bits import random_blocks
from quantailor.analysis.rounding.codes import ScalarCodes, scalar_codes
from quantailor.analysis.rounding.vectors import VectorCodes, vector_codes
from quantailor.ggml import codec, library
from quantailor.numerics import Bytes, Doubles, Floats
from quantailor.qtypes import QType

VECTORS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
SCALARS = [qtype for qtype in library.types().values() if qtype.is_quantized and qtype.name not in VECTORS]
every_scalar = pytest.mark.parametrize("qtype", SCALARS, ids=lambda qtype: qtype.name)
every_vector = pytest.mark.parametrize("qtype", [library.types()[name] for name in VECTORS], ids=lambda qtype: qtype.name)
seeds = st.integers(0, 2**32 - 1)
search = pytest.mark.slow  # takes ten seconds to compile
few = settings(max_examples=fuzzing.n_cases(1000, 100))


def blocks(qtype: QType, rng: np.random.Generator, n: int = 6) -> Bytes:
    """Blocks of weights of many sizes, as ggml's quantizer writes them."""
    weights = rng.laplace(size=(n, qtype.block_size)) * 10 ** rng.uniform(-4, 1, (n, 1)) + rng.normal(0, 0.01, (n, 1))
    return codec.quantize(weights.astype(np.float32), qtype, rng.lognormal(0, 1, qtype.block_size).astype(np.float32))


def known(qtype: QType) -> ScalarCodes:
    layout = scalar_codes(qtype)
    assert layout is not None
    return layout


def known_vectors(qtype: QType) -> VectorCodes:
    layout = vector_codes(qtype)
    assert layout is not None
    return layout


@every_scalar
@given(seed=seeds)
@few
def test_packed_codes_are_what_was_meant(qtype: QType, seed: int) -> None:
    rng, layout = np.random.default_rng(seed), known(qtype)
    data = blocks(qtype, rng)
    codes = rng.integers(0, layout.n_codes, (len(data), qtype.block_size), dtype=np.uint8)
    packed = layout.pack(data, codes)
    assert np.array_equal(layout.unpack(packed), codes)
    assert codec.is_valid(packed, qtype)
    values = codec.dequantize(packed, qtype, qtype.block_size)
    for code in range(layout.n_codes):  # bit for bit what a block with nothing but this code holds
        alone = codec.dequantize(layout.pack(data, np.full_like(codes, code)), qtype, qtype.block_size)
        assert np.array_equal(values[codes == code], alone[codes == code])
    offset, step = layout.grid(data)
    sizes = np.maximum(np.abs(offset), np.abs(offset + step * (layout.n_codes - 1)))
    assert (np.abs(offset + step * layout.table[codes] - values) <= 4e-7 * sizes).all()


@every_scalar
@given(seed=seeds)
@few
def test_what_the_quantizer_wrote_comes_back(qtype: QType, seed: int) -> None:
    rng, layout = np.random.default_rng(seed), known(qtype)
    data = blocks(qtype, rng)
    again = layout.pack(data, layout.unpack(data))
    values = codec.dequantize(data, qtype, qtype.block_size)
    assert np.array_equal(codec.dequantize(again, qtype, qtype.block_size), values)
    if qtype.name not in ("MXFP4", "NVFP4"):  # these have two zeros
        assert np.array_equal(again, data)


@every_scalar
@given(seed=seeds)
@few
def test_nearest_codes_are_the_nearest(qtype: QType, seed: int) -> None:
    rng, layout = np.random.default_rng(seed), known(qtype)
    offset = rng.normal(size=(5, 7)).astype(np.float32)
    step = rng.normal(size=(5, 7)).astype(np.float32)
    weights = (offset + step * rng.uniform(-2, layout.n_codes + 1, (5, 7))).astype(np.float32)
    codes = layout.nearest(weights, offset, step)
    errors = np.abs(weights[..., None] - (offset[..., None] + step[..., None] * layout.table))
    chosen = np.take_along_axis(errors, codes[..., None].astype(np.intp), axis=2)[..., 0]
    assert (chosen <= errors.min(axis=2) + 1e-5 * np.abs(step)).all()


@every_scalar
def test_weights_without_a_step_get_some_code(qtype: QType) -> None:
    layout = known(qtype)
    zero, weights = np.zeros((1, 3), np.float32), np.array([[0.0, 1.0, -1.0]], np.float32)
    assert (layout.nearest(weights, zero, zero) < layout.n_codes).all()


@every_scalar
def test_another_dequantizer_agrees(qtype: QType) -> None:
    rng, layout = np.random.default_rng(3), known(qtype)
    data = blocks(qtype, rng)
    packed = layout.pack(data, rng.integers(0, layout.n_codes, (len(data), qtype.block_size), dtype=np.uint8))
    try:
        other = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(qtype.id))
    except (NotImplementedError, ValueError):
        pytest.skip(f"the package gguf does not know {qtype.name}")
    np.testing.assert_allclose(other, codec.dequantize(packed, qtype, qtype.block_size), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "TQ1_0", "TQ2_0"])
def test_grids_of_equal_steps_are_known_as_such(name: str) -> None:
    layout = known(library.types()[name])
    assert layout.affine
    assert np.array_equal(layout.table, np.arange(layout.n_codes))


@pytest.mark.parametrize(("name", "n_codes"), [("Q8_0", 255), ("TQ1_0", 3), ("TQ2_0", 3), ("IQ4_NL", 16), ("MXFP4", 15), ("Q6_K", 64)])
def test_only_codes_that_ggml_writes_are_used(name: str, n_codes: int) -> None:
    assert known(library.types()[name]).n_codes == n_codes


@every_vector
@given(seed=seeds)
@few
def test_packed_vectors_are_what_was_meant(qtype: QType, seed: int) -> None:
    rng, layout = np.random.default_rng(seed), known_vectors(qtype)
    data = random_blocks(qtype, 6, rng)  # ggml's quantizers of these types take seconds to start
    codes = rng.integers(0, layout.n_codes, (len(data), len(layout.groups))).astype(np.uint32)
    packed = layout.pack(data, codes)
    assert np.array_equal(layout.unpack(packed), codes)
    assert np.array_equal(layout.pack(packed, layout.unpack(data)), data)  # no other bit was touched
    assert codec.is_valid(packed, qtype)
    values = codec.dequantize(packed, qtype, qtype.block_size)[:, layout.groups]
    for group in range(len(layout.groups)):  # bit for bit what it is where every group has this code
        everywhere = np.repeat(codes[:, group : group + 1], len(layout.groups), axis=1)
        alone = codec.dequantize(layout.pack(data, everywhere), qtype, qtype.block_size)[:, layout.groups]
        assert np.array_equal(values[:, group], alone[:, group])
    offset, scale = layout.grid(data)
    expected = offset[..., None] + scale[..., None] * layout.units(codes)
    assert (np.abs(expected - values) <= 4e-7 * (np.abs(offset) + np.abs(scale))[..., None]).all()


def metric_of(rng: np.random.Generator, n: int, correlation: float) -> Floats:
    metric = np.full((n, n), correlation) + np.diag(np.full(n, 1 - correlation))
    size = rng.lognormal(0, 0.3, n)
    return (metric * size[:, None] * size).astype(np.float32)


def losses(targets: Floats, weights: Floats, metric: Floats) -> Doubles:
    rest = (targets - weights).astype(np.float64)
    found: Doubles = np.einsum("...i,ij,...j->...", rest, metric, rest)
    return found


def least_losses(layout: VectorCodes, targets: Floats, metric: Floats) -> Doubles:
    """Of all codes, (n,), in a metric that ties no part to another."""
    n_part = layout.codebook.shape[1]
    by_mask: Doubles = np.zeros((len(targets), len(layout.masks)))
    for first in range(0, targets.shape[1], n_part):
        own = slice(first, first + n_part)
        for number, mask in enumerate(layout.masks):
            signs = np.where(mask >> np.arange(targets.shape[1]) & 1, -1, 1)[own].astype(np.float32)
            entries = layout.codebook * signs
            sizes = np.einsum("ei,ei->e", entries @ metric[own, own], entries)
            by_mask[:, number] += (sizes - 2 * targets[:, own] @ metric[own, own] @ entries.T).min(axis=1)
    least: Doubles = by_mask.min(axis=1) + losses(targets, np.zeros_like(targets), metric)
    return least


@search
@pytest.mark.parametrize(
    ("name", "correlation", "excess"),
    [
        *(("IQ1_S", 0.5, 1e-4), ("IQ1_M", 0.5, 1e-4), ("IQ2_XXS", 0.0, 1e-4), ("IQ2_XS", 0.0, 1e-4), ("IQ2_S", 0.0, 1e-4)),
        *(("IQ3_S", 0.0, 1e-4), ("IQ2_XXS", 0.3, 0.05), ("IQ2_XS", 0.3, 0.05), ("IQ2_S", 0.3, 0.05), ("IQ3_S", 0.3, 0.02)),
        *(("IQ3_XXS", 0.0, 0.01), ("IQ3_XXS", 0.3, 0.05)),
    ],
)
def test_nearest_vectors_are_the_nearest_of_all(name: str, correlation: float, excess: float) -> None:
    rng, layout = np.random.default_rng(4), known_vectors(library.types()[name])
    n_weights = layout.groups.shape[1]
    metric, n_part = metric_of(rng, n_weights, correlation), layout.codebook.shape[1]
    metric *= np.kron(np.eye(n_weights // n_part), np.ones((n_part, n_part))).astype(np.float32)
    targets = rng.normal(0, 0.6, (24, n_weights)).astype(np.float32)
    scale, offset = np.float32(-0.25), np.float32(0.125)
    codes = layout.nearest(targets * scale + offset, np.full(24, offset), np.full(24, scale), metric)
    chosen = losses(targets, layout.units(codes), metric)
    assert chosen.sum() <= (1 + excess) * least_losses(layout, targets, metric).sum()


@search
@every_vector
@given(seed=seeds)
@few
def test_what_a_code_stands_for_is_nearest_to_itself(qtype: QType, seed: int) -> None:
    rng, layout = np.random.default_rng(seed), known_vectors(qtype)
    codes = rng.integers(0, layout.n_codes, 8).astype(np.uint32)
    metric = metric_of(rng, layout.groups.shape[1], 0.2)
    scale, offset = rng.normal(size=(2, 8)).astype(np.float32)
    targets = offset[:, None] + scale[:, None] * layout.units(codes)
    assert np.array_equal(layout.nearest(targets, offset, scale, metric), codes)


@search
@every_vector
def test_vectors_without_a_scale_get_some_code(qtype: QType) -> None:
    layout = known_vectors(qtype)
    n_weights = layout.groups.shape[1]
    zero, targets = np.zeros(3, np.float32), np.linspace(-1, 1, 3 * n_weights, dtype=np.float32).reshape(3, -1)
    assert (layout.nearest(targets, zero, zero, np.eye(n_weights, dtype=np.float32)) < layout.n_codes).all()


@every_vector
def test_another_dequantizer_agrees_on_vectors(qtype: QType) -> None:
    rng, layout = np.random.default_rng(3), known_vectors(qtype)
    data = random_blocks(qtype, 6, rng)
    packed = layout.pack(data, rng.integers(0, layout.n_codes, (len(data), len(layout.groups))).astype(np.uint32))
    other = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType(qtype.id))
    np.testing.assert_allclose(other, codec.dequantize(packed, qtype, qtype.block_size), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("name", "entries", "n_parts", "n_masks"),
    [
        ("IQ1_S", (2048, 8), 1, 1),
        ("IQ1_M", (4096, 8), 1, 1),  # 2048, each shifted up or down
        ("IQ2_XXS", (256, 8), 1, 128),
        ("IQ2_XS", (512, 8), 1, 128),
        ("IQ2_S", (1024, 8), 1, 256),
        ("IQ3_XXS", (256, 4), 2, 128),
        ("IQ3_S", (512, 4), 1, 16),
    ],
)
def test_codebooks_have_the_size_that_bits_allow(name: str, entries: tuple[int, int], n_parts: int, n_masks: int) -> None:
    layout = known_vectors(library.types()[name])
    assert layout.codebook.shape == entries
    assert (layout.n_parts, len(layout.masks)) == (n_parts, n_masks)
    assert len(np.unique(layout.codebook, axis=0)) == len(layout.codebook)
    assert sorted(layout.groups.reshape(-1)) == list(range(256))


@pytest.mark.parametrize("qtype", [qtype for qtype in library.types().values() if qtype.is_quantized], ids=lambda qtype: qtype.name)
def test_every_type_has_codes_of_one_kind(qtype: QType) -> None:
    assert (scalar_codes(qtype) is None) != (vector_codes(qtype) is None)
