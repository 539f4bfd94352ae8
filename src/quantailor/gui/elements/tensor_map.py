"""The layer x role map: one cell a tensor, on a canvas, so that thousands are cheap.

A cell's colour and letters say what the screen is about, its area how large the tensor is; a hollow one is uncertain, a corner means
pinned. The map says what its colours mean, zooms (buttons, keys, Ctrl with the wheel) and scrolls. For screen readers and the keyboard
it is a grid: arrow keys move, Enter picks, Shift with arrows or a drag brushes; a click on a role, a layer or a type brushes all of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from nicegui.element import Element

from quantailor.app.steps import type_bits
from quantailor.gui.theme import palette, type_colours

OUTSIDE = "—"
"""The column of tensors outside the blocks."""
SMALLEST_SIDE = 0.4
"""Of a cell, so that none is lost."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a cell shows."""

    colour: str
    label: str = ""
    """What the tooltip and a screen reader say of it, after its name."""
    text: str = ""
    """What stands in it where there is room."""
    short: str = ""
    """The same where there is little."""
    doubt: float = 0.0
    """How uncertain it is, 0 to 1."""


@dataclass(frozen=True, slots=True)
class MapCell:
    """One tensor on the map."""

    name: str
    role: str
    layer: int | None
    weight: float
    """How large it is, in any unit."""
    look: Look
    is_pinned: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """What shades mean; a map without a scale lists the types in its cells."""

    low: str
    high: str
    caption: str
    background: str
    """The shades as a CSS background."""

    @classmethod
    def of_shades(cls, low: str, high: str, caption: str) -> Scale:
        """With the sequential ramp of the page that is being built."""
        return cls(low, high, caption, f"linear-gradient(90deg, {', '.join(palette().shades)})")


def type_look(type_name: str, label: str = "") -> Look:
    """A type's colour on the ramp, its name and its bits as letters."""
    digits = "".join(letter for letter in type_name if letter.isdigit())[: 2 if "F" in type_name else 1]
    return Look(type_colours()[type_name], label, type_name, f"i{digits}" if type_name.startswith("IQ") else digits)


class TensorMap(Element, component="tensor_map.js"):
    """A map of tensors by role (rows) and layer (columns)."""

    def __init__(
        self,
        cells: Sequence[MapCell],
        *,
        title: str,
        scale: Scale | None = None,
        teller: str = "",
        on_pick: Callable[[str], Any] | None = None,
        on_brush: Callable[[list[str]], Any] | None = None,
    ) -> None:
        """Draw the map.

        Args:
            cells: the tensors; roles are rows in order of first appearance.
            title: the map's name for screen readers.
            scale: what shades mean.
            teller: a global object of the page whose `tell` says more of a tensor by its name.
            on_pick: hears the name of a cell that was clicked, or entered by keyboard.
            on_brush: hears the names of the cells in a dragged rectangle, or of a role, a layer or a type.
        """
        super().__init__()
        roles = list(dict.fromkeys(cell.role for cell in cells))
        layers = sorted({cell.layer for cell in cells if cell.layer is not None})
        outside = any(cell.layer is None for cell in cells)
        place = {layer: at + int(outside) for at, layer in enumerate(layers)}
        cap = max((cell.weight for cell in cells if cell.layer is not None), default=1.0) or 1.0
        self._props["title"] = title
        self._props["rows"] = roles
        self._props["columns"] = ([OUTSIDE] if outside else []) + [str(layer) for layer in layers]
        self._props["order"] = list(type_bits())
        self._props["legend"] = scale and asdict(scale)
        self._props["teller"] = teller
        self._props["brushable"] = on_brush is not None
        looks = {look: at for at, look in enumerate(dict.fromkeys(cell.look for cell in cells))}
        rows = [
            (
                cell.name,
                roles.index(cell.role),
                0 if cell.layer is None else place[cell.layer],
                looks[cell.look],
                # Areas go by the square root, up to the largest within the layers: others stay in sight beside experts and embeddings.
                round(min(1.0, max(SMALLEST_SIDE, (cell.weight / cap) ** 0.25)), 3),
                int(cell.is_pinned),
            )
            for cell in cells
        ]
        # As text: Vue would watch each of thousands of cells, which takes many times as long as drawing them.
        self._props["cells"] = json.dumps({"looks": [astuple(look) for look in looks], "cells": rows}, separators=(",", ":"))
        self._places = {cell.name: at for at, cell in enumerate(cells)}
        if on_pick is not None:
            self.on("pick", lambda event: on_pick(event.args))
        if on_brush is not None:
            self.on("brush", lambda event: on_brush(event.args))

    def set_cells(self, changes: Mapping[str, Look]) -> None:
        """Give tensors, by name, another look."""
        groups: dict[Look, list[int]] = {}
        for name, look in changes.items():
            if (place := self._places.get(name)) is not None:
                groups.setdefault(look, []).append(place)
        self.run_method("change", [[astuple(look), places] for look, places in groups.items()])

    def set_scale(self, scale: Scale | None) -> None:
        """Say what shades mean now, or list the types."""
        self._props["legend"] = scale and asdict(scale)
        self.run_method("explain", self._props["legend"])

    def set_pins(self, names: Collection[str]) -> None:
        """Mark these tensors as pinned, and no others."""
        self.run_method("pin", [place for name, place in self._places.items() if name in names])

    def select(self, name: str | None) -> None:
        """Mark a tensor as the chosen one."""
        self._props["selected"] = name
        self.run_method("mark", name)
