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
from quantailor.gui import theme
from quantailor.gui.context import workspace
from quantailor.gui.frame import address, frame
from quantailor.gui.heat import HeatScale, heat_legend, heat_table
from quantailor.gui.widgets import Stat, box, card, empty, error_note, named, note, table, text
from quantailor.present.words import count, percent, with_error

MAX_TABLE_CELLS = 600
"""Larger maps are drawn on a canvas; their figures are in the table by layer."""
_UNSEEN = "×"


def register() -> None:
    """Add the route."""
    ui.page("/p/{fingerprint}/experts", response_timeout=15)(experts)


async def experts(fingerprint: str) -> None:
    """The screen of one project."""
    try:
        project = await run.io_bound(projects.project, workspace(), fingerprint)
    except QuantailorError as error:
        with frame("experts", "Experts"):
            error_note(error)
        return
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
    if project.base is None:
        return functools.partial(
            empty, "Its file is gone", "Open the model again to see its experts.", action="Open a model", target="/open"
        )
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
        " this screen tells how evenly, and which experts a text never reached.",
        action="See its structure",
        target=address(project, "structure"),
    )


def _unread(project: ProjectReport, error: ImatrixError) -> None:
    """An importance matrix counts the tokens of each expert; measuring computes one."""
    empty("No counts of the experts yet", error.message + ".", action="Measure", target=address(project, "measure"))


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
        Stat("work on each token", str(report.n_used) if report.n_used else "unknown")
        Stat("layers with experts", str(len(report.layers)))
        Stat("tokens of the text", count(report.n_tokens))
        Stat("evenness, lowest to highest", f"{min(entropies):.2f} – {max(entropies):.2f}")
        Stat("experts no token reached", str(n_unseen))


def _unseen_note(report: ExpertsReport) -> None:
    places = [f"layer {layer.layer}: {', '.join(map(str, layer.unseen))}" for layer in report.layers if layer.unseen]
    if places:
        shown = "; ".join(places[:8]) + (f"; and {len(places) - 8} more layers" if len(places) > 8 else "")
        note(
            f"No token of the text reached some experts ({shown}). Their weights have no importances, so errors there are unweighted:"
            " a longer or more varied calibration text helps.",
            "warn",
        )


def _map(title: str, report: ExpertsReport, shares: Callable[[ExpertLayer], Sequence[float]]) -> None:
    scale = HeatScale(max(max(shares(layer)) for layer in report.layers))
    caption = f"{title} by layer and expert"
    with card(title):
        if len(report.layers) * report.n_experts <= MAX_TABLE_CELLS:
            rows: Mapping[str, Sequence[float | None]] = {f"layer {layer.layer}": shares(layer) for layer in report.layers}
            names = [str(number) for number in range(report.n_experts)]
            heat_table(names, rows, scale=scale, caption=caption, write=_share, corner="Expert")
        else:
            chart = ui.echart(_map_options(report, shares, scale)).style(f"height: {min(760, 90 + 14 * len(report.layers))}px; width: 100%")
            named(chart.props("role=img"), f"{caption}; the table below names the busiest expert of each layer")
        with box("qt-row qt-spread"):
            heat_legend(scale, "", lambda value: percent(value, 0))
            text(f"{_UNSEEN} no token", "qt-small qt-muted")


def _share(value: float) -> str:
    return f"{100 * value:.1f}" if value > 0 else _UNSEEN


