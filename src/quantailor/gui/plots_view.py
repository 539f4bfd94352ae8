"""A verdict as a chart: size across, divergence or perplexity up, error bars of 95 %, presets joined, ours as a star."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from quantailor.app.products.verdicts import MIN_CHUNKS, Measure, VerdictPoint, verdict_points
from quantailor.gui.theme import axis, chart_base, palette
from quantailor.present.words import size
from quantailor.records import Comparison, Verdict

_ROOM_AT_LEFT = 0.4
"""Share of the width that a long name needs."""
SMALLEST = 1e-9
"""A logarithmic axis has no zero."""
MIB, GIB = 2**20, 2**30
_STAR = "path://M0,-10L2.9,-3.4L9.5,-3.1L4.4,1.2L6,8.1L0,4.4L-6,8.1L-4.4,1.2L-9.5,-3.1L-2.9,-3.4Z"
_BARS = """(params, api) => {
  const top = api.coord([api.value(0), api.value(2)]), bottom = api.coord([api.value(0), api.value(1)]);
  const ours = api.value(3) === 1, half = ours ? 7 : 5;
  const style = { stroke: ours ? OURS : OTHERS, lineWidth: ours ? 2.5 : 1.6, fill: null };
  const line = (x1, y1, x2, y2) => ({ type: 'line', shape: { x1, y1, x2, y2 }, style });
  return { type: 'group', silent: true, children: [
    line(top[0], top[1], bottom[0], bottom[1]),
    line(top[0] - half, top[1], top[0] + half, top[1]),
    line(bottom[0] - half, bottom[1], bottom[0] + half, bottom[1]) ] };
}"""
_TOOLTIP = "(item) => item.data && item.data.tip ? item.data.tip : ''"
_NAMES: dict[Measure, str] = {"kld": "mean KL divergence from the base, nats (log)", "ppl": "perplexity"}
_OUTCOMES = {"better": "better than", "no better": "no better than", "worse": "worse than"}


def verdict_chart(verdict: Verdict, measure: Measure) -> dict[str, Any]:
    """The ECharts options of a verdict's graph."""
    points = verdict_points(verdict, measure)
    shown = [point for point in points if point.kind != "base"]
    unit, name = (GIB, "GiB") if max((point.size_bytes for point in shown), default=0) >= GIB else (MIB, "MiB")
    references = [point for point in shown if point.kind == "reference"]
    ours = [point for point in shown if point.kind == "ours"]
    base = next((point for point in points if point.kind == "base"), None)
    colours = palette()
    reference_colour = "#7dd3fc" if colours.ground.startswith("#0") else "#35618f"
    bars = _BARS.replace("OURS", f"'{colours.accent}'").replace("OTHERS", f"'{reference_colour}'")
    low, high = _reach(shown if base is None else [*shown, base], measure)
    return {
        **chart_base(),
        "aria": {"enabled": False},
        "grid": {"left": 76, "right": 48, "top": 28, "bottom": 48},
        "xAxis": axis(f"file size, {name}", axisLabel=_plain_ends(), **_across(shown, unit)),
        "yAxis": axis(_NAMES[measure], log=measure == "kld", nameGap=56, min=low, max=high, **_ticks(measure, low, high)),
        "series": [
            _bars(shown, unit, bars, measure),
            {
                "name": "llama.cpp's presets",
                "type": "line",
                "symbol": "circle",
                "symbolSize": 10,
                "lineStyle": {"color": reference_colour, "width": 1.5, "opacity": 0.6},
                "itemStyle": {"color": reference_colour},
                "label": _label("right", colours.text, 400),
                "labelLayout": {"moveOverlap": "shiftY"},
                "data": [_datum(point, unit, measure) for point in references],
                "markLine": _base_line(base, colours.muted),
            },
            {
                "name": "ours",
                "type": "scatter",
                "symbol": _STAR,
                "symbolSize": 22,
                "itemStyle": {"color": colours.accent, "borderColor": colours.surface, "borderWidth": 1, "opacity": 1},
                "label": _ours_label(shown, unit, colours.accent),
                "data": [_datum(point, unit, measure) for point in ours],
                "z": 5,
            },
        ],
        "tooltip": {**_tooltip(), ":formatter": _TOOLTIP},
    }


def _tooltip() -> dict[str, Any]:
    base: Any = chart_base()["tooltip"]
    return {**base, "trigger": "item"}


def _label(position: str, colour: str, weight: int) -> dict[str, Any]:
    return {
        "show": True,
        "position": position,
        "distance": 10,
        "formatter": "{b}",
        "color": colour,
        "fontWeight": weight,
        "fontSize": 12,
        "textBorderColor": palette().surface,
        "textBorderWidth": 3,
    }


