"""The table of tensors: sparklines on one scale, what the chosen type does, the type with a one-click editor, pin; rows come by REST."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nicegui import ui

COLUMNS: tuple[dict[str, Any], ...] = (
    {
        "headerName": "Tensor",
        "field": "name",
        "flex": 3,
        "minWidth": 132,
        "cellClass": "qt-mono",
        "tooltipField": "name",
    },
    {
        "headerName": "Weights",
        "field": "weights",
        "width": 80,
        "type": "rightAligned",
        ":valueFormatter": "params => window.quantailorChoose.count(params.value)",
    },
    {
        "headerName": "Error vs bits",
        "headerTooltip": "What fewer bits would do to this tensor; all rows have one scale, and the dot is the chosen type",
        "colId": "spark",
        "width": 116,
        "cellClass": "qt-spark",
        "sortable": False,
        ":cellRenderer": "window.quantailorChoose.spark",
    },
    {
        "headerName": "Damage",
        "colId": "damage",
        "headerTooltip": "What the chosen type does to the model; sort by it to see what costs most",
        "width": 82,
        "type": "rightAligned",
        ":valueGetter": "params => window.quantailorChoose.damage(params.data)",
        ":valueFormatter": "params => params.value ? window.quantailorChoose.figure(params.value) : 'no loss'",
    },
    {
        "headerName": "Chosen",
        "field": "type",
        "width": 108,
        ":cellRenderer": "window.quantailorChoose.chosen",
        ":editable": "params => params.data.cells.length > 0",
        ":cellEditor": "window.quantailorChoose.TypeEditor",
        "cellEditorPopup": True,
        ":comparator": "(a, b) => window.quantailorChoose.bits(a) - window.quantailorChoose.bits(b)",
    },
    {
        "headerName": "bpw",
        "headerTooltip": "Bits per weight of the chosen type",
        "colId": "bits",
        "width": 58,
        "type": "rightAligned",
        ":valueGetter": "params => window.quantailorChoose.bits(params.data.type)",
        ":valueFormatter": "params => params.value.toFixed(2)",
    },
    {
        "headerName": "Pin",
        "headerTooltip": "A pinned tensor keeps its type whatever size is asked for",
        "field": "pinned",
        "width": 48,
        "pinned": "right",
        ":cellRenderer": "window.quantailorChoose.pin",
    },
)


EVENT = "quantailor-choose"
"""What `choose.js` calls the table's events: {"kind": "row" | "pin" | "type" | "ticks", "value": ...}."""


class TensorTable:
    """See the module docstring."""

    def __init__(
        self,
        rows_url: str,
        *,
        selected: str | None,
        on_row: Callable[[str], Any],
        on_type: Callable[[str, str], Any],
        on_pin: Callable[[str], Any],
        on_selection: Callable[[list[str]], Any],
    ) -> None:
        """Build the table.

        Args:
            rows_url: where the page fetches the rows.
            selected: the tensor whose row is shown first.
            on_row: hears the name of a row that was clicked.
            on_type: hears a name and the type it is to have.
            on_pin: hears the name whose pin was clicked.
            on_selection: hears the names that are ticked.
        """
        self.grid = (
            ui.aggrid(
                {
                    "columnDefs": list(COLUMNS),
                    "defaultColDef": {"sortable": True, "resizable": True, "suppressMovable": True},
                    "rowData": None,
                    ":getRowId": "params => params.data.name",
                    "rowHeight": 31,
                    "headerHeight": 34,
                    "singleClickEdit": True,
                    "stopEditingWhenCellsLoseFocus": True,
                    ":tabToNextCell": "params => window.quantailorChoose.nextRow(params)",
                    "rowSelection": {"mode": "multiRow", "enableClickSelection": False, "checkboxes": True, "headerCheckbox": True},
                    "selectionColumnDef": {"width": 44},
                    "rowBuffer": 6,
                    ":isExternalFilterPresent": "() => window.quantailorChoose.isFiltered()",
                    ":doesExternalFilterPass": "node => window.quantailorChoose.passes(node.id)",
                    "rowClassRules": {":qt-row-current": "params => window.quantailorChoose.isCurrent(params.data.name)"},
                    ":onGridReady": f"event => window.quantailorChoose.load(event.api, {_js(rows_url)}, {_js(selected)})",
                    "overlayLoadingTemplate": "<span>Reading the measurements…</span>",
                },
                theme="quartz",
                auto_size_columns=False,
            )
            .classes("qt-choose-grid")
            .props('aria-label="Tensors"')
        )
        handlers: dict[str, Callable[[Any], Any]] = {
            "row": on_row,
            "pin": on_pin,
            "type": lambda pair: on_type(*pair),
            "ticks": on_selection,
        }
        ui.on(EVENT, lambda event: handlers[event.args["kind"]](event.args["value"]))

    def change(self, changes: Mapping[str, Mapping[str, Any]]) -> None:
        """Change fields of rows, by name."""
        if changes:
            ui.run_javascript(f"window.quantailorChoose.change({self._api}, {_js(changes)})")

    def set_types(self, types: Mapping[str, Sequence[int]]) -> None:
        """Show other types: type -> places among the rows as they were fetched."""
        if types:
            ui.run_javascript(f"window.quantailorChoose.setTypes({self._api}, {_js(types)})")

    def tick(self, names: Sequence[str]) -> None:
        """Tick these rows and no others."""
        ui.run_javascript(f"window.quantailorChoose.tick({self._api}, {_js(list(names))})")

    def mark(self, name: str, *, show: bool) -> None:
        """Mark a row as the one whose curve is shown; `show` scrolls to it."""
        ui.run_javascript(f"window.quantailorChoose.mark({self._api}, {_js(name)}, {_js(show)})")

    def filter(self, places: Sequence[int] | None) -> None:
        """Show only these rows, by their places among the rows as they were fetched; all for None."""
        ui.run_javascript(f"window.quantailorChoose.filter({self._api}, {_js(places)})")

    @property
    def _api(self) -> str:
        return f"getElement({self.grid.id}).api"


def _js(value: Any) -> str:
    return json.dumps(value)
