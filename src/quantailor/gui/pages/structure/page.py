"""Structure: every tensor on a map and in a table, what each can become, and the configuration as it is written."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi import Response
from fastapi.responses import JSONResponse
from nicegui import events, run, ui

from quantailor.app.library import projects
from quantailor.app.library.projects import ProjectReport
from quantailor.app.library.structure import Refusal, TensorRow, TensorTypes, largest_tensors, tensor_rows, tensor_types
from quantailor.errors import QuantailorError
from quantailor.gui import meanings, theme
from quantailor.gui.context import outside, show_address, workspace
from quantailor.gui.elements.tensor_map import Look, MapCell, Scale, TensorMap, type_look
from quantailor.gui.frame import address, frame, opened
from quantailor.gui.pages.structure.configuration import Configuration
from quantailor.gui.pages.unsound import warn_of_reservations
from quantailor.gui.widgets import Stat, box, card, chip, heading, icon_button, quiet, segment, text, told
from quantailor.present.charts.colours import LogScale, bits_colour
from quantailor.present.words import count, percent, plural, shape, size

DEFAULT_LARGEST = 10
MAX_LARGEST = 200
MANY = 1000
"""From so many tensors on, the map follows when the table is there already."""


def tensors(fingerprint: str) -> Response:
    """All tensors of a project as the table's rows."""
    try:
        project = projects.project(workspace(), fingerprint)
        return Response(_table_json(project.fingerprint, project.architecture), media_type="application/json")
    except QuantailorError as error:
        return JSONResponse({"error": error.message, "remedy": error.remedy}, status_code=404)


@functools.lru_cache(maxsize=4)
def _table_json(fingerprint: str, architecture: str) -> bytes:
    return json.dumps([_table_row(row) for row in _tensor_rows(fingerprint, architecture)], separators=(",", ":")).encode()


@functools.lru_cache(maxsize=4)
def _tensor_rows(fingerprint: str, architecture: str) -> tuple[TensorRow, ...]:
    """A fingerprint's tensors never change."""
    return tensor_rows(workspace(), fingerprint, architecture)


def _table_row(row: TensorRow) -> dict[str, object]:
    return {
        "name": row.name,
        "role": row.role,
        "layer": row.layer,
        "shape": shape(row.shape),
        "weights": row.n_elements,
        "type": row.type_name,
        "bytes": row.size_bytes,
        "types": row.n_types,
    }


async def structure(fingerprint: str) -> None:
    """The screen of one project; `?tensor=` is the chosen tensor, `?view=configuration` the other half."""
    found = await opened("structure", partial(_read, fingerprint))
    if found is None:
        return
    project, rows = found
    asked = ui.context.client.request.query_params
    with frame("structure", "Structure", project=project):
        await _Structure(project, rows, asked.get("tensor")).show(asked.get("view", "tensors"))


def _read(fingerprint: str) -> tuple[ProjectReport, tuple[TensorRow, ...]]:
    project = projects.project(workspace(), fingerprint)
    return project, _tensor_rows(project.fingerprint, project.architecture)


