"""The KLD of a strategy before it is built, with an interval that means what it says (METHODS 4).

Damages of single tensors add up to S. What a whole mix does is close to that sum, not equal to it: errors meet in later
layers, and a text other than the probes' weighs tensors a little differently. So whole mixes are measured, and the curve

    KLD = gamma (S + kappa S^2) + c0        S = sum over parts of scale_part x damages

is fitted to them on a logarithmic scale. The parts are the output, the embeddings, the blocks, and what kernels cost by rounding
inputs: an error in the output meets no later layer, and what kernels cost adds up least (where a router is near a tie, each of
them alone sends the same tokens elsewhere). Few mixes determine kappa and the scales poorly, so they are held near 0 and 1 by
a prior. Random mixes say little of kernels; a file of the best types says most. c0 is what the base's own kernels cost, which
files are compared with and mixes in memory are not.

How a tensor's alpha is off shows in every mix that lost much of its quality in that tensor, so whole mixes tell of single tensors
(`Learned`): those in which one tensor does most tell most of it.

The interval of a new mix combines, as relative variances, each cause once:

    tensors     what is still not known of its tensors' alphas and types: much where one tensor does most
    scatter     how far whole mixes lie from the curve beyond that
    curve       the uncertainty of the fit for its parts and its S
    text        the standard error over sections of the text of what all mixes have in common, and that of the text which is judged,
                where what kernels cost may have more
    unseen      how much more or less other works of the same kind cost where weights are rounded

with Student's t: of these, only the scatter is estimated from few mixes.

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
from quantailor.numerics import Doubles, Integers
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
_SCATTERS = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.055, 0.07, 0.09, 0.12, 0.16, 0.22, 0.3, 0.4)
"""Those that are considered, and how far from the typical one, in logarithms, a model's may lie."""
_LN_SCATTER_SD = 0.5
_ROUNDS = 3
_LEAST_START = 1e-6
_ANY_SD = 10.0
"""Of a parameter that has no prior."""
_LEAST_BEND, _MOST_DEGREES = 1e-3, 1e9
_NONE = Estimate(0.0)
_MAX_LN = math.log(1e9)


@dataclass(frozen=True, slots=True, eq=False)
class Makeup:
    """Which tensors a mix's damage comes from, (n_tensors,) each, in an order that all mixes of a model have."""

    shares: Doubles
    """Of the sum S; 0 for a tensor that is as it is stored."""
    alpha_sds: Doubles
    """How far the tensor's alpha may be off, relative."""
    type_sds: Doubles
    """How far its type may depart from alpha x error + noise, relative."""
    types: Integers
    """Numbers of the types."""

    def covariance(self, other: Makeup) -> float:
        """Of ln S of two mixes, by what is not known of the tensors that both rest on."""
        alike = self.alpha_sds * other.alpha_sds + (self.types == other.types) * self.type_sds * other.type_sds
        return float(np.sum(self.shares * other.shares * alike))


