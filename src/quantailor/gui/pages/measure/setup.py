"""The Measure screen's form: how thoroughly, which types, which importance matrix, what it will cost; and the start."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nicegui import run, ui
from nicegui.elements.mixins.text_element import TextElement

from quantailor.app.library.opening import EntryKind
from quantailor.app.library.projects import ProjectReport
from quantailor.app.measuring.cost import CostReport, job_cost, why_plain
from quantailor.app.measuring.counted import StageCost
from quantailor.app.steps import (
    AUTO,
    COMPUTE,
    IMATRIX_REQUIRED,
    LEVEL_SETTINGS,
    LEVELS,
    NONE,
    RANGES,
    Compute,
    Level,
    StudyStep,
    type_bits,
    usual_types,
)
from quantailor.errors import OptionError, QuantailorError
from quantailor.gui.context import context, workspace
from quantailor.gui.jobs import start as start_job
from quantailor.gui.page_words import on_page
from quantailor.gui.picker import pick
from quantailor.gui.theme import type_colours
from quantailor.gui.widgets import box, card, named, note, primary, quiet, table, text, told
from quantailor.present.charts.colours import bits_colour
from quantailor.present.words import COMPENSATION, done_by, parse_duration, percent, plural, size, span

Matrix = Literal["auto", "compute", "text", "import", "none"]


@dataclass(frozen=True, slots=True)
class _Preset:
    title: str
    what: str


PRESETS: Mapping[Level, _Preset] = {
    "quick": _Preset("Quick", "Weight errors of sampled rows. Ranks mixes, but cannot predict what a file will be worth."),
    "balanced": _Preset("Balanced", "And probes how much each tensor matters, so that the KL divergence of any mix is predicted."),
    "thorough": _Preset("Thorough", "Every row, every tensor probed by itself at more types on four times the text: narrower intervals."),
    "exhaustive": _Preset("Exhaustive sweep", "And runs the model with every tensor at every type. Most exact, and slowest."),
}
STAGES = {
    "convert": "Convert",
    "imatrix": "Importance matrix",
    "calibrate": "Importance matrix and covariances",
    "measure": "Weight errors",
    "probes": "Probes",
    "mixes": "Whole mixes",
    "sweep": "Sweep",
}
_MATRICES: Mapping[Matrix, tuple[str, str]] = {
    "auto": ("Keep what is there", ""),
    "compute": (
        "Compute it from the text that ships",
        "500 kB of English prose. Running the model shows which inputs matter; errors are weighted accordingly.",
    ),
    "text": ("Compute it from a text of yours", "Best where the text is like what the model will read. Probes run on it too."),
    "import": ("Import a file", "One that llama-imatrix made of this very model, GGUF or .dat."),
    "none": ("None", f"Every input counts alike, and {', '.join(sorted(IMATRIX_REQUIRED))} are left out: they need one."),
}
NO_TEXT = "Without an importance matrix no text runs through the model, and only that would tell which errors make up for each other."
TIME_LIMIT = (
    "For example 30m or 2h, or a number of chunks of text. Probing stops then, and everything measured so far counts: what "
    "helps a plan most comes first, more time sharpens it, and measuring again continues where it stopped."
)
NO_PROBES = "This model predicts no next token, so it cannot be probed. Choose Quick."
_REFRESH_SECONDS = 0.4


def group_of(type_name: str) -> str:
    """The figure in a type's name: "4" of Q4_K and MXFP4, "16+" of the float types."""
    digits = re.search(r"\d+", type_name)
    figure = digits[0] if digits else "?"
    return "16+" if figure in ("16", "32") else figure


