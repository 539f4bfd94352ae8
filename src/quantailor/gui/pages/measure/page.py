"""Measure: what to measure and what it costs; then the map and the curves as they fill in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlencode

from nicegui import run, ui

from quantailor.app.jobs import JobReport
from quantailor.app.library import projects
from quantailor.app.library.projects import ProjectReport
from quantailor.app.measuring.progress import (
    COMMON_TYPE,
    MeasuredType,
    MeasurementMap,
    MeasurementWatch,
    RoleBand,
    RoundingKind,
    TensorProgress,
)
from quantailor.errors import QuantailorError
from quantailor.gui import measured, theme
from quantailor.gui.context import show_address, workspace
from quantailor.gui.elements.tensor_map import MapCell, TensorMap
from quantailor.gui.frame import address, frame, opened, tick
from quantailor.gui.jobs.dock import JobButtons
from quantailor.gui.measured import Mode
from quantailor.gui.pages.measure.setup import STAGES, Setup
from quantailor.gui.widgets import Stat, box, card, chip, explained, named, primary, segment, table, text, told
from quantailor.present.charts import echarts
from quantailor.present.words import percent, plural, rounding, with_error
from quantailor.records import Sensitivity

POLL_SECONDS = 1.0
MOST_BESIDE = 48
"""Layers of a map that has room for something beside it."""
IDLE_POLLS = 3
"""Without a job, only every so many polls look."""
PROBE_POLLS = 12
"""Sensitivities take longer to read: while probes run, only every so many polls."""
_MODES: dict[Mode, str] = {"progress": "Progress", "error": "Error", "sensitivity": "Sensitivity"}
ALPHA = "Alpha: nats of KL divergence that the model gains per unit of a tensor's error, as probes of single tensors and groups say."
_PROBES_FIT = """(event) => [[["probes"], 820], [["error"], 660], [["status"], 580], [["se"], 380]].forEach(
    ([columns, least]) => event.api.setColumnsVisible(columns, event.clientWidth >= least))"""
"""What a narrow table of sensitivities leaves out."""
_FIGURE_BITS = (2.625, 3.4375, 4.5, 5.5, 8.5)


async def measure(fingerprint: str) -> None:
    """A project's measurement; `?tensor=` is the chosen one, `?rounding=` the one of two measurements."""
    found = await opened("measure", partial(_read, fingerprint, ui.context.client.request.query_params.get("rounding", "")))
    if found is None:
        return
    project, watch = found
    chosen = ui.context.client.request.query_params.get("tensor")
    with frame("measure", "Measure", project=project, subtitle="what each type costs in every tensor"), box("qt-stack"):
        _Page(project, watch, chosen)


def _read(fingerprint: str, rounding: str) -> tuple[ProjectReport, MeasurementWatch]:
    project = projects.project(workspace(), fingerprint)
    watch = MeasurementWatch(workspace(), project.fingerprint)
    watch.rounding = "plain" if rounding == "plain" else "compensated" if rounding == "compensated" else "auto"
    watch.look()
    if project.is_probed:
        watch.look_at_probes()
    return project, watch


