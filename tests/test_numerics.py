"""Pure mathematics against float64 and against what statistics promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import special

from quantailor import numerics
from quantailor.numerics import Doubles, Floats

LARGE = 262_144
"""Entries of a large vocabulary."""


def two_models(rng: np.random.Generator, shape: tuple[int, int], *, apart: float) -> tuple[Floats, Floats]:
    """Logits of a base as peaked as a language model's, and of a model whose logits differ by noise of this size."""
    base = (3 * rng.standard_normal(shape) + 7).astype(np.float32)
    return base, (base + apart * rng.standard_normal(shape)).astype(np.float32)


def exact_kld(base: Floats, logits: Floats) -> Doubles:
    """KL(base || model) of every row in float64."""
    logp, logq = (special.log_softmax(part.astype(np.float64), axis=1) for part in (base, logits))
    result: Doubles = (np.exp(logp) * (logp - logq)).sum(axis=1)
    return result


def packed_kld(base: Floats, logits: Floats) -> Doubles:
    return numerics.divergence_from_packed(*numerics.pack_probabilities(numerics.log_softmax(base)), logits)[0]


def results(base: Floats, logits: Floats, n_threads: int = 1) -> tuple[npt.NDArray[np.generic], ...]:
    """All that works on blocks of rows."""
    logp, other = (numerics.log_softmax(part, n_threads=n_threads) for part in (base, logits))
    packed = numerics.pack_probabilities(logp, n_threads=n_threads)
    divergences = numerics.divergence_from_packed(*packed, logits, n_threads=n_threads)
    return logp, numerics.kl_divergence(logp, other, n_threads=n_threads), *packed, *divergences


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


