"""The right side: one tensor's curve with its draggable choice, its candidates as radios, and the reason in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from nicegui import ui

from quantailor.app.choosing.planner import PlannerTensor
from quantailor.gui.elements.curve import ErrorCurve
from quantailor.gui.pages.choose import rows
from quantailor.gui.widgets import box, card, chip, text
from quantailor.present.words import listed, plural, shape
from quantailor.records import Cell


class TensorPanel:
    """Shows one tensor; `on_choose` hears its name and the type it is to have."""

    def __init__(self, *, basis: str, on_choose: Callable[[str, str], Any]) -> None:
        self._basis, self._on_choose = basis, on_choose
        self._tensor: PlannerTensor | None = None
        self._chosen, self._all_types = "", False
        self._refused: dict[str, list[str]] = {}
        with card(classes="qt-tensor"):
            self._name = text("", "qt-mono qt-tensor-name", tag="h2")
            self._facts = text("", "qt-small qt-muted")
            self._curve = ErrorCurve(on_choose=lambda type_name: self._choose(type_name))
            self._reason = text("", "qt-small qt-reason").props('aria-live="polite"')
        with card("Candidates"):
            self._radios = ui.element("div").classes("qt-radios").props('role="radiogroup" aria-label="Types of this tensor"')
            self._more = ui.button("", on_click=self._toggle_all, color=None).props("flat dense no-caps").classes("qt-small qt-muted")
            self._not_offered = ui.element("div")

    @property
    def name(self) -> str | None:
        """The tensor that is shown."""
        return None if self._tensor is None else self._tensor.name

    def show(self, tensor: PlannerTensor, chosen: str, reason: str, not_offered: Mapping[str, str]) -> None:
        """Show a tensor with its type and why it has it; `not_offered` says why not others."""
        self._tensor, self._chosen = tensor, chosen
        self._name.set_text(tensor.name)
        lengths = shape(tensor.shape)
        what = "predicted damage (nats)" if self._basis == "probes" else "expected damage (ranking only)"
        self._facts.set_text(f"{lengths} · {tensor.type_name} · {what}")
        self._curve.show(tensor.name, rows.curve_points(tensor, chosen), knee=tensor.knee, chosen=chosen, what=what)
        why = f"{chosen}: {reason}" if reason else "Planning …"
        self._reason.set_text(why if tensor.cells else "This tensor is not measured yet.")
        self._refused = _by_reason(not_offered)
        self._fill_radios(tensor, chosen)

    def _fill_radios(self, tensor: PlannerTensor, chosen: str) -> None:
        """The types worth their bytes; all of them on demand."""
        self._radios.clear()
        no_gain = rows.beaten(tensor) - {chosen}
        shown = [cell for cell in tensor.cells if self._all_types or cell.type_name not in no_gain]
        with self._radios:
            with box("qt-radio qt-radio-head qt-small qt-muted"):
                for label in ("", "Type", "Size", "Error"):
                    text(label, "qt-num" if label in ("Size", "Error") else "", tag="span")
            here = next((cell for cell in tensor.cells if cell.type_name == chosen), None)
            for cell in sorted(shown, key=lambda cell: -cell.bits_per_weight):
                self._radio(cell, here or cell, chosen=cell.type_name == chosen, beaten=cell.type_name in no_gain)
        n = len(no_gain)
        self._more.set_text(f"Hide {plural(n, 'beaten type')}" if self._all_types else f"Show {plural(n, 'type')} that another beats")
        self._more.set_visibility(bool(no_gain))
        self._not_offered.clear()
        with self._not_offered:
            for reason, names in self._refused.items():
                told = reason if len(names) == 1 else reason.replace("needs", "need", 1).replace("of its block", "of their block")
                text(f"{listed(names)}: {told}", "qt-small qt-muted")

    def _radio(self, cell: Cell, here: Cell, *, chosen: bool, beaten: bool) -> None:
        with ui.element("label").classes("qt-radio"):
            option = ui.element("input").props(f'type="radio" name="candidate" value="{cell.type_name}"')
            if chosen:
                option.props("checked")
            option.on("change", lambda: self._choose(cell.type_name))
            with box("", tag="span"):
                chip(cell.type_name)
            size_told, error_told = rows.candidate_hint(cell, here)
            text(size_told, "qt-num", tag="span")
            text(error_told, "qt-num qt-muted" if beaten else "qt-num", tag="span")

    def _toggle_all(self) -> None:
        self._all_types = not self._all_types
        if self._tensor is not None:
            self._fill_radios(self._tensor, self._chosen)

    def _choose(self, type_name: str) -> Any:
        """What the listener returns, so that it is awaited where it has to be."""
        return None if self._tensor is None else self._on_choose(self._tensor.name, type_name)


def _by_reason(not_offered: Mapping[str, str]) -> dict[str, list[str]]:
    """Reason -> types, the commonest reasons together."""
    found: dict[str, list[str]] = {}
    for type_name, reason in not_offered.items():
        found.setdefault(reason.removeprefix(f"{type_name} ").replace(f"{type_name}'s", "its").split(";")[0], []).append(type_name)
    return found
