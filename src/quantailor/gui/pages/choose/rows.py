"""What the table, the map and the curve show of tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from quantailor.app.choosing.drafts import Draft
from quantailor.app.choosing.planner import Planner, PlannerTensor
from quantailor.app.steps import type_bits
from quantailor.gui.elements.curve import Point
from quantailor.gui.elements.tensor_map import MapCell
from quantailor.gui.theme import type_colours
from quantailor.present.charts.colours import bits_colour
from quantailor.present.words import percent, size, size_change
from quantailor.records import Cell


def table_data(desk: Planner, draft: Draft) -> dict[str, Any]:
    """The table's types and rows as plain data, once for the whole page."""
    names = list(type_bits())
    position = {name: at for at, name in enumerate(names)}
    bits, colours = type_bits(), type_colours()
    rows = [
        {
            "name": tensor.name,
            "role": tensor.role,
            "layer": tensor.layer,
            "weights": tensor.n_elements,
            "cells": [[position[cell.type_name], cell.size_bytes, log_error(cell)] for cell in tensor.cells],
            "knee": tensor.knee or "",
            "type": draft.types.get(tensor.name, tensor.base_type),
            "pinned": tensor.name in draft.pins,
        }
        for tensor in desk.tensors()
    ]
    return {"types": [[name, round(bits[name], 4), colours[name]] for name in names], "rows": rows}


def log_error(cell: Cell) -> float | None:
    """log10 of what curves show: nats of damage where probes tell, else the weights' error; None for a type without loss."""
    return round(math.log10(cell.damage), 3) if cell.damage > 0 else None


def map_cells(desk: Planner, draft: Draft) -> list[MapCell]:
    """The type map's cells."""
    return [
        MapCell(tensor.name, tensor.role, tensor.layer, *map_look(draft.types.get(tensor.name, tensor.base_type)))
        for tensor in desk.tensors()
    ]


def map_look(type_name: str) -> tuple[str, str]:
    """A type's colour on the map, and what is said of it."""
    return type_colours().get(type_name, bits_colour(16)), f"{type_name}, {type_bits()[type_name]:.3g} bits"


def curve_points(tensor: PlannerTensor) -> list[Point]:
    """A tensor's curve, by rising bits; types without loss have no place on a log axis."""
    return [
        (
            cell.type_name,
            cell.bits_per_weight,
            math.log10(cell.damage),
            type_colours().get(cell.type_name, bits_colour(16)),
            f"{cell.bits_per_weight:.3g} bits, {size(cell.size_bytes)}, error {cell.damage:.3g}",
        )
        for cell in tensor.cells
        if cell.damage > 0
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
    return bytes_told, f"×{ratio:.3g}" if ratio >= 3 else f"{'+' if ratio >= 1 else '−'}{percent(abs(ratio - 1), 0)}"


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


def changes_between(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, str]:
    """Tensor -> type, of those that differ."""
    return {name: type_name for name, type_name in after.items() if before.get(name) != type_name}