class _Page:
    """The live part above, the form below; the form alone where nothing is measured."""

    def __init__(self, project: ProjectReport, watch: MeasurementWatch, chosen: str | None) -> None:
        self._project, self._watch = project, watch
        self._polls, self._was_active, self._stage = 0, watch.is_active, ""
        self._is_ticked = watch.has_cells
        found = watch.map()
        with box("qt-stack") as self._live:
            self._summary = _Summary(project, self._look_at)
            is_deep = len({tensor.layer for tensor in found.tensors}) > MOST_BESIDE
            with box("qt-measure-live qt-deep" if is_deep else "qt-measure-live"):
                self._map = _Map(watch, found, self._pick)
                self._curves = _Curves()
            self._probes = _Probes(self._pick)
        with ui.element("div") as self._form:
            self._expansion = ui.expansion("Measure more", on_value_change=self._watch_costs).classes("qt-card qt-more-form")
            with self._expansion:
                self._setup = Setup(project, self._started)
        self._chosen = chosen if chosen in {tensor.name for tensor in found.tensors} else None
        self._show(found, everything=True)
        self._map.select(self._chosen)
        self._layout(first=True)
        ui.timer(POLL_SECONDS, self._poll)

    # Looking

    async def _poll(self) -> None:
        self._polls += 1
        if not self._watch.is_active and self._polls % IDLE_POLLS:
            return
        try:
            changed = await run.io_bound(self._watch.look)
        except QuantailorError:
            return  # the dock tells of a store that cannot be read
        if changed is None:
            return
        found = self._watch.map(self._map.type_name)
        everything = await self._look_at_probes(found)
        if everything:
            found = self._watch.map(self._map.type_name)
        self._summary.show(found, has_cells=self._watch.has_cells)
        if changed or everything:
            self._show(found, everything=everything)
        self._layout()

    async def _look_at_probes(self, found: MeasurementMap) -> bool:
        """Read sensitivities when a stage or the job ends, and now and then while probes run; whether they were read."""
        stage = found.job.stage if found.job and self._watch.is_active else ""
        ended = stage != self._stage
        due = (stage.startswith("probes") or stage == "sweep") and self._polls % PROBE_POLLS == 0
        self._stage = stage
        if not (ended or due):
            return False
        return bool(await run.io_bound(self._watch.look_at_probes))

    def _show(self, found: MeasurementMap, *, everything: bool) -> None:
        self._summary.show(found, has_cells=self._watch.has_cells)
        self._map.show(found)
        self._show_chosen(found)
        if everything:
            self._probes.show(found)

    def _show_chosen(self, found: MeasurementMap) -> None:
        tensor = next((tensor for tensor in found.tensors if tensor.name == self._chosen), None)
        curve = self._watch.curve(tensor.name) if tensor is not None else ()
        self._map.chosen.show(tensor, curve)
        self._curves.show(self._watch.bands(), tensor, curve)

    def _layout(self, *, first: bool = False) -> None:
        """Which parts are on view."""
        active = self._watch.is_active
        self._live.set_visibility(self._watch.has_cells or self._summary.has_job)
        if first or active != self._was_active:
            self._expansion.set_value(not active and not self._watch.has_cells)
            self._setup.renew()
        self._was_active = active
        plain = not active and not self._live.visible
        self._expansion.classes(add="qt-plain" if plain else "", remove="" if plain else "qt-plain")
        self._form.set_visibility(not active)
        if self._watch.has_cells and not self._is_ticked:
            self._is_ticked = True
            tick("structure", "measure")
        self._watch_costs()

    def _watch_costs(self) -> None:
        self._setup.watch(bool(self._expansion.value) and not self._watch.is_active)

    # Doing

    async def _started(self) -> None:
        self._polls = IDLE_POLLS - 1
        await self._poll()
        show_address(self._address())
        ui.run_javascript("document.getElementById('main').scrollTo({top: 0})")

    async def _look_at(self, rounding: RoundingKind) -> None:
        """Show the measurement of the other rounding."""
        if self._watch.rounding == rounding or self._watch.map().rounding == rounding:
            return
        self._watch.rounding = rounding
        await run.io_bound(self._watch.look)
        await run.io_bound(self._watch.look_at_probes)
        self._show(self._watch.map(self._map.type_name), everything=True)
        self._layout()
        show_address(self._address())

    def _pick(self, name: str) -> None:
        self._chosen = name
        self._map.select(name)
        self._show_chosen(self._watch.map(self._map.type_name))
        show_address(self._address())

    def _address(self) -> str:
        asked = {"tensor": self._chosen or "", "rounding": "" if self._watch.rounding == "auto" else self._watch.rounding}
        query = urlencode({key: value for key, value in asked.items() if value})
        return f"{address(self._project, 'measure')}?{query}" if query else address(self._project, "measure")


