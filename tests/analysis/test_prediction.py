"""The curve from damages to KLD: found again from made-up mixes, and intervals that hold what they promise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantailor.analysis.prediction import (
    MIN_POINTS,
    UNSEEN,
    Damage,
    Learned,
    Makeup,
    PredictedKld,
    curve_kld,
    damage_for,
    fit_curve,
    predict_kld,
    scaled_damage,
)
from quantailor.errors import StrategyError
from quantailor.numerics import Integers
from quantailor.records import KERNELS, Curve, CurvePoint, Estimate

SCALES = {"blocks": 1.0, "output": 0.8, "embeddings": 1.25}
"""Their product is 1, as a fitted curve has it."""
TRUTH = Curve(gamma=1.2, kappa=0.9, c0_nats=0.0, residual_sd=0.07, degrees_of_freedom=10, scales=SCALES)
SHARES = {"blocks": 0.8, "output": 0.15, "embeddings": 0.05}


def random_parts(rng: np.random.Generator) -> dict[str, float]:
    """Damages by part, whose sum lies between 0.005 and 0.4 nats."""
    weights = {name: share * math.exp(rng.normal(0, 0.4)) for name, share in SHARES.items()}
    damage = math.exp(rng.uniform(math.log(0.005), math.log(0.4)))
    return {name: damage * weight / sum(weights.values()) for name, weight in weights.items()}


def point(parts: Mapping[str, float], kld: float, *, se: float = 0.0, spread: float = 0.0, mix: str = "mix") -> CurvePoint:
    return CurvePoint(mix, "memory", 4.0, sum(parts.values()), Estimate(kld, se), parts, spread)


def file_of(parts: Mapping[str, float], kld: float, *, se: float = 0.0, mix: str = "file") -> CurvePoint:
    return dataclasses.replace(point(parts, kld, se=se, mix=mix), kind="file")


def of(curve: Curve, parts: Mapping[str, float], spread: float = 0.0) -> Damage:
    scaled = {name: curve.scales.get(name, 1.0) * value for name, value in parts.items()}
    return Damage(sum(scaled.values()), scaled, spread)


def true_kld(parts: Mapping[str, float], curve: Curve = TRUTH) -> float:
    return curve_kld(curve, scaled_damage(SCALES, parts))


def measured(rng: np.random.Generator, n_points: int, *, scatter: float = 0.0) -> list[CurvePoint]:
    """Random mixes that lie on the true curve, but for lognormal scatter."""
    found = []
    for _ in range(n_points):
        parts = random_parts(rng)
        found.append(point(parts, true_kld(parts) * math.exp(scatter * rng.standard_normal())))
    return found


# The fit


def test_a_curve_is_found_again(rng: np.random.Generator) -> None:
    found = fit_curve(measured(rng, 400))  # so many that the priors weigh little
    assert (found.gamma, found.kappa, found.c0_nats) == pytest.approx((1.2, 0.9, 0.0), rel=0.01)
    assert found.scales == pytest.approx(SCALES, rel=0.03)
    assert math.prod(found.scales.values()) == pytest.approx(1)
    assert found.residual_sd < 0.005


def test_the_scatter_of_mixes_is_found_again(rng: np.random.Generator) -> None:
    found = fit_curve(measured(rng, 200, scatter=0.12))
    assert found.residual_sd == pytest.approx(0.12, rel=0.15)
    assert found.degrees_of_freedom == 197  # a prior takes none
    assert (found.gamma, found.kappa) == pytest.approx((1.2, 0.9), rel=0.15)


def test_points_carry_the_sums_that_the_curve_speaks_of(rng: np.random.Generator) -> None:
    points = measured(rng, 12, scatter=0.05)
    found = fit_curve(points)
    assert [each.measured for each in found.points] == [each.measured for each in points]
    assert [each.damage_nats for each in found.points] == pytest.approx([scaled_damage(found.scales, each.parts) for each in points])


def test_the_fit_does_not_stay_where_sums_are_right_on_average(rng: np.random.Generator) -> None:
    """An optimizer whose first step is as long as its start would not move from a start that is zero but for rounding."""
    parts = [random_parts(rng) for _ in range(40)]
    logs = [math.log(true_kld(each) / sum(each.values())) for each in parts]
    middle = math.exp(sum(logs) / len(logs) - 1e-14)
    found = fit_curve([point(each, true_kld(each) / middle) for each in parts])
    assert found.kappa == pytest.approx(0.9, rel=0.1)


def test_one_part_alone_has_the_scale_1(rng: np.random.Generator) -> None:
    damages = np.geomspace(0.01, 0.3, 100).tolist()
    found = fit_curve([point({"blocks": damage}, 0.7 * damage * (1 + 0.5 * damage)) for damage in damages])
    assert (found.gamma, found.kappa, found.scales["blocks"]) == pytest.approx((0.7, 0.5, 1.0), rel=0.01)


def test_few_points_are_held_near_what_is_usual(rng: np.random.Generator) -> None:
    few = fit_curve(measured(rng, MIN_POINTS, scatter=0.3))
    assert abs(few.kappa) < 2
    assert all(0.5 < scale < 2 for scale in few.scales.values())


def test_the_file_of_the_best_types_tells_what_kernels_cost(rng: np.random.Generator) -> None:
    """Probes of single tensors take them for three times too much: what each of them does alone they do together only once."""
    points = [point({**(parts := random_parts(rng)), KERNELS: 1e-4}, true_kld(parts) + 0.3 * TRUTH.gamma * 1e-4) for _ in range(40)]
    best, floor = {"blocks": 1e-4, KERNELS: 1e-3}, Estimate(2e-5, 1e-6)
    file = file_of(best, true_kld({"blocks": 1e-4}) + 0.3 * TRUTH.gamma * 1e-3 + floor.value, se=1e-6)
    found = fit_curve([*points, file], floor=floor)
    assert found.scales[KERNELS] == pytest.approx(0.3, rel=0.1)
    assert (found.gamma, found.kappa) == pytest.approx((1.2, 0.9), rel=0.1)
    assert predict_kld(found, of(found, best)).kld_nats == pytest.approx(file.measured.value, rel=0.05)
    without = fit_curve(points, floor=floor)
    unsure, sure = (predict_kld(curve, of(curve, best)).relative_sd for curve in (without, found))
    assert unsure > 2 * sure


def test_what_every_file_has_is_no_part_of_the_fit(rng: np.random.Generator) -> None:
    points = measured(rng, 40)
    file, floor = file_of({"blocks": 0.002}, true_kld({"blocks": 0.002}) + 0.004), Estimate(0.004, 0.0004)
    found = fit_curve([*points, file], floor=floor)
    assert (found.c0_nats, found.c0_se) == (0.004, 0.0004)
    assert (found.gamma, found.kappa) == pytest.approx((1.2, 0.9), rel=0.05)


def test_a_file_says_no_more_than_the_same_mix_in_memory(rng: np.random.Generator) -> None:
    points = measured(rng, 40, scatter=0.05)
    same = file_of(points[0].parts, 2 * points[0].measured.value, mix=points[0].mix)
    found, alone = fit_curve([*points, same]), fit_curve(points)
    assert (found.gamma, found.kappa, found.residual_sd) == (alone.gamma, alone.kappa, alone.residual_sd)


def test_points_that_say_nothing_are_left_out(rng: np.random.Generator) -> None:
    points = measured(rng, 10, scatter=0.05)
    found = fit_curve([*points, point({"blocks": 0.0}, 0.01), point({"blocks": 0.1}, -1e-5)])
    expected = fit_curve(points)
    assert (found.gamma, found.kappa, found.residual_sd) == (expected.gamma, expected.kappa, expected.residual_sd)
    assert predict_kld(found, Damage(0.1)) == predict_kld(expected, Damage(0.1))


@pytest.mark.parametrize("n_points", [0, MIN_POINTS - 1])
def test_too_few_points_are_not_fitted(rng: np.random.Generator, n_points: int) -> None:
    found = fit_curve([*measured(rng, n_points), *(file_of({"blocks": 0.1}, 0.5) for _ in range(9))])
    assert (found.gamma, found.kappa, found.c0_nats, found.degrees_of_freedom) == (1, 0, 0, 1)
    low, high = predict_kld(found, Damage(0.1)).interval(0.8)
    assert predict_kld(found, Damage(0.1)).kld_nats == 0.1
    assert low < 0.05
    assert high > 0.2


def test_enough_points_are_fitted(rng: np.random.Generator) -> None:
    assert fit_curve(measured(rng, MIN_POINTS)).gamma == pytest.approx(1.2, rel=0.1)


# Intervals


KINDS = {"random": 0.12, "optima": 0.03}
"""How far the sum of a mix's damages is off by its tensors: a random mix loses most in one of them."""


