"""Pure mathematics against float64 and against what statistics promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from quantailor import numerics


def test_log_softmax_is_exact_to_float32(rng: np.random.Generator) -> None:
    logits = (rng.standard_normal((300, 5000)) * 4 + 7).astype(np.float32)
    exact = special.log_softmax(logits.astype(np.float64), axis=1)
    found = numerics.log_softmax(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)


def test_log_softmax_of_extreme_logits_is_finite() -> None:
    found = numerics.log_softmax(np.array([[1e4, -1e4, 0]], dtype=np.float32))
    np.testing.assert_allclose(found, [[0, -2e4, -1e4]])


def test_kl_divergence_is_scipys(rng: np.random.Generator) -> None:
    base = numerics.log_softmax((rng.standard_normal((40, 3000)) * 3).astype(np.float32))
    other = numerics.log_softmax(base + 0.05 * rng.standard_normal(base.shape).astype(np.float32))
    exact = special.rel_entr(np.exp(base.astype(np.float64)), np.exp(other.astype(np.float64))).sum(axis=1)
    np.testing.assert_allclose(numerics.kl_divergence(base, other), exact, rtol=2e-3, atol=1e-7)


def test_kl_divergence_of_equal_distributions_is_zero(rng: np.random.Generator) -> None:
    logp = numerics.log_softmax(rng.standard_normal((5, 100)).astype(np.float32))
    assert not numerics.kl_divergence(logp, logp).any()


def test_blocks_do_not_change_results(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = rng.standard_normal((33, 200)).astype(np.float32)
    whole = numerics.log_softmax(logits)
    monkeypatch.setattr(numerics, "BLOCK_ELEMENTS", 700)
    assert np.array_equal(numerics.log_softmax(logits), whole)


def test_mean_and_ratio_agree_on_equal_chunks() -> None:
    values = [1.0, 2.0, 4.0, 5.0]
    mean, ratio = numerics.mean_over_chunks(values), numerics.ratio_over_chunks([8 * value for value in values], [8] * 4)
    assert mean.value == ratio.value == 3.0
    assert mean.se == pytest.approx(stats.sem(values))
    assert ratio.se == pytest.approx(mean.se)


def test_one_chunk_has_no_standard_error() -> None:
    assert numerics.mean_over_chunks([2.0]).se == 0
    assert numerics.ratio_over_chunks([2.0], [4]).value == 0.5
    assert numerics.ratio_over_chunks([2.0], [4]).se == 0


def test_bootstrap_interval_is_reproducible_and_holds_the_ratio(rng: np.random.Generator) -> None:
    below = rng.gamma(2, size=200)
    above = 0.8 * below + 0.05 * rng.gamma(2, size=200)
    value, interval = numerics.bootstrap_ln_ratio(above, below)
    assert value == pytest.approx(np.log(above.sum() / below.sum()))
    assert interval[0] < value < interval[1] < 0
    assert numerics.bootstrap_ln_ratio(above, below)[1] == interval
    assert numerics.bootstrap_ln_ratio(above, below, seed=1)[1] != interval


def test_bootstrap_interval_covers_the_truth(rng: np.random.Generator) -> None:
    hits = 0
    for _ in range(200):
        common = rng.gamma(2, size=100)
        above, below = common * rng.gamma(20, size=100) / 20, common * rng.gamma(20, size=100) / 20
        _, (low, high) = numerics.bootstrap_ln_ratio(above, below, draws=400)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_bootstrap_of_zeros_uses_the_floor() -> None:
    assert numerics.bootstrap_ln_ratio([0.0, 0.0], [0.0, 0.0], floor=1e-9) == (0.0, (0.0, 0.0))
    value, (low, high) = numerics.bootstrap_ln_ratio([0.0, 0.0], [1.0, 1.0], floor=1e-9)
    assert value == low == high == pytest.approx(np.log(1e-9 / 2))


def test_weighted_quantile_repeats_values_by_weight(rng: np.random.Generator) -> None:
    values, weights = rng.standard_normal(50), rng.integers(1, 5, size=50)
    probabilities = [0.01, 0.25, 0.5, 0.9, 1.0]
    expected = np.quantile(np.repeat(values, weights), probabilities, method="inverted_cdf")
    np.testing.assert_allclose(numerics.weighted_quantile(values, weights, probabilities), expected)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
