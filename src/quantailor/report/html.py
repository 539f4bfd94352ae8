"""The frame of a page, sections and tables."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from quantailor.report.markup import Content, Markup, element, join, number
from quantailor.report.style import SCRIPT, stylesheet
from quantailor.report.svg import Scale

_CLASSES = {"text": None, "number": "n", "prose": "w"}
TALL_ROWS = 24
"""A table of more rows scrolls in a box of its own."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table; numbers stand on the right and sort as numbers, prose may break into lines."""

    title: Content
    kind: Literal["text", "number", "prose"] = "text"
    hint: str | None = None
    """A tooltip that says what the column holds."""
    sortable: bool = True
    swatch: str | None = None
    """A colour, as #rrggbb, that stands for the column elsewhere."""


@dataclass(frozen=True, slots=True)
class Sorted:
    """A table cell that sorts by something other than its text; None goes last."""

    content: Content
    key: float | str | None


TableCell = Content | Sorted


def page(title: str, *body: Content, sections: Sequence[tuple[str, str]], head: Content) -> str:
    """A whole document; `sections` are (id, name) for the links at the top.

    The policy in the head forbids every request and every script but the page's own.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    links = element("nav", *(element("a", name, href=f"#{place}") for place, name in sections), aria_label="Sections")
    document = element(
        "html",
        element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", http_equiv="Content-Security-Policy", content=policy),
            element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name_="color-scheme", content="light dark"),
            element("link", rel="icon", href="data:,"),
            element("title", title),
            element("style", Markup(stylesheet())),
        ),
        element("body", element("div", element("header", head, links), element("main", *body, id="main"), class_="page"), _script()),
        lang="en",
    )
    return f"<!doctype html>\n{document}\n"


def _script() -> Markup:
    return element("script", Markup(SCRIPT))


def section(id: str, title: str, *parts: Content) -> Markup:
    """A part of the page under its heading."""
    return element("section", element("h2", title, id=f"{id}-title"), *parts, id=id, aria_labelledby=f"{id}-title")


def paragraph(*parts: Content, class_: str | None = None) -> Markup:
    """A paragraph."""
    return element("p", *parts, class_=class_)


def todo(before: str, command: str) -> Markup:
    """One sentence that says what is missing and what to run for it."""
    return paragraph(f"{before}: run ", element("code", command), ".", class_="todo")


def basis(sentence: str) -> Markup:
    """What a section's figures rest on."""
    return paragraph(f"Basis: {sentence}.", class_="basis")


def facts(pairs: Iterable[tuple[str, Content]]) -> Markup:
    """A strip of large figures with their names."""
    return element("dl", *(element("div", element("dt", name), element("dd", value)) for name, value in pairs), class_="facts")


def mono(content: str) -> Markup:
    """A name that is spelled exactly, such as a tensor's."""
    return element("span", content, class_="mono")


def captioned(caption: Content, *parts: Content) -> Markup:
    """Pictures under a caption."""
    return element("figure", element("figcaption", caption), *parts)


def lines(*parts: Content) -> Markup:
    """Pieces one under the other."""
    return join(element("span", part, class_="line") for part in parts)


def whisker(value: float, low: float, high: float, scale: Scale, *, bound: bool = False, at: float | None = None) -> Markup:
    """A small picture of a figure with its interval on a common scale; `at` marks a value to compare with.

    One element, drawn by the style sheet: a table may have thousands.
    """
    places = {"m": value, "a": low, "b": high, **({} if at is None else {"o": at})}
    style = ";".join(f"--{name}:{number(100 * scale.share(place))}" for name, place in places.items())
    kind = " bound" if bound else "" if at is None else " against"
    return element("i", class_=f"whisker{kind}", style=style)


def details(summary: str, *parts: Content) -> Markup:
    """Parts that show on demand."""
    return element("details", element("summary", summary), *parts)


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[TableCell]],
    *,
    caption: str,
    sorted_by: int | None = None,
    sortable: bool = False,
    row_classes: Sequence[str | None] = (),
) -> Markup:
    """A table whose first column names the rows; `sorted_by` is the column that the rows descend by already."""
    heads = [_head(column, sortable and column.sortable, index == sorted_by) for index, column in enumerate(columns)]
    classes = row_classes or [None] * len(rows)
    lines = [element("tr", *_cells(columns, row), class_=class_) for row, class_ in zip(rows, classes, strict=True)]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),
        element("tbody", join(lines, "\n")),
        class_="sortable" if sortable else None,
    )
    tall = len(rows) > TALL_ROWS
    return element("div", whole, class_="tall" if tall else "wide", tabindex="0", role="region", aria_label=caption)


def _head(column: Column, sortable: bool, descending: bool) -> Markup:
    swatch = element("span", class_="swatch", style=f"background:{column.swatch}") if column.swatch else None
    content = element("button", swatch, column.title, type_="button") if sortable else join([swatch, column.title])
    return element(
        "th",
        content,
        scope="col",
        class_=_CLASSES[column.kind],
        title=column.hint,
        aria_sort="descending" if descending else None,
    )


def _cells(columns: Sequence[Column], row: Sequence[TableCell]) -> list[Markup]:
    return [_cell(column, cell, first=index == 0) for index, (column, cell) in enumerate(zip(columns, row, strict=True))]


def _cell(column: Column, cell: TableCell, *, first: bool) -> Markup:
    content, key = (cell.content, "" if cell.key is None else str(cell.key)) if isinstance(cell, Sorted) else (cell, None)
    class_ = _CLASSES[column.kind]
    if first:
        return element("th", content, scope="row", data_v=key, class_=class_)
    return element("td", content, data_v=key, class_=class_)
