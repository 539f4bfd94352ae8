"""All tensors' curves as percentile bands by role, small, with one tensor on top."""

from __future__ import annotations

from nicegui import run, ui

from quantailor.app.measuring.progress import MeasuredType, RoleBand
from quantailor.gui import desks, theme
from quantailor.gui.measured import error_chart
from quantailor.gui.widgets import card, named
from quantailor.present.charts import echarts
from quantailor.present.words import plural
from quantailor.records import role_of

USUAL_TOLD = (
    "1 is the usual error at that many bits: the geometric mean of all roles' medians. Thin lines are medians of roles, bands hold 80 % of"
    " a role's tensors; the thick line is the chosen tensor with the best type of so many bits, its dots are all types."
)


class AllCurves:
    """A chart beside the map: what is usual for each role, and where the chosen tensor lies."""

    def __init__(self, fingerprint: str) -> None:
        self._fingerprint = fingerprint
        with card("Roles side by side: error as a multiple of the usual one", "qt-all-curves", hint=USUAL_TOLD):
            self._chart = (
                ui.echart({})
                .classes("qt-all-curves-chart")
                .props('role="img" aria-label="Weight error by role, as a multiple of the usual one"')
            )

    async def show(self, tensor: str) -> None:
        """Draw the bands with this tensor on top."""
        found = await run.io_bound(desks.curves_of, self._fingerprint)
        if found is not None:
            watch, bands = found
            self._draw(tensor, bands, watch.curve(tensor))

    def _draw(self, tensor: str, bands: tuple[RoleBand, ...], curve: tuple[MeasuredType, ...]) -> None:
        chart = error_chart(bands, tensor, curve, role_of(tensor), legend=False)
        self._chart.options.clear()
        self._chart.options.update(echarts.options(chart, theme.palette(), is_small=True))
        named(self._chart, f"Weight error against bits for {plural(len(bands), 'role')}, with {tensor} on top")
        self._chart.update()
