"""A heat map: rows by columns of shades, each with its value as text where there is room, and always as a tooltip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantailor.report.markup import Markup, element, join
from quantailor.report.svg import Ramp, label, path_of, svg, titled

Mark = Literal["", "bound", "absent", "unknown"]
"""bound: the value is an upper bound; absent: there is nothing to measure; unknown: it has not been measured."""

_TEXT_WIDTH = 6.3
"""Of one character in a cell."""


@dataclass(frozen=True, slots=True)
class GridCell:
    """One place of a grid."""

    row: int
    column: int
    title: str
    """The tooltip: what it is, and its value with its error."""
    value: float | None = None
    """What the shade shows; None leaves the cell without one."""
    texts: tuple[str, ...] = ()
    """What may stand in the cell, longest first; the first that fits does."""
    mark: Mark = ""
    width: float | None = None
    """Of this cell, where it is not a column's."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a grid, in user units."""

    width: float = 1180
    gutter: float = 130
    """Left of the cells, for the names of rows."""
    row_height: float = 24
    max_cell: float = 132
    mono_rows: bool = False

    def cell_width(self, n_columns: int) -> float:
        """Width of one column."""
        return min(self.max_cell, (self.width - self.gutter - 4) / max(1, n_columns))


def grid(
    cells: Sequence[GridCell], rows: Sequence[str], columns: Sequence[str], ramp: Ramp, *, title: str, layout: Layout, axis: str = ""
) -> Markup:
    """Draw the cells. `axis` names the columns; their own names are left out, turned or thinned where they do not fit."""
    each = layout.cell_width(len(columns))
    turned = _turned(columns, each)
    top = (10 + max(len(name) for name in columns) * 5.2 if turned else 18 if columns else 0) + (18 if axis else 0)
    height = top + len(rows) * layout.row_height + 4
    row_class = "row mono" if layout.mono_rows else "row"
    names = [
        label(layout.gutter - 8, top + (index + 0.5) * layout.row_height + 4, name, anchor="end", class_=row_class)
        for index, name in enumerate(rows)
    ]
    texts = _have_room(cells, each)
    shapes = [
        _cell(cell, layout.gutter + cell.column * each, top + cell.row * layout.row_height, each, layout.row_height, ramp, texts)
        for cell in cells
    ]
    heads = _column_names(columns, each, layout.gutter, top, turned)
    name = label(layout.gutter, 12, axis, class_="axis") if axis else None
    return svg(layout.width, height, title, name, heads, *names, *shapes)


def _turned(columns: Sequence[str], each: float) -> bool:
    numbers = all(name.isdigit() for name in columns)
    return not numbers and any(len(name) * _TEXT_WIDTH > each - 4 for name in columns)


def _column_names(columns: Sequence[str], each: float, left: float, top: float, turned: bool) -> Markup:
    # numbers that do not fit side by side are thinned: every second, fifth, tenth ...
    widest = max((len(name) for name in columns), default=0) * _TEXT_WIDTH + 6
    every = 1 if turned else next((step for step in (1, 2, 5, 10, 20, 50, 100) if step * each >= widest), 200)
    names = []
    for index, name in enumerate(columns):
        if index % every == 0:
            x = left + (index + 0.5) * each
            shape = (
                label(x + 3, top - 6, name, class_="tick", turn=-60) if turned else label(x, top - 6, name, anchor="middle", class_="tick")
            )
            names.append(shape)
    return join(names)


def _have_room(cells: Sequence[GridCell], each: float) -> bool:
    """Whether most cells can hold a text; where only a few can, a map reads better without."""
    shortest = [cell for cell in cells if cell.texts]
    fitting = sum(len(cell.texts[-1]) * _TEXT_WIDTH + 4 <= (cell.width or each) for cell in shortest)
    return fitting >= 0.6 * len(shortest)


def _cell(cell: GridCell, x: float, y: float, each: float, height: float, ramp: Ramp, texts: bool) -> Markup:
    width = max((cell.width or each) - (2 if each > 8 else 0.4), 0.5)
    inner = height - (2 if height > 8 else 0.4)
    step = None if cell.value is None else ramp.step(cell.value)
    shape = titled("rect", cell.title, x=x, y=y, width=width, height=inner, class_="none" if step is None else f"c r{step}")
    color = "quiet" if step is None else f"t{step}"
    return join([shape, _inside(cell, x, y, width, inner, color, texts)])


def _inside(cell: GridCell, x: float, y: float, width: float, height: float, color: str, texts: bool) -> Markup:
    fitting = [text for text in cell.texts if len(text) * _TEXT_WIDTH + (14 if cell.mark else 4) <= width] if texts and height >= 13 else []
    shift = 0.0
    parts = []
    if cell.mark:
        at = x + 8 if fitting else x + width / 2
        parts.append(mark_shape(cell.mark, at, y + height / 2, min(3.6, width / 2.4), color))
        shift = 5.0
    if fitting:
        parts.append(label(x + width / 2 + shift, y + height / 2 + 4, fitting[0], anchor="middle", class_=f"v {color}"))
    return join(parts)


def mark_shape(mark: Mark, x: float, y: float, size: float, color: str) -> Markup:
    """The sign of a mark: a triangle downwards, a cross or a dot."""
    if mark == "bound":
        return element(
            "path", d=path_of([(x - size, y - size * 0.8), (x + size, y - size * 0.8), (x, y + size)]) + "z", class_=f"m {color}"
        )
    if mark == "absent":
        cross = path_of([(x - size, y - size), (x + size, y + size)]) + path_of([(x - size, y + size), (x + size, y - size)])
        return element("path", d=cross, class_=f"x {color}")
    return element("circle", cx=x, cy=y, r=min(1.8, size), class_=f"m {color}")


def mark_legend(meanings: Sequence[tuple[Mark, str]]) -> Markup:
    """What the marks mean, as a list with their signs."""
    items = [
        element("li", element("svg", mark_shape(mark, 7, 7, 3.6, "ink"), viewBox="0 0 14 14", class_="key", aria_hidden="true"), meaning)
        for mark, meaning in meanings
    ]
    return element("ul", *items, class_="keys")