def test_large_vocabularies_are_exact_too(rng: np.random.Generator) -> None:
    base, logits = two_models(rng, (3, LARGE), apart=1.0)
    logp = numerics.log_softmax(base)
    np.testing.assert_allclose(logp, special.log_softmax(base.astype(np.float64), axis=1), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(special.logsumexp(logp.astype(np.float64), axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(numerics.kl_divergence(logp, numerics.log_softmax(logits)), exact_kld(base, logits), rtol=0, atol=1e-6)


def test_blocks_and_threads_do_not_change_results(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    base, logits = two_models(rng, (33, 200), apart=0.1)
    whole = results(base, logits)
    monkeypatch.setattr(numerics, "BLOCK_ELEMENTS", 700)
    for n_threads in (1, 3):
        for found, expected in zip(results(base, logits, n_threads), whole, strict=True):
            assert np.array_equal(found, expected)


# Probabilities in 16 bits


@pytest.mark.parametrize(
    ("shape", "apart"), [((4, LARGE), 1e-3), ((4, LARGE), 0.1), ((250, 4096), 1e-3), ((250, 4096), 0.1), ((250, 4096), 1.0)]
)
def test_divergence_from_codes_is_exact_on_average(rng: np.random.Generator, shape: tuple[int, int], apart: float) -> None:
    base, logits = two_models(rng, shape, apart=apart)
    found, exact = packed_kld(base, logits), exact_kld(base, logits)
    assert found.mean() == pytest.approx(exact.mean(), rel=0, abs=1e-6)


@pytest.mark.parametrize("apart", [1e-3, 0.01, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("shape", [(2, LARGE), (100, 4096)])
def test_divergence_from_codes_is_near_in_every_row(rng: np.random.Generator, shape: tuple[int, int], apart: float) -> None:
    base, logits = two_models(rng, shape, apart=apart)
    exact = exact_kld(base, logits)
    # The step of the largest p acts on ln p/q, which is of the size of sqrt(KLD) where the two are near.
    assert (np.abs(packed_kld(base, logits) - exact) < 1e-6 + 4e-5 * np.sqrt(exact) + 1e-4 * exact).all()


def test_equal_models_differ_by_nothing_that_codes_could_tell(rng: np.random.Generator) -> None:
    for shape in ((2, LARGE), (50, 4096)):
        base, _ = two_models(rng, shape, apart=0.0)
        np.testing.assert_allclose(packed_kld(base, base), 0, atol=5e-7)


def test_a_certain_base_pays_what_the_model_gives_its_token(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((3, LARGE)).astype(np.float32)
    base = np.zeros_like(logits)
    base[[0, 1, 2], [5, 77, LARGE - 1]] = 200
    expected = -special.log_softmax(logits.astype(np.float64), axis=1)[[0, 1, 2], [5, 77, LARGE - 1]]
    codes, mass = numerics.pack_probabilities(numerics.log_softmax(base))
    assert np.count_nonzero(codes) == 3
    assert mass.tolist() == [1, 1, 1]
    np.testing.assert_allclose(numerics.divergence_from_packed(codes, mass, logits)[0], expected, rtol=1e-6)


@pytest.mark.parametrize("tail", [-1e4, -1e30])
def test_tails_without_probability_weigh_nothing(rng: np.random.Generator, tail: float) -> None:
    base, logits = two_models(rng, (20, 4096), apart=0.01)
    expected = exact_kld(base[:, :1000], logits[:, :1000])
    base[:, 1000:], logits[:, 1000:] = -1e4, tail
    np.testing.assert_allclose(packed_kld(base, logits), expected, atol=1e-6)


def test_codes_hold_what_they_stand_for(rng: np.random.Generator) -> None:
    base, _ = two_models(rng, (50, 4096), apart=0.0)
    codes, mass = numerics.pack_probabilities(numerics.log_softmax(base))
    probabilities = (codes / numerics.MAX_CODE) ** 3
    assert codes.dtype == np.uint16
    np.testing.assert_allclose(mass, probabilities.sum(axis=1), rtol=1e-7)
    exact = np.exp(special.log_softmax(base.astype(np.float64), axis=1))
    np.testing.assert_allclose(np.cbrt(probabilities), np.cbrt(exact), rtol=0, atol=0.51 / numerics.MAX_CODE)


def test_log_sums_are_those_of_the_model(rng: np.random.Generator) -> None:
    base, logits = two_models(rng, (4, LARGE), apart=1.0)
    _, log_sums = numerics.divergence_from_packed(*numerics.pack_probabilities(numerics.log_softmax(base)), logits)
    np.testing.assert_allclose(log_sums, special.logsumexp(logits.astype(np.float64), axis=1), rtol=0, atol=1e-6)


def test_broken_logits_show_in_their_own_row_alone(rng: np.random.Generator) -> None:
    base, logits = two_models(rng, (4, 300), apart=0.1)
    logits[[0, 1, 2], [7, 7, 7]] = np.nan, np.inf, -np.inf
    klds, log_sums = numerics.divergence_from_packed(*numerics.pack_probabilities(numerics.log_softmax(base)), logits)
    assert np.isfinite(log_sums).tolist() == [False, False, True, True]
    assert np.isfinite(klds).tolist() == [False, False, False, True]


# Over chunks


def test_the_ratio_of_equal_chunks_is_their_mean() -> None:
    values = [1.0, 2.0, 4.0, 5.0]
    ratio = numerics.ratio_over_chunks([8 * value for value in values], [8] * 4)
    assert ratio.value == 3.0
    assert ratio.se == pytest.approx(np.std(values, ddof=1) / np.sqrt(len(values)))


def test_one_chunk_has_no_standard_error() -> None:
    assert numerics.ratio_over_chunks([2.0], [4]).value == 0.5
    assert numerics.ratio_over_chunks([2.0], [4]).se == 0


def bootstrap_ln_ratio(above: npt.ArrayLike, below: npt.ArrayLike, **options: Any) -> tuple[float, tuple[float, float]]:
    return numerics.bootstrap_ln_product(np.stack([above, below], axis=1), (1.0, -1.0), **options)


def test_bootstrap_interval_is_reproducible_and_holds_the_ratio(rng: np.random.Generator) -> None:
    below = rng.gamma(2, size=200)
    above = 0.8 * below + 0.05 * rng.gamma(2, size=200)
    value, interval = bootstrap_ln_ratio(above, below)
    assert value == pytest.approx(np.log(above.sum() / below.sum()))
    assert interval[0] < value < interval[1] < 0
    assert bootstrap_ln_ratio(above, below)[1] == interval
    assert bootstrap_ln_ratio(above, below, seed=1)[1] != interval


def test_bootstrap_interval_covers_the_truth(rng: np.random.Generator) -> None:
    hits = 0
    for _ in range(200):
        common = rng.gamma(2, size=100)
        above, below = common * rng.gamma(20, size=100) / 20, common * rng.gamma(20, size=100) / 20
        _, (low, high) = bootstrap_ln_ratio(above, below, draws=400)
        hits += low <= 0 <= high
    assert 0.90 <= hits / 200 <= 0.99


def test_bootstrap_of_zeros_uses_the_floor() -> None:
    assert bootstrap_ln_ratio([0.0, 0.0], [0.0, 0.0], floor=1e-9) == (0.0, (0.0, 0.0))
    value, (low, high) = bootstrap_ln_ratio([0.0, 0.0], [1.0, 1.0], floor=1e-9)
    assert value == low == high == pytest.approx(np.log(1e-9 / 2))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
