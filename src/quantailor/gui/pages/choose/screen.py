"""The Choose screen: figures and the frontier on top, map and table below, one tensor at the right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlencode

from nicegui import events, run, ui

from quantailor.app.choosing.drafts import Draft
from quantailor.app.choosing.frontier import Frontier, FrontierPoint, frontier, landmarks, point_of
from quantailor.app.choosing.planner import Planner, rounding_choices
from quantailor.app.choosing.shared_draft import Action, SharedDraft
from quantailor.app.library import projects
from quantailor.app.library.projects import ProjectReport
from quantailor.app.steps import PlanOptions, type_bits
from quantailor.errors import QuantailorError
from quantailor.gui import desks, meanings
from quantailor.gui.context import outside, show_address, workspace
from quantailor.gui.elements.frontier import FrontierControl
from quantailor.gui.elements.tensor_map import TensorMap
from quantailor.gui.frame import address
from quantailor.gui.pages.choose import rows
from quantailor.gui.pages.choose.all_curves import AllCurves
from quantailor.gui.pages.choose.difference import DifferenceDialog
from quantailor.gui.pages.choose.files import FilesDialog
from quantailor.gui.pages.choose.rule_dialog import RuleDialog, with_size, with_target
from quantailor.gui.pages.choose.table import TensorTable
from quantailor.gui.pages.choose.tensor_panel import TensorPanel
from quantailor.gui.pages.choose.tour import Stop, Tour
from quantailor.gui.widgets import Stat, box, card, explained, icon_button, note, primary, quiet, segment, tell_error, text, told
from quantailor.present.words import figure, grounds, interval, kld, plural, rounding, size, speed_figure
from quantailor.records import Prediction, role_of

POLL_SECONDS = 2.0
SHALLOW_LAYERS = 13
CURVE_TOLD = (
    "Each place on it is a file: the best mix of types for that size. The lower, the closer its answers are to those of the original."
    " Marks beside it are llama.cpp's presets."
)
MAP_TOLD = (
    "A row is a role, a column a layer, and the colour says how many bits the tensor has. A click shows what other types would cost it;"
    " what you set by hand stays when the size changes."
)
PINS_TOLD = "Tensors whose type was set by hand or pinned: they keep it whatever size is asked for, until they are unpinned."
SPEED_TOLD = (
    "Of generated text, predicted: the time that each type took on this machine, summed over the tensors of the file. The ± is how far"
    " predictions were from files that were timed."
)
GROUNDS_TOLD = (
    "A probe runs a text through the model with one tensor quantized, a mix with all of them; the text is cut into chunks."
    " Without probes types can be ranked, but no KL divergence is predicted."
)
BUILD_TOLD = (
    "Build writes the mix as a GGUF file of exactly the size shown here. Verify, the last of the six steps, then measures what it is worth."
)


class ChooseScreen:
    """One page's view of a draft, which other pages may share."""

    def __init__(self, project: ProjectReport, desk: Planner, shared: SharedDraft, draft: Draft, tensor: str | None) -> None:
        self._project, self._desk, self._shared, self._draft = project, desk, shared, draft
        self._tensors = {item.name: item for item in desk.tensors}
        self._places = {name: at for at, name in enumerate(self._tensors)}
        self._name = tensor if tensor in self._tensors else next(iter(self._tensors))
        self._shown: dict[str, str] = dict(draft.types)
        self._shown_pins: dict[str, str] = dict(draft.pins)
        self._ticked: list[str] = []
        self._wanted: int | None = None
        self._dragging = False
        self._frontier: Frontier | None = None
        self._marks: list[FrontierPoint] | None = None
        self._drawn: object = None
        self._latest: Prediction | None = None
        self._curves: AllCurves | None = None
        self._range = desk.size_range(draft.options, draft.pins_known_to(desk))

    @property
    def _is_shallow(self) -> bool:
        """Few layers leave room beside the map."""
        return len({item.layer for item in self._tensors.values()}) <= SHALLOW_LAYERS

    # Building

    def build(self) -> None:
        """Put the screen into the page."""
        self._rule = RuleDialog(probed=self._desk.basis == "probes", timed=self._desk.knows_speeds, on_apply=self._solve)
        self._difference = DifferenceDialog(self._project, self._desk, lambda: self._draft, on_take=self._take)
        self._files = FilesDialog(self._project, self._desk, lambda: self._draft, on_text=self._load_text, on_compare=self._difference.open)
        if self._desk.n_unmeasured:
            n = self._desk.n_unmeasured
            waits = "is not measured yet and keeps its type" if n == 1 else "are not measured yet and keep their types"
            note(f"{plural(n, 'tensor')} {waits}. Reload to use what has come in.", "warn")
        self._tour = Tour()
        self._build_grounds()
        with box("qt-choose"):
            with card(classes="qt-choose-top") as top:
                build = self._build_top()
            with box("qt-choose-maps" if self._is_shallow else "qt-choose-maps qt-deep"):
                with card("Chosen type by layer and role", "qt-choose-map") as chosen_map:
                    self._build_map()
                self._curves = AllCurves(self._project.fingerprint) if self._is_shallow else None
            with card(classes="qt-choose-table"):
                self._build_bar()
                self._build_table()
            with ui.element("aside").classes("qt-choose-side").props('aria-label="Tensor"'):
                self._panel = TensorPanel(basis=self._desk.basis, on_choose=told(lambda name, kind: self._set_type([name], kind)))
                self._curves = self._curves or AllCurves(self._project.fingerprint)
        self._show_panel(self._draft.types.get(self._name, ""), "")
        self._tour.lead(
            [
                Stop("Drag the dot along the curve", CURVE_TOLD, top),
                Stop("Click a tensor on the map", MAP_TOLD, chosen_map),
                Stop("Build the file", BUILD_TOLD, build),
            ]
        )
        ui.keyboard(on_key=self._key, ignore=["input", "select", "textarea"])
        ui.timer(0.05, told(self._first), once=True)
        ui.timer(POLL_SECONDS, told(self._look_for_others))

    def _build_grounds(self) -> None:
        """What the plan is for and stands on, with a way to better evidence where there is any to be had."""
        found, reason = self._desk.grounds, self._desk.evaluate(self._draft.types_known_to(self._desk)).prediction.no_prediction
        with box("qt-row qt-wrap qt-choose-grounds"):
            self._build_rounding()
            explained(text(f"Based on {grounds(found)}.", "qt-small qt-muted qt-hinted"), GROUNDS_TOLD)
        if found is None:
            why = "Without probes there is a ranking, but no predicted KLD"
        elif reason is not None:
            why = f"{reason[0].upper()}{reason[1:]}"
        elif found.n_probed < found.n_tensors:
            why = "The sensitivity of tensors that were not probed is inferred from the others"
        else:
            return
        with box("qt-row qt-wrap qt-note qt-note-warn qt-choose-grounds"):
            text(f"{why}.", "qt-grow").props('role="note"')
            quiet("Measure more", lambda: ui.navigate.to(address(self._project, "measure")), icon="straighten").props("dense")

    def _build_rounding(self) -> None:
        """What the plan is for; a choice where several roundings are measured."""
        choices = rounding_choices(workspace(), self._project.fingerprint)
        if len(choices) < 2:
            text(f"For {rounding(is_compensated=self._desk.is_compensated)}.", "qt-small qt-muted")
            return
        select = ui.select(choices, label="Planned for", value=self._desk.rounding, on_change=told(self._plan_for))
        select.props("outlined dense options-dense").classes("qt-choose-rounding")

    async def _plan_for(self, event: events.ValueChangeEventArguments[Any]) -> None:
        if event.value == self._desk.rounding:
            return
        try:
            await run.io_bound(lambda: self._shared.plan_for(desks.desk_of(self._project, event.value), event.value))
        except QuantailorError:
            event.sender.set_value(self._desk.rounding)  # type: ignore[attr-defined]
            raise
        self._reopen()

    def _reopen(self) -> None:
        ui.navigate.to(f"{address(self._project, 'choose')}?{urlencode({'draft': self._draft.name, 'tensor': self._name})}")

    def actions(self) -> None:
        """Buttons beside the heading."""
        icon_button("help_outline", "Show the tour", self._tour.begin)
        quiet("Rule and limits", lambda: self._rule.open(self._draft.options), icon="tune").props("dense").classes("qt-advanced")
        quiet("Compare", told(self._difference.open), icon="difference").props("dense")
        quiet("Versions and files", told(self._files.open), icon="folder_open").props("dense")

    def _build_top(self) -> ui.element:
        """The figures, the curve, and the button that goes on, which is given."""
        self._size = Stat("predicted file", hint=meanings.SIZE)
        self._bits = Stat("bits per weight", hint=meanings.BITS)
        self._kld = Stat("predicted KLD", hint=meanings.KLD)
        self._speed = Stat("tokens per second", hint=SPEED_TOLD) if self._desk.knows_speeds else None
        self._edits = Stat("pinned by hand", hint=PINS_TOLD)
        with box("qt-choose-target"):
            target = ui.input("Size or bits", placeholder="4.2 GiB, 4.5 bpw").props("outlined dense stack-label").classes("qt-target")
            target.on("keydown.enter", told(self._typed), js_handler="event => emit(event.target.value)")
            build = primary("Build", lambda: ui.navigate.to(f"{address(self._project, 'build')}?{urlencode({'draft': self._draft.name})}"))
        self._control = FrontierControl(on_drag=self._drag, on_release=told(self._release))
        self._control.span(*self._range)
        return build

    def _build_map(self) -> None:
        self._painter = rows.MapPainter(self._tensors, self._draft, basis=self._desk.basis, by_damage=False)
        segment({False: "Type", True: "Damage"}, False, "Colour by", self._recolour, "qt-map-modes")
        self._map = TensorMap(
            self._painter.cells(self._draft),
            title="Chosen type by layer and role",
            teller="quantailorChoose",
            on_pick=lambda name: self._select(name, show=True),
            on_brush=self._tick,
        )

    def _recolour(self, event: events.ValueChangeEventArguments[Any]) -> None:
        self._painter = rows.MapPainter(self._tensors, self._draft, basis=self._desk.basis, by_damage=bool(event.value))
        self._map.set_scale(self._painter.scale)
        self._map.set_cells(self._painter.looks(self._draft))

    def _build_bar(self) -> None:
        with box("qt-choose-bar"):
            self._undo = icon_button("undo", "Undo", told(self._do_undo))
            self._redo = icon_button("redo", "Redo", told(self._do_redo))
            pattern = (
                ui.element("input").classes("qt-field qt-pattern").props('placeholder="attn_v, blk.0.*, layer:0-3" aria-label="Pattern"')
            )
            pattern.on("keydown.enter", told(self._tick_pattern), js_handler="event => emit(event.target.value)")
            pattern.on("input", self._filter, js_handler="event => emit(event.target.value)", throttle=0.15)
            self._count = text("none ticked", "qt-small qt-muted qt-count")
            self._bulk = ui.select([*type_bits()], label="Set ticked to", on_change=told(self._set_ticked))
            self._bulk.props("outlined dense options-dense").classes("qt-bulk")
            # Its field keeps the focus after a choice, where the page's own keys are not heard.
            self._bulk.on("keydown.ctrl", self._bulk_key, ["key", "shiftKey"])
            self._bulk.on("keydown.meta", self._bulk_key, ["key", "shiftKey"])
            self._pin = quiet("Pin", told(partial(self._pin_ticked, pinned=True))).props("dense")
            self._unpin = quiet("Unpin", told(partial(self._pin_ticked, pinned=False))).props("dense")

    def _build_table(self) -> None:
        url = outside(f"/api/p/{self._project.fingerprint[:16]}/choose?{urlencode({'draft': self._draft.name})}")
        self._table = TensorTable(
            url,
            selected=self._name,
            on_row=lambda name: self._select(name, show=False),
            on_type=told(lambda name, kind: self._set_type([name], kind)),
            on_pin=told(self._toggle_pin),
            on_selection=self._note_ticked,
        )

    async def _first(self) -> None:
        """Something to see at once, where a rule has yet to answer for the first time."""
        sketched = await run.io_bound(self._desk.evaluate, self._draft.types_known_to(self._desk))
        if sketched is not None:
            self._latest = sketched.prediction
            self._show_figures(sketched.prediction, sketched.types)
            self._size.set(size(sketched.prediction.file_size_bytes), "approximate; being planned")
        await self._draw_frontier(with_marks=False)
        await self._refresh()
        await self._draw_frontier()
        self._map.select(self._name)
        if self._curves is not None:
            await self._curves.show(self._name)

    # One tensor

    async def _select(self, name: str, *, show: bool) -> None:
        if name not in self._tensors:
            return
        self._name = name
        query = urlencode({"draft": self._draft.name, "tensor": name})
        show_address(f"{address(self._project, 'choose')}?{query}")
        self._map.select(name)
        self._table.mark(name, show=show)
        await self._show_tensor()
        if self._curves is not None:
            await self._curves.show(name)

    async def _show_tensor(self) -> None:
        chosen = self._draft.types.get(self._name, self._tensors[self._name].type_name)
        reason = await run.io_bound(self._draft.reason, self._desk, self._name) or ""
        self._show_panel(chosen, reason)

    def _show_panel(self, chosen: str, reason: str) -> None:
        self._panel.show(self._tensors[self._name], chosen, reason, self._desk.not_offered(self._name))

    # Changes

    async def _change(self, action: Action, *, is_edit: bool = True) -> None:
        """Change the latest draft in a thread, and show it."""
        said = await run.io_bound(self._shared.change, self._desk, action, is_edit=is_edit)
        await self._refresh()
        if said and ("undone" in said or "again" in said):
            ui.notify(said, timeout=1500)

    async def _set_type(self, names: list[str], type_name: str) -> None:
        try:
            await self._change(lambda draft: draft.set_type(self._desk, names, type_name))
        except QuantailorError:
            self._table.change({name: {"type": self._draft.types.get(name, "")} for name in names})
            raise

    async def _set_ticked(self, event: events.ValueChangeEventArguments[Any]) -> None:
        if event.value and self._ticked:
            await self._set_type(self._ticked, event.value)
        elif event.value:
            ui.notify("Tick rows first: by their boxes, by a pattern and Enter, or by a drag on the map")
        self._bulk.set_value(None)

    async def _pin_ticked(self, *, pinned: bool) -> None:
        names = [name for name in self._ticked if name in self._draft.types] or [self._name]
        await self._change(lambda draft: draft.pin(names) if pinned else draft.unpin(names))

    async def _toggle_pin(self, name: str | bool) -> None:
        if isinstance(name, str) and name in self._draft.types:
            pinned = name in self._draft.pins
            await self._change(lambda draft: draft.unpin([name]) if pinned else draft.pin([name]))

    async def _solve(self, options: PlanOptions) -> None:
        await run.io_bound(self._shared.solve, self._desk, options)
        await self._refresh()
        pins = self._draft.pins_known_to(self._desk)
        self._range = await run.io_bound(self._desk.size_range, options, pins) or self._range
        self._control.span(*self._range)
        self._place()

    async def _take(self, types: dict[str, str], label: str) -> None:
        await self._change(lambda draft: draft.take(self._desk, types, label), is_edit=False)

    async def _load_text(self, content: str, name: str) -> None:
        await self._change(lambda draft: draft.load_file(self._desk, content, name), is_edit=False)
        made_for, here = self._draft.is_compensated, self._desk.is_compensated
        if made_for != here:
            ui.notify(
                f"{name} was made for {rounding(is_compensated=made_for)}; here its types are planned for {rounding(is_compensated=here)}"
            )

    async def _do_undo(self) -> None:
        await self._change(Draft.undo, is_edit=False)

    async def _do_redo(self) -> None:
        await self._change(Draft.redo, is_edit=False)

    async def _key(self, event: events.KeyEventArguments) -> None:
        if not event.action.keydown or not (event.modifiers.ctrl or event.modifiers.meta):
            return
        if event.key.name in ("z", "Z"):
            await told(self._do_redo if event.modifiers.shift else self._do_undo)()
        elif event.key.name == "y":
            await told(self._do_redo)()

    async def _bulk_key(self, event: events.GenericEventArguments) -> None:
        key = str(event.args["key"]).lower()
        if key == "y" or (key == "z" and event.args["shiftKey"]):
            await told(self._do_redo)()
        elif key == "z":
            await told(self._do_undo)()

    async def _look_for_others(self) -> None:
        """Another tab or process may have changed the draft; and the curve rests on limits and pins."""
        if await run.io_bound(self._shared.latest, self._desk) is not self._draft and not self._dragging:
            await self._refresh()
        await self._draw_frontier()

    # The size

    async def _drag(self, size_bytes: int) -> None:
        """Solve for where the handle is now; while one answer is on its way, only the latest place counts."""
        self._wanted = size_bytes
        if self._dragging:
            return
        self._dragging = True
        try:
            while (wanted := self._wanted) is not None:
                self._wanted = None
                pins = self._draft.pins_known_to(self._desk)
                preview = await run.io_bound(self._desk.preview, self._draft.options, wanted, pins)
                if preview is not None:
                    self._show_types(dict(preview.types))
                    self._show_figures(preview.prediction, preview.types)
        except QuantailorError as error:
            tell_error(error)
        finally:
            self._dragging = False

    async def _release(self, size_bytes: int) -> None:
        await self._solve_for(with_size(self._draft.options, size_bytes))

    async def _typed(self, event: events.GenericEventArguments) -> None:
        await self._solve_for(with_target(self._draft.options, str(event.args)))

    async def _solve_for(self, options: PlanOptions) -> None:
        await run.io_bound(self._shared.solve, self._desk, options)
        await self._refresh()

    async def _draw_frontier(self, *, with_marks: bool = True) -> None:
        """Draw the curve anew where the limits or the pins have changed; landmarks, which take longer, follow once."""
        limits = with_size(self._draft.options, 0), dict(self._draft.pins)
        if limits != self._drawn and self._latest is not None:
            self._drawn = limits
            pins = self._draft.pins_known_to(self._desk)
            with suppress(QuantailorError):  # the limits leave nothing: whoever set them is told so
                self._frontier = await run.io_bound(frontier, self._desk, self._draft.options, pins)
            self._show_frontier()
        if with_marks and self._frontier is not None and self._marks is None:
            self._marks = await run.io_bound(self._find_marks, has_kld=self._frontier.has_kld) or []
            self._show_frontier()

    def _find_marks(self, *, has_kld: bool) -> list[FrontierPoint]:
        return list(landmarks(workspace(), self._desk, self._draft.name, has_kld=has_kld))

    def _show_frontier(self) -> None:
        if self._frontier is not None:
            self._control.show(self._frontier, self._marks or [], self._desk.basis)
            self._place()

    def _place(self) -> None:
        """The handle where the draft is."""
        if self._latest is None:
            return
        has_kld = self._frontier is not None and self._frontier.has_kld
        point = point_of(self._latest, has_kld=has_kld)
        self._control.place(point or FrontierPoint(self._latest.file_size_bytes, 0.5))

    # Showing

    async def _refresh(self) -> None:
        """Show the draft as it is now, its size exact."""
        draft = await run.io_bound(self._shared.latest, self._desk)
        if draft is not None and draft.rounding != self._draft.rounding:  # another tab plans for another one
            self._reopen()
            return
        strategy = None if draft is None else await run.io_bound(draft.strategy, self._desk)
        if draft is None or strategy is None or strategy.prediction is None:
            return
        self._draft, self._latest = draft, strategy.prediction
        self._show_types(dict(self._draft.types), pins=dict(self._draft.pins))
        self._show_figures(strategy.prediction, strategy.types)
        self._place()
        self._undo.set_enabled(bool(self._draft.done))
        self._redo.set_enabled(bool(self._draft.undone))
        reason = next((choice.reason for choice in strategy.tensors if choice.name == self._name), "it is not measured")
        self._show_panel(self._draft.types.get(self._name, ""), reason)

    def _show_types(self, types: dict[str, str], *, pins: dict[str, str] | None = None) -> None:
        groups: dict[str, list[int]] = {}
        changed = {name: type_name for name, type_name in types.items() if self._shown.get(name) != type_name}
        for name, type_name in changed.items():
            groups.setdefault(type_name, []).append(self._places[name])
        self._shown = types
        self._table.set_types(groups)
        if pins is not None:
            self._table.change({name: {"pinned": name in pins} for name in self._shown_pins.keys() ^ pins.keys()})
            if pins != self._shown_pins:
                self._map.set_pins(pins)
            self._shown_pins = pins
        if changed:
            self._map.set_cells({name: self._painter.look(name, type_name) for name, type_name in changed.items()})

    def _show_figures(self, prediction: Prediction, types: Mapping[str, str]) -> None:
        self._size.set(size(prediction.file_size_bytes), f"{prediction.file_size_bytes:,} bytes")
        self._bits.set(f"{prediction.bits_per_weight:.3f}")
        if prediction.kld_nats is None or prediction.kld_interval_nats is None:
            self._kld.set("not known", kld(None, None, prediction.no_prediction))
        else:
            self._kld.set(f"KLD {figure(prediction.kld_nats)}", f"{interval(prediction.kld_interval_nats, 2)} nats")
        if self._speed is not None:
            self._speed.set(*speed_figure(self._desk.speed(types)))
        self._edits.set(str(len(self._draft.pins)), f"pinned of {len(self._draft.types)}")

    # Ticks

    def _tick(self, names: Iterable[str]) -> None:
        measured = [name for name in names if name in self._draft.types]
        self._table.tick(measured)
        self._note_ticked(measured)

    def _note_ticked(self, names: list[str]) -> None:
        self._ticked = [name for name in names if name in self._draft.types]
        roles = {role_of(name) for name in self._ticked}
        self._count.set_text(f"{len(self._ticked)} ticked, {plural(len(roles), 'role')}" if self._ticked else "none ticked")

    def _filter(self, event: events.GenericEventArguments) -> None:
        """Show the rows that Enter would tick."""
        text = str(event.args).strip()
        try:
            names = self._desk.holding(text) if text else ()
        except QuantailorError:  # half a pattern
            return
        self._table.filter([self._places[name] for name in names] if text else None)

    async def _tick_pattern(self, event: events.GenericEventArguments) -> None:
        names = self._desk.holding(str(event.args))
        self._tick(names)
        if not names:
            ui.notify(f"No tensor's name or role holds or matches {event.args}")


async def open_screen(project: ProjectReport, *, draft_name: str, tensor: str | None) -> ChooseScreen:
    """The screen's state, read in a thread. Raises QuantailorError where nothing is measured or the server stops."""

    def read() -> tuple[Planner, SharedDraft, Draft]:
        desk, shared = desks.desk_of_draft(project, draft_name), desks.draft_of(project, draft_name)
        return desk, shared, shared.glimpse(desk)

    found = await run.io_bound(read)
    if found is None:
        raise QuantailorError("the server is stopping")
    return ChooseScreen(project, *found, tensor)


def rows_of(fingerprint: str, draft_name: str) -> dict[str, Any]:
    """The table's rows, for the page's own request."""
    project = projects.project(workspace(), fingerprint)
    desk = desks.desk_of_draft(project, draft_name)
    return rows.table_data(desk, desks.draft_of(project, draft_name).glimpse(desk))
