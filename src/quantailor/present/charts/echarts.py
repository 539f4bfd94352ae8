"""A figure as ECharts options: plain data, but for a few functions of our own.

A key that begins with ":" holds the source of a JavaScript function, always one of the constants here, as NiceGUI expects it; the
reports' own script does the same. Text is escaped for HTML only where ECharts would read it as HTML, which is in tooltips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from quantailor.present.charts.colours import N_SHADES, Palette
from quantailor.present.charts.describe import Axis, Band, Chart, HeatCell, HeatMap, Marker, Point, Rule, Series, Stroke

Options = dict[str, object]

NARROW = 420
"""Pixels of a chart in which a legend of several rows has no place."""
INTERVALS = ", 95 %"
"""Ends the name of the series that holds another one's intervals: (x, low, high)."""
_TIP = "item => (item.data && item.data.tip) || ''"
_TICK = "value => value && Math.abs(value) < 1e-4 ? (+value.toPrecision(2)).toExponential() : String(+value.toPrecision(4))"
_PERCENT_TICK = "value => (value >= 0.1 ? +value.toPrecision(4) : +value.toPrecision(1)) + ' %'"
_BARS = """(params, api) => {
  const low = api.coord([api.value(0), api.value(1)]), high = api.coord([api.value(0), api.value(2)]);
  const wide = api.value(3), half = wide ? 7 : 5;
  const style = { stroke: api.visual('color'), lineWidth: wide ? 2.5 : 1.6, fill: null };
  const line = (x1, y1, x2, y2) => ({ type: 'line', shape: { x1, y1, x2, y2 }, style });
  const ends = [low, high].map(([x, y]) => line(x - half, y, x + half, y));
  return { type: 'group', silent: true, children: [line(low[0], low[1], high[0], high[1]), ...ends] };
}"""
_BAND = """(params, api) => {
  const n = api.value(0), low = [], high = [];
  for (let i = 0; i < n; i++) {
    low.push(api.coord([api.value(2 + 3 * i), api.value(3 + 3 * i)]));
    high.unshift(api.coord([api.value(2 + 3 * i), api.value(4 + 3 * i)]));
  }
  const { x, y, width, height } = params.coordSys;
  return {
    type: 'polygon', silent: true, shape: { points: low.concat(high) },
    style: { fill: api.visual('color'), opacity: api.value(1) },
    clipPath: { type: 'rect', shape: { x, y, width, height } },
  };
}"""
FUNCTIONS = (_TIP, _TICK, _PERCENT_TICK, _BARS, _BAND)
"""Every function that options may hold."""
_SYMBOLS: Mapping[Marker, str] = {
    "circle": "circle",
    "hollow": "circle",
    "diamond": "diamond",
    "star": "path://M0,-10L2.9,-3.4L9.5,-3.1L4.4,1.2L6,8.1L0,4.4L-6,8.1L-4.4,1.2L-9.5,-3.1L-2.9,-3.4Z",
    "": "none",
}
_LEGEND_LINES: Mapping[Stroke, str] = {
    "dashed": "path://M0,0h9v3h-9zM13,0h9v3h-9z",
    "dotted": "path://M0,0h3v3h-3zM6.3,0h3v3h-3zM12.6,0h3v3h-3zM19,0h3v3h-3z",
    "solid": "path://M0,0h22v3h-22z",
}
"""Of lines, as icons: a band that bears a line's name would make it a box."""


def base(palette: Palette) -> Options:
    """What every chart starts from: text, tooltips and colours of series; no animation."""
    return {
        "backgroundColor": "transparent",
        "animation": False,
        "aria": {"enabled": False},
        "textStyle": {"color": palette.text, "fontFamily": "system-ui, sans-serif"},
        "color": list(palette.series),
        "tooltip": {
            "trigger": "item",
            ":formatter": _TIP,
            "confine": True,
            "backgroundColor": palette.raised,
            "borderColor": palette.line,
            "textStyle": {"color": palette.text, "fontSize": 12},
        },
    }


def options(chart: Chart, palette: Palette, *, is_small: bool = False) -> Options:
    """A chart; a small one leaves its axes closer to its edges."""
    legend = [series for series in chart.series if series.in_legend]
    drawn: list[Options] = [_band(band, palette) for band in chart.bands]
    for series in chart.series:
        if bars := [point for point in series.points if point.low is not None and point.high is not None]:
            drawn.append(_intervals(series, bars, palette))
        drawn.append(_series(series, palette))
    if chart.rules and drawn:
        drawn[-1]["markLine"] = _rules(chart.rules, palette)
    left, right, top, bottom = (52, 10, 10, 36) if is_small else (76, 48, 28, 48)
    legend_rows = 1 + sum(5 + len(series.name) for series in legend) // 75
    return {
        **base(palette),
        "grid": {"left": left, "right": right, "top": top, "bottom": bottom + (12 + 22 * legend_rows if legend else 0)},
        "xAxis": _axis(chart.x, palette, gap=22 if is_small else 30),
        "yAxis": _axis(chart.y, palette, gap=40 if is_small else 56),
        "series": drawn,
        **({"legend": _legend(legend, palette)} if legend else {}),
        # Where there is no room for the rows that a legend was given, it is one row to leaf through.
        **({"media": _either(_legend(legend, palette), palette)} if legend_rows > 1 else {}),
    }


