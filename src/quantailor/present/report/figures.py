"""What the figures of a report show."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from quantailor.present.charts.colours import LogScale
from quantailor.present.charts.describe import Axis, Band, Chart, HeatCell, HeatMap, Point, Rule, Series
from quantailor.present.report.damage import DamagePoint, damage_basis, damage_curves, median_curve, predicted_kld, t95
from quantailor.present.report.data import ReportData, bits_by_type, layers_of, role_order, roles_of
from quantailor.present.report.profile import DEPTHS, OUTSIDE, ProfileRow
from quantailor.present.words import Z95, figure, plural, shortened, with_error
from quantailor.records import Curve, CurvePoint, Estimate, Sensitivity, SwapCell, TensorInfo

BOUND, ABSENT, UNKNOWN = "▼", "✕", "·"
"""Signs in a cell: the value is an upper bound; there is nothing to measure; it has not been measured."""
MOST_CELLS = 6000
"""A sweep of more cells is drawn by role, so that the page stays small."""
NOT_IN_MODEL, NOT_MEASURED = "not in this model", "not measured"
_NAMED_OUTSIDE, _OUTSIDE_PER_ROW = 9, 40
_MANY = 40
"""More lines than this are drawn paler."""
_MOST_OUTSIDE = 6
"""More tensors than this outside the blocks share one picture."""


# Sensitivities


def alpha_maps(data: ReportData) -> tuple[HeatMap, ...]:
    """Alpha by role and layer, and of the tensors outside the blocks."""
    found = {sensitivity.tensor: sensitivity for sensitivity in data.sensitivities}
    scale = alpha_scale(data)
    blocks = [tensor for tensor in data.tensors if tensor.layer is not None]
    outside = sorted((tensor for tensor in data.tensors if tensor.layer is None), key=lambda tensor: role_order(tensor.role))
    maps = []
    if blocks:
        roles, layers = roles_of(blocks), layers_of(blocks)
        cells = tuple(
            _alpha_cell(tensor, layers.index(tensor.layer or 0), roles.index(tensor.role), found.get(tensor.name)) for tensor in blocks
        )
        names = tuple(shortened(role, 24) for role in roles)
        maps.append(
            HeatMap("Alpha by role and layer", tuple(map(str, layers)), names, cells, scale, column_name="layer", beside=(OUTSIDE,))
        )
    if outside:
        # named columns where they are few, rows of unnamed cells where they are many
        few = len(outside) <= _NAMED_OUTSIDE
        width = len(outside) if few else _OUTSIDE_PER_ROW
        cells = tuple(_alpha_cell(tensor, i % width, i // width, found.get(tensor.name)) for i, tensor in enumerate(outside))
        columns = tuple(shortened(tensor.role, 19) for tensor in outside) if few else ("",) * width
        rows = (OUTSIDE, *[""] * ((len(outside) - 1) // width))
        above = tuple(shortened(role, 24) for role in roles_of(blocks))
        maps.append(
            HeatMap("Alpha of tensors outside the blocks", columns, rows, cells, scale, max_column=132 if few else 26, beside=above)
        )
    return tuple(maps)


def alpha_scale(data: ReportData) -> LogScale:
    """Of the colours of alpha."""
    return LogScale.over([s.alpha.value for s in data.sensitivities if s.status != "not in the graph"])


def alpha_signs(data: ReportData) -> tuple[tuple[str, str], ...]:
    """The signs that stand in the map, and what they mean."""
    statuses = {sensitivity.tensor: sensitivity.status for sensitivity in data.sensitivities}
    there = {statuses.get(tensor.name, "unknown") for tensor in data.tensors}
    meanings = (
        ("drowned", BOUND, "drowned: not distinguishable from the floor, alpha is an upper bound"),
        ("not in the graph", ABSENT, "not in the graph: there is nothing to measure"),
        ("unknown", UNKNOWN, "not probed"),
    )
    return tuple((sign, meaning) for status, sign, meaning in meanings if status in there)


def _alpha_cell(tensor: TensorInfo, column: int, row: int, sensitivity: Sensitivity | None) -> HeatCell:
    if sensitivity is None:
        return HeatCell(column, row, None, f"{tensor.name}: not probed", (UNKNOWN,))
    alpha = sensitivity.alpha
    if sensitivity.status == "not in the graph":
        return HeatCell(column, row, None, f"{tensor.name}: not in the graph", (ABSENT,))
    if sensitivity.status == "drowned":
        bound = f"≤ {figure(alpha.value, 2)}"
        return HeatCell(column, row, alpha.value, f"{tensor.name}: drowned, alpha {bound} nats", (f"{BOUND} {bound}", BOUND))
    return HeatCell(column, row, alpha.value, f"{tensor.name}: alpha {with_error(alpha)} nats", _texts(alpha))


def _texts(estimate: Estimate) -> tuple[str, ...]:
    return with_error(estimate, 1), figure(estimate.value, 2)


# The sweep


def sweep_map(data: ReportData) -> HeatMap:
    """KLD by tensor and type; the median by role and type where the cells are too many."""
    scale = LogScale.over([cell.kld.value for cell in data.cells], decades=6)
    swept = {cell.type_name for cell in data.cells}
    known = list(bits_by_type(data))
    types = [name for name in known if name in swept] + sorted(swept.difference(known))
    if len(data.cells) > MOST_CELLS:
        return _role_sweep(data, types, scale)
    tensors = list(dict.fromkeys([tensor.name for tensor in data.tensors] + sorted(cell.tensor for cell in data.cells)))
    there = {cell.tensor for cell in data.cells}
    rows = [name for name in tensors if name in there]
    place = {name: index for index, name in enumerate(rows)}
    cells = tuple(
        HeatCell(
            types.index(cell.type_name),
            place[cell.tensor],
            cell.kld.value,
            f"{cell.tensor} at {cell.type_name}: KLD {with_error(cell.kld)} nats",
            (f"{BOUND} {figure(cell.kld.value, 2)}", BOUND) if is_drowned(cell, data) else _texts(cell.kld),
        )
        for cell in data.cells
    )
    return HeatMap("KLD by tensor and type", tuple(types), tuple(shortened(name, 32) for name in rows), cells, scale, row_height=18)


def is_drowned(cell: SwapCell, data: ReportData) -> bool:
    """Whether a cell's KLD cannot be told from the floor."""
    return cell.kld.value - Z95 * cell.kld.se <= (data.floor_kld_nats or 0.0)


