"""Row sampling: nested, honest about its error, exact where it must be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantailor.analysis.weight_errors import sampling
from quantailor.analysis.weight_errors.sampling import PILOT_DRAWS, RowPlan, estimate_shares, estimate_total, next_stage, plan_rows
from quantailor.numerics import Doubles


def energies(n_rows: int, seed: int = 0) -> Doubles:
    return np.random.default_rng(seed).lognormal(0, 1, n_rows)


def estimated(plan: RowPlan, n: int, y: Doubles, x: Doubles) -> tuple[float, float]:
    draws = plan.draws(n)
    rows = np.concatenate([plan.certain, draws.rows])
    found = estimate_total(plan, draws, y[rows], x[rows], float(x.sum()))
    return found.value, found.se


def test_more_draws_only_add_rows() -> None:
    plan = plan_rows(energies(4096), energies(4096, 1), 512, "model/tensor")
    assert set(plan.measured(64)) < set(plan.measured(91)) < set(plan.measured(512))


def test_the_same_seed_gives_the_same_rows_and_another_gives_others() -> None:
    one, same, other = (plan_rows(energies(2000), energies(2000), 2000, seed).measured(64) for seed in ("a", "a", "b"))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_rows_of_great_energy_are_always_measured() -> None:
    x = np.ones(1000)
    x[[17, 400]] = 500.0
    assert list(plan_rows(x, x, 1000, "s").certain) == [17, 400]


def test_every_expert_is_drawn_from() -> None:
    x = np.ones(1024)
    x[:64] = 1e-6
    rows = plan_rows(x, x, 64, "s").measured(PILOT_DRAWS)
    assert set(rows // 64) == set(range(16))


def test_an_error_in_proportion_to_the_energy_is_estimated_exactly() -> None:
    x = energies(3000)
    value, se = estimated(plan_rows(x, x, 3000, "s"), 64, 0.01 * x, x)
    assert value == pytest.approx(0.01 * x.sum(), rel=1e-12)
    assert se < 1e-12 * value


@given(st.integers(2, 300), st.integers(1, 5), st.integers(0, 2**31))
def test_estimates_are_finite_whatever_the_energies(rows_per_slice: int, n_slices: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.lognormal(0, 4, rows_per_slice * n_slices) * rng.integers(0, 2, rows_per_slice * n_slices)
    y = rng.random(len(x))
    value, se = estimated(plan_rows(x, x, rows_per_slice, "s"), 64, y, x)
    assert np.isfinite(value)
    assert value >= 0
    assert np.isfinite(se)
    assert se >= 0


def test_shares_add_up_and_find_a_rare_kind_of_row() -> None:
    x = energies(5000)
    rare = np.arange(5000) % 4 == 0
    fractions = np.where(rare[:, None], [0.0, 1.0], [1.0, 0.0])
    found = []
    for seed in range(60):
        plan = plan_rows(x, x, 5000, str(seed))
        draws = plan.draws(64)
        found.append(estimate_shares(plan, draws, fractions[np.concatenate([plan.certain, draws.rows])])[1])
    assert np.mean(found) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(("n", "relative_se"), [(64, 0.0101), (64, 0.02), (91, 0.011), (64, 0.5), (1449, 0.0100001)])
def test_the_next_stage_is_large_enough_and_at_most_a_doubling(n: int, relative_se: float) -> None:
    following = next_stage(n, relative_se, 0.01)
    assert n < following <= 2.4 * n
    assert following >= min(2 * n, n * (relative_se / 0.01) ** 2)


@pytest.mark.slow
def test_two_standard_errors_cover_the_truth_95_times_in_100() -> None:
    """Rows whose relative error scatters as real ones do, in two weightings; every stage of the stopping rule included."""
    rng = np.random.default_rng(5)
    plain = rng.gamma(4, size=4096)
    weighted = plain * rng.lognormal(0, 0.5, 4096)
    inside, n_trials = 0, 1500
    for trial in range(n_trials):
        y = weighted * rng.gamma(50, 1 / 50, 4096) * 0.01
        plan, n = plan_rows(plain, weighted, 4096, str(trial)), PILOT_DRAWS
        value, se = estimated(plan, n, y, weighted)
        while se > 0.01 * value:
            n = next_stage(n, se / value, 0.01)
            value, se = estimated(plan, n, y, weighted)
        inside += abs(value - y.sum()) <= 2 * se
    assert 0.93 <= inside / n_trials <= 0.97


def test_a_single_row_of_weight_leaves_nothing_to_draw_badly() -> None:
    x = np.zeros(100)
    x[5] = 1.0
    plan = sampling.plan_rows(x, x, 100, "s")
    assert list(plan.certain) == [5]
    assert estimated(plan, 64, x * 0.5, x) == pytest.approx((0.5, 0.0))