def heat_options(heat: HeatMap, palette: Palette) -> Options:
    """A heat map; `heat_height` says how high its place must be."""
    written = list(zip(heat.cells, heat.texts, strict=True))
    width = heat.column_width
    names: Options = {"type": "category", "axisTick": {"show": False}, "axisLine": {"show": False}, "splitLine": {"show": False}}
    label: Options = {"show": True, "formatter": "{b}", "fontSize": 10.5}
    turned = _is_turned(heat)
    across = {"color": palette.muted, "fontSize": 11, "rotate": 55 if turned else 0, **({} if _is_numbered(heat) else {"interval": 0})}
    return {
        **base(palette),
        "grid": {
            "left": heat.gutter,
            "width": width * len(heat.columns),
            "top": _heat_top(heat),
            "height": heat.row_height * len(heat.rows),
        },
        "xAxis": {
            **names,
            "data": list(heat.columns),
            "position": "top",
            "name": heat.column_name,
            "nameLocation": "start",
            "nameTextStyle": {"color": palette.muted, "align": "right", "verticalAlign": "bottom", "padding": [0, 0, 8, 0]},
            "axisLabel": {**across, "show": any(heat.columns)},
        },
        "yAxis": {**names, "data": list(heat.rows), "inverse": True, "axisLabel": {"color": palette.text, "fontSize": 12, "interval": 0}},
        "visualMap": {"show": False, "min": 0, "max": N_SHADES - 1, "seriesIndex": 0, "inRange": {"color": list(palette.shades)}},
        "series": [
            {
                "type": "heatmap",
                "progressive": 0,
                "data": [_heat_datum(heat, cell, text, palette) for cell, text in written if cell.value is not None],
                "label": label,
                "itemStyle": {"borderColor": palette.surface, "borderWidth": 1 if width > 8 else 0},
                "emphasis": {"itemStyle": {"borderColor": palette.text, "borderWidth": 1.5}},
            },
            {
                "type": "scatter",
                "symbol": "rect",
                "symbolSize": [max(2.0, width - 3), heat.row_height - 3],
                "itemStyle": {"color": "transparent"},
                "label": {**label, "color": palette.muted},
                "data": [
                    {"value": [cell.column, cell.row], "name": text, "tip": _tip(cell.tip)} for cell, text in written if cell.value is None
                ],
            },
        ],
    }


def heat_height(heat: HeatMap) -> float:
    """Pixels that a heat map needs."""
    return _heat_top(heat) + heat.row_height * len(heat.rows) + 6


def _axis(axis: Axis, palette: Palette, *, gap: int) -> Options:
    common: Options = {
        "name": axis.name,
        "nameLocation": "middle",
        "nameGap": gap,
        "nameTextStyle": {"color": palette.muted},
        "axisLine": {"lineStyle": {"color": palette.line}},
        "splitLine": {"lineStyle": {"color": palette.line, "opacity": 0.5}},
    }
    label: Options = {"color": palette.muted, "hideOverlap": True}
    if axis.names:
        slanted: Options = {} if all(name.isdigit() for name in axis.names) else {"rotate": 40, "interval": 0}
        return {**common, "type": "category", "data": list(axis.names), "axisLabel": {**label, **slanted}}
    label[":formatter"] = _PERCENT_TICK if axis.unit == "%" else _TICK
    ends: Options = {"min": axis.low, "max": axis.high}
    if not axis.is_log:
        return {**common, **ends, "type": "value", "axisLabel": {**label, "showMinLabel": False, "showMaxLabel": False}}
    ticks: Options = {"customValues": axis.ticks}
    return {**common, **ends, "type": "log", "axisLabel": {**label, **ticks}, "axisTick": ticks}


def _series(series: Series, palette: Palette) -> Options:
    colour = palette.colour(series.colour)
    drawn: Options = {
        "name": series.name,
        "type": "line" if series.stroke else "scatter",
        "symbol": _SYMBOLS[series.marker],
        "symbolSize": series.size,
        "itemStyle": _mark_style(series, palette),
        "data": [_datum(point, palette) for point in series.points],
        "z": 5 if series.is_strong else 3,
    }
    if series.tip:
        drawn["tooltip"] = {"formatter": _tip(series.tip)}
    if series.stroke:
        drawn["lineStyle"] = {"color": colour, "width": series.width, "opacity": series.opacity, "type": series.stroke}
        drawn["showSymbol"] = bool(series.marker)
    if series.is_labelled:
        drawn["label"] = {
            "show": True,
            "position": "right",
            "distance": 10,
            "formatter": "{b}",
            "color": colour if series.is_strong else palette.text,
            "fontWeight": 700 if series.is_strong else 400,
            "fontSize": 12,
            "textBorderColor": palette.surface,
            "textBorderWidth": 3,
        }
        if not series.is_strong:
            drawn["labelLayout"] = {"moveOverlap": "shiftY"}
    return drawn