class _Structure:
    """The screen's parts, and the tensor that is chosen in all of them."""

    def __init__(self, project: ProjectReport, rows: tuple[TensorRow, ...], tensor: str | None) -> None:
        self._project, self._rows = project, rows
        self._chosen = tensor if tensor in {row.name for row in rows} else None
        self._map: TensorMap | None = None
        self._waiting_room: ui.element | None = None
        self._grid: ui.aggrid | None = None
        self._panel: ui.element | None = None

    async def show(self, view: str) -> None:
        """Build the screen with one of its two halves in front."""
        with ui.tabs().props("dense no-caps align=left").classes("qt-m-tabs") as tabs:
            ui.tab("tensors", "Tensors")
            ui.tab("configuration", "Configuration and tokenizer")
        first = "configuration" if view == "configuration" else "tensors"
        with ui.tab_panels(tabs, value=first, animated=False).classes("qt-m-panels"):
            with ui.tab_panel("tensors"), box("qt-stack"):
                self._summary()
                warn_of_reservations(self._project)
                with box("qt-m-structure"):
                    with box("qt-stack"):
                        self._show_map()
                        self._table()
                    with card(classes="qt-m-tensor") as self._panel:
                        self._panel.props('aria-label="The chosen tensor" aria-live="polite"')
            with ui.tab_panel("configuration"):
                self._configuration = Configuration(self._project)
        tabs.on_value_change(told(self._turned))
        await self._fill_panel()
        if first == "configuration":
            await self._configuration.show()

    async def _turned(self, event: events.ValueChangeEventArguments[Any]) -> None:
        self._remember(view=str(event.value))
        if event.value == "configuration":
            await self._configuration.show()

    def _remember(self, *, view: str = "tensors") -> None:
        parts = [f"tensor={quote(self._chosen)}"] if self._chosen else []
        parts += ["view=configuration"] if view == "configuration" else []
        show_address(address(self._project, "structure") + (f"?{'&'.join(parts)}" if parts else ""))

    # Summary

    def _summary(self) -> None:
        total = sum(row.size_bytes for row in self._rows)
        with card(classes="qt-m-summary"):
            Stat("tensors", f"{len(self._rows):,}")
            Stat("parameters", count(self._project.n_parameters))
            Stat("bytes of all tensors", size(total))
            Stat("bits per weight", f"{8 * total / max(1, self._project.n_parameters):.2f}", hint=meanings.BITS)
            self._largest()

    def _largest(self) -> None:
        """Which tensors hold the bytes, for a number that the user chooses."""
        most = min(MAX_LARGEST, len(self._rows))
        first = min(DEFAULT_LARGEST, most)
        with box("qt-stack qt-m-tight qt-grow"):
            with box("qt-row"):
                slider = ui.slider(min=1, max=most, value=first).props('aria-label="How many of the largest tensors"').classes("qt-grow")
                number = ui.number(value=first, min=1, max=most, precision=0).props('dense outlined aria-label="How many"')
                number.classes("qt-m-number")
                quiet("Show them", self._sort_by_size).props("dense")
            said = text("", "qt-m-said").props('aria-live="polite"')

        def told_share(n: float | None) -> None:
            found = largest_tensors(self._rows, int(n or 1))
            what = "largest tensor holds" if len(found.tensors) == 1 else f"{len(found.tensors)} largest tensors hold"
            said.set_text(f"The {what} {percent(found.share, 1)} of the bytes: {size(found.size_bytes)} of {size(found.total_bytes)}.")

        slider.on_value_change(lambda event: told_share(event.value))
        number.bind_value(slider)
        told_share(first)

    def _sort_by_size(self) -> None:
        if self._grid is not None:
            order = [{"colId": "bytes", "sort": "desc"}]
            self._grid.run_grid_method("applyColumnState", {"state": order, "defaultState": {"sort": None}})
            self._grid.run_grid_method("ensureIndexVisible", 0)

    # Map

    def _show_map(self) -> None:
        with card("Layer by role; a cell's area grows with its tensor"):
            modes = {"type": "Stored type", "size": "Size"}
            first = "type" if self._has_types else "size"
            self._colour = segment(modes, first, "Colour by", self._recolour, "qt-map-modes")
            room = ui.element("div")
        if len(self._rows) <= MANY:
            self._fill_map(room)
        else:
            room.classes("qt-m-map-waits")
            self._waiting_room = room

    @property
    def _has_types(self) -> bool:
        """Whether the stored types differ where more than a vector or a small matrix of F32 is stored."""
        return len({row.type_name for row in self._rows if len(row.shape) > 1} - {"F32"}) > 1

    def _table_is_there(self) -> None:
        if self._waiting_room is not None:
            self._waiting_room.classes(remove="qt-m-map-waits")
            self._fill_map(self._waiting_room)
            self._waiting_room = None

    def _fill_map(self, room: ui.element) -> None:
        looks, scale = self._looks()
        cells = [MapCell(row.name, row.role, row.layer, row.n_elements, looks[row.name]) for row in self._rows]
        picked, brushed = told(self._picked_on_map), told(self._brushed)
        with room:
            self._map = TensorMap(cells, title="Tensors by layer and role", scale=scale, on_pick=picked, on_brush=brushed)
        if self._chosen is not None:
            self._map.select(self._chosen)

    def _looks(self) -> tuple[dict[str, Look], Scale | None]:
        """Every tensor's colour and letters, and what shades mean."""
        labels = {row.name: f"{row.type_name}, {size(row.size_bytes)}, {shape(row.shape)}" for row in self._rows}
        if self._colour.value == "type":
            return {row.name: type_look(row.type_name, labels[row.name]) for row in self._rows}, None
        shades = theme.palette().shades
        scale = LogScale.over([float(row.size_bytes) for row in self._rows])
        ends = Scale.of_shades(size(int(scale.low)), size(int(scale.high)), "stored bytes of a tensor")
        return {row.name: Look(shades[scale.step(row.size_bytes)], labels[row.name], _short(row.size_bytes)) for row in self._rows}, ends

    def _recolour(self) -> None:
        if self._map is not None:
            looks, scale = self._looks()
            self._map.set_cells(looks)
            self._map.set_scale(scale)

    def _brushed(self, names: list[str]) -> None:
        """Show these tensors alone in the table; all where there are none."""
        if self._grid is not None:
            ui.run_javascript(_ONLY % {"id": self._grid.id, "names": json.dumps(names)})
            self._all.set_visibility(bool(names))

    async def _picked_on_map(self, name: str) -> None:
        await self._choose(name)
        self._show_in_table(name)

    # Table

    def _table(self) -> None:
        with card(classes="qt-m-table-card"), box("qt-stack qt-m-tight"):
            with box("qt-row"):
                field = ui.input("Filter by name, role, shape or type").props("dense outlined clearable").classes("qt-grow")
                shown = text("", "qt-small qt-muted qt-num").props('role="status"')
                self._all = quiet("Show all", lambda: self._brushed([])).props("dense")
                self._all.set_visibility(False)
            self._grid = ui.aggrid(self._grid_options(shown.id), auto_size_columns=False).classes("qt-m-grid-table")
            self._grid.props(f'role="region" aria-label="All {len(self._rows):,} tensors"')
            self._grid.options[":onRowSelected"] = _CHOSEN % self._grid.id
            self._grid.on("firstDataRendered", self._table_is_there, [])
            self._grid.on("choose", told(self._picked_in_table))
            field.on("update:model-value", js_handler=_FILTER % self._grid.id)
            text(
                "Arrow keys move in the table, Space chooses; click a heading to sort, a role or a layer of the map to see it alone.",
                "qt-small qt-muted",
            )

    def _grid_options(self, label: int) -> dict[str, Any]:
        number = {"type": "rightAligned"}
        return {
            "columnDefs": [
                {"field": "name", "headerName": "Tensor", "flex": 3, "minWidth": 184, "cellClass": "qt-mono"},
                {"field": "role", "headerName": "Role", "flex": 2, "minWidth": 104},
                {"field": "layer", "headerName": "Layer", "width": 64, **number},
                {"field": "shape", "headerName": "Shape", "flex": 1, "minWidth": 118, ":comparator": _BY_WEIGHTS, **number},
                {"field": "type", "headerName": "Type", "width": 72, ":cellRenderer": _chip_renderer()},
                {
                    "field": "bytes",
                    "headerName": "Size",
                    "width": 104,
                    ":valueFormatter": _SIZE,
                    ":getQuickFilterText": "() => ''",
                    **number,
                },
                {"field": "types", "headerName": "Types", "headerTooltip": "How many types it can take", "width": 58, **number},
            ],
            "defaultColDef": {"sortable": True, "resizable": True, "suppressHeaderMenuButton": True},
            "rowSelection": {"mode": "singleRow", "checkboxes": False, "enableClickSelection": True},
            "rowHeight": 28,
            "headerHeight": 32,
            "rowBuffer": 5,
            "cacheQuickFilter": True,
            "animateRows": False,
            "suppressFieldDotNotation": True,
            ":getRowId": "(params) => params.data.name",
            ":onGridReady": _LOAD
            % {"url": json.dumps(outside(f"/api{address(self._project, 'tensors')}")), "chosen": json.dumps(self._chosen)},
            ":onModelUpdated": _COUNT % label,
            ":onGridSizeChanged": _FIT,
        }

    async def _picked_in_table(self, event: events.GenericEventArguments) -> None:
        name = str(event.args)
        await self._choose(name)
        if self._map is not None:
            self._map.select(name)

    def _show_in_table(self, name: str) -> None:
        if self._grid is not None:
            ui.run_javascript(_SELECT % {"id": self._grid.id, "name": json.dumps(name)})

    # The chosen tensor

    async def _choose(self, name: str | None) -> None:
        if name != self._chosen:
            self._chosen = name
            self._remember()
            await self._fill_panel()

    async def _fill_panel(self) -> None:
        if self._panel is None:
            return
        found = None
        if self._chosen is not None:
            found = await run.io_bound(tensor_types, workspace(), self._project, self._chosen)
        self._panel.clear()
        with self._panel:
            if found is None:
                heading("No tensor is chosen", 2, "qt-card-title")
                text("Choose one on the map or in the table to see which types it can take, and why not the others.", "qt-muted")
            else:
                _tensor(found)


