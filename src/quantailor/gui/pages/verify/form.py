"""What to verify, beside what and on which text: the form of the Verify screen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nicegui import run, ui

from quantailor.app.jobs import JobReport
from quantailor.app.library.projects import ProjectReport
from quantailor.app.products.builds import BuiltFile
from quantailor.app.products.verdicts import (
    MIN_CHUNKS,
    VerifyCost,
    preset_names,
    verify_cost,
)
from quantailor.app.steps import DEFAULT_N_CTX, Evals, VerifyStep, eval_names
from quantailor.errors import QuantailorError
from quantailor.gui.context import context, workspace
from quantailor.gui.jobs import start as start_job
from quantailor.gui.page_words import on_page
from quantailor.gui.picker import path_input
from quantailor.gui.widgets import box, card, named, primary, text, told
from quantailor.present.words import plural, size, span

OTHER = "other"
_COST_SECONDS = 0.4
_EVALS = {"greedy": "Count how many tokens in a row it writes as the base does", "choices": "Ask multiple-choice questions"}
PLAIN = "Compare with its own types, rounded plainly"
_PLAIN_MEANING = "What compensated rounding alone gains. The second file is built in Quantailor's home."
_PLAIN_ALREADY = "This file's rounding is plain, so there is nothing to compare."


class VerifyForm:
    """What to measure, beside what, on which text, and how long that takes; `on_start` hears of the job."""

    def __init__(
        self, project: ProjectReport, base: Path, builds: Sequence[BuiltFile], built: str, *, on_start: Callable[[JobReport], Any]
    ) -> None:
        self._project, self._base, self._on_start = project, base, on_start
        self._is_compensated = {item.path: item.is_compensated for item in builds}
        self._n_text_chunks: int | None = None
        self._references: list[str] = []
        self._is_chosen = False
        """Whether the visitor chose the references; until then they are those around the file's size."""
        self._wanted = self._shown = 0
        with card("Measure a file", "qt-verify-form") as self._element:
            self._files(builds, built)
            self._beside()
            self._twin()
            self._text()
            self._evals()
            with box("qt-row qt-spread"):
                self._cost = text("Counting what is to be done…", "qt-muted").props('aria-live="polite"')
                self._go = primary("Verify", told(self._start), icon="balance")
                self._go.set_enabled(False)
        self._timer = ui.timer(_COST_SECONDS, self._refresh)

    @property
    def is_shown(self) -> bool:
        """Whether the form is open."""
        return bool(self._element.visible)

    def show(self, is_shown: bool) -> None:
        """Open or close the form."""
        self._element.set_visibility(is_shown)
        self._timer.active = is_shown
        self._changed()

    def _changed(self, *_: object) -> None:
        self._wanted += 1

    def _files(self, builds: Sequence[BuiltFile], built: str) -> None:
        options = {item.path: f"{Path(item.path).name} ({size(item.size_bytes)})" for item in builds} | {OTHER: "another GGUF file…"}
        chosen = built if built in options else next(iter(options))
        with box("qt-grid qt-form-2"):
            self._file = ui.select(options, label="File", value=chosen, on_change=self._changed).props("outlined dense")
            with box("qt-row") as self._other_box:
                self._other = path_input("GGUF file", ("gguf",), title="The file to measure")
                self._other.on_value_change(self._changed)
            self._other_box.bind_visibility_from(self._file, "value", backward=lambda value: value == OTHER)

    def _beside(self) -> None:
        with box("qt-row qt-wrap"):
            text("Compare with llama.cpp's", "qt-muted")
            self._chips = ui.element("div").classes("qt-row qt-wrap qt-chips")
            self._add = ui.select([], label="Add a preset", on_change=self._added).props("outlined dense").classes("qt-add-preset")
        self._show_chips()

    def _twin(self) -> None:
        with box("qt-rounding qt-tick"):
            self._plain = named(ui.checkbox(PLAIN, on_change=self._changed).props("dense"), PLAIN)
            self._plain_words = text("", "qt-small qt-muted").props('aria-live="polite"')
        self._file.on_value_change(self._show_twin)
        self._show_twin()

    def _show_twin(self) -> None:
        """Whether the file has a twin to be compared with."""
        is_plain = not self._is_compensated.get(str(self._file.value), True)
        self._plain.set_enabled(not is_plain)
        self._plain_words.set_text(_PLAIN_ALREADY if is_plain else _PLAIN_MEANING)

    def _show_chips(self) -> None:
        """What will be compared, and what can be added."""
        self._chips.clear()
        with self._chips:
            for name in self._references:
                self._chip(name)
        self._add.set_options([name for name in preset_names() if name not in self._references], value=None)

    def _chip(self, name: str) -> None:
        others = [each for each in self._references if each != name]
        button = ui.button(name, icon="close", on_click=lambda: self._choose(others), color=None)
        button.props(f'unelevated no-caps dense size="sm" aria-label="Leave {name} out"').classes("qt-quiet qt-ref-chip")

    def _added(self, event: Any) -> None:
        if event.value and event.value not in self._references:
            order = preset_names()
            self._choose(sorted([*self._references, str(event.value)], key=order.index))

    def _choose(self, references: list[str]) -> None:
        self._references, self._is_chosen = references, True
        self._show_chips()
        self._changed()

    def _text(self) -> None:
        with box("qt-grid qt-form-2"):
            self._kind = ui.select({"": "the held-out text that ships", OTHER: "a text of yours…"}, label="Text", value="")
            self._kind.props("outlined dense").on_value_change(self._changed)
            self._chunks = ui.number(f"Chunks of {DEFAULT_N_CTX} tokens", min=1, precision=0, placeholder="all of the text")
            self._chunks.props("outlined dense clearable").on_value_change(self._changed)
            with box("qt-row") as own:
                self._own = path_input("Text file", ("text",), title="The text to measure on")
                self._own.on_value_change(self._changed)
            own.bind_visibility_from(self._kind, "value", backward=lambda value: value == OTHER)

    def _evals(self) -> None:
        """What else the files are to be asked."""
        self._asked: dict[str, ui.checkbox] = {}
        with box("qt-row qt-wrap qt-tick"):
            for name, words in _EVALS.items():
                self._asked[name] = named(ui.checkbox(words, on_change=self._changed).props("dense"), words)

    def _task(self) -> VerifyStep:
        path = self._other.value if self._file.value == OTHER else self._file.value
        file = context().allowed(str(path or "")) if self._file.value == OTHER else Path(str(path))
        own = str(context().allowed(str(self._own.value or ""))) if self._kind.value == OTHER else None
        return VerifyStep(
            file=str(file),
            base=str(self._base),
            against=tuple(self._references) if self._is_chosen else None,
            beside="plain" if self._plain.value and self._plain.enabled else None,
            text=own,
            chunks=int(self._chunks.value) if self._chunks.value else None,
            evals=Evals(names=eval_names([name for name, each in self._asked.items() if each.value])),
        )

    async def _refresh(self) -> None:
        if self._shown == self._wanted:
            return
        self._shown = self._wanted
        if (self._file.value == OTHER and not self._other.value) or (self._kind.value == OTHER and not self._own.value):
            self._tell("Choose the file and the text.", is_ready=False)
            return
        try:
            cost = await run.io_bound(verify_cost, workspace(), self._task())
        except QuantailorError as error:
            self._tell(on_page(str(error)), is_ready=False)
            return
        if cost is not None:
            if not self._is_chosen and list(cost.references) != self._references:
                self._references = list(cost.references)
                self._show_chips()
            self._tell(_cost_words(cost), is_ready=cost.n_chunks > 0)

    def _tell(self, words: str, *, is_ready: bool) -> None:
        self._cost.set_text(words)
        self._go.set_enabled(is_ready)

    async def _start(self) -> None:
        job = await run.io_bound(start_job, self._task())
        if job is not None:
            self._on_start(job)


def _cost_words(cost: VerifyCost) -> str:
    parts = [f"{cost.n_chunks} of {plural(cost.n_text_chunks, 'chunk')}"]
    if cost.n_chunks < MIN_CHUNKS:
        parts.append(f"too few for a claim, which needs {MIN_CHUNKS}")
    parts.append(f"about {span(*cost.seconds)}" if cost.n_runs else "all measured before: at once")
    if cost.new_references:
        parts.append(f"llama.cpp builds {', '.join(cost.new_references)} first")
    if cost.builds_twin:
        parts.append("its types are rounded plainly first")
    return "; ".join(parts) + "."
