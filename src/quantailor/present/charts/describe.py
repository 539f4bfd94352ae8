"""What a figure shows, whoever draws it: axes, series of points with their intervals, bands, lines across, and heat maps.

Colours are names that a palette knows (`Palette.colour`), so that one description serves both themes. All text is plain text:
whoever draws escapes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from quantailor.present.charts.colours import LogScale, log_ticks
from quantailor.present.words import tick

Marker = Literal["", "circle", "hollow", "diamond", "star"]
Stroke = Literal["", "solid", "dashed", "dotted"]


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis from `low` to `high`; `names` make it one of categories, whose values are their indexes."""

    name: str = ""
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False
    unit: str = ""
    """Stands after every tick, such as "%"."""
    names: tuple[str, ...] = ()

    @classmethod
    def log(cls, name: str, values: Iterable[float], *, margin: float = 1.3, decades: float = 12.0, unit: str = "") -> Axis:
        """Over the positive values, with a factor of at least `margin` free at both ends; at most about `decades` long."""
        scale = LogScale.over(list(values), decades=decades)
        free = max(margin, (scale.high / scale.low) ** 0.08)
        return cls(name, float(f"{scale.low / free:.2g}"), float(f"{scale.high * free:.2g}"), is_log=True, unit=unit)

    @classmethod
    def linear(cls, name: str, values: Iterable[float], *, margin: float = 0.1, digits: int = 4) -> Axis:
        """Over the values, with a part of their range free at both ends, to so many digits."""
        numbers = list(values)
        low, high = min(numbers, default=0.0), max(numbers, default=1.0)
        room = margin * (high - low) or 0.01 * abs(high) or 0.5
        return cls(name, float(f"{low - room:.{digits}g}"), float(f"{high + room:.{digits}g}"))

    @property
    def ticks(self) -> list[float]:
        """Where a logarithmic axis has its labels; nothing where the one who draws may choose."""
        return log_ticks(self.low, self.high) if self.is_log else []

    def label(self, value: float) -> str:
        """A tick as text."""
        return f"{tick(value)} {self.unit}".rstrip()

    def inside(self, value: float) -> float:
        """The value, or the axis' nearer end."""
        return min(max(value, self.low), self.high)


@dataclass(frozen=True, slots=True)
class Point:
    """One place; `low` and `high` are the ends of its interval along y."""

    x: float
    y: float
    name: str = ""
    """Stands beside it where the series is labelled."""
    tip: str = ""
    """What it says when pointed at; a newline between lines."""
    detail: str = ""
    """Stands after the name where nothing can be pointed at."""
    low: float | None = None
    high: float | None = None
    colour: str = ""
    """Its own, where it is not the series'."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one kind, joined by a line where `stroke` says how."""

    name: str
    points: tuple[Point, ...]
    colour: str
    marker: Marker = "circle"
    size: float = 9.0
    """Of a marker, in pixels."""
    stroke: Stroke = ""
    width: float = 1.5
    opacity: float = 1.0
    is_labelled: bool = False
    """Whether names of points stand beside them."""
    is_strong: bool = False
    """Drawn over the others: bold names, wide bars."""
    in_legend: bool = False
    tip: str = ""
    """What all its points say when pointed at."""


@dataclass(frozen=True, slots=True)
class Band:
    """The room between two lines over the same places."""

    name: str
    xs: tuple[float, ...]
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    colour: str
    opacity: float = 0.2


@dataclass(frozen=True, slots=True)
class Rule:
    """A dashed line across at a height, with its name at the right end."""

    y: float
    name: str
    colour: str = "muted"


@dataclass(frozen=True, slots=True)
class Chart:
    """Series over two axes."""

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    bands: tuple[Band, ...] = ()
    rules: tuple[Rule, ...] = ()
    note: str = ""
    """A quiet line under the title: what the figures rest on."""

    @property
    def points(self) -> list[Point]:
        """Every point of every series."""
        return [point for series in self.series for point in series.points]


@dataclass(frozen=True, slots=True)
class HeatCell:
    """One place of a heat map."""

    column: int
    row: int
    value: float | None
    """What the shade shows; None leaves the cell without one."""
    tip: str
    texts: tuple[str, ...] = ()
    """What may stand in the cell, longest first: the first that fits does."""


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Rows by columns of shades on one logarithmic scale."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[HeatCell, ...]
    scale: LogScale
    column_name: str = ""
    width: float = 1180.0
    """Of the whole map in pixels, where its place is as wide as it wants."""
    row_height: float = 24.0
    max_column: float = 132.0
    beside: tuple[str, ...] = ()
    """Names of rows of the maps that stand above and below, which begin at the same place."""

    @property
    def gutter(self) -> float:
        """Pixels for the names of rows."""
        return 24 + 7.0 * max((len(name) for name in (*self.rows, *self.beside)), default=0)

    @property
    def column_width(self) -> float:
        """Pixels of one column."""
        return min(self.max_column, (self.width - self.gutter) / max(1, len(self.columns)))

    @property
    def texts(self) -> list[str]:
        """What stands in each cell: the longest that fits; nothing on a map where most have no room, which reads better without."""
        width = self.column_width
        shortest = [_fits(cell.texts[-1], width) for cell in self.cells if cell.texts]
        if sum(shortest) < 0.6 * len(shortest):
            return [""] * len(self.cells)
        return [next((text for text in cell.texts if _fits(text, width)), "") for cell in self.cells]


def _fits(text: str, width: float) -> bool:
    return len(text) * 6.3 + 4 <= width
