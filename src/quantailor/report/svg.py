"""Drawing by hand: scales, axes, the colour ramp and marks. Coordinates are SVG user units, about one pixel each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from quantailor.present.words import tick
from quantailor.report.markup import Content, Markup, element, join, number

STEPS = 24
"""Shades of the ramp; the classes r0 to r23 fill, t0 to t23 colour the text on them."""
ZERO = 1e-12
"""A logarithmic scale has no zero: smaller values count as this."""


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to coordinates; what lies outside `low` to `high` is drawn at the edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        return self.start + (self.end - self.start) * self.share(value)

    def share(self, value: float) -> float:
        """Where the value lies between `low` (0) and `high` (1)."""
        low, high, at = (math.log(max(v, ZERO)) if self.log else v for v in (self.low, self.high, value))
        return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.5

    def ticks(self, limit: int = 6) -> list[float]:
        """At most about `limit` round values from `low` to `high`."""
        return _log_ticks(self.low, self.high, limit) if self.log else _linear_ticks(self.low, self.high, limit)


def log_scale(values: Iterable[float], start: float, end: float, *, margin: float = 1.0, decades: float = 12) -> Scale:
    """A logarithmic scale over the positive values, at most `decades` long; `margin` is a factor left free at both ends."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    high = max(positive, default=1.0)
    low = max(min(positive, default=high / 10), high * 10.0**-decades)
    if high < 1.02 * low:
        low, high = low / 2, high * 2
    return Scale(low / margin, high * margin, start, end, log=True)


def linear_scale(values: Iterable[float], start: float, end: float, *, margin: float = 0.05) -> Scale:
    """A linear scale over the values, with `margin` of their range free at both ends."""
    found = [value for value in values if math.isfinite(value)]
    low, high = min(found, default=0.0), max(found, default=1.0)
    free = margin * (high - low) or 0.5
    return Scale(low - free, high + free, start, end)


def _log_ticks(low: float, high: float, limit: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1.0,) if last - first > limit / 2 else (1.0, 2.0, 5.0) if last - first > 1 else (1.0, 2.0, 3.0, 5.0, 7.0)
    every = max(1, math.ceil((last - first) / limit))
    found = [step * 10.0**power for power in range(first, last + 1) if power % every == 0 for step in steps]
    return [tick for tick in found if low * 0.999 <= tick <= high * 1.001]


def _linear_ticks(low: float, high: float, limit: int) -> list[float]:
    raw = (high - low) / max(1, limit)
    if raw <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def svg(width: float, height: float, title: str, *parts: Content, class_: str | None = None) -> Markup:
    """A picture with its name for screen readers; it is as wide as its place allows."""
    box = f"0 0 {number(width)} {number(height)}"
    return element("svg", element("title", title), *parts, class_=class_, viewBox=box, role="img", aria_label=title)


def label(x: float, y: float, content: str, *, anchor: str | None = None, class_: str | None = None, turn: float | None = None) -> Markup:
    """Text; `turn` is in degrees about its own place."""
    transform = None if turn is None else f"rotate({number(turn)} {number(x)} {number(y)})"
    return element("text", content, x=float(x), y=float(y), text_anchor=anchor, class_=class_, transform=transform)


def titled(name: str, title: str | None, **attributes: Content) -> Markup:
    """A shape with a tooltip."""
    return element(name, *([element("title", title)] if title else []), **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def path_of(points: Sequence[tuple[float, float]]) -> str:
    """The path data of a line through points."""
    return "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)


def diamond(x: float, y: float, size: float) -> str:
    """The path data of a diamond."""
    return path_of([(x, y - size), (x + size, y), (x, y + size), (x - size, y)]) + "z"


def axes(
    x: Scale, y: Scale, *, x_label: str = "", y_label: str = "", x_ticks: int = 6, y_ticks: int = 6, write: Callable[[float], str] = tick
) -> Markup:
    """Grid, tick labels and names; y.start is the bottom. `write` gives the names of the ticks; none are drawn for 0 ticks."""
    left, bottom, top = x.start, y.start, y.end
    rows = [(y(at), write(at)) for at in y.ticks(y_ticks)] if y_ticks else []
    columns = [(x(at), write(at)) for at in x.ticks(x_ticks)] if x_ticks else []
    return join(
        [
            *(line(left, at, x.end, at, "grid") for at, _ in rows),
            *(line(at, bottom, at, top, "grid") for at, _ in columns),
            *(label(left - 6, at + 4, name, anchor="end", class_="tick") for at, name in rows),
            *(label(at, bottom + 16, name, anchor="middle", class_="tick") for at, name in columns),
            label((left + x.end) / 2, bottom + 34, x_label, anchor="middle", class_="axis") if x_label else None,
            label(left - 52, (bottom + top) / 2, y_label, anchor="middle", class_="axis", turn=-90) if y_label else None,
        ]
    )


@dataclass(frozen=True, slots=True)
class Ramp:
    """Values to the shades of the one sequential ramp, pale or dark at the low end as the theme has it."""

    low: float
    high: float
    log: bool = True

    def step(self, value: float) -> int:
        """The shade of a value, 0 to STEPS - 1."""
        return min(STEPS - 1, int(STEPS * Scale(self.low, self.high, 0, 1, log=self.log).share(value)))


def ramp_over(values: Iterable[float], *, decades: float = 12) -> Ramp:
    """A logarithmic ramp from the smallest to the largest positive value."""
    scale = log_scale(values, 0, 1, decades=decades)
    return Ramp(scale.low, scale.high)


def ramp_legend(ramp: Ramp, name: str, write: Callable[[float], str] = tick) -> Markup:
    """The ramp as a bar with its values; `write` gives their names."""
    width, left = 300.0, 1.0
    scale = Scale(ramp.low, ramp.high, left, left + width, log=ramp.log)
    each = width / STEPS
    shades = [element("rect", x=left + step * each, y=17.0, width=each + 0.3, height=12.0, class_=f"r{step}") for step in range(STEPS)]
    inner = [label(scale(at), 43, write(at), anchor="middle", class_="tick") for at in scale.ticks(5) if 0.17 < scale.share(at) < 0.83]
    ends = (
        label(left, 43, write(ramp.low), class_="tick"),
        label(left + width, 43, write(ramp.high), anchor="end", class_="tick"),
    )
    title = f"{name}: colours from {write(ramp.low)} to {write(ramp.high)}"
    return svg(width + 2 * left, 47, title, label(left, 11, name), *shades, *inner, *ends)
