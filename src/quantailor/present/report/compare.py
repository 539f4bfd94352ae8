"""Two models' sensitivity profiles side by side."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from quantailor.present.charts.colours import LogScale
from quantailor.present.charts.describe import HeatMap
from quantailor.present.report.data import ReportData, common_type, error_basis, layers_of, probe_basis, role_order
from quantailor.present.report.figures import NOT_IN_MODEL, NOT_MEASURED, profile_map
from quantailor.present.report.page import render
from quantailor.present.report.profile import ALL_DEPTHS, DEPTHS, ProfileRow, left_out, places, role_profile, sensitivity_profile
from quantailor.present.words import Z95, count, listed, plural, rounding, size
from quantailor.records import Estimate

_SMALLEST_SHARE = 1e-4
"""Smaller shares are drawn at this one."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models with its profiles."""

    letter: str
    data: ReportData
    rows: tuple[ProfileRow, ...]
    """By role and depth."""
    roles: tuple[ProfileRow, ...]
    """By role."""

    @property
    def name(self) -> str:
        """ "A: books-llama"."""
        return f"{self.letter}: {self.data.model_name}"

    @property
    def most(self) -> ProfileRow:
        """The role that holds most."""
        return max(self.roles, key=lambda row: row.share.value)


def render_comparison(a: ReportData, b: ReportData) -> str:
    """The document as text, to be written as UTF-8. Both profiles are at one common type where the models share one."""
    type_name = common_type(a, b)
    sides = [
        Side(letter, data, sensitivity_profile(data, type_name=type_name), role_profile(data, type_name=type_name))
        for letter, data in (("A", a), ("B", b))
    ]
    roles = sorted({row.role for side in sides for row in side.roles}, key=role_order)
    every_row = [row for side in sides for row in side.rows]
    share_scale = LogScale.over([100 * row.share.value for row in every_row], decades=4)
    weight_scale = LogScale.over([row.per_weight.value for row in every_row], decades=5)
    missing = [side for side in sides if not side.rows]
    by_role, role_scale = _by_role(sides, roles)
    context = {
        "title": f"{a.model_name} and {b.model_name}: Quantailor comparison",
        "names": f"{a.model_name} and {b.model_name}",
        "sides": sides,
        "missing": missing,
        "facts": [_facts(side.data) for side in sides],
        "most_different": None if missing else _most_different(sides),
        "only": [] if missing else [(side, _only(side, other)) for side, other in (sides, sides[::-1])],
        "caveats": _caveats(sides, type_name),
        "share_scale": share_scale,
        "share_maps": [_map("Share of the sensitivity", side, roles, share_scale, is_share=True) for side in sides],
        "weight_scale": weight_scale,
        "weight_maps": [_map("Sensitivity per weight", side, roles, weight_scale, is_share=False) for side in sides],
        "has_bounds": any(row.bounds == len(row.tensors) for row in every_row),
        "by_role": by_role,
        "role_absent": [{role for role in roles if (role, ALL_DEPTHS) not in places(side.data)} for side in sides],
        "role_scale": role_scale,
        "paired": _paired(sides, roles),
        "both_basis": _basis(sides),
    }
    return render("comparison.html", (a, b), context)


def _map(title: str, side: Side, roles: Sequence[str], scale: LogScale, *, is_share: bool) -> HeatMap:
    shown = (lambda row: Estimate(100 * row.share.value, 100 * row.share.se)) if is_share else (lambda row: row.per_weight)
    there = {tensor.role for tensor in side.data.tensors}
    return profile_map(f"{title}, {side.name}", side.rows, roles, there, scale, shown, " %" if is_share else "")


def _facts(data: ReportData) -> dict[str, str]:
    probes = f"{plural(data.n_chunks, 'chunk')} of {data.n_ctx:,} tokens of {data.calibration_name}"
    return {
        "Architecture": data.architecture,
        "Parameters": count(data.n_parameters),
        "Base": size(data.base_size_bytes),
        "Blocks": f"{len(layers_of(data.tensors)):,}",
        "Quantizable tensors": f"{len(data.tensors):,}",
        "Probes": probes if data.sensitivities else "none",
        "Importance matrix": data.imatrix.fingerprint[:12] if data.imatrix else "none",
        "Rounding": _rounding(data),
        "Fingerprint": data.fingerprint[:16],
    }


def _rounding(data: ReportData) -> str:
    return rounding(is_compensated=data.is_compensated)


