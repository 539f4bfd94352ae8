"""Choose: a type for every tensor, by rule and by hand, with its size and predicted damage at once."""

from __future__ import annotations

import json
from functools import partial

from fastapi import Response
from fastapi.responses import JSONResponse
from nicegui import ui

from quantailor.app.choosing.drafts import DEFAULT_NAME
from quantailor.app.library import projects
from quantailor.errors import QuantailorError
from quantailor.gui.context import outside, workspace
from quantailor.gui.frame import address, frame, opened
from quantailor.gui.pages.choose.screen import open_screen, rows_of
from quantailor.gui.widgets import box, empty, error_note, primary, text


def choose_rows(fingerprint: str, draft: str = DEFAULT_NAME) -> Response:
    """The table's types and rows as JSON."""
    try:
        # As text at once: FastAPI would look through every value of thousands of rows.
        return Response(json.dumps(rows_of(fingerprint, draft), separators=(",", ":")), media_type="application/json")
    except QuantailorError as error:
        return JSONResponse({"error": str(error)}, 404)


async def choose(fingerprint: str, draft: str = DEFAULT_NAME, tensor: str | None = None) -> None:
    """The screen of one project; `draft` names the version, `tensor` the one whose curve is shown."""
    project = await opened("choose", partial(projects.project, workspace(), fingerprint))
    if project is None:
        return
    ui.add_head_html(f'<script src="{outside("/static/choose.js")}"></script>')
    subtitle = f"version {draft}" if draft != DEFAULT_NAME else "drag along the curve, or change any tensor"
    head: list[ui.element] = []  # where the buttons go, once there is something to act on
    with frame("choose", "Choose", project=project, subtitle=subtitle, actions=lambda: head.append(ui.element("div").classes("qt-row"))):
        if not project.n_cells:
            empty(
                "Nothing is measured yet",
                "Choosing needs the error of each type in each tensor. Quick takes minutes for small models.",
                action="Measure",
                target=address(project, "measure"),
            )
            return
        # Reading thousands of tensors takes a moment: the page comes first.
        waiting = text("Reading the measurements…", "qt-muted").props('role="status"')
        await ui.context.client.connected()
        try:
            screen = await open_screen(project, draft_name=draft, tensor=tensor)
        except QuantailorError as error:
            waiting.delete()
            error_note(error)
            with box("qt-row qt-below"):
                primary("Measure", lambda: ui.navigate.to(address(project, "measure")), icon="straighten")
            return
        waiting.delete()
        screen.build()
        with head[0]:
            screen.actions()
