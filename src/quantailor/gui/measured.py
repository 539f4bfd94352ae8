"""What screens draw of measurements: the map's colours and labels, and error against bits by role."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from quantailor.app.measuring.progress import MeasuredType, MeasurementMap, RoleBand, TensorProgress
from quantailor.gui import theme
from quantailor.gui.elements.tensor_map import Look, Scale
from quantailor.present.charts.colours import LogScale, along
from quantailor.present.charts.describe import Axis, Band, Chart, Point, Series
from quantailor.present.charts.roles import role_look
from quantailor.present.words import figure, percent, plural, with_error
from quantailor.records import Sensitivity

Mode = Literal["progress", "error", "sensitivity"]
_LEAST_ERROR = 1e-7
"""Per cent; log axes begin here at the latest."""


def painted(found: MeasurementMap, mode: Mode) -> tuple[dict[str, Look], Scale]:
    """Tensor -> what its cell shows, and what the shades mean."""
    values = {tensor.name: _figure(tensor, mode) for tensor in found.tensors}
    seen = [value for value in values.values() if value is not None]
    scale = LogScale.over(seen) if mode != "progress" and seen else None
    colours = theme.palette()
    looks = {}
    for tensor in found.tensors:
        value = values[tensor.name]
        share = None if value is None else 0.15 + 0.5 * value if scale is None else scale.share(value)
        colour = colours.line if share is None else along(colours.shades, share)
        doubt = _doubt(tensor.sensitivity) if mode == "sensitivity" else 0.0
        letters = percent(tensor.error) if mode == "error" and tensor.error is not None else ""
        looks[tensor.name] = Look(colour, _label(tensor, found.common_type), letters, doubt=doubt)
    return looks, _legend(found, mode, scale)


def _doubt(found: Sensitivity | None) -> float:
    """An alpha's standard error beside it, in steps of an eighth; a drowned one could be anything below."""
    if found is None or found.alpha.value <= 0:
        return 0.0
    return 1.0 if found.status == "drowned" else min(1.0, round(8 * found.alpha.se / found.alpha.value) / 8)


def _legend(found: MeasurementMap, mode: Mode, scale: LogScale | None) -> Scale:
    if mode == "progress":
        more = "brighter" if theme.theme() == "dark" else "darker"
        return Scale.of_shades("", "", f"{more}: more of its types are measured; grey: none yet")
    if scale is None:
        return Scale.of_shades("", "", "not measured yet" if mode == "error" else "no tensor has been probed yet")
    if mode == "error":
        return Scale.of_shades(percent(scale.low), percent(scale.high), f"of the output's energy lost at {found.common_type}")
    caption = "alpha: nats of KL divergence per unit of error; the hollower, the less certain"
    return Scale.of_shades(figure(scale.low, 2), figure(scale.high, 2), caption)


def _figure(tensor: TensorProgress, mode: Mode) -> float | None:
    if mode == "error":
        return tensor.error
    if mode == "sensitivity":
        return None if tensor.sensitivity is None else tensor.sensitivity.alpha.value
    return tensor.n_measured / tensor.n_possible if tensor.n_possible and tensor.n_measured else None


def _label(tensor: TensorProgress, common: str | None) -> str:
    """What the map's tooltip and a screen reader say of a tensor."""
    parts = [f"{tensor.n_measured} of {plural(tensor.n_possible, 'type')}" if tensor.n_measured else "not measured yet"]
    if tensor.error is not None:
        parts.append(f"error {percent(tensor.error)} at {common}")
    if tensor.sensitivity is not None:
        parts.append(f"alpha {with_error(tensor.sensitivity.alpha, 1)}, {tensor.sensitivity.status}")
    return ", ".join(parts)


def error_chart(
    bands: Sequence[RoleBand], tensor: str | None, curve: Sequence[MeasuredType], role: str | None, *, legend: bool, relative: bool = True
) -> Chart:
    """A band and a median for each role, the chosen tensor's types on top.

    Errors fall so far with bits that roles lie on one line: `relative` shows them as multiples of the usual error at so many bits, the
    geometric mean of all roles' medians; else they are per cent of the output's energy.
    """
    usual = _usual(bands) if relative else {}

    def heights(bits: Sequence[float], shares: Sequence[float]) -> tuple[float, ...]:
        return tuple(max(100 * share, _LEAST_ERROR) / usual.get(each, 1.0) for each, share in zip(bits, shares, strict=True))

    opacity = min(0.2, 0.4 / math.sqrt(max(1, len(bands))))
    medians, drawn = [], []
    for band in bands:
        look, strong = role_look(band.role), role is None or band.role == role
        low, high = heights(band.bits, band.low), heights(band.bits, band.high)
        drawn.append(Band(band.role, band.bits, low, high, look.colour, opacity=opacity if strong else opacity / 4))
        tip = f"{band.role}: median and 10 to 90 % of its tensors"
        points = tuple(Point(x, y, tip=tip) for x, y in zip(band.bits, heights(band.bits, band.median), strict=True))
        width, alpha = (1.8, 1.0) if strong else (1.0, 0.3)
        marker = look.marker if strong else ""  # dots of eight other roles would hide the one that is looked at
        line = Series(band.role, points, look.colour, marker, 6, look.stroke, width, alpha, in_legend=legend)
        medians.append(line)
    known = [point for point in curve if not relative or point.bits_per_weight in usual]
    own = heights([point.bits_per_weight for point in known], [point.error for point in known])
    bits = [value for band in bands for value in band.bits]
    values = [value for band in drawn for value in (*band.lows, *band.highs)] + list(own)
    decades = (10.0 ** math.floor(math.log10(min(values, default=1e-3))), 10.0 ** math.ceil(math.log10(max(values, default=100.0))))
    return Chart(
        "Error against bits per weight, by role",
        Axis("bits per weight", math.floor(min(bits, default=1.0)), math.ceil(max(bits, default=9.0))),
        Axis.log("", values, margin=1.2) if relative and values else Axis("", *decades, is_log=True, unit="%"),
        (*medians, *_tensor_series(tensor, known, own)),
        bands=tuple(drawn),
    )


def _usual(bands: Sequence[RoleBand]) -> dict[float, float]:
    """Bits per weight -> the geometric mean of the roles' medians, per cent."""
    logs: dict[float, list[float]] = {}
    for band in bands:
        for bits, share in zip(band.bits, band.median, strict=True):
            logs.setdefault(bits, []).append(math.log(max(100 * share, _LEAST_ERROR)))
    return {bits: math.exp(sum(values) / len(values)) for bits, values in logs.items()}


def _tensor_series(tensor: str | None, curve: Sequence[MeasuredType], heights: Sequence[float]) -> tuple[Series, ...]:
    """The best of so many bits as a line, every type as a dot in its own colour."""
    if tensor is None:
        return ()
    placed = sorted(zip(curve, heights, strict=True), key=lambda each: (each[0].bits_per_weight, each[0].error))
    best: list[tuple[MeasuredType, float]] = []
    for point, height in placed:
        if not best or point.error < best[-1][0].error:
            best.append((point, height))
    line = tuple(Point(point.bits_per_weight, height) for point, height in best)
    dots = tuple(
        Point(
            point.bits_per_weight,
            height,
            tip=f"{tensor}\n{point.type_name}: {percent(point.error)}",
            colour=theme.type_colours()[point.type_name],
        )
        for point, height in placed
    )
    return Series(tensor, line, "text", marker="", stroke="solid", width=2), Series(tensor, dots, "text", size=8)
