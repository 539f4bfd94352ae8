"""The damage that each type is predicted to do to each tensor (METHODS 4)."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from quantailor.present.report.data import ReportData, measured
from quantailor.records import Basis, Curve, CurvePoint, Sensitivity, WeightError

PLAIN_BITS = 16
"""Types of this many bits per weight hold plain floats; the base has them."""


@dataclass(frozen=True, slots=True)
class DamagePoint:
    """One type of one tensor."""

    type_name: str
    bits_per_weight: float
    damage: float
    """Nats with probes, else `relative_mse x elements`, which only ranks."""


def damage_basis(data: ReportData) -> Basis:
    """What `damage_curves` rests on."""
    return "probes" if data.sensitivities else "ranking only"


def damage_curves(data: ReportData) -> dict[str, tuple[DamagePoint, ...]]:
    """Tensor name -> its quantized types by bits per weight; of equally large types the one that does least damage.

    With probes a damage is `alpha x error` plus the noise of the type's kernel, and tensors that are not in the
    graph are left out; without, it is `relative_mse x elements`. Plain floats are left out.
    """
    sensitivities = {sensitivity.tensor: sensitivity for sensitivity in data.sensitivities}
    elements = {tensor.name: tensor.n_elements for tensor in data.tensors}
    points: dict[str, list[DamagePoint]] = {}
    for error in measured(data.weight_errors):
        if error.bits_per_weight >= PLAIN_BITS or error.tensor not in elements:
            continue
        if sensitivities:
            damage = probed_damage(error, sensitivities.get(error.tensor), data.activation_blocks)
        else:
            damage = None if error.relative_mse is None else error.relative_mse * elements[error.tensor]
        if damage is not None:
            points.setdefault(error.tensor, []).append(DamagePoint(error.type_name, error.bits_per_weight, damage))
    return {name: _least(found) for name, found in points.items()}


def probed_damage(error: WeightError, sensitivity: Sensitivity | None, activation_blocks: Mapping[str, int]) -> float | None:
    """Nats that one type costs in one tensor; None where alpha or the weight error is not known."""
    if sensitivity is None or sensitivity.status == "not in the graph" or error.error is None:
        return None
    return sensitivity.alpha.value * error.error + _noise(sensitivity, activation_blocks.get(error.type_name, 1))


def _noise(sensitivity: Sensitivity, activation_block: int) -> float:
    """Nats that a kernel costs which rounds its inputs in such blocks; one that was not probed counts as the worst of the others."""
    worst = max(sensitivity.noise.values(), default=0.0)
    return sensitivity.noise.get(activation_block, worst) if activation_block > 1 else 0.0


def median_curve(curves: Iterable[tuple[DamagePoint, ...]]) -> tuple[DamagePoint, ...]:
    """The median damage at each size that at least half of the curves have."""
    found = list(curves)
    by_size: dict[float, list[DamagePoint]] = {}
    for point in (point for curve in found for point in curve):
        by_size.setdefault(round(point.bits_per_weight, 3), []).append(point)
    return tuple(
        DamagePoint(statistics.mode(point.type_name for point in points), bits, statistics.median(point.damage for point in points))
        for bits, points in sorted(by_size.items())
        if 2 * len(points) >= len(found)
    )


def predicted_kld(curve: Curve, point: CurvePoint) -> float:
    """What the fit says of a measured mix, nats: gamma (S + kappa S^2), and c0 more for a built file."""
    total = point.damage_nats
    bend = max(1 + curve.kappa * total, 1e-3)
    return curve.gamma * total * bend + (curve.c0_nats if point.kind == "file" else 0.0)


def t95(degrees_of_freedom: int) -> float:
    """Half a 95 % interval of Student's t, in standard deviations."""
    from scipy.special import stdtrit

    return float(stdtrit(max(1, degrees_of_freedom), 0.975))


def _least(points: list[DamagePoint]) -> tuple[DamagePoint, ...]:
    best: dict[float, DamagePoint] = {}
    for point in sorted(points, key=lambda point: (point.bits_per_weight, point.damage)):
        best.setdefault(round(point.bits_per_weight, 3), point)
    return tuple(best.values())
