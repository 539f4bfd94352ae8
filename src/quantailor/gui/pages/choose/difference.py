"""Any two of the draft, the other versions and llama.cpp's presets: what differs, on the map too, and what each comes to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nicegui import run, ui

from quantailor.app.choosing.comparing import preset_types_of
from quantailor.app.choosing.drafts import Draft, list_drafts
from quantailor.app.choosing.planner import Difference, Planner
from quantailor.app.library.projects import ProjectReport
from quantailor.app.steps import type_bits
from quantailor.gui import desks
from quantailor.gui.context import workspace
from quantailor.gui.elements.tensor_map import Look, MapCell, Scale, TensorMap
from quantailor.gui.pages.choose.rule_dialog import PRESETS
from quantailor.gui.theme import palette
from quantailor.gui.widgets import box, chip, named, note, quiet, scrolling_table, table, text, told
from quantailor.present.charts.colours import blend
from quantailor.present.words import PREDICTED_SPEED, generation_speed, kld, plural, size, size_change

MAX_ROWS = 60
HERE = "here"
"""The draft that the screen shows."""


class DifferenceDialog:
    """`open` shows it; `on_take` hears the other side's types and a label where the user takes them over."""

    def __init__(
        self, project: ProjectReport, desk: Planner, draft: Callable[[], Draft], *, on_take: Callable[[dict[str, str], str], Any]
    ) -> None:
        self._project, self._desk, self._draft, self._on_take = project, desk, draft, on_take
        self._types: dict[str, str] = {}
        with named(ui.dialog(), "Compare") as self._dialog, ui.card().classes("qt-dialog qt-dialog-wide"):
            text("Two choices side by side", "qt-title", tag="h2")
            with box("qt-row qt-wrap"):
                self._one = ui.select({HERE: "this draft"}, label="Choice", value=HERE, on_change=told(self._show))
                self._one.props("outlined dense").classes("qt-grow qt-side-select")
                self._other = ui.select({}, label="Beside", on_change=told(self._show))
                self._other.props("outlined dense").classes("qt-grow qt-side-select")
                self._button = quiet("Take its types over", told(self._take))
                quiet("Close", self._dialog.close)
            self._result = ui.element("div").classes("qt-stack")

    async def open(self, beside: str | None = None) -> None:
        """Show the dialog, beside that version, or Q4_K_M at first."""
        drafts = await run.io_bound(list_drafts, workspace(), self._project.fingerprint) or []
        others = {f"draft:{item.name}": f"version {item.name}" for item in drafts if item.name != self._draft().name}
        others |= {f"preset:{name}": f"llama.cpp's {name}" for name in PRESETS}
        self._one.set_options({HERE: "this draft", **others}, value=self._one.value if self._one.value in others else HERE)
        wanted = self._other.value if beside is None else f"draft:{beside}"
        chosen = wanted if wanted in others else "preset:Q4_K_M"
        is_same = chosen == self._other.value
        self._other.set_options(others, value=chosen)
        self._dialog.open()
        if is_same:
            await self._show()

    async def _show(self) -> None:
        sides = [self._one.value or HERE, self._other.value]
        if sides[1] is None:
            return
        one, self._types = [await run.io_bound(self._types_of, side) or {} for side in sides]
        found = await run.io_bound(self._desk.difference, one, self._types)
        self._result.clear()
        if found is not None:
            with self._result:
                one_name, other_name = self._one.options[sides[0]], self._other.options[sides[1]]
                _show_difference(found, one_name, other_name if other_name != one_name else f"{other_name} itself", self._desk)

    def _types_of(self, side: str) -> dict[str, str]:
        kind, _, name = side.partition(":")
        if side == HERE:
            return dict(self._draft().types_known_to(self._desk))
        if kind == "draft":
            return desks.draft_of(self._project, name).latest(self._desk).types_known_to(self._desk)
        return dict(preset_types_of(workspace(), Path(self._desk.model.source.location), name))

    async def _take(self) -> None:
        kind, _, name = str(self._other.value).partition(":")
        await self._on_take(self._types, f"{kind} {name}")
        self._dialog.close()


def _map(found: Difference, one: str, other: str, desk: Planner) -> None:
    """Where the first has more bits, and where fewer."""
    colours, bits = palette(), type_bits()
    differs = {item.tensor: item for item in found.tensors}

    def look(name: str) -> Look:
        item = differs.get(name)
        if item is None:
            return Look(colours.line, "the same type")
        more = bits[item.type_a] - bits[item.type_b]
        colour = blend(colours.line, colours.reference if more > 0 else colours.warm, min(1.0, 0.35 + abs(more) / 4))
        return Look(
            colour, f"{item.type_a} in {one}, {item.type_b} in {other}, {size_change(item.bytes_more)}", f"{more:+.1f}".replace("-", "−")
        )

    cells = [MapCell(item.name, item.role, item.layer, item.n_elements, look(item.name)) for item in desk.tensors if item.cells]
    shades = f"linear-gradient(90deg, {colours.warm}, {colours.line}, {colours.reference})"
    TensorMap(cells, title="Difference by layer and role", scale=Scale("fewer bits", "more", f"in {one} than in {other}", shades))


def _show_difference(found: Difference, one: str, other: str, desk: Planner) -> None:
    rows = [
        ("file", size(found.ours.file_size_bytes), size(found.theirs.file_size_bytes)),
        ("bits per weight", f"{found.ours.bits_per_weight:.3f}", f"{found.theirs.bits_per_weight:.3f}"),
        ("predicted KLD", *(kld(side.kld_nats, side.kld_interval_nats, side.no_prediction) for side in (found.ours, found.theirs))),
    ]
    if desk.knows_speeds:
        rows.append((PREDICTED_SPEED, generation_speed(found.our_speed), generation_speed(found.their_speed)))
    table({"": False, one: True, other: True}, rows, caption="Figures of both")
    if not found.tensors:
        note("No tensor differs.")
        return
    _map(found, one, other, desk)
    differ = "differs" if len(found.tensors) == 1 else "differ"
    text(
        f"{plural(len(found.tensors), 'tensor')} {differ}"
        + (f"; the {MAX_ROWS} largest changes:" if len(found.tensors) > MAX_ROWS else ":")
    )
    changes = [
        (partial(text, item.tensor, "qt-mono"), partial(chip, item.type_a), partial(chip, item.type_b), size_change(item.bytes_more))
        for item in found.tensors[:MAX_ROWS]
    ]
    columns = {"Tensor": False, one: False, other: False, "Larger by": True}
    scrolling_table(columns, changes, caption="Tensors that differ")