class _Summary:
    """How far it is, the job's buttons, and the way on."""

    def __init__(self, project: ProjectReport, on_rounding: Callable[[RoundingKind], Any]) -> None:
        self.has_job = False
        with card(classes="qt-measure-summary"):
            self._cells = Stat("cells measured", hint="A cell is one tensor at one type.")
            self._tensors = Stat("tensors done", hint="Tensors of which every type that was asked for, and that suits them, is measured.")
            self._probed = Stat("tensors probed", hint="A text ran through the model with this tensor quantized, by itself or in a group.")
            self._rate = Stat("cells per second", hint="Over the last while; large tensors take longer than small ones.")
            self._state = text("", "qt-muted qt-grow qt-state").props('role="status"')
            names = {"compensated": "Compensated", "plain": "Plain"}
            self._rounding = segment(names, None, "Rounding that is shown", lambda event: told(on_rounding)(event.value))
            self._rounding.set_visibility(False)
            self._buttons = JobButtons()
            self._choose = primary("Choose now", lambda: ui.navigate.to(address(project, "choose")), icon="arrow_forward")

    def show(self, found: MeasurementMap, *, has_cells: bool) -> None:
        """Say how far it is."""
        self.has_job = found.job is not None
        done = found.n_cells == found.n_possible
        self._cells.set(f"{found.n_cells:,}" if done else f"{found.n_cells:,} of {found.n_possible:,}")
        n_tensors = len(found.tensors)
        self._tensors.set(f"{n_tensors:,}" if found.n_tensors_done == n_tensors else f"{found.n_tensors_done:,} of {n_tensors:,}")
        self._probed.set("none" if not found.n_probed else f"{found.n_probed:,}")
        self._rate.set("–" if found.cells_per_second is None else f"{found.cells_per_second:.3g}")
        self._rate.element.set_visibility(found.cells_per_second is not None)
        self._state.set_text(state_of(found, has_cells=has_cells))
        self._rounding.set_value(found.rounding)
        self._rounding.set_visibility(len(found.roundings) > 1)
        self._buttons.show(found.job)
        self._choose.set_enabled(has_cells)


def state_of(found: MeasurementMap, *, has_cells: bool) -> str:
    """What is going on, in a sentence."""
    if found.job is not None:
        return _doing(found.job)
    if not has_cells:
        return "Nothing is measured yet."
    matrix = "with an importance matrix" if found.imatrix_fingerprint else "without an importance matrix"
    rows = "every row" if found.settings == "exhaustive" else "sampled rows"
    return f"Measured on {rows} {matrix}, {rounding(is_compensated=found.rounding == 'compensated')}" + (
        f"; {plural(found.n_unavailable, 'cell')} are impossible: the type does not suit the tensor." if found.n_unavailable else "."
    )


def _doing(job: JobReport) -> str:
    if job.state == "queued":
        return "Waiting to start." if job.waits_for is None else f"Waiting for job {job.waits_for} to end."
    stage = STAGES.get(job.stage, job.stage.capitalize())
    doing = {"running": stage or "Starting", "pausing": "Pausing", "cancelling": "Cancelling"}.get(job.state)
    if doing is None:
        return f"{job.state.capitalize()}: {job.error}" if job.error else f"{job.state.capitalize()}. What was measured is kept."
    where = f"Stage {job.stage_number} of {job.n_stages}: " if job.n_stages else ""
    return f"{where}{doing}"


