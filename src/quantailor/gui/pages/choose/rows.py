"""What the table, the map and the curve show of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from quantailor.app.choosing.drafts import Draft
from quantailor.app.choosing.planner import Planner, PlannerTensor
from quantailor.app.steps import type_bits
from quantailor.gui.elements.curve import Point
from quantailor.gui.elements.tensor_map import Look, MapCell, Scale, type_look
from quantailor.gui.theme import palette, type_colours
from quantailor.present.charts.colours import LogScale, bits_colour
from quantailor.present.words import figure, percent, size, size_change
from quantailor.records import Cell

MOST_BITS = 16
LARGE_GAIN = 0.1


def table_data(desk: Planner, draft: Draft) -> dict[str, Any]:
    """The table's types and rows as plain data, once for the whole page."""
    names = list(type_bits())
    position = {name: at for at, name in enumerate(names)}
    bits, colours = type_bits(), type_colours()
    rows = [
        {
            "name": tensor.name,
            "weights": tensor.n_elements,
            "base": tensor.type_name,
            "cells": [[position[cell.type_name], cell.size_bytes, log_error(cell)] for cell in tensor.cells],
            "type": draft.types.get(tensor.name, tensor.type_name),
            "pinned": tensor.name in draft.pins,
        }
        for tensor in desk.tensors
    ]
    return {"types": [[name, round(bits[name], 4), colours[name]] for name in names], "rows": rows}


def log_error(cell: Cell) -> float | None:
    """log10 of what curves show: nats of damage where probes tell, else the weights' error; None for a type without loss."""
    return round(math.log10(cell.damage), 3) if cell.damage > 0 else None


class MapPainter:
    """Looks of the map's cells, by type or by the damage that the type does; `choose.js` tells more of a tensor."""

    def __init__(self, tensors: Mapping[str, PlannerTensor], draft: Draft, *, basis: str, by_damage: bool) -> None:
        """The scale of damages is that of the draft, so that colours keep their meaning while types change."""
        self._tensors = tensors
        self._shades, self._line = palette().shades, palette().line
        self._damages: dict[str, dict[str, float]] = {}
        self._log = LogScale(1.0, 10.0)
        self.scale: Scale | None = None
        if by_damage:
            self._damages = {name: {cell.type_name: cell.damage for cell in tensor.cells} for name, tensor in self._tensors.items()}
            chosen = [self._damage(name, draft.types.get(name, "")) or 0.0 for name in self._tensors]
            self._log = LogScale.over(chosen, decades=4.0)
            what = "nats of predicted KLD" if basis == "probes" else "expected damage (ranking only)"
            ends = (figure(self._log.low, 2), figure(self._log.high, 2))
            self.scale = Scale.of_shades(*ends, f"{what} from each tensor's type")

    def _damage(self, name: str, type_name: str) -> float | None:
        return self._damages[name].get(type_name)

    def cells(self, draft: Draft) -> list[MapCell]:
        """All of them."""
        return [
            MapCell(name, item.role, item.layer, item.n_elements, self.look(name, self._type(draft, item)), name in draft.pins)
            for name, item in self._tensors.items()
        ]

    def looks(self, draft: Draft) -> dict[str, Look]:
        """All looks, by name."""
        return {name: self.look(name, self._type(draft, item)) for name, item in self._tensors.items()}

    def _type(self, draft: Draft, tensor: PlannerTensor) -> str:
        return draft.types.get(tensor.name, tensor.type_name)

    def look(self, name: str, type_name: str) -> Look:
        """What a tensor's cell shows for a type."""
        look = type_look(type_name)
        if self.scale is None:
            return look
        damage = self._damage(name, type_name)
        return replace(look, colour=self._line if not damage else self._shades[self._log.step(damage)])


def curve_points(tensor: PlannerTensor, chosen: str) -> list[Point]:
    """A tensor's curve, by rising bits; types without loss have no place on a log axis, and 16 bits would leave the others no room."""
    return [
        (
            cell.type_name,
            cell.bits_per_weight,
            math.log10(cell.damage),
            type_colours().get(cell.type_name, bits_colour(16)),
            f"{cell.bits_per_weight:.3g} bits, {size(cell.size_bytes)}, error {cell.damage:.3g}",
        )
        for cell in tensor.cells
        if cell.damage > 0 and (cell.bits_per_weight < MOST_BITS or cell.type_name == chosen)
    ]


def candidate_hint(cell: Cell, chosen: Cell) -> tuple[str, str]:
    """What another type would change: ("+11.0 MiB", "−63 %")."""
    if cell.type_name == chosen.type_name:
        return size(cell.size_bytes), "as chosen"
    more = cell.size_bytes - chosen.size_bytes
    bytes_told = size_change(more)
    if cell.damage <= 0:
        return bytes_told, "no loss"
    if chosen.damage <= 0:
        return bytes_told, f"{cell.damage:.2g}"
    ratio = cell.damage / chosen.damage
    if ratio < LARGE_GAIN:  # "−100 %" would say that nothing is left
        return bytes_told, f"÷{figure(1 / ratio, 2)}"
    return bytes_told, f"×{_times(ratio)}" if ratio >= 3 else f"{'+' if ratio >= 1 else '−'}{percent(abs(ratio - 1), 0)}"


def _times(ratio: float) -> str:
    """Three figures, and never more letters than the column has room for: "3.37", "844", "3,280", "1e+05"."""
    return f"{ratio:.3g}" if ratio < 1000 else f"{float(f'{ratio:.3g}'):,.0f}" if ratio < 1e5 else f"{ratio:.0e}"


def beaten(tensor: PlannerTensor) -> frozenset[str]:
    """Types that another one beats in both bytes and error."""
    return frozenset(
        cell.type_name
        for cell in tensor.cells
        if any(
            other.size_bytes <= cell.size_bytes
            and other.damage <= cell.damage
            and (other.size_bytes, other.damage) != (cell.size_bytes, cell.damage)
            for other in tensor.cells
        )
    )