@pytest.mark.parametrize("scatter", [0.02, 0.1])
def test_intervals_hold_as_many_new_mixes_of_each_kind_as_they_say(scatter: float) -> None:
    inside = {kind: [np.zeros(2)] for kind in KINDS}
    for seed in range(120):
        rng = np.random.default_rng(seed)
        # The text of the points costs more or less than any other, and 8 of its chunks tell how much.
        text_sd, common = 0.08, 0.08 * rng.standard_normal()
        points = []
        for each in measured(rng, 16, scatter=math.hypot(scatter, KINDS["random"])):
            kld = Estimate(each.measured.value * math.exp(common))
            points.append(dataclasses.replace(each, measured=kld, spread=KINDS["random"]))
        curve = fit_curve(points, text_sd=text_sd, n_chunks=8)
        for kind, spread in KINDS.items():
            other = math.hypot(text_sd * math.sqrt(8 / 64), UNSEEN.se) * rng.standard_normal()
            for new in measured(rng, 4, scatter=math.hypot(scatter, spread)):
                found = predict_kld(curve, of(curve, new.parts, spread))
                here = new.measured.value * math.exp(other)
                inside[kind].append(np.array([low <= here <= high for low, high in (found.interval(0.80), found.interval(0.95))]))
    for held in inside.values():
        assert 0.74 <= np.mean(held[1:], axis=0)[0] <= 0.9  # little tells a small scatter, and it is not taken for smaller than usual
        assert 0.91 <= np.mean(held[1:], axis=0)[1] <= 0.985