def _role_sweep(data: ReportData, types: Sequence[str], scale: LogScale) -> HeatMap:
    roles = {tensor.name: tensor.role for tensor in data.tensors}
    values: dict[tuple[str, str], list[float]] = {}
    for cell in data.cells:
        values.setdefault((roles.get(cell.tensor, cell.tensor), cell.type_name), []).append(cell.kld.value)
    rows = sorted({role for role, _ in values}, key=role_order)
    cells = []
    for (role, name), klds in values.items():
        middle = statistics.median(klds)
        spread = f"from {figure(min(klds))} to {figure(max(klds))} over {len(klds)}"
        tip = f"{role} at {name}: median KLD {figure(middle)} nats, {spread}"
        cells.append(HeatCell(types.index(name), rows.index(role), middle, tip, (figure(middle, 2),)))
    return HeatMap("Median KLD by role and type", tuple(types), tuple(shortened(role, 24) for role in rows), tuple(cells), scale)


# Damage curves


def damage_charts(data: ReportData) -> tuple[Chart, ...]:
    """One small picture for each role, all on the same scales."""
    curves = damage_curves(data)
    points = [point for curve in curves.values() for point in curve]
    x = Axis.linear("bits per weight", (point.bits_per_weight for point in points), margin=0.04, digits=3)
    y = Axis.log("", (point.damage for point in points), margin=1.5, decades=8)
    bounds = {sensitivity.tensor for sensitivity in data.sensitivities if sensitivity.status == "drowned"}
    floor = data.floor_kld_nats if damage_basis(data) == "probes" else None
    rules = (Rule(floor, "", "warm"),) if floor is not None and floor > y.low else ()
    groups = _by_role(data.tensors, curves)
    return tuple(_damage_chart(role, {name: curves[name] for name in names}, bounds, x, y, rules) for role, names in groups.items())


def _by_role(tensors: Iterable[TensorInfo], curves: Mapping[str, object]) -> dict[str, list[str]]:
    """Names of tensors by role; tensors outside the blocks together where they are many."""
    drawn = [tensor for tensor in tensors if tensor.name in curves]
    many = sum(tensor.layer is None for tensor in drawn) > _MOST_OUTSIDE
    groups: dict[str, list[str]] = {}
    for tensor in drawn:
        groups.setdefault(OUTSIDE if many and tensor.layer is None else tensor.role, []).append(tensor.name)
    return dict(sorted(groups.items(), key=lambda item: role_order(item[0])))


