"""The KLD of a strategy before it is built, with an interval that means what it says (METHODS 4).

Damages of single tensors add up to S. What a whole mix does is close to that sum, not equal to it: errors meet in later
layers, and a text other than the probes' weighs tensors a little differently. So whole mixes are measured, and the curve

    KLD = gamma (S + kappa S^2) + c0        S = sum over parts of scale_part x damages

is fitted to them on a logarithmic scale. The parts are the output, the embeddings, the blocks, and what kernels cost by rounding
inputs: an error in the output meets no later layer, and what kernels cost adds up least (where a router is near a tie, each of
them alone sends the same tokens elsewhere). Few mixes determine kappa and the scales poorly, so they are held near 0 and 1 by
a prior. Random mixes say little of kernels; a file of the best types says most. c0 is what the base's own kernels cost, which
files are compared with and mixes in memory are not.

The interval of a new mix combines, as relative variances, each cause once:

    tensors     what is not known of its tensors' alphas and types, independent from tensor to tensor: much where one tensor does most
    scatter     how far whole mixes lie from the curve beyond that
    curve       the uncertainty of the fit for its parts and its S
    text        the standard error over sections of the text of what all mixes have in common, and that of the text which is judged
    unseen      how much more or less other works of the same kind cost where weights are rounded

with Student's t for the few degrees of freedom.

Compensated rounding makes errors cancel in the inputs that a text gives. On other works of the same kind they cancel less well, and
rounding weights costs e^`UNSEEN` times what it costs on the text of its covariances; rounding inputs does not. A prediction is of text
that nothing was fitted to, so damages hold that factor (`Knowledge.damage`); those of the curve's points do not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from quantailor.errors import StrategyError
from quantailor.numerics import Doubles
from quantailor.records import KERNELS, Curve, CurvePoint, Estimate

LEVELS = (0.80, 0.95)
MOST_SPAN = 10.0
"""A prediction whose 95 % interval spans more than this factor is too early to be stated."""
MIN_POINTS = 5
"""Fewer measured mixes do not fit a curve; gamma is then 1 and the scatter that of `UNFITTED_SD`."""
UNFITTED_SD = 0.35
"""Relative error to state where nothing was fitted: what gamma was seen to differ from 1 by, twice over."""
KAPPA_PRIOR_SD = 1.0
"""Per nat. At S = 0.1 a kappa of 1 bends the curve by a tenth."""
SCALE_PRIOR_SD = 0.15
"""Five curves of two models that had twice as much room had all scales within a tenth of 1."""
KERNELS_PRIOR_SD = 0.7
"""What kernels cost in single tensors is told by their smallest probes."""
TYPICAL_SCATTER = 0.07
"""Of whole mixes around their curve; the unit in which priors are weighed."""
UNSEEN = Estimate(0.18, 0.05)
"""ln of what compensated files cost on works that their covariances have not seen, over what they cost on those that they have, beside
the same for plain files; measured on two models. The standard error is also that of plain files, whose text is another one, too."""
JUDGED_CHUNKS = 64
"""Chunks of the text that a prediction speaks of."""
_LEAST_BEND, _LEAST_SCATTER = 1e-3, 1e-6
_NONE = Estimate(0.0)
_MAX_LN = math.log(1e9)


@dataclass(frozen=True, slots=True)
class Damage:
    """What the tensors of a mix do to the model by themselves."""

    nats: float
    """The sum S, scaled as the curve says."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """The same by part; none where a mix of that sum is meant, like those that were measured."""
    spread: float = 0.0
    """How far S may be off, relative, by what is not known of single tensors."""


@dataclass(frozen=True, slots=True)
class PredictedKld:
    """A KLD with its intervals, nats."""

    kld_nats: float
    relative_sd: float
    degrees_of_freedom: int

    def interval(self, level: float) -> tuple[float, float]:
        """The range that holds the KLD of the built file with this probability."""
        width = min(self._half_width(level), _MAX_LN)
        return self.kld_nats * math.exp(-width), self.kld_nats * math.exp(width)

    def _half_width(self, level: float) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(max(1, self.degrees_of_freedom), (1 + level) / 2)) * self.relative_sd

    @property
    def is_early(self) -> bool:
        """Whether too little was measured to state it."""
        return not math.isfinite(self.kld_nats) or 2 * self._half_width(0.95) > math.log(MOST_SPAN)


def fit_curve(
    points: Sequence[CurvePoint], *, seen: float = 0.0, floor: Estimate = _NONE, text_sd: float = 0.0, n_chunks: int = 0
) -> Curve:
    """Fit the curve to measured mixes. Points without damage or divergence say nothing and are left out.

    The points of the result have `damage_nats` scaled, and are of the text that was measured: what `unseen` adds is not in them.

    Args:
        points: the mixes; of those that were measured both in memory and as files, the files say no more.
        seen: the share of their chunks whose inputs the weights' rounding was fitted to; 0 for plain rounding.
        floor: what every file has beyond the same mix in memory, nats.
        text_sd: as of `Curve`.
        n_chunks: as of `Curve`.
    """
    curve = _fitted(points, floor)
    unseen = Estimate(seen * UNSEEN.value, UNSEEN.se)
    return dataclasses.replace(curve, c0_nats=floor.value, c0_se=floor.se, text_sd=text_sd, n_chunks=n_chunks, unseen=unseen)


def _fitted(points: Sequence[CurvePoint], floor: Estimate) -> Curve:
    usable = [point for point in points if sum(point.parts.values()) > 0 and point.measured.value > 0]
    memory = [point for point in usable if point.kind == "memory"]
    if len(memory) < MIN_POINTS:
        return Curve(1.0, 0.0, 0.0, UNFITTED_SD, 1, tuple(points))
    there = {point.mix for point in memory}
    files = [point for point in usable if point.kind == "file" and point.mix not in there and point.measured.value > floor.value]
    names = sorted({name for point in memory for name in point.parts})
    parts = np.array([[point.parts.get(name, 0.0) for name in names] for point in (*memory, *files)])
    klds = np.array([*(point.measured.value for point in memory), *(point.measured.value - floor.value for point in files)])
    errors = [math.hypot(point.measured.se, floor.se) / (point.measured.value - floor.value) for point in files]
    weights = np.array([*(1.0 for _ in memory), *(TYPICAL_SCATTER / math.hypot(TYPICAL_SCATTER, error) for error in errors)])
    priors = np.array([KERNELS_PRIOR_SD if name == KERNELS else SCALE_PRIOR_SD for name in names])
    start = np.zeros(2 + len(names))
    start[0] = np.log(klds / parts.sum(axis=1)).mean()
    from scipy.optimize import least_squares

    fit = least_squares(_residuals, start, args=(parts, klds, weights, priors))
    parameters: Doubles = fit.x
    leverages = np.einsum("ij,ji->i", fit.jac, np.linalg.pinv(fit.jac))[: len(klds)]
    degrees = max(1, round(len(klds) - leverages.sum()))  # what priors hold takes none
    scatter = _scatter(_ln_ratio(parameters, parts, klds)[: len(memory)], leverages[: len(memory)])
    # The scales' common factor belongs to gamma.
    common = float(np.mean([value for name, value in zip(names, parameters[2:], strict=True) if name != KERNELS or len(names) == 1]))
    scales = {name: math.exp(value - common) for name, value in zip(names, parameters[2:], strict=True)}
    scaled = tuple(dataclasses.replace(point, damage_nats=scaled_damage(scales, point.parts)) for point in points)
    gamma, kappa = math.exp(parameters[0] + common), float(parameters[1] * math.exp(common))
    told, held = fit.jac[: len(klds)], fit.jac[len(klds) :]
    information = told.T @ told / max(scatter, _LEAST_SCATTER) ** 2 + held.T @ held / TYPICAL_SCATTER**2
    units = np.array([1.0, math.exp(common), *(1.0 for _ in names)])
    covariance = np.linalg.pinv(information, hermitian=True) * np.outer(units, units)
    return Curve(gamma, kappa, 0.0, scatter, degrees, scaled, scales, tuple(map(tuple, covariance.tolist())))


def _scatter(residuals: Doubles, leverages: Doubles) -> float:
    """Standard deviation of mixes about their curve, of (n,) each: with leverage h, a residual holds 1 - h of its mix's variance."""
    return math.sqrt(float((np.square(residuals) / np.maximum(1 - leverages, _LEAST_BEND)).mean()))