@dataclass(frozen=True, slots=True)
class Damage:
    """What the tensors of a mix do to the model by themselves."""

    nats: float
    """The sum S, scaled as the curve says."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """The same by part; none where a mix of that sum is meant, like those that were measured."""
    spread: float = 0.0
    """How far S may be off, relative, by what is not known of single tensors."""
    tied: tuple[float, ...] = ()
    """How far what was fitted is tied to that: what each parameter of the curve would add to ln S if it were one higher."""


@dataclass(frozen=True, slots=True)
class PredictedKld:
    """A KLD with its intervals, nats."""

    kld_nats: float
    relative_sd: float
    degrees_of_freedom: float

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
    points: Sequence[CurvePoint],
    *,
    makeups: Mapping[str, Makeup] | None = None,
    seen: float = 0.0,
    floor: Estimate = _NONE,
    text_sd: float = 0.0,
    n_chunks: int = 0,
) -> Curve:
    """Fit the curve to measured mixes. Points without damage or divergence say nothing and are left out.

    The points of the result have `damage_nats` scaled, and are of the text that was measured: what `unseen` adds is not in them.

    Args:
        points: the mixes; of those that were measured both in memory and as files, the files say no more.
        makeups: mix -> which tensors its damage comes from; without, each mix is as unsure as its `spread`, and none like another.
        seen: the share of their chunks whose inputs the weights' rounding was fitted to; 0 for plain rounding.
        floor: what every file has beyond the same mix in memory, nats.
        text_sd: as of `Curve`.
        n_chunks: as of `Curve`.
    """
    curve = _fitted(points, makeups or {}, floor, text_sd)
    unseen = Estimate(seen * UNSEEN.value, UNSEEN.se)
    return dataclasses.replace(curve, c0_nats=floor.value, c0_se=floor.se, text_sd=text_sd, n_chunks=n_chunks, unseen=unseen)


def _telling(points: Sequence[CurvePoint], floor_nats: float) -> list[CurvePoint]:
    """The points that a curve is fitted to: first those in memory."""
    usable = [point for point in points if sum(point.parts.values()) > 0 and point.measured.value > 0]
    memory = [point for point in usable if point.kind == "memory"]
    there = {point.mix for point in memory}
    files = [point for point in usable if point.kind == "file" and point.mix not in there and point.measured.value > floor_nats]
    return [*memory, *files] if len(memory) >= MIN_POINTS else []


def _unlike(points: Sequence[CurvePoint], makeups: Mapping[str, Makeup], floor: Estimate, text_sd: float) -> Doubles:
    """The covariance (n_points, n_points) of ln KLD by what is not known of tensors, and by what the text does to kernels alone."""
    found: Doubles = np.diag([point.spread**2 for point in points])
    for row, one in enumerate(points):
        for column, other in enumerate(points[: row + 1]):
            if one.mix in makeups and other.mix in makeups:
                found[row, column] = found[column, row] = makeups[one.mix].covariance(makeups[other.mix])
    kernels = _kernel_shares(points)
    found += _kernels_variance(points, floor, text_sd) * np.outer(kernels, kernels)
    return found


def _kernel_shares(points: Sequence[CurvePoint]) -> Doubles:
    """What part of each point's sum kernels have, (n_points,)."""
    return np.array([point.parts.get(KERNELS, 0.0) / sum(point.parts.values()) for point in points])


def _kernels_variance(points: Sequence[CurvePoint], floor: Estimate, text_sd: float) -> float:
    """The relative variance of what kernels cost over sections of the text, beyond what sections do to all mixes.

    By least squares, from how much more the points of which kernels are a part differ from section to section.
    """
    shares = np.square(_kernel_shares(points))
    excess = np.array([_relative_se(point, floor) ** 2 - text_sd**2 for point in points])
    return max(0.0, float(shares @ excess / (shares @ shares))) if shares.any() else 0.0


def _relative_se(point: CurvePoint, floor: Estimate) -> float:
    if point.kind == "memory":
        return point.measured.relative_se
    return math.hypot(point.measured.se, floor.se) / (point.measured.value - floor.value)


def _fitted(points: Sequence[CurvePoint], makeups: Mapping[str, Makeup], floor: Estimate, text_sd: float) -> Curve:
    told = _telling(points, floor.value)
    if not told:
        return Curve(1.0, 0.0, 0.0, UNFITTED_SD, 1, tuple(points))
    is_file = np.array([point.kind == "file" for point in told])
    names = sorted({name for point in told if point.kind == "memory" for name in point.parts})
    parts = np.array([[point.parts.get(name, 0.0) for name in names] for point in told])
    klds = np.array([point.measured.value for point in told]) - floor.value * is_file
    unlike = _unlike(told, makeups, floor, text_sd)
    priors = np.array([math.inf, KAPPA_PRIOR_SD, *(KERNELS_PRIOR_SD if name == KERNELS else SCALE_PRIOR_SD for name in names)])
    parameters: Doubles = np.zeros(2 + len(names))
    parameters[0] = np.log(klds / parts.sum(axis=1)).mean()
    scatter = TYPICAL_SCATTER
    for _ in range(_ROUNDS):
        parameters, slopes = _least_squares(parameters, parts, klds, unlike + scatter**2 * np.eye(len(told)), priors)
        scatter = _likeliest_scatter(_ln_ratio(parameters, parts, klds) + slopes @ parameters, slopes, unlike, priors)
    information = slopes.T @ np.linalg.solve(unlike + scatter**2 * np.eye(len(told)), slopes)
    covariance = np.linalg.inv(information + np.diag(priors**-2.0))
    leverages = np.einsum("ij,jk,ik->i", slopes, np.linalg.inv(slopes.T @ slopes + TYPICAL_SCATTER**2 * np.diag(priors**-2.0)), slopes)
    degrees = max(1, round(len(told) - leverages.sum()))  # what priors hold takes none
    residual_sd = _residual_sd(_ln_ratio(parameters, parts, klds)[~is_file], leverages[~is_file])
    # The scales' common factor belongs to gamma.
    common = float(np.mean([value for name, value in zip(names, parameters[2:], strict=True) if name != KERNELS or len(names) == 1]))
    scales = {name: math.exp(value - common) for name, value in zip(names, parameters[2:], strict=True)}
    scaled = tuple(dataclasses.replace(point, damage_nats=scaled_damage(scales, point.parts)) for point in points)
    gamma, kappa = math.exp(parameters[0] + common), float(parameters[1] * math.exp(common))
    units = np.array([1.0, math.exp(common), *(1.0 for _ in names)])
    rows = tuple(map(tuple, (covariance * np.outer(units, units)).tolist()))
    return Curve(gamma, kappa, 0.0, residual_sd, degrees, scaled, scales, rows, scatter_sd=scatter)