def _damage_chart(
    role: str, curves: Mapping[str, Sequence[DamagePoint]], bounds: set[str], x: Axis, y: Axis, rules: tuple[Rule, ...]
) -> Chart:
    many = len(curves) > _MANY
    lines = tuple(
        Series(
            name,
            tuple(_damage_point(point, y, "") for point in curve),
            "reference",
            marker="" if many else "circle",
            size=3,
            stroke="dashed" if name in bounds else "solid",
            width=1,
            opacity=0.28 if many else 0.7,
            tip=f"{name}, an upper bound" if name in bounds else name,
        )
        for name, curve in curves.items()
    )
    of = "median " if len(curves) > 1 else ""
    median = tuple(
        _damage_point(point, y, f"{point.type_name}, {point.bits_per_weight:.2f} bits per weight: {of}{figure(point.damage, 2)}")
        for point in median_curve(tuple(tuple(curve) for curve in curves.values()))
    )
    middle = Series("median", median, "accent", size=6, stroke="solid", width=2.6, is_strong=True)
    return Chart(f"{shortened(role, 36)} · {plural(len(curves), 'tensor')}", x, y, (*lines, middle), rules=rules)


def _damage_point(point: DamagePoint, y: Axis, tip: str) -> Point:
    return Point(round(point.bits_per_weight, 4), y.inside(float(f"{point.damage:.4g}")), tip=tip)


# Predictions


def fit_chart(curve: Curve) -> Chart:
    """Measured against predicted KLD of whole mixes, with the room where 95 % of new ones lie."""
    pairs = [(point, predicted_kld(curve, point)) for point in curve.points]
    reach = [point.measured.value + Z95 * point.measured.se for point in curve.points]
    values = [*(predicted for _, predicted in pairs), *(point.measured.value for point in curve.points), *reach]
    x = Axis.log("predicted KLD (nats, log scale)", values, margin=1.4, decades=9)
    y = Axis("measured KLD (nats, log scale)", x.low, x.high, is_log=True)
    ends, factor = (x.low, x.high), residual_factor(curve)
    kinds = {kind: tuple(_fit_point(*pair, y) for pair in pairs if pair[0].kind == kind) for kind in ("memory", "file")}
    identity = tuple(Point(end, end) for end in ends)
    memory = f"mix set in memory ({len(kinds['memory'])})"
    built = f"built file, with its bits per weight ({len(kinds['file'])})"
    return Chart(
        "Measured against predicted KLD",
        x,
        y,
        (
            Series("measured = predicted", identity, "text", marker="", stroke="solid", width=1.2, in_legend=True),
            Series(memory, kinds["memory"], "accent", marker="hollow", in_legend=True),
            Series(built, kinds["file"], "warm", marker="diamond", size=11, is_labelled=True, in_legend=True),
        ),
        bands=(Band("95 % of new mixes", ends, tuple(end / factor for end in ends), tuple(end * factor for end in ends), "muted", 0.14),),
    )


def residual_factor(curve: Curve) -> float:
    """The factor that 95 % of new mixes lie within, by the residual alone."""
    return math.exp(min(t95(curve.degrees_of_freedom) * curve.residual_sd, 20.0))


def _fit_point(point: CurvePoint, predicted: float, y: Axis) -> Point:
    kind, measured = "built file" if point.kind == "file" else "mix in memory", point.measured
    bits = f"{point.bits_per_weight:.2f} bpw"
    tip = f"{kind}, {bits}\npredicted {figure(predicted)}, measured {with_error(measured)} nats\n{point.mix}"
    low, high = (y.inside(measured.value + side * Z95 * measured.se) for side in (-1, 1))
    return Point(y.inside(predicted), y.inside(measured.value), bits if point.kind == "file" else "", tip, low=low, high=high)


# Two models


def profile_map(
    title: str,
    rows: Sequence[ProfileRow],
    roles: Sequence[str],
    there: Collection[str],
    scale: LogScale,
    shown: Callable[[ProfileRow], Estimate],
    unit: str,
) -> HeatMap:
    """One model's profile by role and depth, with the same rows and colours as the other's; `there` are the roles that it has."""
    has = {row.role for row in rows}
    cells = [_profile_cell(row, roles.index(row.role), shown(row), unit) for row in rows]
    cells += [
        HeatCell(column, index, None, f"{role}: {NOT_MEASURED if role in there else NOT_IN_MODEL}", ("–",))
        for index, role in enumerate(roles)
        if role not in has
        for column in range(len(DEPTHS))
    ]
    columns = tuple(depth.replace(OUTSIDE, "outside") for depth in DEPTHS)
    return HeatMap(title, columns, tuple(shortened(role, 17) for role in roles), tuple(cells), scale, width=576, row_height=22)


def _profile_cell(row: ProfileRow, index: int, shown: Estimate, unit: str) -> HeatCell:
    bounds = f", of which {row.bounds} with an upper bound only" if row.bounds else ""
    tip = f"{row.role}, {row.depth}: {with_error(shown)}{unit} ({plural(len(row.tensors), 'tensor')}{bounds})"
    texts = (f"{BOUND} {figure(shown.value, 2)}", BOUND) if row.bounds == len(row.tensors) else _texts(shown)
    return HeatCell(DEPTHS.index(row.depth), index, shown.value, tip, texts)
