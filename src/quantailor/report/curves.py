"""Damage curves: what each type is predicted to cost, one small picture per role."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from quantailor.present.words import figure, plural, shortened
from quantailor.records import TensorInfo
from quantailor.report import html
from quantailor.report.damage import DamagePoint, damage_basis, damage_curves, median_curve
from quantailor.report.data import ReportData, error_basis, most_sensitive, probe_basis, role_order
from quantailor.report.markup import Content, Markup, element, join
from quantailor.report.profile import OUTSIDE
from quantailor.report.svg import Scale, axes, label, line, linear_scale, log_scale, path_of, svg, titled

MEASURE_COMMAND = "quantailor measure BASE"
_PAGE_WIDTH, _GAP = 1180.0, 24.0
_HEIGHT = 206.0
_LEFT, _TOP, _BOTTOM = 40.0, 8.0, 166.0
_MANY = 40
"""More lines than this are drawn paler."""
_MOST_OUTSIDE = 6
"""More tensors than this outside the blocks share one picture."""

Curves = Mapping[str, Sequence[DamagePoint]]


def curves_section(data: ReportData) -> Markup:
    """The small multiples, or what to run for them."""
    title = "Damage curves"
    curves = damage_curves(data)
    if not curves:
        before = "No weight errors yet" if not data.weight_errors else "No tensor has both a sensitivity and weight errors"
        return html.section("curves", title, html.todo(before, MEASURE_COMMAND))
    groups = _groups(data.tensors, curves)
    n_columns = min((4, 3, 5), key=lambda n: -len(groups) % n)
    width = (_PAGE_WIDTH - (n_columns - 1) * _GAP) / n_columns
    x, y = _scales(curves, width)
    bounds = {sensitivity.tensor for sensitivity in data.sensitivities if sensitivity.status == "drowned"}
    pictures = [_multiple(role, {name: curves[name] for name in names}, bounds, x, y, data) for role, names in groups.items()]
    multiples = element("div", *pictures, class_="multiples", style=f"--n:{n_columns}")
    return html.section("curves", title, html.paragraph(_lead(data)), _legend(data, bounds, y), multiples, html.basis(_basis(data)))


def _lead(data: ReportData) -> str:
    if damage_basis(data) == "ranking only":
        what = "Without probes the damage is relative error × weights: it ranks, and is no KL divergence."
    else:
        noise = " plus the rounding noise of the type's kernel" if data.activation_blocks else ""
        what = f"Predicted damage of one tensor at each type: alpha × weighted error{noise}, in nats."
    return f"{what} Of types of one size the better is drawn. All pictures share their scales."


def _basis(data: ReportData) -> str:
    if damage_basis(data) == "ranking only":
        return f"ranking only; {error_basis(data)}"
    relative = [abs(s.alpha.se / s.alpha.value) for s in most_sensitive(data) if s.alpha.value]
    known = f"; relative standard error of alpha: median {100 * statistics.median(relative):.1f} %, largest {100 * max(relative):.0f} %"
    return f"{probe_basis(data)}; {error_basis(data)}{known if relative else ''}"


def _scales(curves: Curves, width: float) -> tuple[Scale, Scale]:
    points = [point for curve in curves.values() for point in curve]
    x = linear_scale((point.bits_per_weight for point in points), _LEFT, width - 8, margin=0.04)
    return x, log_scale((point.damage for point in points), _BOTTOM, _TOP, margin=1.5, decades=8)


def _groups(tensors: Sequence[TensorInfo], curves: Curves) -> dict[str, list[str]]:
    """Names of tensors by role; tensors outside the blocks together where they are many."""
    drawn = [tensor for tensor in tensors if tensor.name in curves]
    many = sum(tensor.layer is None for tensor in drawn) > _MOST_OUTSIDE
    groups: dict[str, list[str]] = {}
    for tensor in drawn:
        groups.setdefault(OUTSIDE if many and tensor.layer is None else tensor.role, []).append(tensor.name)
    return dict(sorted(groups.items(), key=lambda item: role_order(item[0])))


def _multiple(role: str, curves: Curves, bounds: set[str], x: Scale, y: Scale, data: ReportData) -> Markup:
    median = median_curve(tuple(tuple(curve) for curve in curves.values()))
    caption = join([element("b", shortened(role, 36)), f" · {plural(len(curves), 'tensor')}"])
    floor = data.floor_kld_nats if damage_basis(data) == "probes" else None
    many = " many" if len(curves) > _MANY else ""
    parts: list[Content] = [
        axes(x, y, x_ticks=7, y_ticks=5),
        line(x.start, y(floor), x.end, y(floor), "floor") if floor is not None and floor > y.low else None,
        *(_thin(name, curve, many + (" bounded" if name in bounds else ""), x, y) for name, curve in curves.items()),
        element("path", d=_path(median, x, y), class_="median under"),
        element("path", d=_path(median, x, y), class_="median"),
        *(_dot(point, len(curves), x, y) for point in median),
        label((x.start + x.end) / 2, _HEIGHT - 4, "bits per weight", anchor="middle", class_="axis"),
    ]
    return html.captioned(caption, svg(x.end + 8, _HEIGHT, f"Damage against bits per weight, {role}", *parts))


def _path(curve: Sequence[DamagePoint], x: Scale, y: Scale) -> str:
    return path_of([(x(point.bits_per_weight), y(point.damage)) for point in curve])


def _thin(name: str, curve: Sequence[DamagePoint], classes: str, x: Scale, y: Scale) -> Markup:
    title = f"{name}, an upper bound" if "bounded" in classes else name
    return titled("path", title, d=_path(curve, x, y), class_=f"thin{classes}")


def _dot(point: DamagePoint, n_curves: int, x: Scale, y: Scale) -> Markup:
    value = figure(point.damage, 2) if point.damage >= y.low else f"under {figure(y.low, 2)}"
    title = f"{point.type_name}, {point.bits_per_weight:.2f} bits per weight: {'median ' if n_curves > 1 else ''}{value}"
    return titled("circle", title, cx=x(point.bits_per_weight), cy=y(point.damage), r=2.8, class_="dot")


def _legend(data: ReportData, bounds: set[str], y: Scale) -> Markup:
    unit = "nats" if damage_basis(data) == "probes" else "relative error × weights"
    keys = [("thin", "one tensor"), ("median", f"median of the role (vertical axes: {unit}, log scale)")]
    if bounds:
        keys.append(("thin bounded", "alpha is an upper bound"))
    if data.floor_kld_nats is not None and data.floor_kld_nats > y.low and damage_basis(data) == "probes":
        keys.append(("floor", "floor: the base against itself"))
    return element("ul", *(_key(class_, meaning) for class_, meaning in keys), class_="keys")


def _key(class_: str, meaning: str) -> Markup:
    return element("li", element("svg", line(0, 6, 30, 6, class_), viewBox="0 0 30 12", class_="key wide", aria_hidden="true"), meaning)
