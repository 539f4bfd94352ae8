"""What a screen says of a model that every job refuses: NaN among the weights, a tensor that is missing or that its base would lose."""

from __future__ import annotations

from nicegui import run, ui

from quantailor.app.library.opening import model_defect
from quantailor.app.library.projects import ProjectReport
from quantailor.gui.context import workspace
from quantailor.gui.widgets import box, note, told


def warn_of_defect(project: ProjectReport) -> None:
    """A note where there is something to say, once llama.cpp has read the header."""
    with box("qt-stack") as place:
        place.set_visibility(False)

    async def show() -> None:
        found = await run.io_bound(model_defect, workspace(), project)
        if found is not None:
            place.set_visibility(True)
            with place:
                note(f"This model cannot be used as it is: {found}.", "warn")

    ui.timer(0.1, told(show), once=True)
