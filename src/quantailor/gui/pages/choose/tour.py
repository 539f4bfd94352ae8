"""Three steps through Choose for whoever sees it for the first time; that somebody has seen them is remembered in the home."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from nicegui import ui

from quantailor.gui.context import workspace
from quantailor.gui.widgets import box, named, primary, quiet, text

MARKED = "qt-tour-place"
NARROW = 999
"""Pixels of a window in which the page has to scroll, as the style sheet has it."""


@dataclass(frozen=True, slots=True)
class Stop:
    """One step: what it says, and the part of the page that it is about."""

    title: str
    advice: str
    place: ui.element


class Tour:
    """A strip on top of the screen, in the order of the page for keyboards and screen readers; it covers nothing."""

    def __init__(self) -> None:
        self._seen = workspace().home.path / "gui" / "toured"
        self._stops: Sequence[Stop] = ()
        self._at = 0
        with named(ui.element("section").classes("qt-card qt-tour"), "Tour") as self._strip:
            self._number = text("", "qt-tour-number")
            with box("qt-grow") as said:
                said.props('aria-live="polite"')
                self._title = text("", "qt-tour-title", tag="h2")
                self._advice = text("", "qt-tour-advice")
            with box("qt-row qt-tight"):
                self._skip = quiet("Skip", self._end).props("dense")
                self._back = quiet("Back", lambda: self._go(self._at - 1)).props("dense")
                self._next = primary("Next", lambda: self._go(self._at + 1)).props("dense")
        self._strip.on("keydown.escape", self._end)
        self._strip.set_visibility(False)

    def lead(self, stops: Sequence[Stop]) -> None:
        """Give the steps, and begin where nobody has seen them."""
        self._stops = stops
        if not self._seen.exists():
            self._show(0)

    def begin(self) -> None:
        """Show it from the first step, whoever has seen it."""
        self._show(0)
        ui.run_javascript(f"getHtmlElement({self._next.id}).focus()")

    def _go(self, at: int) -> None:
        if at == len(self._stops):
            self._end()
            return
        self._show(at)
        place = self._stops[at].place.id
        ui.run_javascript(f"innerWidth > {NARROW} || getHtmlElement({place}).scrollIntoView({{block: 'nearest', behavior: 'instant'}})")

    def _show(self, at: int) -> None:
        self._stops[self._at].place.classes(remove=MARKED)
        stop, self._at = self._stops[at], at
        stop.place.classes(add=MARKED)
        self._number.set_text(f"{at + 1} of {len(self._stops)}")
        self._title.set_text(stop.title)
        self._advice.set_text(stop.advice)
        is_last = at + 1 == len(self._stops)
        self._skip.set_visibility(not is_last)
        self._back.set_visibility(at > 0)
        self._next.set_text("Done" if is_last else "Next")
        self._strip.set_visibility(True)

    def _end(self) -> None:
        self._strip.set_visibility(False)
        self._stops[self._at].place.classes(remove=MARKED)
        with suppress(OSError):  # a home that cannot be written to shows it again
            self._seen.parent.mkdir(parents=True, exist_ok=True)
            self._seen.touch()
