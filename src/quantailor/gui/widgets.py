"""The small parts that screens are made of; all text goes in as text, never as markup."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, ParamSpec, TypeVar

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from quantailor.errors import OutputError, QuantailorError
from quantailor.gui.page_words import on_page
from quantailor.gui.theme import type_colours
from quantailor.present.charts.colours import bits_colour

P = ParamSpec("P")
TableCell = str | Callable[[], object]
"""A cell's text, or what builds its content."""


def text(content: str, classes: str = "", *, tag: str = "div") -> TextElement:
    """An element that holds plain text."""
    return TextElement(tag=tag, text=content).classes(classes)


Element = TypeVar("Element", bound=ui.element)


def named(element: Element, name: str) -> Element:
    """Give an element its name for screen readers; unlike `props` this takes any text, quotes and all, as it is."""
    element.props["aria-label"] = name
    return element


def explained(element: Element, words: str) -> Element:
    """Say what something is where the pointer rests on it or the keyboard comes to it; Escape closes that again."""
    element.props["tabindex"], element.props["aria-description"] = "0", words
    with element:
        tip = ui.tooltip(words).classes("qt-why")
    for event, verb in (("focus", "show"), ("blur", "hide"), ("keydown.escape", "hide")):
        element.on(event, js_handler=f"() => getElement({tip.id})?.{verb}()")
    return element


@contextmanager
def card(title: str | None = None, classes: str = "", *, hint: str = "") -> Iterator[ui.element]:
    """A surface with a small heading, which `hint` explains; a section with a name for screen readers."""
    with ui.element("section").classes(f"qt-card {classes}".strip()) as section:
        if title is not None:
            named(section, title)
            with heading("" if hint else title, 2, "qt-card-title"):
                if hint:
                    explained(text(title, "qt-hinted", tag="span"), hint)
        yield section


def heading(content: str, level: int, classes: str = "") -> TextElement:
    """A heading of the page's outline."""
    return text(content, classes, tag=f"h{level}")


@contextmanager
def box(classes: str, tag: str = "div") -> Iterator[ui.element]:
    """An element with style sheet classes: qt-row, qt-stack, qt-grid, qt-grow, qt-spread, qt-wrap."""
    with ui.element(tag).classes(classes) as element:
        yield element


class Stat:
    """A large figure over a small label, `hint` explains it; `set` changes the figure."""

    def __init__(self, label: str, value: str = "", *, hint: str = "") -> None:
        with ui.element("div") as self.element:
            self.value = ui.label(value).classes("qt-stat-value")
            self.label = ui.label(label).classes("qt-stat-label")
        if hint:
            explained(self.element, hint)
            self.label.classes("qt-hinted")

    def set(self, value: str, label: str | None = None) -> None:
        """Show another figure, and perhaps another label."""
        self.value.set_text(value)
        if label is not None:
            self.label.set_text(label)


def chip(type_name: str) -> ui.element:
    """A type's name on its colour of the ramp."""
    colour = type_colours().get(type_name, bits_colour(16))
    return ui.label(type_name).classes("qt-chip").style(f"background: {colour}")


def primary(label: str, on_click: Callable[..., Any] | None = None, *, icon: str | None = None) -> ui.button:
    """The one thing to do on a screen."""
    return ui.button(label, on_click=on_click, icon=icon, color=None).props("unelevated no-caps").classes("qt-primary")


def quiet(label: str, on_click: Callable[..., Any] | None = None, *, icon: str | None = None) -> ui.button:
    """Any other button."""
    return ui.button(label, on_click=on_click, icon=icon, color=None).props("unelevated no-caps").classes("qt-quiet")


def segment(choices: Mapping[Any, str], value: object, name: str, on_change: Callable[..., Any], classes: str = "") -> ui.toggle:
    """One of a few choices that stand side by side; `name` is for screen readers."""
    toggle = ui.toggle(dict(choices), value=value, on_change=on_change).classes(f"qt-segment {classes}".rstrip())
    return named(toggle.props("no-caps unelevated dense toggle-color=none toggle-text-color=none"), name)


def icon_button(icon: str, label: str, on_click: Callable[..., Any] | None = None) -> ui.button:
    """A button that shows only an icon; `label` is its name and its tooltip."""
    button = named(ui.button(icon=icon, on_click=on_click, color=None).props("flat round dense"), label).style("color: var(--qt-text)")
    with button:
        ui.tooltip(label)
    return button


def empty(title: str, advice: str, *, action: str | None = None, target: str | Callable[..., Any] | None = None) -> ui.element:
    """What a screen says when it has nothing to show yet: what it will show, and what to do next."""
    with box("qt-card qt-empty") as element:
        text(title, "qt-empty-title")
        text(advice)
        if action is not None and target is not None:
            primary(action, (lambda: ui.navigate.to(target)) if isinstance(target, str) else target)
    return element


def note(content: str, tone: Literal["", "bad", "warn"] = "") -> TextElement:
    """A remark with a coloured edge."""
    return text(content, f"qt-note qt-note-{tone}" if tone else "qt-note").props('role="note"')


def error_note(error: QuantailorError) -> None:
    """An error on a page: what is wrong, and the remedy."""
    with box("qt-note qt-note-bad") as element:
        element.props('role="alert"')
        text(on_page(error.message))
        if error.remedy:
            text(on_page(error.remedy), "qt-muted")


def tell_error(error: QuantailorError) -> None:
    """An error as a notification: what is wrong, and the remedy."""
    ui.notify(on_page(str(error)), type="negative", position="top", multi_line=True, close_button="Close", timeout=12000)


def told(action: Callable[P, Any]) -> Callable[P, Awaitable[None]]:
    """Wrap a handler (plain or async) so that a QuantailorError, or what the system refuses of a file, becomes a notification."""

    @functools.wraps(action)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            result = action(*args, **kwargs)
            if inspect.isawaitable(result):
                await result
        except QuantailorError as error:
            tell_error(error)
        except OSError as error:
            tell_error(OutputError(f"{error.filename or 'A file'} cannot be used: {error.strerror or error}", remedy="Choose another"))

    return wrapped


def table(columns: Mapping[str, bool], rows: Iterable[Sequence[TableCell]], *, caption: str) -> ui.element:
    """A small plain table. `columns` maps a heading to whether its cells are numbers; `caption` names it for screen readers."""
    with named(ui.element("table").classes("qt-table"), caption) as element:
        with ui.element("thead"), ui.element("tr"):
            for name, number in columns.items():
                text(name, "qt-num" if number else "", tag="th").props('scope="col"')
        with ui.element("tbody"):
            for row in rows:
                with ui.element("tr"):
                    for cell, number in zip(row, columns.values(), strict=True):
                        if isinstance(cell, str):
                            text(cell, "qt-num" if number else "", tag="td")
                        else:
                            with ui.element("td"):
                                cell()
    return element


def scrolling_table(columns: Mapping[str, bool], rows: Iterable[Sequence[TableCell]], *, caption: str) -> None:
    """A table that scrolls by itself, also by keyboard."""
    with named(ui.element("div").classes("qt-scroll"), caption).props('tabindex="0" role="region"'):
        table(columns, rows, caption=caption)


def copy_line(line: str) -> None:
    """A command line with a button that copies it."""
    with box("qt-row"):
        text(line, "qt-code qt-grow")
        icon_button("content_copy", "Copy", lambda: copy(line))


def copy(content: str) -> None:
    """Put something on the clipboard, and say so."""
    ui.clipboard.write(content)
    ui.notify("Copied")
