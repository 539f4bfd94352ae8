"""Figures of a verdict, drawn off screen with matplotlib's object interface: no display, no global state."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantailor.files import whole_file
from quantailor.records import Estimate, Verdict, VerdictRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

INK, QUIET, GRID = "#1a1a1a", "#5f6770", "#e3e6e9"
OURS, REFERENCE = "#c8452d", "#35618f"
_FLOOR_IN_SIGHT = 10
"""The floor is drawn when it is within this factor of the lowest point."""
SMALLEST_KLD = 1e-9
"""A logarithmic axis has no zero."""

# where a label may stand, in points from its mark: (x, y, horizontal, vertical alignment), best first
_PLACES = (
    *((10, 0, "left", "center"), (-10, 0, "right", "center"), (0, 11, "center", "bottom"), (0, -11, "center", "top")),
    *((9, 9, "left", "bottom"), (9, -9, "left", "top"), (-9, 9, "right", "bottom"), (-9, -9, "right", "top")),
    *((12, 22, "left", "bottom"), (12, -22, "left", "top"), (-12, 22, "right", "bottom"), (-12, -22, "right", "top")),
)


@dataclass(frozen=True, slots=True)
class _Quantity:
    """What stands on the vertical axis."""

    title: str
    axis: str
    is_log: bool
    of: Callable[[VerdictRow], Estimate]

    def height(self, row: VerdictRow) -> float:
        value = self.of(row).value
        return max(value, SMALLEST_KLD) if self.is_log else value

    def reach(self, row: VerdictRow) -> tuple[float, float]:
        """How far the 95 % interval goes down and up; a logarithmic axis never reaches zero."""
        half = 1.96 * self.of(row).se
        return min(half, self.height(row) * 0.95), half


_KLD = _Quantity(
    "Size against divergence from the unquantized model",
    "Mean KL divergence (nats, log scale)",
    is_log=True,
    of=lambda row: row.statistics.kld_mean,
)
_PERPLEXITY = _Quantity("Size against perplexity", "Perplexity", is_log=False, of=lambda row: row.statistics.perplexity)


def size_against_kld(verdict: Verdict, stem: Path) -> tuple[Path, Path]:
    """Draw file size against mean KLD, with 95 % error bars over chunks, as `stem`.png and `stem`.svg.

    The base itself is left out: it would only squeeze the rest to the left.

    Raises:
        OutputError: a file cannot be written.
    """
    return _write(verdict, stem, _KLD)


def size_against_perplexity(verdict: Verdict, stem: Path) -> tuple[Path, Path]:
    """The same with perplexity; the base is a line across. Raises OutputError where a file cannot be written."""
    return _write(verdict, stem, _PERPLEXITY)


def _write(verdict: Verdict, stem: Path, quantity: _Quantity) -> tuple[Path, Path]:
    rows = sorted((row for row in verdict.rows if row.kind != "base"), key=lambda row: row.size_bytes)
    paths = (stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg"))
    with _style():
        figure = _draw(verdict, rows, quantity)
        for path in paths:
            _save(figure, path)
    return paths


@contextlib.contextmanager
def _style() -> Iterator[None]:
    import matplotlib as mpl

    settings: Any = {
        "font.family": "DejaVu Sans",
        "font.size": 10.5,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": QUIET,
        "xtick.color": INK,
        "ytick.color": INK,
        "svg.hashsalt": "quantailor",
        "svg.fonttype": "path",
    }
    with mpl.rc_context(settings):
        yield


def _draw(verdict: Verdict, rows: Sequence[VerdictRow], quantity: _Quantity) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.2), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="white")
    unit, unit_bytes = _unit(rows)
    sizes = [row.size_bytes / unit_bytes for row in rows]
    heights = [quantity.height(row) for row in rows]
    across = _line_across(verdict, heights, quantity)
    _scale(axes, rows, sizes, [height for height, _ in across], quantity)
    _points(axes, rows, sizes, quantity)
    _titles(axes, verdict, rows, unit, quantity)
    for height, text in across:
        _draw_across(axes, height, text)
    figure.canvas.draw()
    _label(axes, rows, sizes, quantity)
    return figure


def _line_across(verdict: Verdict, heights: Sequence[float], quantity: _Quantity) -> list[tuple[float, str]]:
    """What files are to be held against: the base, or the floor where it is in sight."""
    if not quantity.is_log:
        base = next((row for row in verdict.rows if row.kind == "base"), None)
        return [] if base is None else [(quantity.height(base), "the unquantized base")]
    in_sight = min(heights, default=0) / _FLOOR_IN_SIGHT < verdict.floor_kld_nats
    return [(verdict.floor_kld_nats, "floor: the base against itself")] if in_sight else []


def _unit(rows: Sequence[VerdictRow]) -> tuple[str, int]:
    return ("GiB", 2**30) if max((row.size_bytes for row in rows), default=0) >= 2**30 else ("MiB", 2**20)


def _scale(axes: Axes, rows: Sequence[VerdictRow], sizes: Sequence[float], also: Sequence[float], quantity: _Quantity) -> None:
    ends = [quantity.height(row) + sign * reach for row in rows for sign, reach in zip((-1, 1), quantity.reach(row), strict=True)]
    lowest, highest = min([*ends, *also], default=1e-3), max([*ends, *also], default=1)
    if quantity.is_log:
        _log_scale(axes, lowest, highest)
    else:
        margin = 0.1 * (highest - lowest) or 0.01 * highest
        axes.set_ylim(lowest - margin, highest + margin)
        axes.ticklabel_format(axis="y", useOffset=False)
    left, right = min(sizes, default=0), max(sizes, default=1)
    width = max(right - left, 0.1 * right)
    axes.set_xlim((left + right - width) / 2 - 0.1 * width, (left + right + width) / 2 + 0.27 * width)
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _log_scale(axes: Axes, lowest: float, highest: float) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    margin = max(1.25, (highest / lowest) ** 0.08)
    axes.set_yscale("log")
    axes.set_ylim(lowest / margin, highest * margin)
    decades = math.log10(highest / lowest * margin**2)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 3 else (1.0, 2.0, 5.0) if decades > 0.7 else tuple(range(1, 10))))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _tick(value: float) -> str:
    return f"{value:g}" if value >= 1e-4 else f"{value:.0e}".replace("e-0", "e-")


def _points(axes: Axes, rows: Sequence[VerdictRow], sizes: Sequence[float], quantity: _Quantity) -> None:
    references = [(size, quantity.height(row)) for row, size in zip(rows, sizes, strict=True) if row.kind == "reference"]
    if len(references) > 2:
        axes.plot(*zip(*references, strict=True), color=REFERENCE, linewidth=1, alpha=0.35, zorder=2)
    for row, size in zip(rows, sizes, strict=True):
        ours, height = row.kind == "ours", quantity.height(row)
        down, up = quantity.reach(row)
        color = OURS if ours else REFERENCE
        # at equal size the bars share one line: ours is wide and pale, the reference's thin and on top
        axes.vlines(
            [size], [height - down], [height + up], color=color, linewidth=5 if ours else 1.6, alpha=0.35 if ours else 1, zorder=2.5
        )
        mark: dict[str, Any] = {"marker": "D", "markersize": 7.5, "zorder": 4} if ours else {"marker": "o", "markersize": 6.5, "zorder": 3}
        axes.plot([size], [height], color=color, markeredgecolor="white", markeredgewidth=0.8, **mark)


def _draw_across(axes: Axes, height: float, text: str) -> None:
    axes.axhline(height, color=QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (0, 3), "textcoords": "offset points", "ha": "right"}
    axes.annotate(text, (0.995, height), fontsize=8.5, color=QUIET, **where)


def _titles(axes: Axes, verdict: Verdict, rows: Sequence[VerdictRow], unit: str, quantity: _Quantity) -> None:
    n_chunks = max((row.statistics.n_chunks for row in rows), default=0)
    axes.set_title(quantity.title, loc="left", fontsize=13, fontweight="bold", pad=24)
    what = f"{verdict.corpus_name}, {n_chunks} chunks of {verdict.n_ctx} tokens. Bars: 95 % interval. Lower and further left is better."
    axes.annotate(what, (0, 1), xycoords="axes fraction", xytext=(0, 8), textcoords="offset points", fontsize=9, color=QUIET)
    axes.set_xlabel(f"File size ({unit})")
    axes.set_ylabel(quantity.axis)


def _label(axes: Axes, rows: Sequence[VerdictRow], sizes: Sequence[float], quantity: _Quantity) -> None:
    """Name each point where its name covers no other name, point or error bar; ours chooses first."""
    taken = [_mark_box(axes, row, size, quantity) for row, size in zip(rows, sizes, strict=True)]
    lines = [box for line in axes.lines[:1] for box in _line_boxes(axes, line)]
    for index in sorted(range(len(rows)), key=lambda index: rows[index].kind != "ours"):
        point = (sizes[index], quantity.height(rows[index]))
        costs = []
        for rank, place in enumerate(_PLACES):
            trial = _annotate(axes, rows[index], point, place)
            box = trial.get_window_extent()
            # a name over a line is still readable, one over another name is not
            costs.append((_covered(box, taken, axes.get_window_extent()) + 0.3 * _covered(box, lines, box) + 20 * rank, rank))
            trial.remove()
        chosen = _annotate(axes, rows[index], point, _PLACES[min(costs)[1]])
        taken.append(chosen.get_window_extent())


def _annotate(axes: Axes, row: VerdictRow, point: tuple[float, float], place: tuple[int, int, str, str]) -> Annotation:
    x, y, horizontal, vertical = place
    ours = row.kind == "ours"
    return axes.annotate(
        f"{_shorten(row.label)}, {row.bits_per_weight:.2f} bpw",
        point,
        xytext=(x, y),
        textcoords="offset points",
        ha=horizontal,
        va=vertical,
        fontsize=10.5 if ours else 9.5,
        fontweight="bold" if ours else "normal",
        color=OURS if ours else INK,
        zorder=5,
        arrowprops={"arrowstyle": "-", "color": QUIET, "linewidth": 0.7, "shrinkB": 6} if abs(y) > 20 else None,
    )


def _mark_box(axes: Axes, row: VerdictRow, size: float, quantity: _Quantity) -> Bbox:
    """The pixels that a point and its error bar cover."""
    from matplotlib.transforms import Bbox

    height, (down, up) = quantity.height(row), quantity.reach(row)
    (x, low), (_, middle), (_, high) = axes.transData.transform([(size, height - down), (size, height), (size, height + up)])
    return Bbox.from_extents(x - 14, min(low, middle - 14), x + 14, max(high, middle + 14))


def _line_boxes(axes: Axes, line: Line2D) -> list[Bbox]:
    """The pixels around the line between the references, as a row of small boxes."""
    from matplotlib.transforms import Bbox

    corners = axes.transData.transform(line.get_xydata())
    steps = np.linspace(0, 1, 60)[:, None]
    points = np.concatenate([start + steps * (end - start) for start, end in itertools.pairwise(corners)] or [corners])
    return [Bbox.from_extents(x - 2, y - 2, x + 2, y + 2) for x, y in points]


def _covered(box: Bbox, taken: Sequence[Bbox], inside: Bbox) -> float:
    """Pixels of `box` that lie over something else or outside the axes."""
    area = box.width * box.height
    within = _shared(box, inside)
    return round(sum(_shared(box, other) for other in taken) + 3 * (area - within))


def _shared(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(0.0, width) * max(0.0, height))


def _shorten(label: str, limit: int = 34) -> str:
    return label if len(label) <= limit else f"{label[: limit // 2 - 1]}…{label[-(limit // 2) :]}"


def _save(figure: Figure, path: Path) -> None:
    # no dates inside: the same verdict gives the same files
    metadata = {"Date": None} if path.suffix == ".svg" else {"Software": "Quantailor"}
    with whole_file(path) as stream:
        figure.savefig(stream, format=path.suffix[1:], metadata=metadata)
