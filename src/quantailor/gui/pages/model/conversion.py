"""Converting a directory to a base as a job: ours, or llama.cpp's converter where ours does not know the model."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from nicegui import run, ui

from quantailor.app.library.opening import names_tower
from quantailor.app.steps import ConversionOffer, ConvertStep, ProjectorType, absolute
from quantailor.gui.context import context
from quantailor.gui.jobs import start as start_job
from quantailor.gui.jobs.watch import watch_job
from quantailor.gui.picker import path_input
from quantailor.gui.widgets import box, card, copy_line, primary, text, told

STORED = get_args(ProjectorType)
"""What a projector can be stored in."""


def offered_conversion(offer: ConversionOffer, on_done: Callable[[], Any]) -> None:
    """A card for a directory that our own conversion does not know; `on_done` is called when it is converted."""
    with card("Convert with llama.cpp's converter"), box("qt-stack"):
        text(f"{offer.why}. llama.cpp's own converter knows more families: it writes a 16-bit base, and everything starts from that.")
        text(
            "It needs torch and transformers; where they are missing they are set up once, which may download gigabytes."
            " Code that comes with a model is never run from here.",
            "qt-muted",
        )
        conversion_form(offer.folder, offer.place, "Convert with llama.cpp", on_done)


def conversion_form(source: str, suggested: str, label: str, on_done: Callable[[], Any]) -> None:
    """The base's place, the button that starts the job, and the same as a command.

    Args:
        source: the directory.
        suggested: where the base may go.
        label: what the button says.
        on_done: called when the base is there.
    """
    field = path_input("Write the base to", ("folder", "gguf"), value=suggested, title="Where to write the base")
    tower = _Tower(suggested) if names_tower(source) else None
    watched = ui.element("div")

    async def start() -> None:
        output = context().allowed(field.value)
        output = output / Path(suggested).name if await run.io_bound(output.is_dir) else output
        step = ConvertStep(model=absolute(source), output=str(output))
        job = await run.io_bound(start_job, step if tower is None else await tower.added(step))
        if job is not None:
            button.disable()
            watched.clear()
            with watched:
                watch_job(job.id, on_done, on_stop=button.enable)

    with box("qt-row"):
        button = primary(label, told(start))
    text("The same as a command:", "qt-small qt-muted")
    command = ("quantailor", "convert", source, "-o", suggested)
    shown = ui.element("div")

    def show() -> None:
        shown.clear()
        with shown:
            copy_line(shlex.join((*command, *(() if tower is None else tower.options))))

    show()
    if tower is not None:
        tower.on_change(show)


class _Tower:
    """Whether the vision tower or audio encoder becomes a file as well, and where."""

    def __init__(self, base: str) -> None:
        self._stem = Path(base).stem
        text(
            "The base is the text model. This model takes images or sound, too: llama.cpp runs that part from a file of its own."
            " llama.cpp's converter makes it, a projector, and needs torch and transformers; where they are missing they are set up once.",
            "qt-small qt-muted",
        )
        choices = {"": "leave it out", **{name: f"as a file in {name.upper()}" for name in STORED}}
        self._type = ui.select(choices, value="", label="Vision tower or audio encoder").props("outlined dense options-dense")
        self._type.classes("qt-m-select")
        with ui.element("div") as self._place:
            self._field = path_input("Write the projector to", ("folder", "gguf"), value=str(Path(base).with_name(self._name("f16"))))
        self._place.bind_visibility_from(self._type, "value")
        self._type.on_value_change(self._rename)

    def _name(self, type_name: str) -> str:
        return f"mmproj-{self._stem}-{type_name.upper()}.gguf"

    def _rename(self) -> None:
        """The name says the type, unless the user gave another one."""
        path = Path(self._field.value)
        if self._type.value and path.name in {self._name(name) for name in STORED}:
            self._field.value = str(path.with_name(self._name(self._type.value)))

    def on_change(self, action: Callable[[], object]) -> None:
        """Call this when something else is chosen."""
        self._type.on_value_change(action)
        self._field.on_value_change(action)

    @property
    def options(self) -> tuple[str, ...]:
        """The same for the command line."""
        chosen = self._type.value
        return () if not chosen else ("--mmproj", self._field.value, "--mmproj-type", chosen)

    async def added(self, step: ConvertStep) -> ConvertStep:
        """The step with what was chosen here. Raises OutputError."""
        if not self._type.value:
            return step
        output = context().allowed(self._field.value)
        output = output / self._name(self._type.value) if await run.io_bound(output.is_dir) else output
        return replace(step, mmproj=str(output), mmproj_type=self._type.value)
