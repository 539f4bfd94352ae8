"""Experts: how the router of a mixture spreads a text over its experts, and how much each layer's expert tensors matter."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nicegui import run, ui

from quantailor.app.library import experts as experts_module
from quantailor.app.library import projects
from quantailor.app.library.experts import ExpertLayer, ExpertsReport, ExpertTensor
from quantailor.app.library.projects import ProjectReport
from quantailor.errors import ImatrixError, QuantailorError, UnsupportedModelError
from quantailor.gui import meanings, theme
from quantailor.gui.context import workspace
from quantailor.gui.elements.heat import HeatScale, heat_legend, heat_table
from quantailor.gui.frame import address, frame, opened
from quantailor.gui.pages.without_base import without_base
from quantailor.gui.widgets import Stat, box, card, empty, error_note, named, note, table, text
from quantailor.present.charts import echarts
from quantailor.present.charts.colours import LogScale
from quantailor.present.charts.describe import Axis, Chart, HeatCell, HeatMap, Point, Series
from quantailor.present.charts.roles import role_look
from quantailor.present.words import Z95, count, percent, with_error
from quantailor.records import Estimate

MAX_TABLE_CELLS = 600
"""Larger maps are drawn on a canvas; their figures are in the table by layer."""
_UNSEEN = "×"


async def experts(fingerprint: str) -> None:
    """The screen of one project."""
    project = await opened("experts", functools.partial(projects.project, workspace(), fingerprint))
    if project is None:
        return
    with frame("experts", "Experts", project=project, subtitle="Who works on the calibration text, and whose errors matter"):
        with box("qt-stack") as place:
            note("Reading the importance matrix …")
        ui.timer(0.01, functools.partial(_fill, place, project), once=True)


async def _fill(place: ui.element, project: ProjectReport) -> None:
    """Replace what stands in the place with the report, or with why there is none."""
    show = await _found(project)
    place.clear()
    with place:
        show()


async def _found(project: ProjectReport) -> Callable[[], None]:
    if not project.is_moe:
        return functools.partial(_dense, project)
    if project.base is None:
        return functools.partial(without_base, project, "its experts can be seen")
    try:
        report = await run.io_bound(experts_module.experts, workspace(), Path(project.base))
    except UnsupportedModelError:
        return functools.partial(_dense, project)
    except ImatrixError as error:
        return functools.partial(_unread, project, error)
    except QuantailorError as error:
        return functools.partial(error_note, error)
    return functools.partial(_show, report) if report is not None else lambda: None


def _dense(project: ProjectReport) -> None:
    empty(
        f"{project.name} is dense",
        "Every weight works on every token, so there is no routing to show. A mixture of experts sends each token to a few experts;"
        " this screen shows how evenly, and which experts a text never reached.",
        action="See its structure",
        target=address(project, "structure"),
    )


def _unread(project: ProjectReport, error: ImatrixError) -> None:
    """An importance matrix counts the tokens of each expert; measuring computes one."""
    empty(
        "No counts of the experts yet",
        f"{error.message[0].upper()}{error.message[1:]}.",
        action="Measure",
        target=address(project, "measure"),
    )


def _show(report: ExpertsReport) -> None:
    _stats(report)
    _unseen_note(report)
    with box("qt-grid qt-halves"):
        _map("Share of the routed tokens, %", report, lambda layer: layer.shares)
        _map("Importance: share of the squared inputs, %", report, lambda layer: layer.importance)
    _sensitivities(report)
    _table(report)
    names = ", ".join(report.datasets) or "an unnamed text"
    text(f"Counted on {names} by importance matrix {report.imatrix_fingerprint[:12]}.", "qt-small qt-muted")


def _stats(report: ExpertsReport) -> None:
    entropies = [layer.normalized_entropy for layer in report.layers]
    n_unseen = sum(len(layer.unseen) for layer in report.layers)
    with card(), box("qt-row qt-spread"):
        Stat("experts in a layer", str(report.n_experts))
        Stat(
            "work on each token",
            str(report.n_used) if report.n_used else "unknown",
            hint="The router sends every token through so many experts of each layer, those that it rates highest.",
        )
        Stat("layers with experts", str(len(report.layers)))
        Stat("tokens of the text", count(report.n_tokens))
        Stat("evenness, lowest to highest", f"{min(entropies):.2f} – {max(entropies):.2f}", hint=meanings.EVENNESS)
        Stat(
            "experts no token reached",
            str(n_unseen),
            hint="Of all layers together. Nothing is known of their inputs, so errors there are unweighted.",
        )


def _unseen_note(report: ExpertsReport) -> None:
    places = [
        f"{'expert' if len(layer.unseen) == 1 else 'experts'} {', '.join(map(str, layer.unseen))} of layer {layer.layer}"
        for layer in report.layers
        if layer.unseen
    ]
    if places:
        shown = "; ".join(places[:8]) + (f"; and {len(places) - 8} more layers" if len(places) > 8 else "")
        note(
            f"No token of the text reached some experts ({shown}). Their weights have no importances, so errors there are unweighted:"
            " a longer or more varied calibration text helps.",
            "warn",
        )


def _map(title: str, report: ExpertsReport, shares: Callable[[ExpertLayer], Sequence[float]]) -> None:
    caption = f"{title} by layer and expert"
    with card(title):
        if len(report.layers) * report.n_experts <= MAX_TABLE_CELLS:
            scale = HeatScale(max(max(shares(layer)) for layer in report.layers))
            rows: Mapping[str, Sequence[float | None]] = {f"layer {layer.layer}": shares(layer) for layer in report.layers}
            names = [str(number) for number in range(report.n_experts)]
            heat_table(names, rows, scale=scale, caption=caption, write=_share, corner="Expert")
            heat_legend(scale, "", lambda value: percent(value, 0))
        else:
            heat = _heat_map(title, report, shares)
            chart = ui.echart(echarts.heat_options(heat, theme.palette())).style(f"height: {echarts.heat_height(heat)}px; width: 100%")
            named(chart.props("role=img"), f"{caption}; the table below names the busiest expert of each layer")
            text(f"Colours from {percent(heat.scale.low)} to {percent(heat.scale.high)} on a log scale.", "qt-small qt-muted")
        text(f"{_UNSEEN} no token", "qt-small qt-muted")


def _share(value: float) -> str:
    return f"{100 * value:.1f}" if value > 0 else _UNSEEN


def _heat_map(title: str, report: ExpertsReport, shares: Callable[[ExpertLayer], Sequence[float]]) -> HeatMap:
    """The map where its cells are too many for a table."""
    cells = tuple(
        HeatCell(expert, row, share or None, f"layer {layer.layer}, expert {expert}: {percent(share)}", ("" if share else _UNSEEN,))
        for row, layer in enumerate(report.layers)
        for expert, share in enumerate(shares(layer))
    )
    scale = LogScale.over([share for layer in report.layers for share in shares(layer)], decades=3)
    rows = tuple(str(layer.layer) for layer in report.layers)
    columns = tuple(map(str, range(report.n_experts)))
    return HeatMap(title, columns, rows, cells, scale, column_name="expert", row_height=14)


def _sensitivities(report: ExpertsReport) -> None:
    if not report.probed:
        note("Their sensitivities are not known yet: measure at Balanced or above to probe them.")
        return
    roles = list(dict.fromkeys(tensor.role for layer in report.layers for tensor in layer.tensors))
    with card("Sensitivity of the expert tensors by layer, nats per unit of error"):
        chart = (
            ui.echart(echarts.options(_sensitivity_chart(report, roles), theme.palette(), is_small=True))
            .style("height: 300px; width: 100%")
            .props("role=img")
        )
        named(chart, f"Sensitivity by layer of {', '.join(roles)}, with 95 % intervals; the table has the figures")


def _sensitivity_chart(report: ExpertsReport, roles: Sequence[str]) -> Chart:
    """A line through a role's sensitivities with their 95 % intervals; what is no more than a bound is hollow."""
    series = []
    for role in roles:
        found = [
            (index, layer.layer, tensor.alpha, tensor.alpha_status == "measured")
            for index, layer in enumerate(report.layers)
            for tensor in layer.tensors
            if tensor.role == role and tensor.alpha is not None and tensor.alpha.value > 0
        ]
        look = role_look(role)
        points = {
            is_measured: tuple(
                _alpha_point(index, f"{role}, layer {layer}", alpha) for index, layer, alpha, measured in found if measured == is_measured
            )
            for is_measured in (True, False)
        }
        series.append(Series(role, points[True], look.colour, stroke=look.stroke, in_legend=True))
        series.append(Series(f"{role}, upper bounds", points[False], look.colour, "hollow"))
    ends = [end for one in series for point in one.points for end in (point.low, point.high) if end is not None]
    return Chart(
        "Sensitivity by layer", Axis("layer", names=tuple(str(layer.layer) for layer in report.layers)), Axis.log("", ends), tuple(series)
    )


