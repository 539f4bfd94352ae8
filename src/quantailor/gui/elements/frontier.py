"""Size against predicted divergence as a control: the handle is dragged along the curve, or moved by keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from nicegui.element import Element

from quantailor.app.choosing.frontier import Frontier, FrontierPoint, cards
from quantailor.present.charts.describe import Axis
from quantailor.present.words import figure, interval, size

DECADES = 4.5
"""Below the worst file; what is better than that is as good as the base to any reader."""
FEWEST_TICKS = 4
ROUND = (1, 2, 5)
KINDS = {"preset": "llama.cpp's types of {}", "version": "version {}", "file": "built: {}"}


class FrontierControl(Element, component="frontier.js"):
    """The curve, its band, landmarks, and the handle; without a curve it is a slider."""

    def __init__(self, *, on_drag: Callable[[int], Any], on_release: Callable[[int], Any]) -> None:
        """`on_drag` hears the size while the handle moves, `on_release` where it rests, or the size of a landmark that is clicked."""
        super().__init__()
        self._props.update(title="Size against what is predicted", yName="", points=[], marks=[], cards=[], said="")
        self._props.update(range=[1, 2], yRange=[0.1, 1.0], xTicks=[], yTicks=[], at=[1, 0.5])
        self.on("drag", lambda event: on_drag(int(event.args)), throttle=0.06, leading_events=True, trailing_events=True)
        self.on("release", lambda event: on_release(int(event.args)))

    def span(self, low: int, high: int) -> None:
        """The sizes there are, before the curve is known."""
        self._props["range"] = [low, max(high, low + 1)]
        self._props["xTicks"] = size_ticks(low, high)
        self._props["cards"] = cards(low, high)

    def show(self, found: Frontier, marks: Sequence[FrontierPoint], basis: str) -> None:
        """Draw a curve with its landmarks."""
        if not found.points:
            return
        what = "predicted KLD, nats" if found.has_kld else "predicted damage" if basis == "probes" else "expected damage (ranking only)"
        low, high = self._props["range"]
        shown = [mark for mark in marks if low <= mark.size_bytes <= 1.02 * high]
        values = [point.value for point in (*found.points, *shown)]
        axis = Axis.log(what, values, margin=1.15, decades=DECADES)
        self._props["yName"] = what
        self._props["yRange"] = [axis.low, axis.high]
        self._props["yTicks"] = [[value, axis.label(value)] for value in axis.ticks]
        self._props["points"] = [[point.size_bytes, point.value, point.low, point.high] for point in found.points]
        self._props["marks"] = [[mark.kind, mark.label, mark.size_bytes, mark.value, told(mark)] for mark in shown]
        self.update()

    def place(self, point: FrontierPoint) -> None:
        """Put the handle to a size."""
        self._props["at"] = [point.size_bytes, point.value, point.low, point.high]
        self._props["said"] = told(point)
        self.update()


def told(point: FrontierPoint) -> str:
    """A point in words."""
    name = KINDS[point.kind].format(point.label) + ", " if point.kind in KINDS else ""
    ends = "" if point.low is None or point.high is None else f" ({interval((point.low, point.high), 2)})"
    return f"{name}{size(point.size_bytes)}, {figure(point.value)} nats{ends}"


def size_ticks(low: int, high: int) -> list[tuple[int, str]]:
    """Round sizes, each in the unit that people would name it in; four or more of them unless the sizes lie far apart."""
    if high <= 8 * low:
        unit = 1024 ** max(0, int(math.log(low * high, 1024) / 2))
        steps = (unit * digit * 10.0**power for power in range(3, -4, -1) for digit in ROUND[::-1])
        step = next((step for step in steps if high // step - low // step >= FEWEST_TICKS), unit)
        return [(n, size(n).replace(".00", "")) for n in (round(step * at) for at in range(math.ceil(low / step), int(high // step) + 1))]
    found = (digit * 10**tens * 2 ** (10 * unit) for unit in range(5) for tens in range(3) for digit in ROUND)
    return [(n_bytes, size(n_bytes).replace(".00", "")) for n_bytes in sorted(found) if low <= n_bytes <= high]