def scaled_damage(scales: Mapping[str, float], parts: Mapping[str, float]) -> float:
    """S of a mix from its damages by part, nats."""
    return math.fsum(scales.get(name, 1.0) * value for name, value in parts.items())


def _ln_ratio(parameters: Doubles, parts: Doubles, klds: Doubles) -> Doubles:
    """ln(measured / curve) without c0; parameters are ln gamma, kappa and the scales' logarithms."""
    damages = parts @ np.exp(parameters[2:])
    bend = np.maximum(1 + parameters[1] * damages, _LEAST_BEND)
    result: Doubles = np.log(klds / damages) - parameters[0] - np.log(bend)
    return result


def _residuals(parameters: Doubles, parts: Doubles, klds: Doubles, weights: Doubles, prior_sds: Doubles) -> Doubles:
    # A prior counts as one more measurement, in units of a typical scatter.
    priors = np.array([parameters[1] / KAPPA_PRIOR_SD, *(parameters[2:] / prior_sds)])
    return np.concatenate([weights * _ln_ratio(parameters, parts, klds), TYPICAL_SCATTER * priors])


def curve_kld(curve: Curve, damage_nats: float) -> float:
    """The mean KLD of a file whose tensors' damages sum to `damage_nats`, nats."""
    return curve.gamma * damage_nats * max(1 + curve.kappa * damage_nats, _LEAST_BEND) + curve.c0_nats


