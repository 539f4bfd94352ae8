"""A small picture of a choice of types: the map of layers by roles, a pixel a tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from nicegui.element import Element

from quantailor.app.choosing.planner import PlannerTensor
from quantailor.gui.theme import type_colours


class Thumbnail(Element, component="thumbnail.js"):
    """The picture; `title` is its name for screen readers."""

    def __init__(self, tensors: Sequence[PlannerTensor], types: Mapping[str, str], *, title: str) -> None:
        super().__init__()
        roles = {role: at for at, role in enumerate(dict.fromkeys(item.role for item in tensors))}
        layers = sorted({item.layer for item in tensors if item.layer is not None})
        columns: dict[int | None, int] = {None: 0, **{layer: at for at, layer in enumerate(layers, start=1)}}
        shown = [types.get(item.name, item.type_name) for item in tensors]
        kinds = {kind: at for at, kind in enumerate(dict.fromkeys(shown))}
        cells = [(roles[item.role], columns[item.layer], kinds[kind]) for item, kind in zip(tensors, shown, strict=True)]
        self._props.update(title=title, rows=len(roles), columns=len(columns), colours=[type_colours()[kind] for kind in kinds])
        self._props["cells"] = json.dumps(cells, separators=(",", ":"))
