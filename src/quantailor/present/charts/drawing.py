"""A figure drawn off screen with matplotlib's object interface: no display, no global state."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quantailor.files import whole_file
from quantailor.present.charts.colours import LIGHT, Palette
from quantailor.present.charts.describe import Axis, Chart, Marker, Point, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

# where a name may stand, in points from its mark: (x, y, horizontal, vertical alignment), best first
_PLACES = (
    *((10, 0, "left", "center"), (-10, 0, "right", "center"), (0, 11, "center", "bottom"), (0, -11, "center", "top")),
    *((9, 9, "left", "bottom"), (9, -9, "left", "top"), (-9, 9, "right", "bottom"), (-9, -9, "right", "top")),
    *((12, 22, "left", "bottom"), (12, -22, "left", "top"), (-12, 22, "right", "bottom"), (-12, -22, "right", "top")),
)
_MARKERS: Mapping[Marker, str] = {"circle": "o", "hollow": "o", "diamond": "D", "star": "*", "": ""}
_STROKES = {"solid": "-", "dashed": (0, (4, 3)), "dotted": (0, (1, 2)), "": ""}
_POINTS_PER_PIXEL = 0.65


def draw(chart: Chart, format: Literal["png", "svg"], palette: Palette = LIGHT) -> bytes:
    """The figure as a file: the same chart gives the same bytes."""
    with _style(palette):
        return _file(picture(chart, palette), format)


def _file(figure: Figure, format: Literal["png", "svg"]) -> bytes:
    stream = io.BytesIO()
    # no dates inside
    figure.savefig(stream, format=format, metadata={"Date": None} if format == "svg" else {"Software": "Quantailor"})
    return stream.getvalue()


def save(chart: Chart, stem: Path) -> tuple[Path, Path]:
    """Write the figure as `stem`.png and `stem`.svg. Raises OutputError where a file cannot be written."""
    png, svg = (stem.with_name(f"{stem.name}.{ending}") for ending in ("png", "svg"))
    with _style(LIGHT):
        figure = picture(chart)
        contents = {png: _file(figure, "png"), svg: _file(figure, "svg")}
    for path, content in contents.items():
        with whole_file(path) as stream:
            stream.write(content)
    return png, svg


def picture(chart: Chart, palette: Palette = LIGHT) -> Figure:
    """The figure as matplotlib has it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.2), dpi=150, facecolor=palette.surface, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor=palette.surface)
    _scale(axes, chart, palette)
    for band in chart.bands:
        axes.fill_between(band.xs, band.lows, band.highs, color=palette.colour(band.colour), alpha=band.opacity, linewidth=0, zorder=1)
    drawn = {series.name: _series(axes, series, palette) for series in chart.series}
    across = []
    for rule in chart.rules:
        axes.axhline(rule.y, color=palette.colour(rule.colour), linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        place, where = (0.995, rule.y), ("axes fraction", "data")
        across.append(_beside(axes, place, rule.name, palette.colour(rule.colour), xycoords=where, xytext=(0, 3), ha="right"))
    if named := [series.name for series in chart.series if series.in_legend]:
        axes.legend([drawn[name] for name in named], named, fontsize=9, frameon=False)
    figure.draw_without_rendering()
    _name_points(axes, chart, [name.get_window_extent() for name in across], palette)
    return figure


@contextlib.contextmanager
def _style(palette: Palette) -> Iterator[None]:
    import matplotlib as mpl

    settings: dict[Any, str | float] = {
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), palette.text),
        "axes.edgecolor": palette.muted,
        "font.family": "DejaVu Sans",
        "font.size": 10.5,
        "svg.hashsalt": "quantailor",
        "svg.fonttype": "path",
    }
    with mpl.rc_context(settings):
        yield


