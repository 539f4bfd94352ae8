"""Arithmetic on rows that stand one beside the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantailor.analysis.rounding.loops.kernels import improve_codes
from quantailor.analysis.rounding.loops.lanes import LANES, Grid, add_lower, add_products, products_with_lower, settle, to_halves
from quantailor.analysis.rounding.loops.scale_changes import add_to_some
from quantailor.numerics import Floats


@given(seed=st.integers(0, 2**32 - 1))
def test_halves_are_those_that_numpy_rounds_to(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 2**32, LANES, dtype=np.uint32).view(np.float32)
    values[:32] = rng.normal(size=32) * 10.0 ** rng.integers(-9, 5, 32)
    values[32:48] = (rng.integers(0, 31 << 10, 16).astype(np.uint16).view(np.float16).astype(np.float32)) * np.float32(1 + 2.0**-11)  # ties
    values[48:52] = 0.0, -0.0, 65519.9, -65504.0
    values[np.isnan(values)] = 1.0
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16).astype(np.float32)
    expected[np.isinf(expected)] = np.inf
    to_halves(values)
    np.testing.assert_array_equal(values.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("way", [1, -1])
def test_products_are_added(way: int) -> None:
    rng = np.random.default_rng(0)
    rows, shares = rng.normal(size=(40, LANES)).astype(np.float32), rng.normal(size=(48, 40)).astype(np.float32)
    targets = rng.normal(size=(48, LANES)).astype(np.float32)
    used = slice(8, 32)
    expected = targets.copy()
    expected[16:24] += shares[16:24, used] @ rows[used]
    add_products(rows, 8 if way == 1 else 31, way, 24, shares, targets, 16, 24)
    np.testing.assert_allclose(targets, expected, rtol=1e-4, atol=1e-4)


def test_rows_of_a_lower_triangle_are_added() -> None:
    rng = np.random.default_rng(0)
    rows, lower = rng.normal(size=(32, LANES)).astype(np.float32), np.tril(rng.normal(size=(32, 32)).astype(np.float32))
    targets = np.zeros((32, LANES), dtype=np.float32)
    add_lower(rows, np.ascontiguousarray(lower.T), targets)
    np.testing.assert_allclose(targets, lower.T @ rows, rtol=1e-4, atol=1e-4)


def test_a_lower_triangle_is_multiplied() -> None:
    rng = np.random.default_rng(0)
    rows, lower = rng.normal(size=(32, LANES)).astype(np.float32), np.tril(rng.normal(size=(32, 32)).astype(np.float32))
    products = np.full((32, LANES), np.nan, dtype=np.float32)
    products_with_lower(rows, lower, products)
    np.testing.assert_allclose(products, lower @ rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_changed", [0, 1, 5, 62, LANES])
def test_changes_are_added_to_what_changed_alone(n_changed: int) -> None:
    rng = np.random.default_rng(n_changed)
    changed = np.zeros(LANES, dtype=np.bool_)
    changed[rng.permutation(LANES)[:n_changed]] = True
    rows, changes = rng.normal(size=(16, 96)).astype(np.float32), rng.normal(size=(16, LANES)).astype(np.float32) * changed
    before = rng.normal(size=(LANES, 96)).astype(np.float32)
    targets = before.copy()
    add_to_some(rows, changes, changed, targets)
    np.testing.assert_array_equal(targets[~changed], before[~changed])
    np.testing.assert_allclose(targets, before + changes.T @ rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_middles", [1, 3, 5, 7, 15])
def test_places_become_the_nearest_values_of_a_table(n_middles: int) -> None:
    rng = np.random.default_rng(n_middles)
    table = np.sort(rng.normal(size=n_middles + 1)).astype(np.float32)
    nought = np.float32(0)
    middles: Floats = (table[1:] + table[:-1]) / np.float32(2)
    grid = Grid(table, middles, np.diff(table), nought, nought, nought, np.ones((2, 2), dtype=np.int64), False)
    places, values = rng.normal(size=LANES).astype(np.float32), np.empty(LANES, dtype=np.float32)
    settle(places, grid, values)
    np.testing.assert_allclose(values, table[np.abs(places[:, None] - table).argmin(axis=1)], rtol=1e-5, atol=1e-6)


def test_codes_are_looked_at_one_after_another_from_the_last() -> None:
    """As many columns as are looked at together change, each beside what those before it have become."""
    rng, size = np.random.default_rng(0), 32
    mixed = rng.normal(size=(size, size)) / 8 + np.eye(size)
    gram = (mixed @ mixed.T).astype(np.float32)
    weights = rng.normal(size=(1, size)).astype(np.float32)
    offset, step = np.full_like(weights, -2), np.full_like(weights, 0.25)
    table, codes = np.arange(16, dtype=np.float32), np.zeros((1, size), dtype=np.uint8)
    errors = offset - weights
    expected_codes, expected = codes[0].copy(), errors[0].astype(np.float64)
    for column in reversed(range(size)):
        best = weights[0, column] + expected[column] - (expected @ gram)[column] / gram[column, column]
        code = int(np.clip(np.rint((best + 2) / 0.25), 0, 15))
        expected_codes[column], expected[column] = code, -2 + 0.25 * code - weights[0, column]
    lost = np.einsum("ij,jk,ik->i", errors, gram, errors).astype(np.float32)
    slopes = (errors @ gram).astype(np.float32)
    improve_codes(weights, slopes, gram, offset, step, table[:0], table, 1, codes, errors, lost)
    np.testing.assert_array_equal(codes[0], expected_codes)
    np.testing.assert_allclose(lost, expected @ gram @ expected, rtol=1e-3)