class _Map:
    """The layer x role map with what its colours mean."""

    def __init__(self, watch: MeasurementWatch, found: MeasurementMap, on_pick: Any) -> None:
        self._watch, self._found = watch, found
        self._mode = self._best_mode(found)
        with card("Tensors by role and layer") as self.element:
            with box("qt-row qt-map-modes"):
                self._type = ui.select([], label="Error at", on_change=self._changed).props("dense outlined options-dense").classes("qt-at")
                self._toggle = segment(_MODES, self._mode, "Colour by", self._changed)
            self._painted, scale = measured.painted(found, self._mode)
            cells = [MapCell(item.name, item.role, item.layer, item.n_elements, self._painted[item.name]) for item in found.tensors]
            self._map = TensorMap(cells, title="Measurement by role and layer", scale=scale, on_pick=on_pick)
            self.chosen = _Chosen()
        self._touched = False

    @property
    def type_name(self) -> str:
        """The type at which errors are compared."""
        return str(self._type.value or COMMON_TYPE)

    def select(self, name: str | None) -> None:
        """Mark the chosen tensor."""
        self._map.select(name)

    def show(self, found: MeasurementMap) -> None:
        """Paint what has changed."""
        self._found = found
        options = list(self._watch.common_types())
        if options != self._type.options:
            self._type.set_options(options, value=found.common_type)
        if not self._touched:
            self._toggle.set_value(self._best_mode(found))
        self._paint()

    def _best_mode(self, found: MeasurementMap) -> Mode:
        """Progress until everything is measured, then what says most."""
        if self._watch.is_active or found.n_cells < found.n_possible or not found.n_cells:
            return "progress"
        return "sensitivity" if found.n_probed else "error"

    def _changed(self, event: Any) -> None:
        if event.sender is self._toggle:
            self._touched = self._toggle.value != self._best_mode(self._found) or self._touched
            self._mode = self._toggle.value
        self._found = self._watch.map(self.type_name)
        self._paint()

    def _paint(self) -> None:
        self._mode = self._toggle.value
        self._type.set_visibility(self._mode == "error")
        painted, scale = measured.painted(self._found, self._mode)
        changes = {name: cell for name, cell in painted.items() if self._painted.get(name) != cell}
        if changes:
            self._map.set_cells(changes)
        self._painted = painted
        self._map.set_scale(scale)


class _Chosen:
    """The tensor that was picked: what each type costs it."""

    def __init__(self) -> None:
        with box("qt-chosen-tensor") as self._element:
            self._element.props('aria-live="polite"')
        self._seen: object = None

    def show(self, tensor: TensorProgress | None, curve: Sequence[MeasuredType]) -> None:
        """Say it."""
        if (tensor, tuple(curve)) == self._seen:
            return
        self._seen = (tensor, tuple(curve))
        self._element.clear()
        with self._element:
            if tensor is None:
                text("Pick a tensor to see what each type costs it.", "qt-small qt-muted")
                return
            with box("qt-row qt-spread"):
                text(tensor.name, "qt-mono qt-ellipsis")
                explained(text(_sensitivity(tensor.sensitivity), "qt-small qt-muted qt-num qt-hinted"), ALPHA)
            with box("qt-type-errors"):
                for point in reversed(curve):
                    with box("qt-row qt-tight"):
                        chip(point.type_name)
                        text(percent(point.error), "qt-small qt-num")
            if not curve:
                text("Not measured yet.", "qt-small qt-muted")


def _sensitivity(found: Sensitivity | None) -> str:
    if found is None:
        return "not probed"
    return f"alpha {with_error(found.alpha, 1)}" + ("" if found.status == "measured" else f", {found.status}")


class _Curves:
    """Error against bits: a band for each role, the chosen tensor on top; and the figures as a table."""

    def __init__(self) -> None:
        self._drawn: tuple[Sequence[RoleBand], TensorProgress | None, Sequence[MeasuredType]] = ((), None, ())
        with card("Error against bits per weight, by role"):
            kinds = {True: "Relative", False: "Per cent"}
            self._kind = segment(kinds, True, "Error as", lambda: self.show(*self._drawn), "qt-map-modes")
            self._means = text("", "qt-small qt-muted")
            self._empty = text("They appear here as soon as the first tensor is measured.", "qt-empty")
            self._chart = ui.echart({}).classes("qt-bands").props('role="img"')
            with ui.expansion("Figures").props("dense").classes("qt-more") as self._table:
                self._figures = ui.element("div").classes("qt-figures")

    def show(self, bands: Sequence[RoleBand], tensor: TensorProgress | None, curve: Sequence[MeasuredType]) -> None:
        """Draw them."""
        self._drawn = (bands, tensor, curve)
        what = "1 is the usual error at that many bits." if self._kind.value else "Per cent of the output's energy that is lost."
        self._means.set_text(f"{what} Lines are medians, bands hold 80 % of a role's tensors, each with the best type of so many bits.")
        self._empty.set_visibility(not bands)
        for element in (self._chart, self._table):
            element.set_visibility(bool(bands))
        name, role = (None, None) if tensor is None else (tensor.name, tensor.role)
        self._chart.options.clear()
        chart = measured.error_chart(bands, name, curve, role, legend=True, relative=bool(self._kind.value))
        self._chart.options.update(echarts.options(chart, theme.palette(), is_small=True))
        on_top = f", with {name} on top" if name else ""
        named(self._chart, f"Error against bits per weight for {plural(len(bands), 'role')}{on_top}; the figures are below")
        self._chart.update()
        self._figures.clear()
        with self._figures:
            _figure_table(bands)