class Setup:
    """The form; `on_start` hears of a job that was started."""

    def __init__(self, project: ProjectReport, on_start: Callable[[], Any]) -> None:
        self._project, self._on_start = project, on_start
        self._records = workspace().imatrices.stored(project.fingerprint)
        self._usual = usual_types()
        self._types = set(self._usual)
        self.level: Level = "balanced"
        self._costs: dict[Level, CostReport] = {}
        self._why_plain: str | None = None
        """Empty where rounding can be compensated; None until that is found out."""
        self._error: QuantailorError | None = None
        self._file_error: str | None = None
        """What is wrong with the file that was named; costs are those of the text that ships until it is mended."""
        self._wanted, self._shown, self._busy = 1, 0, False
        self._build()
        self._timer = ui.timer(_REFRESH_SECONDS, self._refresh)

    def watch(self, on: bool) -> None:
        """Find out costs from now on, or no longer."""
        self._timer.active = on

    def renew(self) -> None:
        """Find out all costs anew: more is known now."""
        self._wanted += 1

    # What is asked for

    def task(self, level: Level | None = None, *, without_file: bool = False) -> StudyStep:
        """The study that the form describes, or the same on the text that ships. Raises OutputError for a path that is not allowed."""
        matrix: Matrix = "compute" if without_file else self._matrix.value
        path = str(self._path.value or "").strip()
        text_file = str(context().allowed(path)) if matrix == "text" and path else None
        imported = str(context().allowed(path)) if matrix == "import" and path else ""
        has_probes = bool(LEVEL_SETTINGS[level or self.level].probe_chunks)
        return StudyStep(
            model=self._project.base or self._project.source or "",
            level=level or self.level,
            types=() if self._types == set(self._usual) else tuple(name for name in type_bits() if name in self._types),
            text=text_file,
            seconds=self._seconds() if has_probes else None,
            passes=int(self._passes.value) if has_probes and self._passes.value else None,
            rounding="auto" if self._compensated.value and self._compensated.enabled else "plain",
            imatrix={"auto": AUTO, "compute": COMPUTE, "text": COMPUTE, "import": imported, "none": NONE}[matrix],
            allow_requantize=self._project.is_quantized,
            compute=Compute(n_gpu_layers=int(self._layers.value or 0), n_threads=int(self._threads.value) if self._threads.value else None),
        )

    def _seconds(self) -> float | None:
        """The limit of time; None for none. Raises OptionError for what is no length of time."""
        written = str(self._time.value or "").strip()
        return parse_duration(written) if written else None

    def _uncountable(self) -> str | None:
        """What the user still has to say before anything can be counted."""
        try:
            self._seconds()
        except OptionError as error:
            return str(error)
        return None if self._types else "Choose at least one type."

    def _missing_file(self) -> str | None:
        if self._matrix.value in ("text", "import") and not str(self._path.value or "").strip():
            return "Name the file of the importance matrix." if self._matrix.value == "import" else "Name the text."
        return None

    # The form

    def _build(self) -> None:
        with box("qt-stack"):
            self._notes()
            with box("qt-presets") as presets:
                presets.props('role="group" aria-label="How thoroughly"')
                self._cards = {level: _PresetCard(level, self._choose) for level in LEVELS}
            with box("qt-measure-form"):
                with box("qt-stack qt-advanced"), card("Candidate types", "qt-fill"):
                    self._build_types()
                with box("qt-stack"):
                    with card("Importance matrix", "qt-advanced"):
                        self._build_matrix()
                    with card("Rounding", "qt-advanced"), box("qt-rounding"):
                        self._build_rounding()
                    with card("Time", "qt-advanced"), box("qt-stack qt-m-tight"):
                        self._build_time()
                    with card("What it takes", "qt-fill"):
                        self._stages = ui.element("div")
                        self._basis = text("", "qt-small qt-muted")
            with box("qt-card qt-start-bar"):
                self._build_start()
        self._matrix_changed()
        self._choose("balanced")

    def _notes(self) -> None:
        if self._project.base is None and self._project.source is not None:
            note(
                f"This is a Hugging Face directory: it is first converted to a 16-bit GGUF of {size(self._project.size_bytes)}"
                " in Quantailor's home."
            )
        if self._project.source is None:
            note("The model's file is gone from where it was. Open it again before you measure.", "bad")
        if self._project.is_quantized:
            note("This model is quantized already. Errors count from what it is now, not from the original.", "warn")

    def _build_types(self) -> None:
        self._chips: dict[str, TextElement] = {}
        groups: dict[str, list[str]] = {}
        for name in type_bits():
            groups.setdefault(group_of(name), []).append(name)
        with box("qt-type-groups"):
            for figure, names in sorted(groups.items(), key=lambda item: int(item[0].rstrip("+"))):
                with box("qt-type-group") as row:
                    row.props(f'role="group" aria-label="{figure} bits"')
                    text(f"{figure} bit", "qt-small qt-muted qt-num")
                    with box("qt-row qt-wrap qt-tight"):
                        for name in sorted(names, key=lambda name: type_bits()[name]):
                            self._chips[name] = self._chip(name)
        with box("qt-row qt-foot"):
            quiet("Usual", lambda: self._set_types(self._usual)).props("dense")
            quiet("All", lambda: self._set_types(type_bits())).props("dense")
            self._n_types = text("", "qt-small qt-muted")
        self._build_more()
        self._show_types()

    def _chip(self, name: str) -> TextElement:
        chip = text(name, "qt-chip qt-toggle", tag="button").props('type="button"')
        chip.style(f"--chip: {type_colours().get(name, bits_colour(16))}")
        with chip:
            ui.tooltip(f"{type_bits()[name]:g} bits per weight" + ("" if name in self._usual else ", for special uses"))
        return chip.on("click", lambda: self._toggle(name))

    def _toggle(self, name: str) -> None:
        self._types ^= {name}
        self._show_types()

    def _set_types(self, names: Any) -> None:
        self._types = set(names)
        self._show_types()

    def _show_types(self) -> None:
        for name, chip in self._chips.items():
            chip.props(f'aria-pressed="{str(name in self._types).lower()}"')
        self._n_types.set_text(f"{len(self._types)} of {plural(len(self._chips), 'type')}")
        self._changed()

    def _build_matrix(self) -> None:
        labels = {key: name for key, (name, _) in _MATRICES.items() if key != "auto" or self._records}
        self._matrix = ui.radio(labels, value="auto" if self._records else "compute", on_change=self._matrix_changed)
        self._matrix.props('dense aria-label="Importance matrix"').classes("qt-matrix")
        self._meaning = text("", "qt-small qt-muted qt-meaning").props('aria-live="polite"')
        with box("qt-row qt-tight") as self._file:
            self._path = ui.input("File", on_change=self._changed).props("outlined dense debounce=500 clearable").classes("qt-grow")
            quiet("Browse", told(self._browse), icon="folder_open")

    def _matrix_changed(self) -> None:
        matrix: Matrix = self._matrix.value
        self._file.set_visibility(matrix in ("text", "import"))
        self._path.props(f'label="{"Text file" if matrix == "text" else "Importance matrix file"}"')
        self._meaning.set_text(self._of_its_own() if matrix == "auto" else _MATRICES[matrix][1])
        self._show_rounding()
        self._changed()

    async def _browse(self) -> None:
        is_text = self._matrix.value == "text"
        kinds: tuple[EntryKind, ...] = ("text", "file") if is_text else ("imatrix", "file")
        found = await pick("Choose a text" if is_text else "Choose an importance matrix", kinds, start=self._project.source)
        if found is not None:
            self._path.set_value(str(found))

    def _of_its_own(self) -> str:
        record = self._records[0]
        origin = (
            "imported"
            if record.origin == "imported"
            else f"{plural(record.chunk_count, 'chunk')} of {', '.join(record.datasets) or 'a text'}"
        )
        passed_over = workspace().imatrices.passed_over(self._project.fingerprint)
        what = "The one there is" if len(self._records) == 1 else "The latest" if passed_over is None else "The one that saw most"
        return f"{what}: {origin}. A more thorough study that needs more text than that computes it anew."

    def _build_rounding(self) -> None:
        name = "Compensated rounding"
        self._wants_compensation = True
        self._compensated = named(ui.switch(name, value=True, on_change=self._rounding_changed).props("dense"), name)
        self._rounding = text("", "qt-small qt-muted").props('aria-live="polite"')

    def _rounding_changed(self) -> None:
        if self._compensated.enabled:
            self._wants_compensation = bool(self._compensated.value)
        self._changed()

    def _show_rounding(self) -> None:
        """Whether it can be had, and what it is."""
        reason = self._why_plain or (NO_TEXT if self._matrix.value == "none" else "")
        self._compensated.set_enabled(not reason)
        self._compensated.set_value(not reason and self._wants_compensation)
        self._rounding.set_text(reason or f"{COMPENSATION} Errors are measured as they will be written.")

    def _build_time(self) -> None:
        self._time = ui.input("Measure for at most", placeholder="no limit; 30m, 2h …", on_change=self._changed)
        self._time.props("outlined dense debounce=500 clearable").style("max-width: 260px")
        self._passes = ui.number("Passes at most", min=1, precision=0, placeholder="no limit", on_change=self._changed)
        self._passes.props("outlined dense debounce=500 clearable").style("max-width: 260px")
        self._limit = text("", "qt-small qt-muted").props('aria-live="polite"')

    def _show_time(self, cost: CostReport | None) -> None:
        """Whether a limit of time has something to limit, and when it ends."""
        has_probes = bool(LEVEL_SETTINGS[self.level].probe_chunks)
        self._time.set_enabled(has_probes)
        self._passes.set_enabled(has_probes)
        ends = f" Started now, everything is {done_by(cost.seconds)}." if cost is not None and cost.seconds[1] > 0 else ""
        limit = TIME_LIMIT if has_probes else "This level runs no probes, so there is nothing to cut short."
        self._limit.set_text(f"{limit}{ends}")

    def _build_start(self) -> None:
        with box("qt-row qt-spread"):
            self._sum = text("", "qt-grow qt-ellipsis qt-num-left")
            self._start = primary("Start measuring", told(self._submit), icon="play_arrow")
        self._blocked = ui.element("div").props('role="alert"')

    def _build_more(self) -> None:
        with ui.expansion("More: threads, GPU").props("dense").classes("qt-more"), box("qt-row"):
            self._threads = ui.number("Threads", min=1, max=RANGES["n_threads"][1], precision=0, placeholder="all", on_change=self._changed)
            self._layers = ui.number("GPU layers", value=0, min=0, max=RANGES["n_gpu_layers"][1], precision=0, on_change=self._changed)
            for field in (self._threads, self._layers):
                field.props("outlined dense debounce=400").style("width: 120px")

    def _choose(self, level: Level) -> None:
        self.level = level
        for name, element in self._cards.items():
            element.select(name == level)
        self._show()

    def _changed(self) -> None:
        self._wanted += 1

    # Costs

    async def _refresh(self) -> None:
        """Find out what the levels cost, the chosen one first, after anything was changed."""
        if self._busy or self._shown == self._wanted:
            return
        self._busy, wanted = True, self._wanted
        try:
            if self._why_plain is None and self._project.source is not None:
                self._why_plain = await run.io_bound(self._ask_why_plain)
                self._show_rounding()
                if self._why_plain:
                    self._choose("quick")
            await self._find_costs(wanted)
        finally:
            self._busy = False

    def _ask_why_plain(self) -> str:
        try:
            return why_plain(workspace(), self._project.base or self._project.source or "")
        except QuantailorError:
            return ""  # the costs say what is wrong

    async def _find_costs(self, wanted: int) -> None:
        self._costs, self._error, self._file_error = {}, None, None
        self._show()
        if self._uncountable() is None and self._project.source is not None:
            for level in (self.level, *(level for level in LEVELS if level != self.level)):
                try:
                    cost = await self._cost(level)
                except QuantailorError as error:
                    self._error = error
                    break
                if wanted != self._wanted:
                    return
                if cost is not None:
                    self._costs[level] = cost
                    self._show()
        self._shown = wanted
        self._show()

    async def _cost(self, level: Level) -> CostReport | None:
        """What a level costs; on the text that ships while there is something wrong with the file that was named."""
        names_file = self._matrix.value in ("text", "import")
        if names_file and self._missing_file() is None and self._file_error is None:
            try:
                return await run.io_bound(job_cost, workspace(), self.task(level))
            except QuantailorError as error:
                self._file_error = on_page(str(error))
        return await run.io_bound(job_cost, workspace(), self.task(level, without_file=names_file))

    def _show(self) -> None:
        self._path.error = self._file_error
        for level, element in self._cards.items():
            element.show(self._costs.get(level), waiting=self._error is None and self._uncountable() is None)
        cost = self._costs.get(self.level)
        self._stages.clear()
        with self._stages:
            if cost is not None:
                _stage_table(cost)
            elif self._error is None and self._uncountable() is None and self._project.source is not None:
                text("Estimating …", "qt-muted").props('role="status"')
        self._show_time(cost)
        self._basis.set_text(f"Estimated from {cost.basis}. {cost.gain}" if cost is not None else "")
        self._sum.set_text(_in_all(PRESETS[self.level].title, cost))
        reasons = self._reasons(cost)
        self._blocked.clear()
        with self._blocked:
            for reason in reasons:
                note(reason, "bad").classes("qt-blocked")
        self._start.set_enabled(cost is not None and not reasons)

    def _reasons(self, cost: CostReport | None) -> list[str]:
        """Why it cannot start."""
        if (missing := self._uncountable() or self._missing_file() or self._file_error) is not None:
            return [missing]
        if self._error is not None:
            return [str(self._error)]
        if self._why_plain and self.level != "quick":
            return [NO_PROBES]
        return [f"Cannot start: {shortfall}." for shortfall in (cost.shortfalls if cost is not None else ())]

    async def _submit(self) -> None:
        self._start.disable()
        try:
            await run.io_bound(start_job, self.task())
        finally:
            self._start.enable()
        await self._on_start()


