"""A heat map that is a table: every cell says its figure, so that nothing rests on colour alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from nicegui import ui

from quantailor.gui.theme import palette
from quantailor.gui.widgets import box, named, text
from quantailor.present.charts.colours import blend, text_on

N_LEGEND_STEPS = 24


class HeatScale:
    """Shares from 0 to `highest` as colours from the card's surface to the accent; square roots, so that small ones differ too."""

    def __init__(self, highest: float) -> None:
        self.highest = highest if highest > 0 else 1.0
        colours = palette()
        self._low, self._high = colours.surface, colours.accent

    def colour(self, value: float) -> str:
        """The colour of a value, as "#rrggbb"."""
        return blend(self._low, self._high, min(1.0, max(0.0, value) / self.highest) ** 0.5)

    def style(self, value: float) -> str:
        """A cell's background, and black or white upon it, whichever is read better."""
        colour = self.colour(value)
        return f"background: {colour}; color: {text_on(colour)}"


def heat_table(
    columns: Sequence[str],
    rows: Mapping[str, Sequence[float | None]],
    *,
    scale: HeatScale,
    caption: str,
    write: Callable[[float], str],
    corner: str,
    unmeasured: Collection[str] = (),
) -> None:
    """Draw the map.

    Args:
        columns: headings of the columns.
        rows: a row's heading -> its values; None where there is nothing to say.
        scale: the colours.
        caption: the table's name for screen readers.
        write: a value as text.
        corner: heading of the column of headings.
        unmeasured: headings of rows that are in the model, though not all of their values are known.
    """
    with named(ui.element("table").classes("qt-heat"), caption):
        with ui.element("thead"), ui.element("tr"):
            for name in (corner, *columns):
                text(name, tag="th").props('scope="col"')
        with ui.element("tbody"):
            for heading, values in rows.items():
                with ui.element("tr"):
                    text(heading, "qt-mono", tag="th").props('scope="row"')
                    if all(value is None for value in values):
                        text("not measured" if heading in unmeasured else "not in this model", "qt-muted", tag="td").props(
                            f"colspan={len(columns)}"
                        )
                        continue
                    for value in values:
                        cell = text("–" if value is None else write(value), "qt-num", tag="td")
                        if value is not None:
                            cell.style(scale.style(value))


def heat_legend(scale: HeatScale, name: str, write: Callable[[float], str]) -> None:
    """The scale as a bar with figures at its ends and its middle."""
    with box("qt-row qt-small qt-muted"):
        text(name)
        text(write(0.0), "qt-num")
        with box("qt-heat-legend") as bar:
            bar.props('aria-hidden="true"')
            for step in range(N_LEGEND_STEPS):
                share = step / (N_LEGEND_STEPS - 1)
                ui.element("span").style(f"background: {scale.colour(scale.highest * share**2)}")
        text(write(scale.highest), "qt-num")
