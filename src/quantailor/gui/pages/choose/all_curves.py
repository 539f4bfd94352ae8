"""All tensors' curves as percentile bands by role, small, with one tensor on top."""

from __future__ import annotations

from nicegui import run, ui

from quantailor.app.measuring.progress import MeasuredType, MeasurementWatch, RoleBand
from quantailor.gui import theme
from quantailor.gui.context import workspace
from quantailor.gui.measured import error_chart
from quantailor.gui.widgets import card, named
from quantailor.present.charts import echarts
from quantailor.records import role_of


class AllCurves:
    """A chart beside the map: what is usual for each role, and where the chosen tensor lies."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        self._watch: MeasurementWatch | None = None
        self._bands: tuple[RoleBand, ...] = ()
        with card("Roles side by side: error as a multiple of the usual one", "qt-all-curves"):
            self._chart = (
                ui.echart({})
                .classes("qt-all-curves-chart")
                .props('role="img" aria-label="Weight error by role, as a multiple of the usual one"')
            )

    async def show(self, tensor: str) -> None:
        """Draw the bands with this tensor on top."""
        if self._watch is None:
            self._watch = await run.io_bound(self._looked)
        if self._watch is not None:
            self._draw(tensor, self._watch.curve(tensor))

    def _looked(self) -> MeasurementWatch:
        watch = MeasurementWatch(workspace(), self._fingerprint)
        watch.look()
        self._bands = watch.bands()
        return watch

    def _draw(self, tensor: str, curve: tuple[MeasuredType, ...]) -> None:
        chart = error_chart(self._bands, tensor, curve, role_of(tensor), legend=False)
        self._chart.options.clear()
        self._chart.options.update(echarts.options(chart, theme.palette(), is_small=True))
        named(self._chart, f"Weight error against bits for {len(self._bands)} roles, with {tensor} on top")
        self._chart.update()