def test_intervals_are_nested_around_the_prediction(rng: np.random.Generator) -> None:
    curve = fit_curve(measured(rng, 12, scatter=0.07))
    for damage in (1e-4, 0.01, 0.1, 1.0):
        found = predict_kld(curve, Damage(damage))
        (low, high), (least, most) = found.interval(0.80), found.interval(0.95)
        assert 0 < least < low < found.kld_nats < high < most
        assert found.kld_nats == curve_kld(curve, damage)


def test_intervals_are_wider_far_from_what_was_measured(rng: np.random.Generator) -> None:
    curve = fit_curve(measured(rng, 12, scatter=0.07))
    widths = [predict_kld(curve, Damage(damage)).relative_sd for damage in (0.1, 0.5, 1.0, 3.0)]
    assert widths == sorted(widths)
    assert widths[-1] > 2 * widths[0] > 2 * curve.residual_sd


def test_a_mix_of_other_parts_than_those_that_were_measured_is_less_sure(rng: np.random.Generator) -> None:
    curve = fit_curve(measured(rng, 16, scatter=0.07))
    usual, other = (predict_kld(curve, of(curve, parts)).relative_sd for parts in ({"blocks": 0.08, "output": 0.02}, {"embeddings": 0.1}))
    assert other > 1.5 * usual


