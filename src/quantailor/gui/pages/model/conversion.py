"""Converting a directory to a base as a job: ours, or llama.cpp's converter where ours does not know the model."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nicegui import run, ui

from quantailor.app.library.opening import names_tower
from quantailor.app.steps import ConversionOffer, ConvertStep, absolute
from quantailor.gui.context import context
from quantailor.gui.jobs import start as start_job
from quantailor.gui.jobs.watch import watch_job
from quantailor.gui.picker import path_input
from quantailor.gui.widgets import box, card, copy_line, primary, text, told


def offered_conversion(offer: ConversionOffer, on_done: Callable[[], Any]) -> None:
    """A card for a directory that our own conversion does not know; `on_done` is called when it is converted."""
    with card("Convert with llama.cpp's converter"), box("qt-stack"):
        text(f"{offer.why}. llama.cpp's own converter knows more families: it writes a 16-bit base, and everything starts from that.")
        text(
            "It needs torch and transformers; where they are missing they are set up once, which may download gigabytes."
            " Code that a directory brings is never run from here.",
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
    watched = ui.element("div")

    async def start() -> None:
        output = context().allowed(field.value)
        output = output / Path(suggested).name if await run.io_bound(output.is_dir) else output
        job = await run.io_bound(start_job, ConvertStep(model=absolute(source), output=str(output)))
        if job is not None:
            button.disable()
            watched.clear()
            with watched:
                watch_job(job.id, on_done, on_stop=button.enable)

    button = primary(label, told(start))
    text("The same as a command:", "qt-small qt-muted")
    copy_line(shlex.join(("quantailor", "convert", source, "-o", suggested)))
    if names_tower(source):
        text("The base is the text model. This makes a file of its vision tower or audio encoder, too:", "qt-small qt-muted")
        copy_line(shlex.join(("quantailor", "convert", source, "-o", suggested, "--mmproj", "mmproj-F16.gguf")))