def damage_for(curve: Curve, kld_nats: float) -> float:
    """The sum of damages at which the curve reaches a KLD, nats.

    Raises:
        StrategyError: even a file without damage would have more.
    """
    if kld_nats <= curve.c0_nats:
        raise StrategyError(
            f"a KLD of {kld_nats:g} is below what the kernels of any quantized file cost here ({curve.c0_nats:.2g})",
            remedy="Ask for more",
        )
    high = (kld_nats - curve.c0_nats) / curve.gamma
    while curve_kld(curve, high) < kld_nats and high < 1e6:
        high *= 2
    if curve_kld(curve, high) < kld_nats:
        return high
    from scipy.optimize import brentq

    return float(brentq(lambda damage: curve_kld(curve, damage) - kld_nats, 0.0, high, xtol=1e-15, rtol=1e-12))


def predict_kld(curve: Curve, damage: Damage, *, n_chunks: int = JUDGED_CHUNKS) -> PredictedKld:
    """Predict a mix from its damage, on a text of so many chunks; see the module docstring for the interval."""
    kld = curve_kld(curve, damage.nats)
    memory = [point for point in curve.points if point.kind == "memory" and point.damage_nats > 0 and point.measured.value > 0]
    variance = curve.residual_sd**2
    if len(memory) >= MIN_POINTS:
        parts = damage.parts or {name: curve.scales[name] * sum(point.parts.get(name, 0.0) for point in memory) for name in curve.scales}
        shares = {name: value / (math.fsum(parts.values()) or 1.0) for name, value in parts.items()}
        # What is not known of the points' own tensors is part of their scatter.
        scatter = curve.residual_sd**2 - float(np.mean([point.spread**2 for point in memory]))
        text = curve.text_sd**2 * (1 + curve.n_chunks / n_chunks)
        unseen = (curve.unseen.se * (1 - shares.get(KERNELS, 0.0))) ** 2
        variance = damage.spread**2 + max(scatter, 0.0) + _curve_variance(curve, damage.nats, shares) + text + unseen
    relative = math.sqrt(variance)
    if kld > 0:
        relative = math.hypot(relative * max(kld - curve.c0_nats, 0.0), curve.c0_se) / kld
    return PredictedKld(kld, relative, curve.degrees_of_freedom)


def _curve_variance(curve: Curve, damage_nats: float, shares: Mapping[str, float]) -> float:
    """Of ln KLD, by what is not known of the fit, for a mix with these shares of its parts."""
    bend = max(1 + curve.kappa * damage_nats, _LEAST_BEND)
    steeper = 1 + curve.kappa * damage_nats / bend
    slopes = np.array([1.0, damage_nats / bend, *(steeper * shares.get(name, 0.0) for name in curve.scales)])
    return float(slopes @ np.array(curve.covariance) @ slopes)