def _map_options(report: ExpertsReport, shares: Callable[[ExpertLayer], Sequence[float]], scale: HeatScale) -> dict[str, object]:
    seen: list[list[float]] = []
    unseen: list[list[float]] = []
    for at, layer in enumerate(report.layers):
        for expert, share in enumerate(shares(layer)):
            (seen if share > 0 else unseen).append([expert, at, round(100 * share, 3)])
    colours = theme.palette()
    place = {"type": "category", "axisLabel": {"color": colours.muted}, "axisTick": {"show": False}}
    steps = [scale.colour(scale.highest * (step / 12) ** 2) for step in range(13)]
    return {
        **theme.chart_base(),
        "grid": {"left": 8, "right": 8, "top": 8, "bottom": 34, "containLabel": True},
        "xAxis": {**place, "name": "expert", "nameLocation": "middle", "nameGap": 26, "data": [str(at) for at in range(report.n_experts)]},
        "yAxis": {**place, "inverse": True, "data": [str(layer.layer) for layer in report.layers]},
        "visualMap": {
            "show": False,
            "min": 0,
            "max": 10 * scale.highest**0.5,
            "dimension": 3,
            "inRange": {"color": steps},
            "seriesIndex": 0,
        },
        "series": [
            {"type": "heatmap", "name": "share, %", "data": [[*cell, round(cell[2] ** 0.5, 3)] for cell in seen], "encode": {"value": 2}},
            {
                "type": "scatter",
                "name": "no token",
                "data": unseen,
                "symbol": "path://M0,0L10,10M10,0L0,10",
                "symbolSize": 6,
                "itemStyle": {"color": colours.bad, "borderColor": colours.bad},
            },
        ],
    }


def _sensitivities(report: ExpertsReport) -> None:
    if not report.probed:
        note("Their sensitivities are not known yet: measure at Balanced or above to probe them.")
        return
    roles = list(dict.fromkeys(tensor.role for layer in report.layers for tensor in layer.tensors))
    with card("Sensitivity of the expert tensors by layer, nats per unit of error"):
        chart = ui.echart(_sensitivity_options(report, roles)).style("height: 300px; width: 100%").props("role=img")
        named(chart, f"Sensitivity by layer of {', '.join(roles)}, with 95 % intervals; the table has the figures")


_ERROR_BAR = """(params, api) => {
  const low = api.coord([api.value(0), api.value(1)]), high = api.coord([api.value(0), api.value(2)]), cap = 4;
  const style = {stroke: api.visual('color'), lineWidth: 1.5};
  const line = (x1, y1, x2, y2) => ({type: 'line', shape: {x1, y1, x2, y2}, style});
  const ends = [low, high].map(([x, y]) => line(x - cap, y, x + cap, y));
  return {type: 'group', children: [line(low[0], low[1], high[0], high[1]), ...ends]};
}"""


def _sensitivity_options(report: ExpertsReport, roles: Sequence[str]) -> dict[str, object]:
    series: list[dict[str, object]] = []
    for role, colour in zip(roles, (*theme.series_colours(),) * len(roles), strict=False):
        points = [(str(layer.layer), tensor) for layer in report.layers for tensor in layer.tensors if tensor.role == role]
        series += _role_series(role, colour, points)
    layers = {"type": "category", "data": [str(layer.layer) for layer in report.layers], "name": "layer"}
    return {
        **theme.chart_base(),
        "legend": {"top": 0, "textStyle": {"color": theme.palette().text}, "data": list(roles)},
        "grid": {"left": 8, "right": 16, "top": 34, "bottom": 34, "containLabel": True},
        "xAxis": {**theme.axis("layer"), **layers},
        "yAxis": theme.axis("", log=True),
        "series": series,
    }


def _role_series(role: str, colour: str, points: Sequence[tuple[str, ExpertTensor]]) -> list[dict[str, object]]:
    """A line through a role's sensitivities with their 95 % intervals; what is no more than a bound is hollow."""
    known = [(layer, tensor.alpha, tensor.alpha_status) for layer, tensor in points if tensor.alpha is not None and tensor.alpha.value > 0]
    data = [
        {"value": [layer, alpha.value], "symbol": "circle" if status == "measured" else "emptyCircle"} for layer, alpha, status in known
    ]
    bars = [[layer, max(alpha.value - 1.96 * alpha.se, alpha.value / 10), alpha.value + 1.96 * alpha.se] for layer, alpha, _ in known]
    style = {"color": colour}
    return [
        {"type": "line", "name": role, "data": data, "symbolSize": 8, "itemStyle": style, "lineStyle": style},
        {
            "type": "custom",
            "name": f"{role}, 95 %",
            ":renderItem": _ERROR_BAR,
            "data": bars,
            "itemStyle": style,
            "encode": {"x": 0, "y": [1, 2]},
            "tooltip": {"show": False},
        },
    ]


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
