"""What the Measure screen draws: the map's colours and labels, and the bands of error against bits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from quantailor.app.measuring.progress import MeasuredType, MeasurementMap, RoleBand, TensorProgress
from quantailor.gui import theme
from quantailor.gui.theme import ThemeName
from quantailor.present.words import percent

Mode = Literal["progress", "error", "sensitivity"]
LEAST_ERROR = 1e-9
"""Log axes and scales begin here at the latest."""
_SCALE: Mapping[ThemeName, tuple[tuple[int, int, int], ...]] = {
    "dark": ((27, 58, 75), (31, 111, 120), (94, 234, 212), (250, 246, 170)),
    "light": ((216, 240, 235), (125, 200, 188), (15, 118, 110), (8, 48, 44)),
}
"""From little to much, in the accent's hue; the ramp of bit widths stays for types."""
_BAND_OPACITY = 0.2
_POLYGON = """(params, api) => {
    const n = api.value(0), low = [], high = [];
    for (let i = 0; i < n; i++) {
        const bits = api.value(1 + 3 * i);
        low.push(api.coord([bits, api.value(2 + 3 * i)]));
        high.unshift(api.coord([bits, api.value(3 + 3 * i)]));
    }
    const { x, y, width, height } = params.coordSys;
    return {
        type: 'polygon', silent: true, shape: { points: low.concat(high) }, style: { fill: '%s', opacity: %s },
        clipPath: { type: 'rect', shape: { x, y, width, height } },
    };
}"""


@dataclass(frozen=True, slots=True)
class Scale:
    """A logarithmic colour scale between two figures."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Scale:
        """From the least to the largest of the positive values."""
        positive = [value for value in values if value > 0]
        return cls(min(positive, default=LEAST_ERROR), max(positive, default=1.0))

    def colour(self, value: float) -> str:
        """As "#rrggbb"."""
        width = math.log(self.high / self.low)
        return shade(1.0 if width <= 0 else math.log(max(value, self.low) / self.low) / width)


def shade(share: float) -> str:
    """A colour of the scale from 0, little, to 1, much."""
    stops = _SCALE[theme.theme()]
    at = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    left = min(int(at), len(stops) - 2)
    mixed = (round(a + (at - left) * (b - a)) for a, b in zip(stops[left], stops[left + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def gradient() -> str:
    """The scale as a CSS background."""
    return f"linear-gradient(90deg, {', '.join(shade(at / 3) for at in range(4))})"


def figures(found: MeasurementMap, mode: Mode) -> dict[str, float | None]:
    """Tensor -> what the map shows of it; None where that is unknown."""
    return {tensor.name: _figure(tensor, mode) for tensor in found.tensors}


def _figure(tensor: TensorProgress, mode: Mode) -> float | None:
    if mode == "error":
        return tensor.error
    if mode == "sensitivity":
        return None if tensor.sensitivity is None else tensor.sensitivity.alpha.value
    return tensor.n_measured / tensor.n_possible if tensor.n_possible and tensor.n_measured else None


def painted(found: MeasurementMap, mode: Mode) -> tuple[dict[str, tuple[str, str]], Scale | None]:
    """Tensor -> (colour, label), and the scale where there is one."""
    values = figures(found, mode)
    known = [value for value in values.values() if value is not None]
    scale = Scale.of(known) if mode != "progress" and known else None
    unknown = theme.palette().line
    cells = {}
    for tensor in found.tensors:
        value = values[tensor.name]
        colour = unknown if value is None else shade(0.15 + 0.5 * value) if scale is None else scale.colour(value)
        cells[tensor.name] = (colour, label(tensor, found.common_type))
    return cells, scale


def label(tensor: TensorProgress, common: str | None) -> str:
    """What the map's tooltip and a screen reader say of a tensor."""
    parts = [f"{tensor.n_measured} of {tensor.n_possible} types" if tensor.n_measured else "not measured yet"]
    if tensor.error is not None:
        parts.append(f"error {percent(tensor.error)} at {common}")
    if tensor.sensitivity is not None:
        parts.append(f"alpha {tensor.sensitivity.alpha.value:.3g} ± {tensor.sensitivity.alpha.se:.1g}, {tensor.sensitivity.status}")
    return ", ".join(parts)


