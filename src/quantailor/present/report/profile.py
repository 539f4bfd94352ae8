"""Where in a model the sensitivity sits: shares by role and relative depth, which two models of any size can be compared by.

A tensor's sensitivity is `alpha x error` at one common type: the nats that this type would cost in it. A share is a
part of the sum over all tensors. A block's place is the span of depth that it covers; one that straddles the border of
two quarters counts in both by its overlap. A tensor whose alpha is an upper bound counts with that bound.

Errors come from alpha's alone. With s_i the sensitivities, T their sum and m_i the part of tensor i that belongs to a
row, the share is P = sum(m_i s_i) / T and, to first order, its variance is sum((m_i - P)^2 se(s_i)^2) / T^2. Tensors
that were probed together share one measurement, so their terms add up before they are squared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from quantailor.present.report.data import COMMON_BITS, ReportData, common_type, layers_of, measured, role_order
from quantailor.records import Estimate, Sensitivity, TensorInfo, WeightError

QUARTERS = ("0-25 %", "25-50 %", "50-75 %", "75-100 %")
OUTSIDE = "outside the blocks"
_OWN_ERRORS = ("", "weighing")
"""Groups whose tensors have an alpha and an error of their own: probes of one tensor, and weighings in random halves."""
DEPTHS = (*QUARTERS, OUTSIDE)
ALL_DEPTHS = "all depths"


@dataclass(frozen=True, slots=True)
class ProfileRow:
    """One role at one depth. Shares are of the tensors that have been probed and measured, and sum to 1 over the rows."""

    role: str
    depth: str
    """One of `DEPTHS`, or `ALL_DEPTHS`."""
    share: Estimate
    """Of the model's sensitivity, 0 to 1."""
    parameter_share: float
    """Of the weights, 0 to 1."""
    per_weight: Estimate
    """`share / parameter_share`: 1 is the model's average."""
    tensors: tuple[str, ...]
    """Those that count in it, wholly or in part."""
    bounds: int = 0
    """How many of them are "drowned", so that their part is an upper bound."""


@dataclass(frozen=True, slots=True)
class _Part:
    tensor: TensorInfo
    value: float
    se: float
    bound: bool
    measurement: str
    """Parts of one measurement have one error in common."""


@dataclass(frozen=True, slots=True)
class _Whole:
    parts: Sequence[_Part]
    value: float
    n_weights: int
    se_by_measurement: Mapping[str, float]
    variance: float
    """Sum of their squares."""

    @classmethod
    def of(cls, parts: Sequence[_Part]) -> _Whole:
        errors: dict[str, float] = {}
        for part in parts:
            errors[part.measurement] = errors.get(part.measurement, 0.0) + part.se
        variance = math.fsum(se**2 for se in errors.values())
        return cls(parts, math.fsum(part.value for part in parts), sum(part.tensor.n_elements for part in parts), errors, variance)


_Places = Callable[[TensorInfo], Mapping[str, float]]


def sensitivity_profile(data: ReportData, *, type_name: str | None = None) -> tuple[ProfileRow, ...]:
    """Shares by role and quarter of the depth; empty where nothing is probed and measured.

    Args:
        data: the model.
        type_name: the common type; by default `common_type(data)`. A tensor without it counts with its type of the
            nearest bits per weight.
    """
    layers = layers_of(data.tensors)
    rank: dict[int | None, int] = {layer: index for index, layer in enumerate(layers)}
    return _profile(data, type_name, lambda tensor: quarters(rank.get(tensor.layer, 0), len(layers), tensor.layer is None))


def role_profile(data: ReportData, *, type_name: str | None = None) -> tuple[ProfileRow, ...]:
    """Shares by role over all depths; arguments as for `sensitivity_profile`."""
    return _profile(data, type_name, lambda _: {ALL_DEPTHS: 1.0})


def places(data: ReportData) -> list[tuple[str, str]]:
    """(role, depth) of everything in a model that could have a share, in the order of the profiles."""
    layers = layers_of(data.tensors)
    found = {(tensor.role, ALL_DEPTHS) for tensor in data.tensors}
    for tensor in data.tensors:
        index = 0 if tensor.layer is None else layers.index(tensor.layer)
        found |= {(tensor.role, depth) for depth in quarters(index, len(layers), tensor.layer is None)}
    return sorted(found, key=lambda key: (role_order(key[0]), (*DEPTHS, ALL_DEPTHS).index(key[1])))


def left_out(data: ReportData) -> list[TensorInfo]:
    """The tensors that are in no share: not probed, or not measured."""
    counted = {part.tensor.name for part in _parts(data, None)}
    return [tensor for tensor in data.tensors if tensor.name not in counted]


