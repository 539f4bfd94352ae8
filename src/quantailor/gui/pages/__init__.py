"""The screens; `register` tells NiceGUI of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nicegui import Client, app, ui
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from quantailor.gui.frame import failed, not_found
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

_SCREENS: Mapping[str, Callable[..., object]] = {
    "/": home,
    "/open": opening,
    "/p/{fingerprint}/model": known,
    "/p/{fingerprint}/structure": structure,
    "/p/{fingerprint}/measure": measure,
    "/p/{fingerprint}/choose": choose,
    "/p/{fingerprint}/build": build,
    "/p/{fingerprint}/verify": verify,
    "/p/{fingerprint}/experts": experts,
    "/p/{fingerprint}/try": trying,
    "/compare": compare,
}
"""Address -> what builds the screen."""
BUILD_SECONDS = 180
"""What building a page may take. After that NiceGUI shows an error in words for programmers; a busy machine is no error."""


def register() -> None:
    """Add every screen's routes to the server."""
    for path, screen in _SCREENS.items():
        ui.page(path, response_timeout=BUILD_SECONDS)(screen)
    app.get("/api/p/{fingerprint}/tensors")(tensors)
    app.get("/api/p/{fingerprint}/choose")(choose_rows)
    app.add_exception_handler(404, _not_found)
    app.on_page_exception(failed)


async def _not_found(request: Request, error: Exception) -> Response:
    """Our own page for an address that leads nowhere; what pages fetch gets a plain answer."""
    if request.method not in ("GET", "HEAD") or "text/html" not in request.headers.get("accept", "") or "endpoint" in request.scope:
        return PlainTextResponse(f"{error}\n", 404)
    with Client(ui.page(""), request=request) as client:
        not_found(request.url.path)
        return client.build_response(request, 404)