def _tensor(found: TensorTypes) -> None:
    row = found.tensor
    with box("qt-row qt-spread"):
        heading(row.name, 2, "qt-mono qt-m-tensor-name")
        icon_button("content_copy", "Copy the name", lambda: ui.clipboard.write(row.name)).props('size="sm"')
    place = "outside the layers" if row.layer is None else f"layer {row.layer}"
    experts = f", {row.n_slices} experts" if row.n_slices > 1 else ""
    text(f"{row.role}, {place}{experts}", "qt-muted qt-small")
    with ui.element("dl").classes("qt-m-pairs"):
        _pair("shape", shape(row.shape))
        _pair("weights", f"{row.n_elements:,}")
        _pair("size", f"{size(row.size_bytes)}, {_percent(found.share)} of all")
        with ui.element("dt"):
            ui.label("stored as")
        with ui.element("dd"):
            chip(row.type_name)
    if len(found.types) == 1:
        heading("It can take no other type", 3, "qt-card-title qt-m-gap-above")
        for refusal in found.refusals:
            text(refusal.reason)
        return
    heading(f"It can take {plural(len(found.types), 'type')}", 3, "qt-card-title qt-m-gap-above")
    _chips(found.types)
    if found.imatrix_types:
        text("Of these, only with an importance matrix:", "qt-small qt-muted qt-m-gap-above")
        _chips(found.imatrix_types)
    for refusal in found.refusals:
        _refusal(refusal)


