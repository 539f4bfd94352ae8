"""The screens; `register` tells NiceGUI of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nicegui import Client, app, ui
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from quantailor.gui.frame import not_found
from quantailor.gui.pages.build.page import build
from quantailor.gui.pages.choose.page import choose, choose_rows
from quantailor.gui.pages.compare import compare
from quantailor.gui.pages.experts import experts
from quantailor.gui.pages.home import home
from quantailor.gui.pages.measure.page import measure
from quantailor.gui.pages.model.page import known, opening
from quantailor.gui.pages.structure.page import structure, tensors
from quantailor.gui.pages.trying import trying
from quantailor.gui.pages.verify.page import verify

_SCREENS: Mapping[str, tuple[Callable[..., object], int]] = {
    "/": (home, 15),
    "/open": (opening, 15),
    "/p/{fingerprint}/model": (known, 15),
    "/p/{fingerprint}/structure": (structure, 15),
    "/p/{fingerprint}/measure": (measure, 15),
    "/p/{fingerprint}/choose": (choose, 60),
    "/p/{fingerprint}/build": (build, 15),
    "/p/{fingerprint}/verify": (verify, 15),
    "/p/{fingerprint}/experts": (experts, 15),
    "/p/{fingerprint}/try": (trying, 15),
    "/compare": (compare, 30),
}
"""Address -> what builds the screen, and how many seconds that may take."""


def register() -> None:
    """Add every screen's routes to the server."""
    for path, (screen, seconds) in _SCREENS.items():
        ui.page(path, response_timeout=seconds)(screen)
    app.get("/api/p/{fingerprint}/tensors")(tensors)
    app.get("/api/p/{fingerprint}/choose")(choose_rows)
    app.add_exception_handler(404, _not_found)


async def _not_found(request: Request, error: Exception) -> Response:
    """Our own page for an address that leads nowhere; what pages fetch gets a plain answer."""
    if request.method not in ("GET", "HEAD") or "text/html" not in request.headers.get("accept", "") or "endpoint" in request.scope:
        return PlainTextResponse(f"{error}\n", 404)
    with Client(ui.page(""), request=request) as client:
        not_found(request.url.path)
        return client.build_response(request, 404)
