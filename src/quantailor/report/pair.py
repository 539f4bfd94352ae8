"""Pictures of two profiles side by side: a pair of heat maps, and a dumbbell per role."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantailor.present.words import Z95, figure, percent_with_error, plural, shortened, tick, with_error
from quantailor.records import Estimate
from quantailor.report.data import ReportData, role_order
from quantailor.report.grid import GridCell, Layout, grid
from quantailor.report.html import captioned
from quantailor.report.markup import Content, Markup, element, join
from quantailor.report.profile import DEPTHS, ProfileRow
from quantailor.report.svg import Ramp, Scale, axes, diamond, label, line, log_scale, svg, titled

ABSENT = "not in this model"
_SMALLEST_SHARE = 1e-4
"""Smaller shares are drawn at this one."""
_WIDTH, _ROW, _TOP, _GUTTER, _COLUMN = 1180.0, 28.0, 20.0, 160.0, 120.0
_LIFT = 5.0
"""How far A's mark stands above the middle of its row, and B's below."""


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
        return f"{self.letter}: {self.data.model_name}"


def roles_of_both(sides: Sequence[Side]) -> list[str]:
    """Every role that either model has, in order."""
    return sorted({row.role for side in sides for row in side.roles}, key=role_order)


def heat_maps(sides: Sequence[Side], ramp: Ramp, figure_of: Callable[[ProfileRow], Estimate], *, title: str, unit: str = "") -> Markup:
    """One heat map of role by depth for each side, with the same rows and the same colours."""
    maps = [captioned(element("b", side.name), _heat_map(side, roles_of_both(sides), ramp, figure_of, title, unit)) for side in sides]
    return element("div", *maps, class_="pair")


def _heat_map(side: Side, roles: Sequence[str], ramp: Ramp, figure_of: Callable[[ProfileRow], Estimate], title: str, unit: str) -> Markup:
    has = {row.role for row in side.roles}
    layout = Layout(width=576, gutter=118, row_height=22)
    span = layout.cell_width(len(DEPTHS)) * len(DEPTHS)
    missing = [index for index, role in enumerate(roles) if role not in has]
    cells = [_cell(row, roles.index(row.role), figure_of(row), unit) for row in side.rows]
    cells += [GridCell(index, 0, f"{roles[index]}: {ABSENT}", texts=(ABSENT,), width=span) for index in missing]
    columns = [depth.replace("outside the blocks", "outside") for depth in DEPTHS]
    return grid(cells, [shortened(role, 17) for role in roles], columns, ramp, title=f"{title}, {side.name}", layout=layout)


def _cell(row: ProfileRow, index: int, shown: Estimate, unit: str) -> GridCell:
    bounds = f", of which {row.bounds} with an upper bound only" if row.bounds else ""
    title = f"{row.role}, {row.depth}: {with_error(shown)}{unit} ({plural(len(row.tensors), 'tensor')}{bounds})"
    texts = (with_error(shown, 1), figure(shown.value, 2))
    return GridCell(index, DEPTHS.index(row.depth), title, shown.value, texts, "bound" if row.bounds == len(row.tensors) else "")


def dumbbells(sides: Sequence[Side]) -> Markup:
    """Each role's share in A (circle) and in B (diamond) on one line, with 95 % intervals; the largest shares first."""
    shares = [{row.role: row.share for row in side.roles} for side in sides]
    roles = sorted(roles_of_both(sides), key=lambda role: -max(found[role].value for found in shares if role in found))
    ends = [estimate.value + Z95 * estimate.se for found in shares for estimate in found.values()]
    lows = [max(estimate.value, _SMALLEST_SHARE) for found in shares for estimate in found.values()]
    x = log_scale([*ends, *lows], _GUTTER, _WIDTH - 2 * _COLUMN, margin=1.25)
    bottom = _TOP + _ROW * len(roles)
    named = axes(
        x, Scale(0, 1, bottom, _TOP), x_label="share of the model's sensitivity (log scale)", x_ticks=8, y_ticks=0, write=share_tick
    )
    heads = [label(_WIDTH - (1 - side) * _COLUMN, _TOP - 8, letter, anchor="end", class_="tick") for side, letter in enumerate("AB")]
    rows = [_dumbbell(role, shares, _TOP + _ROW * (index + 0.5), x) for index, role in enumerate(roles)]
    return svg(_WIDTH, bottom + 40, "Share of the sensitivity by role, A against B", named, *heads, *rows)


def share_tick(share: float) -> str:
    """A share beside an axis, in per cent."""
    return f"{tick(100 * share)} %"


def _dumbbell(role: str, shares: Sequence[dict[str, Estimate]], y: float, x: Scale) -> Markup:
    lifts = (-_LIFT, _LIFT)
    places = [(x(found[role].value), y + lift) for found, lift in zip(shares, lifts, strict=True) if role in found]
    parts: list[Content] = [
        line(0, y + _ROW / 2, _WIDTH, y + _ROW / 2, "grid"),
        label(_GUTTER - 14, y + 4, shortened(role, 22), anchor="end", class_="row"),
        line(*places[0], *places[1], "link") if len(places) == 2 else None,
    ]
    for side, (letter, found, lift) in enumerate(zip("AB", shares, lifts, strict=True)):
        share = found.get(role)
        words = percent_with_error(share) if share else f"not in {letter}"
        parts.append(label(_WIDTH - (1 - side) * _COLUMN, y + 4, words, anchor="end", class_="row" if share else "tick"))
        if share:
            parts.append(_end(letter, role, share, y + lift, x))
    return join(parts)


def _end(letter: str, role: str, share: Estimate, y: float, x: Scale) -> Markup:
    reach = Z95 * share.se
    bar = line(x(share.value - reach), y, x(share.value + reach), y, f"{letter.lower()} bar")
    return join([bar, end_shape(letter, x(share.value), y, f"{role} in {letter}: {percent_with_error(share)}")])


def end_shape(letter: str, x: float, y: float, title: str | None) -> Markup:
    """A's circle or B's diamond."""
    if letter == "A":
        return titled("circle", title, cx=x, cy=y, r=5.0, class_="a")
    return titled("path", title, d=diamond(x, y, 6.2), class_="b")


def side_legend(sides: Sequence[Side]) -> Markup:
    """Which mark is which model."""
    keys = [
        element(
            "li",
            element("svg", end_shape(side.letter, 7, 7, None), viewBox="0 0 14 14", class_="key", aria_hidden="true"),
            f"{side.name} ({'circle' if side.letter == 'A' else 'diamond'})",
        )
        for side in sides
    ]
    return element("ul", *keys, class_="keys")