def _short(n_bytes: int) -> str:
    """ "2.5M": bytes as a cell of the map has room for them."""
    value, unit = size(n_bytes).split()
    return f"{float(value):.{int(float(value) < 10)}f}{unit[0]}".replace(".0", "")


def _percent(share: float) -> str:
    return percent(share, 2) if share >= 0.0001 else "under 0.01 %"


def _pair(name: str, value: str) -> None:
    text(name, tag="dt")
    text(value, tag="dd")


def _chips(names: Sequence[str]) -> None:
    with box("qt-m-chips"):
        for name in names:
            chip(name)


def _refusal(refusal: Refusal) -> None:
    heading(f"Not {len(refusal.types)} others" if len(refusal.types) > 1 else "Not this one", 3, "qt-card-title qt-m-gap-above")
    text(refusal.reason, "qt-small")
    with box("qt-m-chips qt-m-refused"):
        for name in refusal.types:
            chip(name)
    if refusal.instead:
        written: dict[str, list[str]] = {}
        for name, other in refusal.instead.items():
            written.setdefault(other, []).append(name)
        parts = "; ".join(f"{other} for {', '.join(names)}" for other, names in written.items())
        text(f"Asked for one of them, llama.cpp would write {parts}.", "qt-small qt-muted")


def _chip_renderer() -> str:
    return _CHIP % {"colours": json.dumps(theme.type_colours()), "other": json.dumps(bits_colour(16))}


_CHIP = """(params) => {
    const chip = document.createElement('span');
    chip.className = 'qt-chip';
    chip.textContent = params.value;
    chip.style.background = %(colours)s[params.value] ?? %(other)s;
    return chip;
}"""
_SIZE = """(params) => {
    let [value, unit] = [params.value, 0];
    while (value >= 1024 && unit < 4) { value /= 1024; unit++; }
    return (unit ? value.toFixed(2) : value) + ' ' + ['B', 'KiB', 'MiB', 'GiB', 'TiB'][unit];
}"""
_BY_WEIGHTS = "(a, b, one, other) => one.data.weights - other.data.weights || (a < b ? -1 : a > b ? 1 : 0)"
_LOAD = """async (params) => {
    const answer = await fetch(%(url)s);
    if (!answer.ok) { params.api.setGridOption('overlayNoRowsTemplate', 'The tensors cannot be read.'); return; }
    params.api.setGridOption('rowData', await answer.json());
    const node = %(chosen)s === null ? undefined : params.api.getRowNode(%(chosen)s);
    if (node) { node.setSelected(true, true, 'api'); params.api.ensureNodeVisible(node, 'middle'); }
}"""
_FILTER = "(value) => getElement(%d).api.setGridOption('quickFilterText', value ?? '')"
_CHOSEN = "(event) => { if (event.node.isSelected() && event.source !== 'api') getElement(%d).$emit('choose', event.data.name); }"
_FIT = """(event) => [[["role", "layer"], 710], [["types"], 540], [["shape"], 480], [["type"], 370]].forEach(
    ([columns, least]) => event.api.setColumnsVisible(columns, event.clientWidth >= least))"""
"""What a narrow table leaves out; names hold roles and layers too."""
_COUNT = """(params) => {
    let all = 0;
    params.api.forEachNode(() => { all++; });
    const label = document.getElementById('c%d');
    const n = params.api.getDisplayedRowCount();
    const [some, whole] = [n, all].map((number) => number.toLocaleString('en-US'));
    if (label) label.textContent = n === all ? `${whole} tensors` : `${some} of ${whole} tensors`;
}"""
_ONLY = """(() => {
    const [api, names] = [getElement(%(id)d).api, new Set(%(names)s)];
    api.setGridOption('isExternalFilterPresent', () => names.size > 0);
    api.setGridOption('doesExternalFilterPass', (node) => names.has(node.id));
    api.onFilterChanged();
})()"""
_SELECT = """(() => {
    const api = getElement(%(id)d).api;
    const node = api.getRowNode(%(name)s);
    if (node) { node.setSelected(true, true, 'api'); api.ensureNodeVisible(node, 'middle'); }
})()"""
