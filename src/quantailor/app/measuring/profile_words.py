"""What two sensitivity profiles say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantailor.app.measuring.reporting import CompareResult, ProfileReport
from quantailor.present.report.profile import ALL_DEPTHS
from quantailor.present.words import Z95, percent, percent_with_error, plural
from quantailor.records import Estimate


@dataclass(frozen=True, slots=True)
class _Both:
    """A row that both models have, measured."""

    role: str
    depth: str
    shares: tuple[Estimate, Estimate]

    @property
    def difference(self) -> float:
        return abs(self.shares[0].value - self.shares[1].value)


def profile_findings(comparison: CompareResult) -> tuple[str, ...]:
    """The largest differences between two models' profiles, one sentence each; nothing where one has no profile.

    What was not measured in a model is in none of them, and the last says how many tensors that are.
    """
    whole = [row for row in comparison.profiles if row.depth == ALL_DEPTHS]
    sides = (_holds_most(comparison.models[0], _side(whole, 0)), _holds_most(comparison.models[1], _side(whole, 1)))
    if None in sides:
        return ()
    both = [_Both(row.role, row.depth, (row.share_a, row.share_b)) for row in comparison.profiles if row.share_a and row.share_b]
    shared, inside = [row for row in both if row.depth == ALL_DEPTHS], [row for row in both if "%" in row.depth]
    found = [*sides, _differs_most(comparison.models, shared), _differs_most_by_depth(comparison.models, inside)]
    found += [_only(name, other, whole) for name, other in ((comparison.models[0], 0), (comparison.models[1], 1))]
    found += [_left_out(name, n) for name, n in zip(comparison.models, comparison.left_out, strict=True)]
    return tuple(sentence for sentence in found if sentence)


def _side(rows: Sequence[ProfileReport], side: int) -> Mapping[str, tuple[Estimate, float]]:
    """Role -> its share of the sensitivity and of the weights, where it is measured."""
    triples = ((row.role, *((row.share_b, row.parameter_share_b) if side else (row.share_a, row.parameter_share_a))) for row in rows)
    return {role: (share, weights) for role, share, weights in triples if share is not None and weights is not None}


def _left_out(name: str, n: int) -> str | None:
    return (
        f"In {name}, {plural(n, 'tensor')} {'is' if n == 1 else 'are'} not probed or not measured, and left out of all shares."
        if n
        else None
    )


def _holds_most(name: str, roles: Mapping[str, tuple[Estimate, float]]) -> str | None:
    if not roles:
        return None
    role, (share, weights) = max(roles.items(), key=lambda item: item[1][0].value)
    return f"In {name}, {role} holds most of the sensitivity: {percent_with_error(share)}, with {percent(weights, 1)} of the weights."


def _differs_most(models: tuple[str, str], rows: Sequence[_Both]) -> str | None:
    if not rows:
        return None
    row = max(rows, key=lambda row: row.difference)
    return f"Of the roles that both have, {row.role} differs most: {_both(models, row)}."


def _differs_most_by_depth(models: tuple[str, str], rows: Sequence[_Both]) -> str | None:
    if not rows:
        return None
    row = max(rows, key=lambda row: row.difference)
    return f"Within the blocks, {row.role} at {row.depth} of the depth differs most: {_both(models, row)}."


def _only(name: str, side: int, rows: Sequence[ProfileReport]) -> str | None:
    roles = sorted(row.role for row in rows if (row.parameter_share_a, row.parameter_share_b)[1 - side] == 0)
    if not roles:
        return None
    more = f" and {len(roles) - 6} more" if len(roles) > 6 else ""
    return f"Only {name} has {', '.join(roles[:6])}{more}."


def _both(models: tuple[str, str], row: _Both) -> str:
    """A row's share in each model, and whether the difference lies within what the probes' errors allow."""
    a, b = row.shares
    chance = " (within the error)" if row.difference <= Z95 * math.hypot(a.se, b.se) else ""
    return f"{percent_with_error(a)} in {models[0]}, {percent_with_error(b)} in {models[1]}{chance}"
