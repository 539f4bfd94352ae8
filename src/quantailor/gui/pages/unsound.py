"""What a screen says of a model that jobs refuse, or whose base would hold a part of it: NaN, a missing tensor or key, lost rows."""

from __future__ import annotations

from nicegui import run, ui

from quantailor.app.library.opening import model_reservations
from quantailor.app.library.projects import ProjectReport
from quantailor.gui.context import workspace
from quantailor.gui.widgets import box, note, told


def warn_of_reservations(project: ProjectReport) -> None:
    """A note where there is something to say, once llama.cpp has read the header."""
    with box("qt-stack") as place:
        place.set_visibility(False)

    async def show() -> None:
        found = await run.io_bound(model_reservations, workspace(), project)
        if found:
            place.set_visibility(True)
        for sentence in found or ():
            with place:
                note(sentence, "warn")

    ui.timer(0.1, told(show), once=True)
