"""Build: from a strategy to a file, with its exact size, its commands, what it changes, and the check that it is what it should be."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

from nicegui import run, ui

from quantailor.app.jobs import JobReport
from quantailor.app.library import projects
from quantailor.app.library.projects import ProjectReport
from quantailor.app.products.builds import (
    BuildOffer,
    BuildWish,
    ChoiceKind,
    StrategyChoice,
    build_offer,
    chosen_strategy,
    is_others,
    keep_type_list,
    list_choices,
    start_build,
    wants_compensation,
)
from quantailor.app.products.card import suggested_file_name
from quantailor.errors import QuantailorError
from quantailor.gui import meanings
from quantailor.gui.context import context, show_address, workspace
from quantailor.gui.desks import desk_of_draft
from quantailor.gui.frame import address, frame, opened, tick
from quantailor.gui.jobs.job_card import JobCard, unfinished
from quantailor.gui.page_words import on_page
from quantailor.gui.pages.build.parts import STRATEGY_KINDS, BuiltList, CheckCard, DiffCard
from quantailor.gui.pages.without_base import without_base
from quantailor.gui.picker import path_input, pick
from quantailor.gui.widgets import Stat, box, card, chip, copy_line, named, note, primary, quiet, text, told
from quantailor.present import words
from quantailor.present.words import figure, interval, kld, size
from quantailor.records import Prediction, Strategy

MB = 10**6
QUERY: dict[ChoiceKind, str] = {"draft": "draft", "stored": "strategy", "preset": "preset", "file": "file"}
"""How the address names each kind of choice."""


async def build(fingerprint: str) -> None:
    """The screen of one project; `?draft=`, `?strategy=`, `?preset=` or `?file=` names the strategy."""
    project = await opened("build", partial(projects.project, workspace(), fingerprint))
    if project is None:
        return
    with frame("build", "Build", project=project, subtitle="the file that a strategy describes"):
        if project.base is None:
            without_base(project, "files can be built from it")
            return
        choices = await run.io_bound(list_choices, workspace(), project.fingerprint) or []
        wanted = _asked_for()
        screen = _Screen(project, Path(project.base), choices, wanted)
        screen.build()


def _asked_for() -> StrategyChoice | None:
    query = ui.context.client.request.query_params
    return next((StrategyChoice(kind, query[key], query[key]) for kind, key in QUERY.items() if query.get(key)), None)


_NOTHING = "No strategy yet: make one in Choose, take a preset's types, or open a file"
_UNMEASURED = (
    "No strategy yet: measure what each type costs, then choose types for your size; or take the types of a preset, or of a file that "
    "another program made."
)


def _key(choice: StrategyChoice) -> str:
    return f"{choice.kind}:{choice.name}"


class _Screen:
    """The parts of the page and what they have in common: the choice, its strategy, its offer."""

    def __init__(self, project: ProjectReport, base: Path, choices: Sequence[StrategyChoice], wanted: StrategyChoice | None) -> None:
        self._project, self._base = project, base
        self._choices = {_key(choice): choice for choice in choices}
        if wanted is not None:
            self._choices.setdefault(_key(wanted), wanted)
        own = (key for key, choice in self._choices.items() if choice.kind != "preset")
        self._first = _key(wanted) if wanted is not None else next(own, None)
        self._strategy: Strategy | None = None
        self._offer: BuildOffer | None = None
        self._asked = 0
        self._asking = False

    def build(self) -> None:
        """Lay the page out; what takes time comes after it is shown."""
        with box("qt-stack"):
            self._job = JobCard("Build", self._finished)
            self._check = CheckCard(self._project, self._base)
            with box("qt-grid qt-build-top"):
                self._strategy_card()
                self._file_card()
            self._diff = DiffCard(self._base, lambda key: self._strategy_of(self._choices[key]))
            self._commands_card()
            self._built = BuiltList(self._project, self._check.show)
        ui.timer(0.05, told(self._start), once=True)

    async def _start(self) -> None:
        job = await run.io_bound(unfinished, self._project, "build")
        if job is not None:
            self._job.watch(job)
        await self._built.refresh()
        if self._name.value == "" and self._folder.value == "":
            self._folder.set_value(str(self._default_folder()))
        if self._first is not None:
            self._select.set_value(self._first)

    # The strategy

    def _strategy_card(self) -> None:
        with card("Strategy"):
            with box("qt-row"):
                options = {key: choice.label for key, choice in self._choices.items()}
                self._select = ui.select(options, label="Strategy", on_change=told(self._choose)).props("outlined dense").classes("qt-grow")
                quiet("Open a file", told(self._pick_strategy), icon="folder_open")
            with box("qt-row qt-build-stats"):
                waiting = "–" if self._first is None else "…"
                self._size = Stat("file", waiting, hint=meanings.SIZE)
                self._bits = Stat("bits per weight", waiting, hint=meanings.BITS)
                self._kld = Stat("predicted KLD", waiting, hint=meanings.KLD)
                self._n_tensors = Stat(
                    "tensors chosen", waiting, hint="Tensors whose type is a choice; norms and other small ones keep theirs."
                )
            nothing = "" if self._first is not None else _NOTHING if self._project.n_cells else _UNMEASURED
            self._exact = text(nothing, "qt-small qt-muted qt-build-exact")
            self._chips = ui.element("div").classes("qt-row qt-wrap qt-chips")
            with box("qt-row qt-build-links"):
                if self._project.n_cells:
                    quiet("Change it in Choose", self._to_choose, icon="tune")
                else:
                    quiet("Measure", lambda: ui.navigate.to(address(self._project, "measure")), icon="straighten")

    def _to_choose(self) -> None:
        choice = self._choices.get(str(self._select.value))
        query = f"?{urlencode({'draft': choice.name})}" if choice is not None and choice.kind == "draft" else ""
        ui.navigate.to(address(self._project, "choose") + query)

    async def _pick_strategy(self) -> None:
        found = await pick("Open a strategy, a list of types, or a GGUF file of this model", STRATEGY_KINDS)
        if found:
            path = context().allowed(found)
            choice = StrategyChoice("file", str(path), path.name)
            self._choices[_key(choice)] = choice
            self._select.set_options({key: item.label for key, item in self._choices.items()}, value=_key(choice))

    async def _choose(self) -> None:
        choice = self._choices[str(self._select.value)]
        if choice.kind == "file":
            context().allowed(choice.name)
        show_address(f"{address(self._project, 'build')}?{urlencode({QUERY[choice.kind]: choice.name})}")
        self._strategy, self._offer = None, None
        self._strategy = await run.io_bound(self._strategy_of, choice)
        if self._strategy is None:
            return
        name = await run.io_bound(suggested_file_name, workspace(), self._base, self._strategy)
        self._name.set_value(name or "")
        better = self._project.has_covariances and await run.io_bound(is_others, choice)
        self._compensated.set_value(better or wants_compensation(self._strategy))
        await self._refresh()
        self._diff.set_strategy(self._strategy, choice.label, self._others(), self._closest())

    def _strategy_of(self, choice: StrategyChoice) -> Strategy:
        desk = desk_of_draft(self._project, choice.name) if choice.kind == "draft" else None
        return chosen_strategy(workspace(), self._base, choice, desk=desk)

    def _others(self) -> dict[str, str]:
        here = self._select.value
        return {key: choice.label for key, choice in self._choices.items() if key != here and choice.kind != "preset"}

    def _closest(self) -> str:
        """The preset that a file of this kind would be called after."""
        return self._offer.quantize.base_type if self._offer is not None and self._offer.quantize is not None else "Q4_K_M"

    # The file

    def _file_card(self) -> None:
        with card("File"):
            refresh = told(self._refresh)
            self._name = ui.input("File name").props('outlined dense debounce="400"').classes("full-width qt-mono-field")
            self._name.on_value_change(refresh)
            self._folder = path_input("Folder", ("folder",), title="Where the file goes")
            self._folder.props('debounce="400"').on_value_change(refresh)
            with box("qt-row qt-advanced"):
                self._split = ui.number("Largest part (MB)", min=1, precision=0, placeholder="one file").props("outlined dense clearable")
                self._split.classes("qt-grow").props('debounce="400" hint="Leave empty for a single file"').on_value_change(refresh)
                self._overwrite = ui.checkbox("Replace a file of that name", on_change=refresh)
            self._parts = text("", "qt-small qt-muted")
            self._rounding_switch()
            self._problems = ui.element("div").classes("qt-stack")
            with box("qt-row qt-build-go"):
                self._go = primary("Build", told(self._build_now), icon="construction")
                self._go.set_enabled(False)

    def _rounding_switch(self) -> None:
        with box("qt-rounding"):
            self._compensated = named(
                ui.switch("Compensated rounding", on_change=told(self._refresh)).props("dense"), "Compensated rounding"
            )
            self._rounding = text(words.COMPENSATION, "qt-small qt-muted").props('aria-live="polite"')
            with box("qt-row qt-wrap") as self._calibrate:
                text("It needs input covariances, which Measure computes with the importance matrix.", "qt-small qt-grow")
                quiet("Measure", lambda: ui.navigate.to(address(self._project, "measure")), icon="straighten").props("dense")
            self._calibrate.set_visibility(False)

    def _default_folder(self) -> Path:
        """Where the last file went, else beside the base, but not in Quantailor's home: there the folder that the server was started in."""
        beside = Path.cwd() if self._base.is_relative_to(workspace().home.path) else self._base.parent
        candidates = [*(Path(item.path).parent for item in self._built.items[:1]), beside]
        for folder in candidates:
            try:
                return context().allowed(folder)
            except QuantailorError:
                continue
        return context().roots[0]

    def _wish(self, strategy: Strategy) -> BuildWish:
        folder = context().allowed(str(self._folder.value or "."))
        return BuildWish(
            base=self._base,
            strategy=strategy,
            output=context().allowed(folder / Path(str(self._name.value or "model.gguf")).name),
            split_max_bytes=int(self._split.value * MB) if self._split.value else None,
            overwrite=bool(self._overwrite.value),
            rounding="compensated" if self._compensated.value else "plain",
        )

    async def _refresh(self) -> None:
        """Say what would be built. One call at a time asks, until nothing has changed meanwhile; others leave it to that one."""
        self._asked += 1
        if self._strategy is None or self._asking:
            return
        self._asking = True
        try:
            while (strategy := self._strategy) is not None:
                asked = self._asked
                offer = await run.io_bound(build_offer, workspace(), self._wish(strategy))
                if offer is None or asked == self._asked:
                    break
        finally:
            self._asking = False
        if offer is not None and strategy is not None:
            self._offer = offer
            self._show(offer)

    def _show(self, offer: BuildOffer) -> None:
        predicted = offer.prediction
        self._size.set(size(predicted.file_size_bytes))
        self._bits.set(f"{predicted.bits_per_weight:.3f}")
        self._kld.set(*_kld(predicted))
        self._n_tensors.set(f"{offer.n_tensors:,}")
        self._exact.set_text(f"{predicted.file_size_bytes:,} bytes, exactly. {_kld_words(predicted)}")
        n_parts = len(offer.paths)
        self._parts.set_text(f"{n_parts} parts: {Path(offer.paths[0]).name} and so on" if n_parts > 1 else f"one file: {offer.paths[0]}")
        self._rounding.set_text(_rounding_words(offer))
        self._calibrate.set_visibility(offer.no_covariances is not None)
        self._chips.clear()
        with self._chips:
            for type_name, count in offer.type_counts.items():
                with box("qt-row qt-chip-count"):
                    chip(type_name)
                    text(f"× {count}", "qt-small")
        self._problems.clear()
        with self._problems:
            for shortfall in offer.shortfalls:
                note(f"It cannot start: {on_page(shortfall)}", "bad")
        self._go.set_enabled(not offer.shortfalls)
        self._show_commands(offer)

    async def _build_now(self) -> None:
        if self._strategy is None:
            return
        job = await run.io_bound(start_build, workspace(), self._wish(self._strategy))
        if job is not None:
            self._check.hide()
            self._job.watch(job)

    async def _finished(self, _: JobReport) -> None:
        await self._built.refresh()
        if self._built.items:
            tick("choose", "build")
            await self._check.show(self._built.items[0])

    # Commands

    def _commands_card(self) -> None:
        with card("The same from a terminal", "qt-advanced"):
            self._commands = ui.element("div").classes("qt-stack qt-commands")
            with self._commands:
                text("Choose a strategy to see its commands.", "qt-muted")

    def _show_commands(self, offer: BuildOffer) -> None:
        self._commands.clear()
        with self._commands:
            text("With Quantailor: build, check, verify", "qt-small qt-muted")
            for line in offer.own_lines:
                copy_line(line)
            text("With llama.cpp's own quantizer", "qt-small qt-muted")
            if offer.quantize is None:
                note(offer.no_quantize or "", "warn")
                return
            copy_line(offer.quantize.line)
            for remark in offer.quantize.notes:
                text(remark, "qt-small qt-muted")
            with box("qt-row"):
                quiet("Save the list of types that it reads", told(self._save_list), icon="save")
                text(Path(offer.quantize.text_path).name, "qt-mono qt-small qt-muted qt-ellipsis")

    async def _save_list(self) -> None:
        if self._strategy is None:
            return
        report = await run.io_bound(partial(keep_type_list, workspace()), self._wish(self._strategy))
        if report is not None:
            ui.notify(f"Saved {report.text_path}")


def _rounding_words(offer: BuildOffer) -> str:
    """What it is, what it costs, and whom the file was planned for."""
    if offer.no_covariances is not None:
        return words.COMPENSATION
    return f"{words.COMPENSATION} It takes about {words.span(*offer.compensation_seconds)} more to write."


def _kld(predicted: Prediction) -> tuple[str, str]:
    """Figure and label."""
    if predicted.kld_nats is None:
        return kld(None, None, predicted.no_prediction), "predicted KLD"
    return figure(predicted.kld_nats), "predicted KLD, nats"


def _kld_words(predicted: Prediction) -> str:
    if predicted.kld_nats is None:
        reason = f"Its KLD is {on_page(predicted.no_prediction)}." if predicted.no_prediction else ""
        return reason or "No KLD is predicted without probes: the strategy only ranks."
    if predicted.kld_interval_nats is None:
        return ""
    return f"With a probability of 95 % the KLD will be {interval(predicted.kld_interval_nats)}."
