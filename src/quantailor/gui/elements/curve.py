"""One tensor's error against bits per weight, with its knee and its choice; dragging or arrow keys change the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nicegui.element import Element

Point = tuple[str, float, float, str, str]
"""Type, bits per weight, log10 of the error, colour, and what to say of it."""


class ErrorCurve(Element, component="curve.js"):
    """A tensor's curve."""

    def __init__(self, *, on_choose: Callable[[str], Any]) -> None:
        """`on_choose` hears the type that the user dragged to."""
        super().__init__()
        self._props.update(title="", name="", points=[], knee="", chosen="", height=250)
        self.on("choose", lambda event: on_choose(event.args if isinstance(event.args, str) else event.args[0]))

    def show(self, name: str, points: Sequence[Point], *, knee: str | None, chosen: str, what: str) -> None:
        """Show a tensor; `points` come by rising bits, `what` names the error."""
        self._props["title"] = f"{what} of {name} at each type"
        self._props["name"] = name
        self._props["points"] = [list(point) for point in points]
        self._props["knee"] = knee or ""
        self._props["chosen"] = chosen
        self.update()

    def choose(self, type_name: str) -> None:
        """Move the mark to another type."""
        self._props["chosen"] = type_name
        self.update()
