"""The screens; `register` tells NiceGUI of all of them."""

from __future__ import annotations

import importlib

from nicegui import Client, app, ui
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from quantailor.gui.frame import not_found

_SCREENS = ("home", "model", "structure", "measure", "choose", "build", "verify", "compare", "experts", "trying")


def register() -> None:
    """Add every screen's routes to the server."""
    for name in _SCREENS:
        module = importlib.import_module(f"quantailor.gui.pages.{name}")
        module.register()
    app.add_exception_handler(404, _not_found)


async def _not_found(request: Request, error: Exception) -> Response:
    """Our own page for an address that leads nowhere; what pages fetch gets a plain answer."""
    if request.method not in ("GET", "HEAD") or "text/html" not in request.headers.get("accept", "") or "endpoint" in request.scope:
        return PlainTextResponse(f"{error}\n", 404)
    with Client(ui.page(""), request=request) as client:
        not_found(request.url.path)
        return client.build_response(request, 404)