def test_what_is_not_known_of_a_mixs_tensors_is_part_of_its_interval(rng: np.random.Generator) -> None:
    curve = fit_curve([dataclasses.replace(each, spread=0.1) for each in measured(rng, 12, scatter=0.1)])
    sure, unsure = (predict_kld(curve, Damage(0.1, spread=spread)).relative_sd for spread in (0.0, 0.2))
    assert unsure == pytest.approx(math.hypot(sure, 0.2))
    assert sure < curve.residual_sd  # most of the points' scatter is that of their own tensors


N_TENSORS, N_TYPES = 24, 4
ALPHA_SD, TYPE_SD = 0.3, 0.1
_POWERS = np.geomspace(0.1, 10, N_TYPES)
"""What a type costs beside the others."""


class MadeUp:
    """A model whose tensors' damages are not what their probes say."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._told = 0.001 * np.exp(rng.normal(0, 1, N_TENSORS))[:, None] * _POWERS
        self.off = ALPHA_SD * rng.standard_normal((N_TENSORS, 1)) + TYPE_SD * rng.standard_normal((N_TENSORS, N_TYPES))

    def mix(self) -> Integers:
        """A type for every tensor, (n_tensors,)."""
        return self._rng.integers(N_TYPES, size=N_TENSORS)

    def resting_on_one(self) -> Integers:
        """The same with the most costly type for one tensor and the least for all others."""
        types = np.zeros(N_TENSORS, dtype=np.int64)
        types[int(self._told[:, 0].argmax())] = N_TYPES - 1
        return types

    def damage(self, types: Integers, learned: Learned | None = None) -> Damage:
        """As probes tell it, and mixes where they have been learned from."""
        told = self._told[np.arange(N_TENSORS), types]
        if learned is not None:
            told = told * [learned.factor(number, int(name), ALPHA_SD, TYPE_SD) for number, name in enumerate(types)]
        makeup = self.makeup(types)
        spread, tied = (math.sqrt(makeup.covariance(makeup)), ()) if learned is None else learned.left(makeup)
        return Damage(float(told.sum()), {"blocks": float(told.sum())}, spread, tied)

    def makeup(self, types: Integers) -> Makeup:
        """By what probes say."""
        told = self._told[np.arange(N_TENSORS), types]
        return Makeup(told / told.sum(), np.full(N_TENSORS, ALPHA_SD), np.full(N_TENSORS, TYPE_SD), types)

    def kld(self, types: Integers, scatter: float = 0.05) -> float:
        """What is measured."""
        damage = float((self._told * np.exp(self.off))[np.arange(N_TENSORS), types].sum())
        return 1.1 * damage * math.exp(scatter * self._rng.standard_normal())

    def learn(self, n_mixes: int) -> tuple[Curve, Learned]:
        """From so many random mixes."""
        mixes = {f"mix {number}": self.mix() for number in range(n_mixes)}
        makeups = {name: self.makeup(types) for name, types in mixes.items()}
        points = []
        for name, types in mixes.items():
            damage = self.damage(types)
            points.append(point(damage.parts, self.kld(types), spread=damage.spread, mix=name))
        curve = fit_curve(points, makeups=makeups)
        return curve, Learned(curve, makeups)


def test_whole_mixes_tell_of_single_tensors() -> None:
    """Intervals hold what they promise, and are narrower than without, most of all where one tensor does most."""
    inside, narrower, closer = [], [], []
    for seed in range(60):
        model = MadeUp(np.random.default_rng(seed))
        curve, learned = model.learn(12)
        for types in (model.mix(), model.mix(), model.resting_on_one()):
            measured_kld = model.kld(types)
            told, before = (predict_kld(curve, model.damage(types, each)) for each in (learned, None))
            inside.append([low <= measured_kld <= high for low, high in (told.interval(0.80), told.interval(0.95))])
            narrower.append(told.relative_sd / before.relative_sd)
            closer.append([math.log(measured_kld / each.kld_nats) for each in (told, before)])
    held = np.mean(inside, axis=0)
    assert 0.74 <= held[0] <= 0.88
    assert 0.91 <= held[1] <= 0.985
    assert np.mean(narrower) < 0.9
    assert max(narrower) < 1.05
    now, then = np.sqrt(np.mean(np.square(closer), axis=0))
    assert now < 0.9 * then


def test_a_tensor_that_does_most_in_a_mix_is_told_by_it(rng: np.random.Generator) -> None:
    model = MadeUp(rng)
    curve, learned = model.learn(200)
    one = model.resting_on_one()
    tensor = int(one.argmax())
    factor = learned.factor(tensor, N_TYPES - 1, ALPHA_SD, TYPE_SD)
    assert math.log(factor) == pytest.approx(model.off[tensor, N_TYPES - 1] - np.mean(model.off), abs=0.15)
    spread, tied = learned.left(model.makeup(one))
    assert spread < 0.5 * model.damage(one).spread
    assert len(tied) == 2 + len(curve.scales)


def test_mixes_of_other_tensors_tell_nothing(rng: np.random.Generator) -> None:
    shares = np.array([0.6, 0.4, 0.0])
    makeup = Makeup(shares, np.full(3, 0.2), np.full(3, 0.1), np.array([1, 2, -1]))
    points = [point({"blocks": damage}, damage * 1.2, mix=f"mix {damage}") for damage in np.geomspace(0.01, 0.3, 12).tolist()]
    makeups = {each.mix: makeup for each in points}
    learned = Learned(fit_curve(points, makeups=makeups), makeups)
    other = Makeup(np.array([0.0, 0.0, 1.0]), np.full(3, 0.2), np.full(3, 0.1), np.array([-1, -1, 1]))
    assert learned.left(other)[0] == pytest.approx(math.hypot(0.2, 0.1))
    assert learned.factor(2, 1, 0.2, 0.1) == 1


def test_only_what_was_estimated_from_few_mixes_widens_an_interval(rng: np.random.Generator) -> None:
    """The tensors' errors and the text's are known; the scatter is seen in a few mixes."""
    curve = fit_curve(measured(rng, 8, scatter=0.05))
    near, far = (predict_kld(curve, Damage(0.1, spread=spread)) for spread in (0.0, 0.5))
    low, high = far.interval(0.95)
    assert math.log(high / low) == pytest.approx(2 * 1.96 * far.relative_sd, rel=0.01)
    low, high = near.interval(0.95)
    assert math.log(high / low) > 2 * 2.0 * near.relative_sd


def test_the_texts_own_error_is_part_of_an_interval(rng: np.random.Generator) -> None:
    points = measured(rng, 12, scatter=0.03)
    sure, unsure = fit_curve(points), fit_curve(points, text_sd=0.2, n_chunks=8)
    for n_chunks in (8, 64):
        expected = math.hypot(predict_kld(sure, Damage(0.1)).relative_sd, 0.2 * math.sqrt(1 + 8 / n_chunks))
        assert predict_kld(unsure, Damage(0.1), n_chunks=n_chunks).relative_sd == pytest.approx(expected)


def test_what_a_text_does_to_kernels_alone_tells_little_of_them(rng: np.random.Generator) -> None:
    """In a few chunks routers flip, which doubles what kernels cost there, and nothing else."""
    points = [point({**(parts := random_parts(rng)), KERNELS: 1e-4}, true_kld(parts) + TRUTH.gamma * 1e-4, se=1e-4) for _ in range(24)]
    best = {"blocks": 1e-5, KERNELS: 1e-3}
    kld = true_kld({"blocks": 1e-5}) + 2 * TRUTH.gamma * 1e-3
    careful, rash = (fit_curve([*points, file_of(best, kld, se=se * kld)], text_sd=0.05, n_chunks=8) for se in (0.5, 0.05))
    assert rash.scales[KERNELS] > 1.7
    assert careful.scales[KERNELS] < 1.4
    kernels, weights = (predict_kld(careful, of(careful, parts), n_chunks=8).relative_sd for parts in (best, {"blocks": 0.1}))
    assert kernels > 0.5 > 0.2 > weights


def test_what_every_file_costs_has_no_relative_error(rng: np.random.Generator) -> None:
    curve = fit_curve(measured(rng, 12, scatter=0.07), floor=Estimate(0.01))
    assert predict_kld(curve, Damage(0.0)).interval(0.95) == (0.01, 0.01)
    assert predict_kld(curve, Damage(1e-4)).relative_sd < 0.02 * predict_kld(curve, Damage(0.2)).relative_sd


def test_what_every_file_costs_is_as_unsure_as_its_figure(rng: np.random.Generator) -> None:
    curve = fit_curve(measured(rng, 12, scatter=0.07), floor=Estimate(0.004, 0.0002))
    for damage in (0.0, 1e-9, 1e-6):
        low, high = predict_kld(curve, Damage(damage)).interval(0.95)
        assert 0.0004 < high - low < 0.004


def test_other_works_of_the_same_kind_may_cost_another_share(rng: np.random.Generator) -> None:
    """However much was measured on one text; what kernels cost is the same on any."""
    points = [point({**(parts := random_parts(rng)), KERNELS: 1e-3}, true_kld(parts) + TRUTH.gamma * 1e-3) for _ in range(400)]
    plain, half, seen = (fit_curve(points, seen=share) for share in (0.0, 0.5, 1.0))
    assert [curve.unseen.value / UNSEEN.value for curve in (plain, half, seen)] == [0.0, 0.5, 1.0]
    assert dataclasses.replace(seen, unseen=plain.unseen) == plain
    weights, kernels = ([predict_kld(curve, of(curve, parts)) for curve in (plain, seen)] for parts in ({"blocks": 0.1}, {KERNELS: 1e-3}))
    assert weights[0].relative_sd == weights[1].relative_sd >= UNSEEN.se
    assert kernels[0] == kernels[1]
    assert kernels[0].relative_sd < UNSEEN.se / 2


def test_few_degrees_of_freedom_widen_an_interval() -> None:
    few, many = (PredictedKld(0.1, 0.1, degrees).interval(0.80) for degrees in (2, 1000))
    assert many == pytest.approx((0.1 * math.exp(-0.1282), 0.1 * math.exp(0.1282)), rel=1e-3)
    assert few == pytest.approx((0.1 * math.exp(-0.1886), 0.1 * math.exp(0.1886)), rel=1e-3)


def test_an_interval_stays_finite_whatever_its_error() -> None:
    low, high = PredictedKld(0.1, 1e6, 1).interval(0.95)
    assert 0 < low < high < math.inf


# The inverse

curves = st.builds(
    Curve,
    gamma=st.floats(0.2, 5),
    kappa=st.floats(-3, 3),
    c0_nats=st.floats(0, 0.02),
    residual_sd=st.just(0.1),
    degrees_of_freedom=st.just(5),
)


@given(curves, st.floats(1e-5, 2))
def test_the_damage_for_a_kld_is_the_one_that_gives_it(curve: Curve, damage: float) -> None:
    if curve.kappa < 0:
        damage = min(damage, -0.4 / curve.kappa)  # beyond -1/(2 kappa) the curve falls
    assert damage_for(curve, curve_kld(curve, damage)) == pytest.approx(damage, rel=1e-6)


@given(curves, st.floats(1e-6, 3))
def test_the_curve_gives_the_kld_that_was_asked_for(curve: Curve, more: float) -> None:
    kld = curve.c0_nats + more
    assert curve_kld(curve, damage_for(curve, kld)) == pytest.approx(kld, rel=1e-9)


@pytest.mark.parametrize("kld", [0.0, 0.005, 0.01])
def test_no_file_is_better_than_its_kernels(kld: float) -> None:
    with pytest.raises(StrategyError, match=rf"a KLD of {kld:g} is below .*\(0\.01\)\. Ask for more"):
        damage_for(dataclasses.replace(TRUTH, c0_nats=0.01), kld)


def test_damages_of_parts_without_a_scale_count_as_they_are() -> None:
    assert scaled_damage({"output": 2.0}, {"output": 0.1, "blocks": 0.3}) == pytest.approx(0.5)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)