def _ours_label(points: Sequence[VerdictPoint], unit: int, colour: str) -> dict[str, Any]:
    """Left of the star, away from the presets' names; below and to the right where there is no room at the left."""
    ours = next((point.size_bytes / unit for point in points if point.kind == "ours"), 0.0)
    ends = _across(points, unit)
    share = (ours - ends["min"]) / max(ends["max"] - ends["min"], 1e-9)
    if share < _ROOM_AT_LEFT:
        return {**_label("right", colour, 700), "offset": [-14, 20]}
    return _label("left", colour, 700)


def _height(value: float, measure: Measure) -> float:
    return max(value, SMALLEST) if measure == "kld" else value


def _datum(point: VerdictPoint, unit: int, measure: Measure) -> dict[str, Any]:
    return {
        "name": _short(point.label),
        "value": [point.size_bytes / unit, _height(point.value, measure)],
        "tip": point_words(point, measure, line="<br>"),
    }


def _short(label: str, most: int = 26) -> str:
    return label if len(label) <= most else f"{label[: most // 2 - 1]}…{label[-(most // 2) :]}"


def _escaped(label: str) -> str:
    return label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def point_words(point: VerdictPoint, measure: Measure, *, line: str = ", ") -> str:
    """One point in words, as tooltips show it."""
    what = "KLD" if measure == "kld" else "perplexity"
    figures = f"{what} {point.value:.5g} (95 %: {point.low:.5g} to {point.high:.5g})"
    return line.join((_escaped(point.label), f"{size(point.size_bytes)}, {point.bits_per_weight:.2f} bits per weight", figures))


def _bars(points: Sequence[VerdictPoint], unit: int, script: str, measure: Measure) -> dict[str, Any]:
    rows = [
        [point.size_bytes / unit, _height(point.low, measure), _height(point.high, measure), int(point.kind == "ours")] for point in points
    ]
    return {
        "name": "95 % intervals",
        "type": "custom",
        ":renderItem": script,
        "encode": {"x": 0, "y": [1, 2]},
        "data": rows,
        "z": 3,
        "silent": True,
        "tooltip": {"show": False},
    }


def _base_line(base: VerdictPoint | None, colour: str) -> dict[str, Any] | None:
    if base is None:
        return None
    return {
        "silent": True,
        "symbol": "none",
        "lineStyle": {"color": colour, "type": "dashed"},
        "label": {"formatter": "base", "position": "end", "color": colour},
        "data": [{"yAxis": base.value}],
    }


def _across(points: Sequence[VerdictPoint], unit: int) -> dict[str, Any]:
    """Room on both sides for labels."""
    low, high = (pick((point.size_bytes / unit for point in points), default=1.0) for pick in (min, max))
    width = max(high - low, 0.1 * high)
    middle = (low + high) / 2
    return {"min": _rounded(middle - 0.66 * width), "max": _rounded(middle + 0.72 * width)}


def _plain_ends() -> dict[str, Any]:
    return {"color": palette().muted, "showMinLabel": False, "showMaxLabel": False}


def _rounded(value: float) -> float:
    return float(f"{max(value, 0.0):.3g}")


def _reach(points: Sequence[VerdictPoint], measure: Measure) -> tuple[float, float]:
    low = min((_height(point.low, measure) for point in points), default=1.0)
    high = max((_height(point.high, measure) for point in points), default=1.0)
    if measure == "kld":
        margin = max(1.3, (high / low) ** 0.08)
        return float(f"{low / margin:.2g}"), float(f"{high * margin:.2g}")
    room = 0.1 * (high - low) or 0.01 * high
    return float(f"{low - room:.4g}"), float(f"{high + room:.4g}")


def _ticks(measure: Measure, low: float, high: float) -> dict[str, Any]:
    formatter = "(value) => String(+value.toPrecision(4))"
    label: dict[str, Any] = {
        "color": palette().muted,
        ":formatter": formatter,
        "showMinLabel": measure == "kld",
        "showMaxLabel": measure == "kld",
    }
    if measure == "ppl":
        return {"axisLabel": label}
    values = nice_values(low, high)
    return {"axisLabel": {**label, "customValues": values}, "axisTick": {"customValues": values}}


def nice_values(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis: 1, 2 and 5 of every decade, only 1 where there are many, all nine where there are few."""
    decades = math.log10(high / low)
    steps = (1,) if decades > 3 else (1, 2, 5) if decades > 0.7 else tuple(range(1, 10))
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [value for exponent in exponents for step in steps if low <= (value := float(f"{step}e{exponent}")) <= high]


def ratio_words(comparison: Comparison) -> str:
    """ "better than Q4_K_M"."""
    return f"{_OUTCOMES[comparison.outcome]} {comparison.reference}"


def verdict_words(verdict: Verdict) -> str:
    """A verdict in a few words: for lists."""
    n_chunks = verdict.rows[0].statistics.n_chunks
    if n_chunks < MIN_CHUNKS:
        return f"{n_chunks} chunks: too few to claim anything"
    return ", ".join(ratio_words(comparison) for comparison in verdict.comparisons) or "compared with nothing"
