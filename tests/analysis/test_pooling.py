"""Alphas from all probes together: drawn towards what is alike, kept where they are known, and departures between types."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantailor.analysis.pooling import DEPARTURE_SD, Departure, Departures, Finding, pooled

ROLES = ("attn_q", "attn_v", "ffn_up", "ffn_down")
NAMES = ["output.weight", *(f"blk.{layer}.{role}.weight" for layer in range(8) for role in ROLES)]


def made_up(seed: int) -> dict[str, float]:
    """ln alpha of every tensor: alike within roles and layers."""
    rng = np.random.default_rng(seed)
    layers, roles = rng.normal(0, 1, 8), dict(zip(ROLES, rng.normal(0, 0.7, 4), strict=True))
    own = {name: -4 + float(rng.normal(0, 0.3)) for name in NAMES}
    return {name: own[name] + (layers[int(name.split(".")[1])] + roles[name.split(".")[2]] if "blk" in name else 4.0) for name in NAMES}


@pytest.mark.parametrize("sd", [0.3, 0.6])
def test_what_few_chunks_say_is_nearer_the_truth_together(sd: float) -> None:
    own, together = [], []
    for seed in range(10):
        truth, rng = made_up(seed), np.random.default_rng(100 + seed)
        found = [Finding((name,), truth[name] + sd * rng.standard_normal(), sd**2) for name in NAMES]
        alphas = pooled(found, NAMES)
        own += [finding.ln_alpha - truth[finding.tensors[0]] for finding in found]
        together += [math.log(alphas[name].value) - truth[name] for name in NAMES]
    assert np.std(together) < 0.85 * np.std(own)


def test_the_sum_of_what_looks_least_is_not_flattered() -> None:
    flattery = []
    for seed in range(20):
        truth, rng = made_up(seed), np.random.default_rng(100 + seed)
        alphas = pooled([Finding((name,), truth[name] + 0.5 * rng.standard_normal(), 0.25) for name in NAMES], NAMES)
        least = sorted(NAMES, key=lambda name: alphas[name].value)[:16]
        flattery.append(math.log(sum(math.exp(truth[name]) for name in least) / sum(alphas[name].value for name in least)))
    assert abs(np.mean(flattery)) < 2.5 * np.std(flattery, ddof=1) / math.sqrt(len(flattery)) + 0.03


def test_what_is_known_well_stays() -> None:
    truth = made_up(1)
    alphas = pooled([Finding((name,), truth[name], 1e-6) for name in NAMES], NAMES)
    assert {name: math.log(alpha.value) for name, alpha in alphas.items()} == pytest.approx(truth, abs=1e-3)


def test_a_group_on_many_chunks_counts_beside_a_tensor_on_one() -> None:
    pair = ("blk.0.attn_q.weight", "blk.1.attn_q.weight")
    alphas = pooled([Finding((pair[0],), -2.0, 0.5), Finding(pair, -4.0, 1e-4)], pair)
    assert math.log(alphas[pair[0]].value) < -2.8
    assert sum(math.log(alphas[name].value) for name in pair) / 2 == pytest.approx(-4, abs=0.8)


def test_a_tensor_without_probes_takes_what_is_alike() -> None:
    truth = made_up(2)
    name = "blk.3.ffn_up.weight"
    alphas = pooled([Finding((other,), truth[other], 1e-4) for other in NAMES if other != name], NAMES)
    assert math.log(alphas[name].value) == pytest.approx(truth[name], abs=1)
    assert alphas[name].relative_se > 3 * alphas["blk.3.attn_q.weight"].relative_se


def test_a_group_tells_the_mean_and_what_is_expected_tells_the_rest() -> None:
    layers = [f"blk.{layer}.attn_q.weight" for layer in range(8)]
    expected = {name: 0.01 * 1.6**layer for layer, name in enumerate(layers)}
    truth = {name: 3 * value for name, value in expected.items()}
    alphas = pooled([Finding(tuple(layers), math.log(np.mean(list(truth.values()))), 1e-4)], layers, expected)
    assert all(alphas[name].value == pytest.approx(truth[name], rel=0.2) for name in layers)
    assert np.mean([alpha.value for alpha in alphas.values()]) == pytest.approx(np.mean(list(truth.values())), rel=0.02)
    assert pooled([Finding((name,), math.log(truth[name]), 1e-6) for name in layers], layers, expected)[layers[0]].value == pytest.approx(
        truth[layers[0]], rel=0.02
    )


def test_what_is_not_probed_is_less_certain_the_less_is_alike() -> None:
    names = [*NAMES, "blk.9.ssm_out.weight"]
    found = pooled([Finding((f"blk.0.{role}.weight",), -3.0, 0.01) for role in ROLES[:3]], names)
    uncertainty = [found[f"blk.{place}.weight"].relative_se for place in ("0.attn_q", "0.ffn_down", "4.ffn_up", "9.ssm_out")]
    assert uncertainty == sorted(uncertainty)
    assert uncertainty[0] < 0.2 < 0.5 < uncertainty[1]


def test_a_group_tells_most_of_what_weighs_most_in_it() -> None:
    pair = ("blk.0.attn_v.weight", "blk.1.attn_v.weight")
    found = pooled([Finding(pair, math.log(8.0), 1e-3)], pair, {pair[0]: 7.0, pair[1]: 0.1})
    assert found[pair[0]].value == pytest.approx(16.0, rel=0.1)
    assert found[pair[1]].value < 1.0


def test_nothing_found_says_nothing() -> None:
    assert pooled([], NAMES) == {}


def test_a_type_between_measured_ones_departs_like_them() -> None:
    found = Departures([Departure("Q2_K", math.log(0.06), 0.3, 1e-4), Departure("IQ3_XXS", math.log(0.03), 0.3, 1e-4)])
    between, far = found.of("IQ2_S", math.log(0.045)), found.of("Q8_0", math.log(3e-5))
    assert 0.15 < between.value < 0.3
    assert abs(far.value) < 0.01
    assert between.se < far.se


def test_a_departure_that_is_not_known_well_is_drawn_towards_none() -> None:
    sure, unsure = (Departures([Departure("Q4_K", -5.0, 0.4, variance)]).of("Q4_K", -5.0) for variance in (1e-6, 0.2))
    assert sure.value == pytest.approx(0.4, abs=0.01)
    assert 0 < unsure.value < 0.1
    assert sure.se < 0.02 < DEPARTURE_SD < unsure.se
    assert Departures().of("Q4_K", -5.0).value == 0