def tensor_shares(data: ReportData, *, type_name: str | None = None) -> dict[str, Estimate]:
    """Every probed and measured tensor's share of the model's sensitivity; empty where there is none."""
    whole = _Whole.of(_parts(data, type_name or common_type(data)))
    if whole.value <= 0:
        return {}
    return {part.tensor.name: _share([(part, 1.0)], whole) for part in whole.parts}


def joint_share(data: ReportData, names: Collection[str], *, type_name: str | None = None) -> Estimate:
    """The share of several tensors together; not a number where nothing is probed and measured."""
    whole = _Whole.of(_parts(data, type_name or common_type(data)))
    if whole.value <= 0:
        return Estimate(math.nan)
    return _share([(part, 1.0) for part in whole.parts if part.tensor.name in names], whole)


def quarters(index: int, n_layers: int, outside: bool = False) -> dict[str, float]:
    """The part of block `index` that lies in each quarter of the depth; parts sum to 1."""
    if outside:
        return {OUTSIDE: 1.0}
    start, end = 4 * index / n_layers, 4 * (index + 1) / n_layers
    overlaps = [max(0.0, min(end, quarter + 1) - max(start, quarter)) / (end - start) for quarter in range(4)]
    return {name: overlap for name, overlap in zip(QUARTERS, overlaps, strict=True) if overlap > 1e-9}


def _profile(data: ReportData, type_name: str | None, places: _Places) -> tuple[ProfileRow, ...]:
    whole = _Whole.of(_parts(data, type_name or common_type(data)))
    if whole.value <= 0 or whole.n_weights == 0:
        return ()
    members: dict[tuple[str, str], list[tuple[_Part, float]]] = {}
    for part in whole.parts:
        for depth, overlap in places(part.tensor).items():
            members.setdefault((part.tensor.role, depth), []).append((part, overlap))
    keys = sorted(members, key=lambda key: (role_order(key[0]), (*DEPTHS, ALL_DEPTHS).index(key[1])))
    return tuple(_row(*key, members[key], whole) for key in keys)


def _row(role: str, depth: str, members: Sequence[tuple[_Part, float]], whole: _Whole) -> ProfileRow:
    share = _share(members, whole)
    weights = math.fsum(overlap * part.tensor.n_elements for part, overlap in members) / whole.n_weights
    per_weight = Estimate(share.value / weights, share.se / weights) if weights else Estimate(math.nan)
    names = tuple(part.tensor.name for part, _ in members)
    return ProfileRow(role, depth, share, weights, per_weight, names, sum(part.bound for part, _ in members))


def _share(members: Sequence[tuple[_Part, float]], whole: _Whole) -> Estimate:
    share = math.fsum(overlap * part.value for part, overlap in members) / whole.value
    return Estimate(share, _share_se(share, members, whole))


def _share_se(share: float, members: Sequence[tuple[_Part, float]], whole: _Whole) -> float:
    """Square root of the sum over measurements of (their part inside - share x all of them)^2, over the total."""
    inside: dict[str, float] = {}
    for part, overlap in members:
        inside[part.measurement] = inside.get(part.measurement, 0.0) + overlap * part.se
    outside = max(0.0, whole.variance - math.fsum(whole.se_by_measurement[name] ** 2 for name in inside))
    own = math.fsum((se - share * whole.se_by_measurement[name]) ** 2 for name, se in inside.items())
    return math.sqrt(own + share**2 * outside) / whole.value


def _parts(data: ReportData, type_name: str | None) -> list[_Part]:
    sensitivities = {sensitivity.tensor: sensitivity for sensitivity in data.sensitivities}
    errors: dict[str, list[WeightError]] = {}
    for error in measured(data.weight_errors):
        if error.error is not None:
            errors.setdefault(error.tensor, []).append(error)
    bits = next((error.bits_per_weight for found in errors.values() for error in found if error.type_name == type_name), COMMON_BITS)
    return [
        _part(tensor, sensitivities[tensor.name], _nearest(errors[tensor.name], bits, type_name))
        for tensor in data.tensors
        if tensor.name in sensitivities and tensor.name in errors
    ]


def _part(tensor: TensorInfo, sensitivity: Sensitivity, error: WeightError) -> _Part:
    together = sensitivity.group not in _OWN_ERRORS
    measurement = f"group:{sensitivity.group}" if together else f"tensor:{tensor.name}"
    if sensitivity.status == "not in the graph":
        return _Part(tensor, 0.0, 0.0, False, measurement)
    lost = error.error or 0.0
    value, se = max(0.0, sensitivity.alpha.value) * lost, sensitivity.alpha.se * lost
    return _Part(tensor, value, se, sensitivity.status == "drowned", measurement)


def _nearest(errors: Sequence[WeightError], bits: float, type_name: str | None) -> WeightError:
    return min(errors, key=lambda error: (error.type_name != type_name, abs(error.bits_per_weight - bits), error.error or 0.0))
