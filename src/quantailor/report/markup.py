"""HTML and SVG as text. Every string is escaped unless it says, by its type, that it is markup already."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

_CLOSES_ITSELF = frozenset({"circle", "line", "link", "meta", "path", "polygon", "polyline", "rect", "use"})


class Markup(str):
    """Text that is HTML already; nothing escapes it again."""

    __slots__ = ()


Content = str | int | float | None
"""What an element may hold; None is nothing."""


def text(content: Content) -> Markup:
    """One piece of content, escaped where it is not markup."""
    if isinstance(content, Markup):
        return content
    return Markup("" if content is None else escape(str(content)))


def join(parts: Iterable[Content], separator: str = "") -> Markup:
    """Pieces one after the other, each escaped where it is not markup."""
    return Markup(separator.join(text(part) for part in parts))


def element(name: str, *children: Content, **attributes: Content) -> Markup:
    """One element: `element("td", "a < b", class_="quiet")`.

    Attribute names drop a trailing underscore and write others as hyphens; None leaves an attribute out, True writes it
    without a value, and floats are written with one decimal, which is enough for coordinates.
    """
    start = name + "".join(_attribute(key, value) for key, value in attributes.items() if value is not None and value is not False)
    if not children and name in _CLOSES_ITSELF:
        return Markup(f"<{start}/>")
    return Markup(f"<{start}>{join(children)}</{name}>")


def number(value: float) -> str:
    """A coordinate: one decimal, and none where it is zero."""
    return f"{value:.1f}".removesuffix(".0")


def _attribute(key: str, value: Content) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    return f' {name}="{number(value) if isinstance(value, float) else escape(str(value))}"'
