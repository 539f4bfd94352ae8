"""The KLD of a strategy before it is built, with an interval that means what it says (METHODS 4).

Damages of single tensors add up to S. What a whole mix does is close to that sum, not equal to it: errors meet in later
layers, and a text other than the probes' weighs tensors a little differently. So whole mixes are measured, and the curve

    KLD = gamma (S + kappa S^2) + c0

is fitted to them on a logarithmic scale: gamma and kappa on random mixes in memory, c0 on files, which are compared with
the base as it is stored (its own kernels round inputs too). kappa is held near 0 by a prior of one unit, because mixes
of a few sizes tell it badly.

The interval of a new mix combines, as relative variances,

    scatter     how far random mixes lie from the curve, estimated from the residuals
    curve       the uncertainty of the fit at this S, from the same residuals
    text        the standard error of the measured KLDs over chunks, which all mixes share

with Student's t for the few degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.optimize import brentq, least_squares

from quantailor.errors import StrategyError
from quantailor.records import Curve, CurvePoint

Doubles = npt.NDArray[np.float64]

LEVELS = (0.80, 0.95)
MIN_POINTS = 5
"""Fewer measured mixes do not fit a curve; gamma is then 1 and the scatter that of `UNFITTED_SD`."""
UNFITTED_SD = 0.35
"""Relative error to state where nothing was fitted: what gamma was seen to differ from 1 by, twice over."""
KAPPA_PRIOR_SD = 1.0
"""Per nat. At S = 0.1 a kappa of 1 bends the curve by a tenth."""
_MAX_LN = math.log(1e9)


@dataclass(frozen=True, slots=True)
class PredictedKld:
    """A KLD with its intervals, nats."""

    kld_nats: float
    relative_sd: float
    degrees_of_freedom: int

    def interval(self, level: float) -> tuple[float, float]:
        """The range that holds the KLD of the built file with this probability."""
        width = float(stats.t.ppf((1 + level) / 2, max(1, self.degrees_of_freedom))) * self.relative_sd
        return self.kld_nats * math.exp(-min(width, _MAX_LN)), self.kld_nats * math.exp(min(width, _MAX_LN))


def fit_curve(points: Sequence[CurvePoint]) -> Curve:
    """Fit gamma, kappa and c0 to measured mixes. Points without damage or divergence say nothing and are left out."""
    usable = [point for point in points if point.damage_nats > 0 and point.measured.value > 0]
    memory, files = ([point for point in usable if point.kind == kind] for kind in ("memory", "file"))
    if len(memory) < MIN_POINTS:
        return Curve(1.0, 0.0, 0.0, UNFITTED_SD, 1, tuple(points))
    damages, klds = (np.array(values) for values in zip(*((p.damage_nats, p.measured.value) for p in memory), strict=True))
    found = least_squares(_residuals, (float(np.log(klds / damages).mean()), 0.0), args=(damages, klds), loss="soft_l1", f_scale=0.2)
    ln_gamma, kappa = (float(value) for value in found.x)
    degrees = len(memory) - 2
    scatter = math.sqrt(float(np.square(_ln_ratio(found.x, damages, klds)).sum()) / degrees)
    curve = Curve(math.exp(ln_gamma), kappa, 0.0, scatter, degrees, tuple(points))
    excess = [point.measured.value - curve_kld(curve, point.damage_nats) for point in files]
    # The smallest file shows c0 almost pure; in the others it drowns in the curve's own error.
    c0 = max(0.0, excess[int(np.argmin([point.damage_nats for point in files]))]) if files else 0.0
    return Curve(curve.gamma, kappa, c0, scatter, degrees, tuple(points))


def _ln_ratio(parameters: Doubles, damages: Doubles, klds: Doubles) -> Doubles:
    """ln(measured / curve) without c0."""
    bend = np.maximum(1 + parameters[1] * damages, 1e-3)
    result: Doubles = np.log(klds / damages) - parameters[0] - np.log(bend)
    return result


def _residuals(parameters: Doubles, damages: Doubles, klds: Doubles) -> Doubles:
    # The prior on kappa counts as one more measurement, in units of a typical scatter of 0.07.
    return np.append(_ln_ratio(parameters, damages, klds), 0.07 * parameters[1] / KAPPA_PRIOR_SD)


def curve_kld(curve: Curve, damage_nats: float) -> float:
    """The mean KLD of a file whose tensors' damages sum to `damage_nats`, nats."""
    return curve.gamma * damage_nats * max(1 + curve.kappa * damage_nats, 1e-3) + curve.c0_nats


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
    return float(brentq(lambda damage: curve_kld(curve, damage) - kld_nats, 0.0, high, xtol=1e-15, rtol=1e-12))


def predict_kld(curve: Curve, damage_nats: float) -> PredictedKld:
    """Predict a mix from its sum of damages; see the module docstring for the interval."""
    kld = curve_kld(curve, damage_nats)
    memory = [point for point in curve.points if point.kind == "memory" and point.damage_nats > 0 and point.measured.value > 0]
    variance = curve.residual_sd**2
    if len(memory) >= MIN_POINTS:
        variance += curve.residual_sd**2 * _leverage(memory, damage_nats) + _text_variance(memory)
    share = (kld - curve.c0_nats) / kld if kld > 0 else 1.0
    return PredictedKld(kld, math.sqrt(variance) * max(share, 0.0), curve.degrees_of_freedom)


def _leverage(points: Sequence[CurvePoint], damage_nats: float) -> float:
    """x (X'X)^-1 x' of the fit's linearization in (1, S)."""
    design = np.array([[1.0, point.damage_nats] for point in points])
    at = np.array([1.0, damage_nats])
    return float(at @ np.linalg.pinv(design.T @ design) @ at)


def _text_variance(points: Sequence[CurvePoint]) -> float:
    """Relative variance of the measured KLDs over chunks; the chunks are the same for all, so it does not average out."""
    return float(np.median([(point.measured.se / point.measured.value) ** 2 for point in points]))