def _alpha_point(index: int, name: str, alpha: Estimate) -> Point:
    low, high = max(alpha.value - Z95 * alpha.se, alpha.value / 10), alpha.value + Z95 * alpha.se
    return Point(index, alpha.value, tip=f"{name}: {with_error(alpha)}", low=low, high=high)


def _table(report: ExpertsReport) -> None:
    roles = list(dict.fromkeys(tensor.role for layer in report.layers for tensor in layer.tensors))
    columns = {"Layer": True, "Evenness": True, "Busiest expert": True, "Its share": True, "No token": False, **dict.fromkeys(roles, True)}
    with card("By layer"):
        table(columns, [_row(layer, roles) for layer in report.layers], caption="Routing and sensitivity by layer")
        text(
            "Evenness is the entropy of the shares: 1 where all experts are used alike, 0 where one takes every token."
            " Under each tensor's role is its sensitivity ± one standard error; ≤ marks an upper bound.",
            "qt-small qt-muted",
        )


def _row(layer: ExpertLayer, roles: Sequence[str]) -> list[str]:
    busiest = max(range(len(layer.shares)), key=lambda expert: layer.shares[expert])
    by_role = {tensor.role: tensor for tensor in layer.tensors}
    unseen = ", ".join(map(str, layer.unseen)) or "–"
    figures = [_alpha(by_role[role]) if role in by_role else "–" for role in roles]
    return [str(layer.layer), f"{layer.normalized_entropy:.3f}", str(busiest), percent(layer.shares[busiest], 1), unseen, *figures]


def _alpha(tensor: ExpertTensor) -> str:
    if tensor.alpha is None:
        return tensor.alpha_status
    if tensor.alpha_status == "drowned":
        return f"≤ {tensor.alpha.value:.3g}"
    if tensor.alpha_status != "measured":
        return tensor.alpha_status
    return with_error(tensor.alpha)