def _least_squares(start: Doubles, parts: Doubles, klds: Doubles, covariance: Doubles, priors: Doubles) -> tuple[Doubles, Doubles]:
    """The parameters (n_parameters,) that suit points with this covariance (n_points, n_points) best, and slopes of ln KLD there.

    A prior counts as one more measurement, of 0.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import least_squares

    root = np.linalg.cholesky(covariance)

    def residuals(parameters: Doubles) -> Doubles:
        return np.concatenate([solve_triangular(root, _ln_ratio(parameters, parts, klds), lower=True), parameters / priors])

    # Its first steps are no longer than the start is, unless that is 0.
    fit = least_squares(residuals, start if np.linalg.norm(start) > _LEAST_START else np.zeros_like(start))
    slopes: Doubles = -(root @ fit.jac[: len(klds)])
    return fit.x, slopes


def _likeliest_scatter(values: Doubles, slopes: Doubles, unlike: Doubles, priors: Doubles) -> float:
    """The scatter under which values (n_points,) of ln KLD, less the sums' logarithms, are likeliest, near the typical one a priori."""
    known = slopes @ np.diag(np.where(np.isinf(priors), _ANY_SD, priors) ** 2) @ slopes.T + unlike

    def likelihood(scatter: float) -> float:
        covariance = known + scatter**2 * np.eye(len(values))
        told = values @ np.linalg.solve(covariance, values) + np.linalg.slogdet(covariance)[1]
        return -float(told + (math.log(scatter / TYPICAL_SCATTER) / _LN_SCATTER_SD) ** 2) / 2

    return max(_SCATTERS, key=likelihood)


def _residual_sd(residuals: Doubles, leverages: Doubles) -> float:
    """Standard deviation of mixes about their curve, of (n,) each: with leverage h, a residual holds 1 - h of its mix's variance."""
    return math.sqrt(float((np.square(residuals) / np.maximum(1 - leverages, _LEAST_BEND)).mean()))


class Learned:
    """What whole mixes tell of single tensors: a mix that lies above its curve says that the tensors which do most in it do more.

    Conditional normal distributions of what alphas and types are off by, given the mixes' distances from the curve.
    """

    def __init__(self, curve: Curve, makeups: Mapping[str, Makeup]) -> None:
        """From a curve that was fitted with these makeups, mix -> what its damage comes from."""
        floor = Estimate(curve.c0_nats, curve.c0_se)
        told = [point for point in _telling(curve.points, curve.c0_nats) if point.mix in makeups]
        self._makeups = [makeups[point.mix] for point in told]
        covariance = _unlike(told, makeups, floor, curve.text_sd) + curve.scatter_sd**2 * np.eye(len(told))
        self._inverse = np.linalg.inv(covariance)
        self._slopes = np.array([_slopes(curve, point.damage_nats, _shares(curve, point.parts)) for point in told])
        apart = [
            math.log((point.measured.value - (curve.c0_nats if point.kind == "file" else 0.0)) / _above_floor(curve, point.damage_nats))
            for point in told
        ]
        pull = self._inverse @ np.array(apart)
        self._alphas = sum(
            (weight * makeup.shares * makeup.alpha_sds for weight, makeup in zip(pull, self._makeups, strict=True)), start=np.zeros(1)
        )
        self._types: dict[tuple[int, int], float] = {}
        for weight, makeup in zip(pull.tolist(), self._makeups, strict=True):
            effects = (weight * makeup.shares * makeup.type_sds).tolist()
            for number, (type_number, effect) in enumerate(zip(makeup.types.tolist(), effects, strict=True)):
                if effect:
                    self._types[number, type_number] = self._types.get((number, type_number), 0.0) + effect

    def factor(self, tensor: int, type_number: int, alpha_sd: float, type_sd: float) -> float:
        """How much more a tensor at a type does than its probes say."""
        if not self._makeups:
            return 1.0
        return math.exp(alpha_sd * float(self._alphas[tensor]) + type_sd * self._types.get((tensor, type_number), 0.0))

    def left(self, makeup: Makeup) -> tuple[float, tuple[float, ...]]:
        """The `spread` and `tied` of a mix's damage, given the mixes that were measured."""
        variance = makeup.covariance(makeup)
        if not self._makeups:
            return math.sqrt(variance), ()
        alike = np.array([makeup.covariance(other) for other in self._makeups])
        told = self._inverse @ alike
        return math.sqrt(max(variance - float(alike @ told), 0.0)), tuple((-(told @ self._slopes)).tolist())