def _figure_table(bands: Sequence[RoleBand]) -> None:
    bits = [wanted for wanted in _FIGURE_BITS if any(wanted in band.bits for band in bands)]
    columns = {"Role": False, "Tensors": True, **{f"{figure:.3g} bits": True for figure in bits}}
    rows = []
    for band in bands:
        medians = dict(zip(band.bits, band.median, strict=True))
        rows.append((band.role, f"{band.n_tensors:,}", *(percent(medians[figure]) if figure in medians else "–" for figure in bits)))
    table(columns, rows, caption="Median error by role")


class _Probes:
    """What probes say of every tensor, the most sensitive first."""

    def __init__(self, on_pick: Any) -> None:
        with card("Sensitivity: what each tensor's error does to the model") as self._card:
            number = {"type": "numericColumn", "cellClass": "qt-num", "width": 108}
            self._grid = ui.aggrid(
                {
                    "columnDefs": [
                        {"field": "tensor", "headerName": "Tensor", "cellClass": "qt-mono", "flex": 2, "minWidth": 160},
                        {
                            "field": "alpha",
                            "headerName": "Alpha",
                            "headerTooltip": ALPHA,
                            **number,
                            ":valueFormatter": "p => p.value.toPrecision(3)",
                        },
                        {"field": "se", "headerName": "Std. error", **number, ":valueFormatter": "p => p.value.toPrecision(2)"},
                        {
                            "field": "error",
                            "headerName": "In per cent",
                            **number,
                            ":valueFormatter": "p => p.value == null ? '' : p.value.toFixed(1)",
                        },
                        {"field": "status", "headerName": "Status", "flex": 1, "minWidth": 190, "tooltipField": "status"},
                        {"field": "probes", "headerName": "Probed at", "flex": 1, "minWidth": 160, "tooltipField": "probes"},
                    ],
                    "rowData": [],
                    ":getRowId": "p => p.data.tensor",
                    "rowHeight": 30,
                    "headerHeight": 34,
                    "suppressCellFocus": False,
                    ":onGridSizeChanged": _PROBES_FIT,
                },
                auto_size_columns=False,
            ).classes("qt-probes")
            self._grid.props('role="group" aria-label="Sensitivities"')
            self._grid.on("cellClicked", lambda event: on_pick(event.args["data"]["tensor"]), ["data"])
            text(
                f"{ALPHA} Beside it one standard error. Drowned: too small to stand out from the floor; alpha is an upper bound.",
                "qt-small qt-muted",
            )
        self._rows: list[dict[str, Any]] = []

    def show(self, found: MeasurementMap) -> None:
        """Fill the table."""
        known = [tensor.sensitivity for tensor in found.tensors if tensor.sensitivity is not None]
        self._card.set_visibility(bool(known))
        rows = [
            {
                "tensor": item.tensor,
                "alpha": item.alpha.value,
                "se": item.alpha.se,
                "error": 100 * item.alpha.se / item.alpha.value if item.alpha.value > 0 else None,
                "status": item.status if not item.group else f"{item.status}, in a group",
                "probes": ", ".join(item.probes),
            }
            for item in sorted(known, key=lambda item: -item.alpha.value)
        ]
        if rows != self._rows:
            self._rows = rows
            self._grid.options["rowData"] = rows
            self._grid.update()