def _most_different(sides: Sequence[Side]) -> tuple[ProfileRow, ProfileRow] | None:
    """Of the roles that both have, the one whose share differs most."""
    pairs = [(row, other) for row in sides[0].roles for other in sides[1].roles if row.role == other.role]
    return max(pairs, key=lambda pair: abs(pair[0].share.value - pair[1].share.value), default=None)


def _only(side: Side, other: Side) -> list[str]:
    """The roles that the first has and the second has not, measured or not."""
    a, b = ({tensor.role for tensor in each.data.tensors} for each in (side, other))
    return sorted(a - b, key=role_order)


def _caveats(sides: Sequence[Side], type_name: str | None) -> str:
    a, b = (side.data for side in sides)
    words = [f"A tensor's sensitivity is alpha × weighted error at {type_name}, and shares are of its sum over the probed tensors."]
    if (a.calibration_name, a.n_ctx) != (b.calibration_name, b.n_ctx):
        words.append("The models were probed on different texts or contexts, which can shift shares.")
    if (a.imatrix is None) != (b.imatrix is None):
        words.append("Only one has an importance matrix, which lowers the errors of some types and so can shift shares.")
    if a.is_compensated != b.is_compensated:
        words.append(f"A is shown with {_rounding(a)}, B with {_rounding(b)}, which can shift shares.")
    bounds = [(side.letter, sum(s.status == "drowned" for s in side.data.sensitivities)) for side in sides]
    if any(n for _, n in bounds):
        words.append(f"Upper bounds count as they are ({listed([f'{n:,} in {letter}' for letter, n in bounds])}).")
    for letter, n in ((side.letter, len(left_out(side.data))) for side in sides):
        if n:
            words.append(f"{plural(n, 'tensor')} of {letter} {'is' if n == 1 else 'are'} not probed or not measured, and left out.")
    return " ".join(words)


def _basis(sides: Sequence[Side]) -> str:
    a, b = (f"{probe_basis(side.data)}; {error_basis(side.data)}" for side in sides)
    return f"A and B: {a}" if a == b else f"A: {a}. B: {b}"


def _by_role(sides: Sequence[Side], roles: Sequence[str]) -> tuple[list[tuple[str, list[Estimate | None]]], LogScale]:
    """Each role's share in A and in B, the largest first, and a scale for their intervals."""
    shares = [{row.role: row.share for row in side.roles} for side in sides]
    everything = [share for of_side in shares for share in of_side.values()]
    ends = [max(share.value, _SMALLEST_SHARE) for share in everything] + [share.value + Z95 * share.se for share in everything]
    order = sorted(roles, key=lambda role: -max(of_side[role].value for of_side in shares if role in of_side))
    return [(role, [of_side.get(role) for of_side in shares]) for role in order], LogScale.over(ends, margin=1.25)


@dataclass(frozen=True, slots=True)
class PairedRow:
    """One role at one depth in both models; None where a model has none."""

    role: str
    depth: str
    pair: tuple[ProfileRow | None, ProfileRow | None]
    missing: tuple[str, ...]
    """Why each model has no figure here, where it has none."""

    @property
    def is_whole(self) -> bool:
        """Whether it is the role over all depths."""
        return self.depth == ALL_DEPTHS

    @property
    def share_ratio(self) -> Estimate | None:
        """A's share over B's."""
        a, b = self.pair
        return None if a is None or b is None else ratio(a.share, b.share)

    @property
    def weight_ratio(self) -> Estimate | None:
        """A's share per weight over B's."""
        a, b = self.pair
        return None if a is None or b is None else ratio(a.per_weight, b.per_weight)


def _paired(sides: Sequence[Side], roles: Sequence[str]) -> list[PairedRow]:
    a, b = ({(row.role, row.depth): row for row in (*side.roles, *side.rows)} for side in sides)
    keys = [(role, depth) for role in roles for depth in (ALL_DEPTHS, *DEPTHS) if (role, depth) in a or (role, depth) in b]
    there = [set(places(side.data)) for side in sides]
    return [PairedRow(*key, (a.get(key), b.get(key)), tuple(_missing(*key, of_side) for of_side in there)) for key in keys]


def _missing(role: str, depth: str, there: Collection[tuple[str, str]]) -> str:
    """What to say where a row has no figure."""
    if (role, depth) in there:
        return NOT_MEASURED
    return "none at this depth" if (role, ALL_DEPTHS) in there else NOT_IN_MODEL


def ratio(a: Estimate, b: Estimate) -> Estimate | None:
    """a / b with its standard error, to first order and for independent errors; None where b is nothing."""
    if not b.value > 0 or math.isnan(a.value):
        return None
    value = a.value / b.value
    return Estimate(value, math.hypot(a.se, value * b.se) / b.value)
