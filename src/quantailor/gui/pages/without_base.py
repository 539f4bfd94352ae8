"""What a screen that works on the 16-bit base says where there is none: how to get one, without leaving the screen where that is all."""

from __future__ import annotations

from functools import partial

from nicegui import run, ui

from quantailor.app.library.opening import model_overview
from quantailor.app.library.projects import ProjectReport
from quantailor.gui.context import workspace
from quantailor.gui.frame import address
from quantailor.gui.pages.model.conversion import conversion_form
from quantailor.gui.widgets import box, card, empty, text, told
from quantailor.present.words import size


def without_base(project: ProjectReport, use: str) -> None:
    """`use` is what the screen does with a base, as a sentence's end."""
    if not project.source:
        empty("The model's file is gone", "Open it again from where it is now.", action="Open a model", target="/open")
    elif project.n_cells:
        with card("There is no GGUF base yet"), box("qt-stack") as place:
            text(
                "The model is measured, and one thing is still to be written: its base, the same model as a 16-bit GGUF file"
                f" of {size(project.size_bytes)}. Once it is there, {use}."
            )
        ui.timer(0.05, told(partial(_offer, place, project)), once=True)
    else:
        empty(
            "There is no GGUF base yet",
            f"Measuring converts the model first. Then {use}.",
            action="Measure",
            target=address(project, "measure"),
        )


async def _offer(place: ui.element, project: ProjectReport) -> None:
    found = await run.io_bound(model_overview, workspace(), project)
    if found is not None and found.suggested_base is not None:
        with place:
            conversion_form(project.source or "", found.suggested_base, "Write the base", ui.navigate.reload)
