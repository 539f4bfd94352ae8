"""What two sensitivity profiles say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from quantailor.app.measuring.reporting import CompareResult, ProfileReport
from quantailor.present.report.profile import ALL_DEPTHS
from quantailor.present.words import Z95, percent, percent_with_error
from quantailor.records import Estimate


def profile_findings(comparison: CompareResult) -> tuple[str, ...]:
    """The largest differences between two models' profiles, one sentence each; nothing where one has no profile."""
    whole = [row for row in comparison.profiles if row.depth == ALL_DEPTHS]
    shared = [row for row in whole if row.parameter_share_a > 0 and row.parameter_share_b > 0]
    sides = (_holds_most(comparison.models[0], _side(whole, 0)), _holds_most(comparison.models[1], _side(whole, 1)))
    if None in sides:
        return ()
    places = [row for row in comparison.profiles if row.depth != ALL_DEPTHS and row.parameter_share_a > 0 and row.parameter_share_b > 0]
    found = [*sides, _differs_most(comparison.models, shared, "Of the roles that both have"), _differs_most_by_depth(comparison, places)]
    found += [_only(name, other, whole) for name, other in ((comparison.models[0], 0), (comparison.models[1], 1))]
    return tuple(sentence for sentence in found if sentence)


def _side(rows: Sequence[ProfileReport], side: int) -> Mapping[str, tuple[Estimate, float]]:
    pairs = ((row.role, (row.share_b, row.parameter_share_b) if side else (row.share_a, row.parameter_share_a)) for row in rows)
    return {role: pair for role, pair in pairs if pair[1] > 0}


def _holds_most(name: str, roles: Mapping[str, tuple[Estimate, float]]) -> str | None:
    if not roles:
        return None
    role, (share, weights) = max(roles.items(), key=lambda item: item[1][0].value)
    return f"In {name}, {role} holds most of the sensitivity: {percent_with_error(share)}, with {percent(weights, 1)} of the weights."


def _differs_most(models: tuple[str, str], rows: Sequence[ProfileReport], among: str) -> str | None:
    if not rows:
        return None
    row = max(rows, key=_difference)
    return f"{among}, {row.role} differs most: {_both(models, row)}."


def _differs_most_by_depth(comparison: CompareResult, rows: Sequence[ProfileReport]) -> str | None:
    inside = [row for row in rows if "%" in row.depth]
    if not inside:
        return None
    row = max(inside, key=_difference)
    return f"Within the blocks, {row.role} at {row.depth} of the depth differs most: {_both(comparison.models, row)}."


def _only(name: str, side: int, rows: Sequence[ProfileReport]) -> str | None:
    roles = sorted(set(_side(rows, side)) - set(_side(rows, 1 - side)))
    if not roles:
        return None
    more = f" and {len(roles) - 6} more" if len(roles) > 6 else ""
    return f"Only {name} has {', '.join(roles[:6])}{more}."


def _both(models: tuple[str, str], row: ProfileReport) -> str:
    """A row's share in each model, and whether the difference lies within what the probes' errors allow."""
    chance = " (within the error)" if _difference(row) <= Z95 * math.hypot(row.share_a.se, row.share_b.se) else ""
    return f"{percent_with_error(row.share_a)} in {models[0]}, {percent_with_error(row.share_b)} in {models[1]}{chance}"


def _difference(row: ProfileReport) -> float:
    return abs(row.share_a.value - row.share_b.value)
