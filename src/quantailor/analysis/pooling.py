"""What the probes of a model say together (METHODS 4): every tensor's alpha drawn towards what is usual where it stands.

A few chunks tell one tensor's alpha to within a third; plans that believe such figures pick what their errors flatter.
But alphas are alike within a layer, and within a role, beside what is expected of each tensor where nothing is probed
(`expected`). So

    ln alpha_t = ln expected_t + common + role + layer + own_t

with all but `common` normal. How much the tensors scatter of their own is estimated from the probes. Each probe of a
tensor or of a group then moves the alphas of its members by its own precision against theirs, groups before single
tensors: a group that was probed on many chunks still counts where a tensor of it was probed on one. A group's probes tell
the mean of its alphas; what is expected tells how they differ within it.

What a type does to a tensor departs a little from alpha x error + noise, and types of nearly the same error depart alike:
`Departures` interpolates that, drawn towards none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantailor.numerics import Doubles
from quantailor.records import Estimate, layer_of, role_of

COMMON_SD, ROLE_SD, LAYER_SD = 10.0, 1.0, 1.0
"""Of the parts of ln alpha, before anything is measured."""
OWN_SD, LEAST_OWN_SD = 0.6, 0.2
"""Of a tensor's own part, where too few tensors were probed alone to tell; and the least that is believed."""
_ROUNDS = 4

DEPARTURE_SD, TYPE_SD = 0.15, 0.1
"""How far a cell lies from alpha x error + noise, relative: in common with types of nearly the same error, and alone."""
LIKE_ERRORS = 1.0
"""Types whose errors differ by this factor (natural logarithm) depart alike to exp(-1/2)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """ln alpha of a group of tensors, or of one, from its own probes alone."""

    tensors: tuple[str, ...]
    ln_alpha: float
    variance: float
    """Of what sampling chunks does to it."""


def pooled(findings: Sequence[Finding], tensors: Sequence[str], expected: Mapping[str, float] | None = None) -> dict[str, Estimate]:
    """The mean of alpha of every tensor given all findings, with its standard error; empty where nothing was found.

    `expected` is what each tensor's alpha would be without probes (`expected_alphas`); None expects the same of all.
    """
    if not findings:
        return {}
    expected = expected or dict.fromkeys(tensors, 1.0)
    parts = _Parts(tensors)
    ordered = sorted(findings, key=lambda finding: -len(finding.tensors))
    design = np.stack([parts.rows(finding.tensors).mean(axis=0) for finding in ordered])
    ratios = np.array([finding.ln_alpha - math.log(statistics.fmean(expected[name] for name in finding.tensors)) for finding in ordered])
    sampling = np.array([finding.variance for finding in ordered])
    counts = np.array([len(finding.tensors) for finding in ordered])
    own = OWN_SD**2
    for _ in range(_ROUNDS):
        values = ratios - own * (1 - 1 / counts) / 2  # a group tells the mean of alphas, which lies above the mean of their logarithms
        weights = 1 / (sampling + own / counts)
        covariance = np.linalg.inv((design * weights[:, None]).T @ design + np.diag(1 / parts.variances))
        coefficients = covariance @ (design * weights[:, None]).T @ values
        leverage = ((design @ covariance) * design).sum(axis=1) * weights
        own = _own_variance(values - design @ coefficients, sampling, counts, leverage)
    rows = parts.rows(tensors)
    means = dict(zip(tensors, rows @ coefficients, strict=True))
    variances = dict.fromkeys(tensors, own)
    for finding, value in zip(ordered, values.tolist(), strict=True):
        n = len(finding.tensors)
        gain = 1 / (sum(variances[name] for name in finding.tensors) / n**2 + finding.variance)
        surprise = value - sum(means[name] for name in finding.tensors) / n
        for name in finding.tensors:
            share = variances[name] / n
            means[name] += gain * share * surprise
            variances[name] -= gain * share**2
    return {name: _lognormal(math.log(expected[name]) + means[name], variances[name]) for name in tensors}


def _own_variance(residuals: Doubles, sampling: Doubles, counts: Doubles, leverage: Doubles) -> float:
    """How much single tensors scatter beyond role, layer and sampling."""
    alone = counts == 1
    degrees = float((1 - leverage[alone]).sum())
    if degrees < 1:
        return OWN_SD**2
    # A finding of little precision tells little of it.
    weights = 1 / (sampling[alone] + OWN_SD**2)
    scale = float(alone.sum()) / degrees
    excess = scale * np.square(residuals[alone]) - sampling[alone]
    return max(float((weights * excess).sum() / weights.sum()), LEAST_OWN_SD**2)


class _Parts:
    """Which parts of ln alpha each tensor has."""

    def __init__(self, tensors: Sequence[str]) -> None:
        self._roles = {role: 1 + at for at, role in enumerate(dict.fromkeys(map(role_of, tensors)))}
        layers = dict.fromkeys(layer for layer in map(layer_of, tensors) if layer is not None)
        self._layers = {layer: 1 + len(self._roles) + at for at, layer in enumerate(layers)}
        sds = [COMMON_SD, *[ROLE_SD] * len(self._roles), *[LAYER_SD] * len(self._layers)]
        self.variances: Doubles = np.square(sds)

    def rows(self, tensors: Sequence[str]) -> Doubles:
        """(n_tensors, n_parts) of 0 and 1."""
        rows = np.zeros((len(tensors), len(self.variances)))
        rows[:, 0] = 1
        for row, name in zip(rows, tensors, strict=True):
            row[self._roles[role_of(name)]] = 1
            if (layer := layer_of(name)) is not None:
                row[self._layers[layer]] = 1
        return rows


def _lognormal(mean: float, variance: float) -> Estimate:
    value = math.exp(mean + variance / 2)
    return Estimate(value, value * math.sqrt(math.expm1(variance)))


@dataclass(frozen=True, slots=True)
class Departure:
    """How far one measured cell of a tensor lies from alpha x error + noise."""

    type_name: str
    ln_error: float
    ln_ratio: float
    variance: float
    """Of what sampling chunks does to it."""


class Departures:
    """How a tensor's cells depart from alpha x error + noise, from those that were measured.

    A type between measured ones takes over their departure, one far from all of them has none.
    """

    def __init__(self, measured: Sequence[Departure] = ()) -> None:
        self._measured = measured
        names, errors = [cell.type_name for cell in measured], [cell.ln_error for cell in measured]
        known = np.array([self._alike(name, at) for name, at in zip(names, errors, strict=True)]).reshape(len(names), len(names))
        self._inverse = np.linalg.inv(known + np.diag([cell.variance for cell in measured]))
        self._pull = self._inverse @ np.array([cell.ln_ratio for cell in measured])

    def of(self, type_name: str, ln_error: float) -> Estimate:
        """ln(KLD / (alpha x error + noise)) of a type, with its standard error."""
        here = np.array(self._alike(type_name, ln_error))
        variance = DEPARTURE_SD**2 + TYPE_SD**2 - float(here @ self._inverse @ here)
        return Estimate(float(here @ self._pull), math.sqrt(max(variance, 0.0)))

    def _alike(self, type_name: str, ln_error: float) -> list[float]:
        """The covariances of a cell's departure and the measured ones."""
        return [
            DEPARTURE_SD**2 * math.exp(-(((ln_error - cell.ln_error) / LIKE_ERRORS) ** 2) / 2)
            + (TYPE_SD**2 if cell.type_name == type_name else 0.0)
            for cell in self._measured
        ]
