"""What the probes of a model say together (METHODS 4): every tensor's alpha drawn towards what is usual where it stands.

A few chunks tell one tensor's alpha to within a third; plans that believe such figures pick what their errors flatter.
But alphas are alike within a layer, and within a role, beside what is expected of each tensor where nothing is probed
(`expected`). So

    ln alpha_t = ln expected_t + common + role + layer + family + own_t

with all parts normal: a Gaussian process over the tensors, whose covariance of two is the sum of the variances of the parts
that they share. Probes of a tensor, or of a group, are evidence with the noise that chunks give them; the posterior has a mean
and an uncertainty for every tensor, probed or not. How much tensors scatter of their own is the likeliest of a few values. A
group's probes tell the mean of its alphas, most of those that weigh most in it. Noise / alpha is drawn together in the same way.

What a type does to a tensor departs a little from alpha x error + noise, and types of nearly the same error depart alike:
`Departures` interpolates that, drawn towards none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantailor.numerics import Doubles
from quantailor.records import Estimate, layer_of, role_of

COMMON_SD, ROLE_SD, LAYER_SD, FAMILY_SD = 3.0, 0.8, 0.6, 0.35
"""Of the parts of ln alpha, before anything is measured."""
OWN_SDS, USUAL_OWN_SD = (0.2, 0.3, 0.45, 0.65), 0.4
"""Of a tensor's own part: those that are considered, and the usual one."""
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
    numbers = {name: at for at, name in enumerate(tensors)}
    shares = np.zeros((len(findings), len(tensors)))  # of what a finding tells, by what is expected of its tensors
    for row, finding in zip(shares, findings, strict=True):
        for name in finding.tensors:
            row[numbers[name]] = expected[name]
    totals = shares.sum(axis=1)
    shares /= totals[:, None]
    counts = np.array([len(finding.tensors) for finding in findings])
    values = np.array([finding.ln_alpha for finding in findings]) - np.log(totals / counts)
    sampling = np.array([finding.variance for finding in findings])
    alike, chosen = _alike(tensors), OWN_SDS[0]
    best = -math.inf
    for own in OWN_SDS:
        prior = alike + own**2 * np.eye(len(tensors))
        likelihood = _ln_likelihood(_told(shares, prior, values), shares @ prior @ shares.T + np.diag(sampling)) + _ln_prior(own)
        if likelihood > best:
            best, chosen = likelihood, own
    means, covariance = _posterior(alike + chosen**2 * np.eye(len(tensors)), shares, values, sampling)
    variances = np.diag(covariance).tolist()
    return {
        name: _lognormal(math.log(expected[name]) + mean, max(variance, 0.0))
        for name, mean, variance in zip(tensors, means.tolist(), variances, strict=True)
    }


def _posterior(prior: Doubles, shares: Doubles, values: Doubles, sampling: Doubles) -> tuple[Doubles, Doubles]:
    """Means (n_tensors,) and covariance (n_tensors, n_tensors) of ln(alpha / expected).

    A group tells the logarithm of a weighted mean of its tensors' factors: linear around what is believed of them so far.
    """
    means: Doubles = np.zeros(len(prior))
    covariance = prior
    for _ in range(_ROUNDS):
        slopes = shares * np.exp(means - means.max())
        slopes /= slopes.sum(axis=1, keepdims=True)
        told = _told(slopes, covariance, values - np.log(shares @ np.exp(means)) + slopes @ means)
        gain = np.linalg.solve(slopes @ prior @ slopes.T + np.diag(sampling), slopes @ prior).T
        means, covariance = gain @ told, prior - gain @ slopes @ prior
    return means, covariance


def _told(slopes: Doubles, covariance: Doubles, values: Doubles) -> Doubles:
    """What groups tell of the mean of their tensors' logarithms, (n_findings,): a mean of factors lies above it."""
    spread = slopes @ np.diag(covariance) - np.einsum("ij,jk,ik->i", slopes, covariance, slopes)
    told: Doubles = values - spread / 2
    return told


def _ln_likelihood(values: Doubles, covariance: Doubles) -> float:
    """Of values (n,) that are normal with this covariance (n, n), but for a constant."""
    return float(-(values @ np.linalg.solve(covariance, values) + np.linalg.slogdet(covariance)[1]) / 2)


def _ln_prior(own: float) -> float:
    return -((math.log(own / USUAL_OWN_SD) / 0.5) ** 2) / 2


def _alike(tensors: Sequence[str]) -> Doubles:
    """The covariance (n_tensors, n_tensors) of what tensors have in common, from the variances of the parts that two share."""
    found: Doubles = np.full((len(tensors), len(tensors)), COMMON_SD**2)
    for sd, part_of in ((ROLE_SD, role_of), (LAYER_SD, layer_of), (FAMILY_SD, _family)):
        names = {part: at for at, part in enumerate(dict.fromkeys(map(part_of, tensors)))}
        numbers = np.array([names[part_of(name)] for name in tensors])
        there = np.array([part_of(name) is not None for name in tensors])
        found += sd**2 * (numbers[:, None] == numbers) * (there[:, None] & there)
    return found


def _family(tensor: str) -> str | None:
    """Tensors of a layer that act through one thing: its attention weights, what attention reads and writes, its network."""
    role, layer = role_of(tensor), layer_of(tensor)
    kind = "network" if role.startswith("ffn") else "weights" if role.startswith(("attn_q", "attn_k")) else "values"
    return None if layer is None else f"{layer} {kind}"


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