def _in_all(title: str, cost: CostReport | None) -> str:
    if cost is None:
        return title
    by = f", {done_by(cost.seconds)}" if cost.seconds[1] > 0 else ""
    return f"{title}: {time_left(cost.seconds)}{by}, {_resources(cost)}"


def _resources(cost: CostReport) -> str:
    disk = f"{size(cost.disk_bytes)} of disk" if cost.disk_bytes else "no disk"
    return f"{disk}, {size(cost.memory_bytes)} of memory"


def _stage_table(cost: CostReport) -> None:
    columns = {"Stage": False, "Time left": False, "Done": True, "Writes": True}
    rows = [(STAGES.get(stage.stage, stage.stage), *_figures(stage.seconds, stage.share_done, stage.disk_bytes)) for stage in cost.stages]
    if len(rows) > 1:
        rows.append(("In all", *_figures(cost.seconds, cost.share_done, cost.disk_bytes)))
    table(columns, rows, caption="Cost by stage").classes("qt-stage-costs")


def _figures(seconds: tuple[float, float], share: float, disk: int) -> tuple[str, ...]:
    return time_left(seconds), percent(share, 0), size(disk) if disk else "nothing"


def time_left(seconds: tuple[float, float]) -> str:
    """ "3 to 5 min", or that nothing is left."""
    return span(*seconds) if seconds[1] > 0 else "nothing left"


