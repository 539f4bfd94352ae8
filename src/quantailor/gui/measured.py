"""What screens draw of measurements: the map's colours and labels, and error against bits by role."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from quantailor.app.measuring.progress import MeasuredType, MeasurementMap, RoleBand, TensorProgress
from quantailor.gui import theme
from quantailor.present.charts.colours import LogScale, along
from quantailor.present.charts.describe import Axis, Band, Chart, Point, Series
from quantailor.present.words import percent, with_error

Mode = Literal["progress", "error", "sensitivity"]
_LEAST_ERROR = 1e-7
"""Per cent; log axes begin here at the latest."""


def gradient() -> str:
    """The map's colours from little to much, as a CSS background."""
    return f"linear-gradient(90deg, {', '.join(theme.palette().shades)})"


def painted(found: MeasurementMap, mode: Mode) -> tuple[dict[str, tuple[str, str]], LogScale | None]:
    """Tensor -> (colour, label), and the scale where there is one."""
    values = {tensor.name: _figure(tensor, mode) for tensor in found.tensors}
    seen = [value for value in values.values() if value is not None]
    scale = LogScale.over(seen) if mode != "progress" and seen else None
    colours = theme.palette()
    cells = {}
    for tensor in found.tensors:
        value = values[tensor.name]
        share = None if value is None else 0.15 + 0.5 * value if scale is None else scale.share(value)
        colour = colours.line if share is None else along(colours.shades, share)
        cells[tensor.name] = (colour, _label(tensor, found.common_type))
    return cells, scale


def _figure(tensor: TensorProgress, mode: Mode) -> float | None:
    if mode == "error":
        return tensor.error
    if mode == "sensitivity":
        return None if tensor.sensitivity is None else tensor.sensitivity.alpha.value
    return tensor.n_measured / tensor.n_possible if tensor.n_possible and tensor.n_measured else None


def _label(tensor: TensorProgress, common: str | None) -> str:
    """What the map's tooltip and a screen reader say of a tensor."""
    parts = [f"{tensor.n_measured} of {tensor.n_possible} types" if tensor.n_measured else "not measured yet"]
    if tensor.error is not None:
        parts.append(f"error {percent(tensor.error)} at {common}")
    if tensor.sensitivity is not None:
        parts.append(f"alpha {with_error(tensor.sensitivity.alpha, 1)}, {tensor.sensitivity.status}")
    return ", ".join(parts)


def error_chart(bands: Sequence[RoleBand], tensor: str | None, curve: Sequence[MeasuredType], role: str | None, *, legend: bool) -> Chart:
    """A band and a median for each role, the chosen tensor's types on top; errors in per cent of the output's energy."""
    errors = [100 * value for band in bands for value in (*band.low, *band.high)] + [100 * point.error for point in curve]
    bits = [value for band in bands for value in band.bits]
    positive = [value for value in errors if value > _LEAST_ERROR] or [1e-3, 100.0]
    decades = (10.0 ** math.floor(math.log10(min(positive))), 10.0 ** math.ceil(math.log10(max(positive))))
    opacity = min(0.2, 0.4 / math.sqrt(max(1, len(bands))))
    medians = []
    drawn = []
    for index, band in enumerate(bands):
        colour, strong = f"series {index}", role is None or band.role == role
        drawn.append(
            Band(band.role, band.bits, _percents(band.low), _percents(band.high), colour, opacity=opacity if strong else opacity / 4)
        )
        tip = f"{band.role}: median and 10 to 90 % of its tensors"
        points = tuple(Point(x, y, tip=tip) for x, y in zip(band.bits, _percents(band.median), strict=True))
        width, alpha = (1.5, 0.95) if strong else (1.0, 0.3)
        medians.append(Series(band.role, points, colour, size=4, stroke="solid", width=width, opacity=alpha, in_legend=legend))
    return Chart(
        "Error against bits per weight, by role",
        Axis("bits per weight", math.floor(min(bits, default=1.0)), math.ceil(max(bits, default=9.0))),
        Axis("", *decades, is_log=True, unit="%"),
        (*medians, *_tensor_series(tensor, curve)),
        bands=tuple(drawn),
    )


def _tensor_series(tensor: str | None, curve: Sequence[MeasuredType]) -> tuple[Series, ...]:
    """The best of so many bits as a line, every type as a dot in its own colour."""
    if tensor is None:
        return ()
    best: list[MeasuredType] = []
    for point in sorted(curve, key=lambda point: (point.bits_per_weight, point.error)):
        if not best or point.error < best[-1].error:
            best.append(point)
    line = tuple(Point(point.bits_per_weight, _percents([point.error])[0]) for point in best)
    dots = tuple(
        Point(
            point.bits_per_weight,
            _percents([point.error])[0],
            tip=f"{tensor}\n{point.type_name}: {percent(point.error)}",
            colour=theme.type_colours()[point.type_name],
        )
        for point in curve
    )
    return Series(tensor, line, "text", marker="", stroke="solid", width=2), Series(tensor, dots, "text", size=8)


def _percents(shares: Sequence[float]) -> tuple[float, ...]:
    return tuple(max(100 * share, _LEAST_ERROR) for share in shares)