def _mark_style(series: Series, palette: Palette) -> Options:
    colour = palette.colour(series.colour)
    if series.marker == "hollow":
        return {"color": palette.surface, "borderColor": colour, "borderWidth": 1.6, "opacity": 1}
    return {"color": colour, "opacity": 1, **({"borderColor": palette.surface, "borderWidth": 1} if series.is_strong else {})}


def _datum(point: Point, palette: Palette) -> Options | list[float]:
    datum: Options = {}
    if point.name:
        datum["name"] = point.name
    if point.tip:
        datum["tip"] = _tip(point.tip)
    if point.colour:
        datum["itemStyle"] = {"color": palette.colour(point.colour), "borderColor": palette.text, "borderWidth": 1}
    place = [point.x, point.y]
    return {"value": place, **datum} if datum else place


def _tip(text: str) -> str:
    return escape(text).replace("\n", "<br>")


def _intervals(series: Series, points: Sequence[Point], palette: Palette) -> Options:
    return {
        "name": f"{series.name}{INTERVALS}",
        "type": "custom",
        ":renderItem": _BARS,
        "encode": {"x": 0, "y": [1, 2]},
        "data": [[point.x, point.low, point.high, int(series.is_strong)] for point in points],
        "itemStyle": {"color": palette.colour(series.colour)},
        "silent": True,
        "tooltip": {"show": False},
        "z": 4 if series.is_strong else 3,
    }


def _band(band: Band, palette: Palette) -> Options:
    corners = [value for corner in zip(band.xs, band.lows, band.highs, strict=True) for value in corner]
    return {
        "name": band.name,
        "type": "custom",
        ":renderItem": _BAND,
        "data": [[len(band.xs), band.opacity, *corners]],
        "encode": {"x": 2, "y": 3},
        "itemStyle": {"color": palette.colour(band.colour)},
        "tooltip": {"show": False},
        "z": 1,
    }


def _rules(rules: Sequence[Rule], palette: Palette) -> Options:
    return {
        "silent": True,
        "symbol": "none",
        "data": [
            {
                "yAxis": rule.y,
                "lineStyle": {"color": palette.colour(rule.colour), "type": "dashed"},
                "label": {"formatter": rule.name, "position": "insideEndTop", "color": palette.colour(rule.colour)},
            }
            for rule in rules
        ],
    }


def _legend(shown: Sequence[Series], palette: Palette) -> Options:
    lines = any(series.stroke in ("dashed", "dotted") for series in shown)
    return {
        # The edge of a strong marker, which sets it off from what it covers, would hide the small one of the legend.
        "data": [_legend_entry(series, lines=lines) for series in shown],
        "bottom": 0,
        "itemGap": 12,
        "itemHeight": 10,
        "itemWidth": 22 if lines else 14,
        "textStyle": {"color": palette.muted, "fontSize": 11},
    }


def _either(legend: Options, palette: Palette) -> list[Options]:
    """The legend in rows, or as one row to leaf through where the chart is narrow."""
    paged: Options = {"type": "scroll", "bottom": 8, "pageIconColor": palette.muted, "pageIconInactiveColor": palette.line}
    paged["pageTextStyle"] = {"color": palette.muted}
    return [{"query": {"maxWidth": NARROW}, "option": {"legend": {**legend, **paged}}}, {"option": {"legend": {**legend, "type": "plain"}}}]


def _legend_entry(series: Series, *, lines: bool) -> Options | str:
    if lines and series.stroke in _LEGEND_LINES:
        return {"name": series.name, "icon": _LEGEND_LINES[series.stroke]}
    return {"name": series.name, "itemStyle": {"borderWidth": 0}} if series.is_strong else series.name


def _heat_datum(heat: HeatMap, cell: HeatCell, text: str, palette: Palette) -> Options:
    step = heat.scale.step(cell.value or 0.0)
    datum: Options = {"value": [cell.column, cell.row, step], "tip": _tip(cell.tip)}
    if text:
        datum |= {"name": text, "label": {"color": palette.on_shades[step]}}
    return datum


def _is_turned(heat: HeatMap) -> bool:
    """Whether the names of columns stand slanted; numbers are thinned instead."""
    return not _is_numbered(heat) and any(len(name) * 6.3 > heat.column_width - 4 for name in heat.columns)


def _is_numbered(heat: HeatMap) -> bool:
    return all(name.isdigit() for name in heat.columns)


def _heat_top(heat: HeatMap) -> float:
    longest = max((len(name) for name in heat.columns), default=0)
    return 14 + 5.4 * longest if _is_turned(heat) else 26 if longest else 2