def scaled_damage(scales: Mapping[str, float], parts: Mapping[str, float]) -> float:
    """S of a mix from its damages by part, nats."""
    return math.fsum(scales.get(name, 1.0) * value for name, value in parts.items())


def _ln_ratio(parameters: Doubles, parts: Doubles, klds: Doubles) -> Doubles:
    """ln(measured / curve) without c0; parameters are ln gamma, kappa and the scales' logarithms."""
    damages = parts @ np.exp(parameters[2:])
    bend = np.maximum(1 + parameters[1] * damages, _LEAST_BEND)
    result: Doubles = np.log(klds / damages) - parameters[0] - np.log(bend)
    return result


def curve_kld(curve: Curve, damage_nats: float) -> float:
    """The mean KLD of a file whose tensors' damages sum to `damage_nats`, nats."""
    return _above_floor(curve, damage_nats) + curve.c0_nats


def _above_floor(curve: Curve, damage_nats: float) -> float:
    return curve.gamma * damage_nats * max(1 + curve.kappa * damage_nats, _LEAST_BEND)


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
    variance, degrees = curve.residual_sd**2, float(curve.degrees_of_freedom)
    told = _telling(curve.points, curve.c0_nats)
    if told:
        memory = [point for point in told if point.kind == "memory"]
        parts = damage.parts or {name: sum(point.parts.get(name, 0.0) for point in memory) for name in curve.scales}
        shares = _shares(curve, parts, are_scaled=bool(damage.parts))
        flips = _kernels_variance(told, Estimate(curve.c0_nats, curve.c0_se), curve.text_sd) * shares.get(KERNELS, 0.0) ** 2
        text = curve.text_sd**2 + (curve.text_sd**2 + flips) * curve.n_chunks / n_chunks
        unseen = (curve.unseen.se * (1 - shares.get(KERNELS, 0.0))) ** 2
        slopes = _slopes(curve, damage.nats, shares) + np.array(damage.tied or 0.0)
        scatter = curve.scatter_sd**2
        variance = damage.spread**2 + scatter + float(slopes @ np.array(curve.covariance) @ slopes) + text + unseen
        # Of a sum of variances of which one was estimated (Welch, 1947; Satterthwaite, 1946).
        degrees *= (variance / scatter) ** 2
    relative = math.sqrt(variance)
    if kld > 0:
        relative = math.hypot(relative * max(kld - curve.c0_nats, 0.0), curve.c0_se) / kld
    return PredictedKld(kld, relative, min(degrees, _MOST_DEGREES))


def _shares(curve: Curve, parts: Mapping[str, float], *, are_scaled: bool = False) -> dict[str, float]:
    """What part of a mix's sum each part of the model has."""
    scaled = {name: value if are_scaled else curve.scales.get(name, 1.0) * value for name, value in parts.items()}
    total = math.fsum(scaled.values()) or 1.0
    return {name: value / total for name, value in scaled.items()}


def _slopes(curve: Curve, damage_nats: float, shares: Mapping[str, float]) -> Doubles:
    """Of ln KLD over what was fitted, (n_parameters,), for a mix with these shares of its parts."""
    bend = max(1 + curve.kappa * damage_nats, _LEAST_BEND)
    steeper = 1 + curve.kappa * damage_nats / bend
    return np.array([1.0, damage_nats / bend, *(steeper * shares.get(name, 0.0) for name in curve.scales)])