def _scale(axes: Axes, chart: Chart, palette: Palette) -> None:
    axes.set_title(chart.title, loc="left", fontsize=13, fontweight="bold", pad=24)
    _beside(axes, (0, 1), chart.note, palette.muted, xycoords="axes fraction", xytext=(0, 8), size=9)
    axes.set_xlabel(chart.x.name)
    axes.set_ylabel(chart.y.name)
    axes.set_xlim(chart.x.low, chart.x.high)
    axes.set_ylim(chart.y.low, chart.y.high)
    _ticks(axes, chart.x, "x")
    _ticks(axes, chart.y, "y")
    axes.grid(color=palette.line, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _ticks(axes: Axes, axis: Axis, which: Literal["x", "y"]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    drawn = axes.xaxis if which == "x" else axes.yaxis
    if axis.is_log:
        axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
        drawn.set_major_locator(FixedLocator(axis.ticks))
        drawn.set_minor_locator(NullLocator())
        drawn.set_major_formatter(FuncFormatter(lambda value, _: axis.label(value)))
    elif axis.names:
        drawn.set_ticks(range(len(axis.names)), axis.names)
    else:
        axes.ticklabel_format(axis=which, useOffset=False)


def _series(axes: Axes, series: Series, palette: Palette) -> Line2D:
    colour = palette.colour(series.colour)
    for point in series.points:
        if point.low is not None and point.high is not None:
            # at equal size the bars share one line: ours is wide and pale, the other's thin and on top
            wide, alpha = (5.0, 0.35) if series.is_strong else (1.6, 1.0)
            axes.vlines([point.x], [point.low], [point.high], color=colour, linewidth=wide, alpha=alpha, zorder=2.5)
    xs, ys = [point.x for point in series.points], [point.y for point in series.points]
    if series.stroke:
        axes.plot(xs, ys, color=colour, linewidth=series.width, alpha=0.6 * series.opacity, linestyle=_STROKES[series.stroke], zorder=2)
    face = palette.surface if series.marker == "hollow" else colour
    (marks,) = axes.plot(
        xs,
        ys,
        label=series.name,
        color=colour,
        linestyle="",
        marker=_MARKERS[series.marker],
        markersize=series.size * _POINTS_PER_PIXEL,
        markerfacecolor=face,
        markeredgecolor=colour if series.marker == "hollow" else palette.surface,
        markeredgewidth=0.8,
        zorder=4 if series.is_strong else 3,
    )
    return marks


def _beside(
    axes: Axes,
    place: tuple[float, float],
    text: str,
    colour: str,
    *,
    xytext: tuple[float, float],
    xycoords: str | tuple[str, str] = "data",
    ha: str = "left",
    size: float = 8.5,
) -> Annotation:
    return axes.annotate(
        text, place, xycoords=xycoords, xytext=xytext, textcoords="offset points", ha=ha, fontsize=size, color=colour, parse_math=False
    )


def _name_points(axes: Axes, chart: Chart, others: Sequence[Bbox], palette: Palette) -> None:
    """Name each point where its name covers no other name, point or interval; strong series choose first."""
    taken = [*others, *(_mark_box(axes, point) for point in chart.points)]
    lines = [box for series in chart.series if series.stroke for box in _line_boxes(axes, series.points)]
    for series in sorted(chart.series, key=lambda series: not series.is_strong):
        for point in series.points if series.is_labelled else ():
            costs = []
            for rank in range(len(_PLACES)):
                trial = _name(axes, series, point, rank, palette)
                box = trial.get_window_extent()
                # a name over a line is still readable, one over another name is not
                costs.append((_covered(box, taken, axes.get_window_extent()) + 0.3 * _covered(box, lines, box) + 20 * rank, rank))
                trial.remove()
            taken.append(_name(axes, series, point, min(costs)[1], palette).get_window_extent())


def _name(axes: Axes, series: Series, point: Point, place: int, palette: Palette) -> Annotation:
    x, y, horizontal, vertical = _PLACES[place]
    strong = series.is_strong
    return axes.annotate(
        ", ".join(part for part in (point.name, point.detail) if part),
        (point.x, point.y),
        xytext=(x, y),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=10.5 if strong else 9.5,
        fontweight="bold" if strong else "normal",
        color=palette.colour(series.colour) if strong else palette.text,
        zorder=5,
        arrowprops={"arrowstyle": "-", "color": palette.muted, "linewidth": 0.7, "shrinkB": 6} if abs(y) > 20 else None,
        parse_math=False,
    )


def _mark_box(axes: Axes, point: Point) -> Bbox:
    """The pixels that a point and its interval cover."""
    from matplotlib.transforms import Bbox

    ends = (point.y if end is None else end for end in (point.low, point.high))
    (x, low), (_, middle), (_, high) = axes.transData.transform([(point.x, y) for y in (next(ends), point.y, next(ends))])
    return Bbox.from_extents(x - 14, min(low, middle - 14), x + 14, max(high, middle + 14))


def _line_boxes(axes: Axes, points: Sequence[Point]) -> list[Bbox]:
    """The pixels around the line through points, as a row of small boxes."""
    from matplotlib.transforms import Bbox

    if len(points) < 2:
        return []
    corners = axes.transData.transform([(point.x, point.y) for point in points])
    steps = np.linspace(0, 1, 60)[:, None]
    places = np.concatenate([start + steps * (end - start) for start, end in itertools.pairwise(corners)])
    return [Bbox.from_extents(x - 2, y - 2, x + 2, y + 2) for x, y in places]


def _covered(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Pixels of `box` that lie over something else or outside the axes."""
    return round(sum(_shared(box, other) for other in taken) + 3 * (box.width * box.height - _shared(box, inside)))


def _shared(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(0.0, width) * max(0.0, height))