class _PresetCard:
    """A level as a button that stays pressed."""

    def __init__(self, level: Level, on_click: Callable[[Level], None]) -> None:
        preset = PRESETS[level]
        with ui.element("button").classes("qt-preset").props('type="button"') as self._element:
            self._element.on("click", lambda: on_click(level))
            with box("qt-row qt-spread"):
                text(preset.title, "qt-preset-title", tag="span")
                if level == "balanced":
                    text("recommended", "qt-small qt-muted", tag="span")
            text(preset.what, "qt-preset-what", tag="span")
            self._time = text("", "qt-preset-time", tag="span")
            self._rest = text("", "qt-small qt-muted", tag="span")

    def select(self, chosen: bool) -> None:
        """Mark it as the chosen one, or not."""
        self._element.props(f'aria-pressed="{str(chosen).lower()}"')

    def show(self, cost: CostReport | None, *, waiting: bool) -> None:
        """Say what it costs."""
        if cost is None:
            self._time.set_text("…" if waiting else "")
            self._rest.set_text("")
            return
        self._time.set_text(time_left(cost.seconds))
        done = _done(cost.stages)
        self._rest.set_text(_resources(cost) + (f"; {done}" if done else ""))


def _done(stages: tuple[StageCost, ...]) -> str:
    """What is there already: "importance matrix done, weight errors 40 % done"."""
    told_stages = []
    for stage in stages:
        if stage.share_done > 0.005:
            share = "" if stage.share_done >= 1 else f" {percent(stage.share_done, 0)}"
            told_stages.append(f"{STAGES.get(stage.stage, stage.stage).lower()}{share}")
    return f"done: {', '.join(told_stages)}" if told_stages else ""