def bands_chart(bands: Sequence[RoleBand], tensor: str | None, curve: Sequence[MeasuredType], role: str | None) -> dict[str, object]:
    """ECharts options: a band and a median for each role, and the chosen tensor's types on top."""
    colours = theme.palette()
    figures = [value for band in bands for value in (*band.low, *band.high)] + [point.error for point in curve]
    bits = [value for band in bands for value in band.bits]
    return {
        **theme.chart_base(),
        "grid": {"left": 58, "right": 14, "top": 12, "bottom": 46 + 20 * _legend_rows(bands)},
        "legend": {
            "data": [band.role for band in bands],
            "bottom": 0,
            "itemGap": 12,
            "icon": "roundRect",
            "itemHeight": 8,
            "itemWidth": 14,
            "textStyle": {"color": colours.muted, "fontSize": 11},
        },
        "tooltip": {**_tooltip(), "trigger": "item"},
        "xAxis": theme.axis("bits per weight", nameGap=22, min=math.floor(min(bits, default=1.0)), max=math.ceil(max(bits, default=9.0))),
        "yAxis": theme.axis("", log=True, **_decades(figures), axisLabel={"color": colours.muted, ":formatter": _TICK}),
        "series": [*_role_series(bands, role), *_tensor_series(tensor, curve)],
    }


_TICK = "value => (value >= 0.001 ? String(100 * value).slice(0, 6) : (100 * value).toExponential(0)) + ' %'"


def _legend_rows(bands: Sequence[RoleBand]) -> int:
    """About how many rows the legend takes in a narrow card."""
    return max(1, math.ceil(sum(_ENTRY_PIXELS + _LETTER_PIXELS * len(band.role) for band in bands) / _LEGEND_PIXELS))


_ENTRY_PIXELS, _LETTER_PIXELS, _LEGEND_PIXELS = 32, 6.3, 440


def _tooltip() -> dict[str, object]:
    base = theme.chart_base()["tooltip"]
    return dict(base) if isinstance(base, dict) else {}


def _decades(figures: Sequence[float]) -> dict[str, float]:
    """The ends of a log axis at whole decades."""
    positive = [value for value in figures if value > LEAST_ERROR]
    if not positive:
        return {"min": 1e-5, "max": 1.0}
    return {"min": 10.0 ** math.floor(math.log10(min(positive))), "max": 10.0 ** math.ceil(math.log10(max(positive)))}


def _role_series(bands: Sequence[RoleBand], chosen: str | None) -> list[dict[str, object]]:
    colours = theme.series_colours()
    found: list[dict[str, object]] = []
    for at, band in enumerate(bands):
        colour = colours[at % len(colours)]
        strong = chosen is None or band.role == chosen
        flat = [figure for row in zip(band.bits, map(_clamped, band.low), map(_clamped, band.high), strict=True) for figure in row]
        opacity = min(_BAND_OPACITY, 2 * _BAND_OPACITY / math.sqrt(len(bands))) * (1 if strong else 0.25)
        found.append(
            {
                "name": band.role,
                "type": "custom",
                ":renderItem": _POLYGON % (colour, opacity),
                "data": [[len(band.bits), *flat]],
                "encode": {"x": 1, "y": 2},
                "itemStyle": {"color": colour},
                "tooltip": {"show": False},
                "z": 1,
            }
        )
        found.append(
            {
                "name": band.role,
                "type": "line",
                "data": [[bits, _clamped(value)] for bits, value in zip(band.bits, band.median, strict=True)],
                "showSymbol": False,
                "lineStyle": {"width": 1.5 if strong else 1, "opacity": 0.95 if strong else 0.3, "color": colour},
                "itemStyle": {"color": colour},
                "emphasis": {"focus": "series"},
                "triggerLineEvent": True,
                "tooltip": {":formatter": "item => item.seriesName + ': median and 10 to 90 % of its tensors'"},
                "z": 2,
            }
        )
    return found


def _tensor_series(tensor: str | None, curve: Sequence[MeasuredType]) -> list[dict[str, object]]:
    colours = theme.palette()
    points = [
        {
            "value": [point.bits_per_weight, _clamped(point.error)],
            "name": point.type_name,
            "itemStyle": {"color": theme.type_colours()[point.type_name], "borderColor": colours.text, "borderWidth": 1},
        }
        for point in curve
    ]
    best, least = [], math.inf
    for point in sorted(curve, key=lambda point: (point.bits_per_weight, point.error)):
        if point.error < least:
            least = point.error
            best.append([point.bits_per_weight, _clamped(point.error)])
    line = {"width": 2, "color": colours.text}
    name = tensor or ""
    return [
        {
            "name": name,
            "type": "line",
            "data": best,
            "showSymbol": False,
            "lineStyle": line,
            "silent": True,
            "tooltip": {"show": False},
            "z": 5,
        },
        {
            "name": name,
            "type": "scatter",
            "data": points,
            "symbolSize": 8,
            "tooltip": {":formatter": "item => item.name + ': ' + (100 * item.value[1]).toPrecision(3) + ' %'"},
            "z": 6,
        },
    ]


def _clamped(value: float) -> float:
    return max(value, LEAST_ERROR)
