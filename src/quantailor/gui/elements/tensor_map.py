"""The layer x role map: one cell a tensor, on a canvas, so that thousands are cheap.

The canvas is a grid for screen readers and the keyboard: arrow keys move, Enter picks, Shift with arrows or a drag brushes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import events
from nicegui.element import Element

OUTSIDE = "—"
"""The column of tensors outside the blocks."""


@dataclass(frozen=True, slots=True)
class MapCell:
    """One tensor on the map."""

    name: str
    role: str
    layer: int | None
    colour: str
    label: str
    """What the tooltip and a screen reader say of it, after its name."""
    weight: float = 1.0
    """How large it is drawn where the map is `sized`; any unit."""


class TensorMap(Element, component="tensor_map.js"):
    """A map of tensors by role (rows) and layer (columns)."""

    def __init__(
        self,
        cells: Sequence[MapCell],
        *,
        title: str,
        on_pick: Callable[[str], Any] | None = None,
        on_brush: Callable[[list[str]], Any] | None = None,
        sized: bool = False,
    ) -> None:
        """Draw the map.

        Args:
            cells: the tensors; roles are rows in order of first appearance.
            title: the map's name for screen readers.
            on_pick: hears the name of a cell that was clicked, or entered by keyboard.
            on_brush: hears the names of the cells in a dragged rectangle.
            sized: draw each cell's area by its weight, within its place.
        """
        super().__init__()
        roles = list(dict.fromkeys(cell.role for cell in cells))
        layers = sorted({cell.layer for cell in cells if cell.layer is not None})
        outside = any(cell.layer is None for cell in cells)
        columns = ([OUTSIDE] if outside else []) + [str(layer) for layer in layers]
        place = {layer: at + int(outside) for at, layer in enumerate(layers)}
        heaviest = max((cell.weight for cell in cells), default=1.0) or 1.0
        self._props["title"] = title
        self._props["rows"] = roles
        self._props["columns"] = columns
        self._props["brushable"] = on_brush is not None
        self._props["cells"] = [
            [
                cell.name,
                roles.index(cell.role),
                0 if cell.layer is None else place[cell.layer],
                cell.colour,
                cell.label,
                (cell.weight / heaviest) ** 0.5 if sized else 1.0,
            ]
            for cell in cells
        ]
        self._places = {cell.name: at for at, cell in enumerate(cells)}
        if on_pick is not None:
            self.on("pick", lambda event: on_pick(_argument(event)))
        if on_brush is not None:
            self.on("brush", lambda event: on_brush(list(_argument(event))))

    def set_cells(self, changes: Mapping[str, tuple[str, str]]) -> None:
        """Give tensors, by name, another colour and label."""
        groups: dict[tuple[str, str], list[int]] = {}
        for name, look in changes.items():
            if (place := self._places.get(name)) is not None:
                self._props["cells"][place][3:5] = look
                groups.setdefault(look, []).append(place)
        self.run_method("change", [[*look, places] for look, places in groups.items()])

    def select(self, name: str | None) -> None:
        """Mark a tensor as the chosen one."""
        self._props["selected"] = name
        self.run_method("mark", name)


def _argument(event: events.GenericEventArguments) -> Any:
    return event.args[0] if isinstance(event.args, list) and len(event.args) == 1 else event.args
