"""The KLD of a strategy before it is built, with an interval that means what it says (METHODS 4).

Damages of single tensors add up to S. What a whole mix does is close to that sum, not equal to it: errors meet in later
layers, and a text other than the probes' weighs tensors a little differently. So whole mixes are measured, and the curve

    KLD = gamma (S + kappa S^2) + c0        S = sum over parts of scale_part x damages

is fitted to them on a logarithmic scale: gamma, kappa and the scales on random mixes in memory, c0 on files, which are
compared with the base as it is stored (its own kernels round inputs too). The parts are the output, the embeddings and
the blocks: an error in the output meets no later layer. A few mixes determine kappa and the scales poorly, so both are held near
0 and 1 by a prior.

The interval of a new mix combines, as relative variances,

    scatter     how far a new mix lies from the curve: the residuals with each mix left out of the fit in turn
    curve       the uncertainty of the fit at this S, from the same residuals
    text        the standard error of the measured KLDs over sections of the text, which all mixes share; twice, because
                the text that the file will see is another one
    c0          the errors of the file's KLD and of the curve beneath it, whose difference c0 is
    unseen      what is not known of the factor below

with Student's t for the few degrees of freedom.

Compensated rounding makes errors cancel in the inputs that a text gives. On other works of the same kind they cancel less well, and
there a file costs e^`UNSEEN` times what it costs on the text of its covariances. A prediction is of text that nothing was fitted to.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantailor.errors import StrategyError
from quantailor.numerics import Doubles
from quantailor.records import Curve, CurvePoint, Estimate

LEVELS = (0.80, 0.95)
MOST_SPAN = 10.0
"""A prediction whose 95 % interval spans more than this factor is too early to be stated."""
MIN_POINTS = 5
"""Fewer measured mixes do not fit a curve; gamma is then 1 and the scatter that of `UNFITTED_SD`."""
UNFITTED_SD = 0.35
"""Relative error to state where nothing was fitted: what gamma was seen to differ from 1 by, twice over."""
KAPPA_PRIOR_SD = 1.0
"""Per nat. At S = 0.1 a kappa of 1 bends the curve by a tenth."""
SCALE_PRIOR_SD = 0.3
TYPICAL_SCATTER = 0.07
"""Of whole mixes around their curve; the unit in which priors are weighed."""
UNSEEN = Estimate(0.18, 0.05)
"""ln of what compensated files cost on works that their covariances have not seen, over what they cost on those that they have, beside
the same for plain files; measured on two models."""
_LEAST_BEND = 1e-3
_MAX_LN = math.log(1e9)


@dataclass(frozen=True, slots=True)
class PredictedKld:
    """A KLD with its intervals, nats."""

    kld_nats: float
    relative_sd: float
    degrees_of_freedom: int
    curve_sd: float | None = None
    """The part of `relative_sd` that more mixes would make smaller; None where that is all of it."""

    def interval(self, level: float) -> tuple[float, float]:
        """The range that holds the KLD of the built file with this probability."""
        width = min(self._half_width(level, self.relative_sd), _MAX_LN)
        return self.kld_nats * math.exp(-width), self.kld_nats * math.exp(width)

    def _half_width(self, level: float, relative_sd: float) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(max(1, self.degrees_of_freedom), (1 + level) / 2)) * relative_sd

    @property
    def is_early(self) -> bool:
        """Whether too little was measured to state it."""
        sd = self.relative_sd if self.curve_sd is None else self.curve_sd
        return not math.isfinite(self.kld_nats) or 2 * self._half_width(0.95, sd) > math.log(MOST_SPAN)


def fit_curve(points: Sequence[CurvePoint], *, seen: float = 0.0) -> Curve:
    """Fit the curve to measured mixes. Points without damage or divergence say nothing and are left out.

    The points of the result have `damage_nats` scaled, and are of the text that was measured: what `unseen` adds is not in them.

    Args:
        points: the mixes.
        seen: the share of their chunks whose inputs the weights' rounding was fitted to; 0 for plain rounding.
    """
    return dataclasses.replace(_fitted(points), unseen=Estimate(seen * UNSEEN.value, seen * UNSEEN.se))


def _fitted(points: Sequence[CurvePoint]) -> Curve:
    usable = [point for point in points if sum(point.parts.values()) > 0 and point.measured.value > 0]
    memory, files = ([point for point in usable if point.kind == kind] for kind in ("memory", "file"))
    if len(memory) < MIN_POINTS:
        return Curve(1.0, 0.0, 0.0, UNFITTED_SD, 1, tuple(points))
    names = sorted({name for point in memory for name in point.parts})
    parts = np.array([[point.parts.get(name, 0.0) for name in names] for point in memory])
    klds = np.array([point.measured.value for point in memory])
    start = np.zeros(2 + len(names))
    start[0] = np.log(klds / parts.sum(axis=1)).mean()
    from scipy.optimize import least_squares

    fit = least_squares(_residuals, start, args=(parts, klds))
    parameters: Doubles = fit.x
    degrees = max(1, len(memory) - 1 - len(names))
    scatter = _scatter(_ln_ratio(parameters, parts, klds), fit.jac)
    # The scales' common factor belongs to gamma.
    common = float(parameters[2:].mean())
    scales = {name: math.exp(value - common) for name, value in zip(names, parameters[2:], strict=True)}
    scaled = tuple(dataclasses.replace(point, damage_nats=scaled_damage(scales, point.parts)) for point in points)
    curve = Curve(math.exp(parameters[0] + common), float(parameters[1] * math.exp(common)), 0.0, scatter, degrees, scaled, scales)
    return dataclasses.replace(curve, c0_nats=_c0(curve, [scaled_damage(scales, point.parts) for point in files], files))


def _scatter(residuals: Doubles, jacobian: Doubles) -> float:
    """Root mean square of what the residuals would be with each mix left out of the fit (Allen's PRESS), e / (1 - h)."""
    hat = np.einsum("ij,ji->i", jacobian, np.linalg.pinv(jacobian))[: len(residuals)]
    return math.sqrt(float(np.square(residuals / np.maximum(1 - hat, _LEAST_BEND)).mean()))


def scaled_damage(scales: Mapping[str, float], parts: Mapping[str, float]) -> float:
    """S of a mix from its damages by part, nats."""
    return math.fsum(scales.get(name, 1.0) * value for name, value in parts.items())


def _c0(curve: Curve, damages: Sequence[float], files: Sequence[CurvePoint]) -> float:
    """What the file with the least damage has beyond the curve; in the others it drowns in the curve's own error."""
    if not files:
        return 0.0
    least = int(np.argmin(damages))
    return max(0.0, files[least].measured.value - curve_kld(curve, damages[least]))


def _ln_ratio(parameters: Doubles, parts: Doubles, klds: Doubles) -> Doubles:
    """ln(measured / curve) without c0; parameters are ln gamma, kappa and the scales' logarithms."""
    damages = parts @ np.exp(parameters[2:])
    bend = np.maximum(1 + parameters[1] * damages, _LEAST_BEND)
    result: Doubles = np.log(klds / damages) - parameters[0] - np.log(bend)
    return result


def _residuals(parameters: Doubles, parts: Doubles, klds: Doubles) -> Doubles:
    # A prior counts as one more measurement, in units of a typical scatter.
    scales = parameters[2:]
    priors = np.array([parameters[1] / KAPPA_PRIOR_SD, *(scales / SCALE_PRIOR_SD)])
    return np.concatenate([_ln_ratio(parameters, parts, klds), TYPICAL_SCATTER * priors])


def curve_kld(curve: Curve, damage_nats: float) -> float:
    """The mean KLD, on text that nothing was fitted to, of a file whose tensors' damages sum to `damage_nats`; nats."""
    return _slope(curve) * damage_nats * max(1 + curve.kappa * damage_nats, _LEAST_BEND) + curve.c0_nats


def _slope(curve: Curve) -> float:
    return curve.gamma * math.exp(curve.unseen.value)


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
    high = (kld_nats - curve.c0_nats) / _slope(curve)
    while curve_kld(curve, high) < kld_nats and high < 1e6:
        high *= 2
    if curve_kld(curve, high) < kld_nats:
        return high
    from scipy.optimize import brentq

    return float(brentq(lambda damage: curve_kld(curve, damage) - kld_nats, 0.0, high, xtol=1e-15, rtol=1e-12))


def predict_kld(curve: Curve, damage_nats: float) -> PredictedKld:
    """Predict a mix from its sum of damages; see the module docstring for the interval."""
    kld = curve_kld(curve, damage_nats)
    memory = [point for point in curve.points if point.kind == "memory" and point.damage_nats > 0 and point.measured.value > 0]
    variance = curve.residual_sd**2 + curve.unseen.se**2
    if len(memory) >= MIN_POINTS:
        # From text to text the error is the same for all mixes, so it does not average out.
        text = 2 * float(np.median([(point.measured.se / point.measured.value) ** 2 for point in memory]))
        variance += curve.residual_sd**2 * _leverage(memory, damage_nats) + text
    if kld <= 0:
        return PredictedKld(kld, math.sqrt(variance), curve.degrees_of_freedom)
    curve_sd = math.sqrt(variance) * max(kld - curve.c0_nats, 0.0) / kld
    return PredictedKld(kld, math.hypot(curve_sd, _c0_sd(curve) / kld), curve.degrees_of_freedom, curve_sd)


def _c0_sd(curve: Curve) -> float:
    """Nats by which c0 may be off: the errors of the two figures whose difference it is."""
    file = min((point for point in curve.points if point.kind == "file"), key=lambda point: point.damage_nats, default=None)
    if file is None or len(curve.points) <= MIN_POINTS:
        return 0.0
    beneath = curve_kld(dataclasses.replace(curve, c0_nats=0.0, unseen=Estimate(0.0)), file.damage_nats)
    return math.hypot(math.sqrt(2) * file.measured.se, curve.residual_sd * beneath)


def _leverage(points: Sequence[CurvePoint], damage_nats: float) -> float:
    """x (X'X)^-1 x' of the fit's linearization in (1, S)."""
    design = np.array([[1.0, point.damage_nats] for point in points])
    row = np.array([1.0, damage_nats])
    return float(row @ np.linalg.pinv(design.T @ design) @ row)
