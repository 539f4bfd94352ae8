"""Who may talk to the server: only a browser that was given the token, at an address that is the server's own.

Four checks on every request and websocket, before any page, file or socket sees it:

1. `Host` is one of the server's names, so that a foreign name that resolves to this machine (DNS rebinding) is refused.
   Its port may differ, for a tunnel may begin at another one.
2. `Origin`, where there is one, is the server itself, so that pages from elsewhere cannot drive it. A name that the user allowed
   is that of a proxy, which may pass another `Host` on.
3. `Sec-Fetch-Site`, where there is one, says that the request is the server's own, or that the user goes to a page. Cookies know
   no ports, so that another program's page on this machine would otherwise bring ours along.
4. The token: in the first URL (`?token=...`), which turns it into a cookie and drops it from the address; then in the cookie.
   The cookie holds a digest of the token, so that whoever sees it does not learn the token.

A proxy that serves us below a path names it in `X-Forwarded-Prefix`; pages then ask for their addresses below it, and the cookie
is for that path alone. A prefix that is not a plain path counts as none.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from urllib.parse import parse_qsl, quote, urlencode

from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN = "token"  # noqa: S105
"""The query parameter of the first URL."""
MAX_HEADER_BYTES = 64 * 1024
"""What all headers of a request may take together."""
_HELP = "Open the address that `quantailor gui` printed; it holds the token.\n"
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""Nothing from elsewhere; inline scripts and `eval` are how NiceGUI starts a page and Vue compiles its templates."""
_SAFE_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@]+)(:\d{1,5})?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d{1,5})?|\[[0-9a-f:.]+\](:\d{1,5})?")
_PREFIX_HEADER = "x-forwarded-prefix"
_PREFIX = re.compile(r"(/[\w.~@:+=-]+)+", re.ASCII)
_WEB = ("http", "https")
_OWN_SITE = ("same-origin", "none")
_READING = ("GET", "HEAD")


class Guard:
    """ASGI middleware.

    Args:
        app: what it stands in front of.
        token: what a visitor must present.
        hosts: the server's names in lower case and without ports, IPv6 addresses in brackets.
        cookie: the cookie's name.
        proxies: further names, with their ports where these are not the usual ones.
        root_path: the path below which a proxy serves us that does not say so itself; it may take the path off or leave it on.
    """

    def __init__(
        self, app: ASGIApp, *, token: str, hosts: Iterable[str], cookie: str, proxies: Iterable[str] = (), root_path: str = ""
    ) -> None:
        self._app, self._token, self._cookie, self._root = app, token, cookie, root_path
        self._proxies = frozenset(proxies)
        self._hosts = frozenset(hosts) | {_without_port(name) for name in self._proxies}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if (inside := _below(scope, self._root)) is not scope:
            scope, send = inside, _redirecting_below(self._root, send)
        scope = _with_plain_prefix(scope)
        answer = self._answer(scope)
        if answer is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "refused"})
        else:
            answer.headers["Cache-Control"] = "no-store"
            await answer(scope, receive, _with_headers(send))

    def _answer(self, scope: Scope) -> Response | None:
        """What the guard itself says to a request, or None where it may pass."""
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
            return PlainTextResponse("The request's headers are too large.\n", 431)
        headers = _joined(scope)
        return self._stranger(scope, headers) or self._token_answer(scope, headers)

    def _stranger(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        host = headers.get("host", "").lower()
        name = _HOST.fullmatch(host)
        if name is None or name[1] not in self._hosts:
            advice = "If it is the name of a proxy before it, start it with --allow-host."
            return PlainTextResponse(f"This server does not answer to the host {host[:100]!r}. {advice}\n", 421)
        origin = headers.get("origin")
        is_own = origin is None or origin.lower().partition("://")[::2] in {
            (kind, name) for kind in _WEB for name in (host, *self._proxies)
        }
        if not is_own or not _may_fetch(scope, headers):
            return PlainTextResponse("Requests from other sites are refused.\n", 403)
        return None

    def _token_answer(self, scope: Scope, headers: Mapping[str, str]) -> Response | None:
        pairs = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        given = [value for key, value in pairs if key == TOKEN]
        if given and scope["type"] == "http" and scope["method"] in _READING:
            if not _same(given[-1], self._token):
                return PlainTextResponse(f"This token is not, or no longer, valid. {_HELP}", 403)
            return self._entry(scope, headers, [(key, value) for key, value in pairs if key != TOKEN])
        if not any(_same(value, cookie_value(self._token)) for value in _cookies(headers.get("cookie", ""), self._cookie)):
            return PlainTextResponse(f"No valid token. {_HELP}", 401)
        return None

    def _entry(self, scope: Scope, headers: Mapping[str, str], rest: list[tuple[str, str]]) -> Response:
        """Take the token out of the address and keep it as a cookie."""
        path = "/" + quote(scope["path"].lstrip("/"))
        address, prefix = f"{path}?{urlencode(rest)}" if rest else path, headers.get(_PREFIX_HEADER, "")
        # A redirect would still count as coming from the other site, and the browser would hold the strict cookie back.
        # NiceGUI puts the prefix before the address of a redirect.
        answer = _onward(prefix + address) if headers.get("sec-fetch-site", "none") not in _OWN_SITE else RedirectResponse(address, 303)
        answer.set_cookie(self._cookie, cookie_value(self._token), httponly=True, samesite="strict", path=prefix or "/")
        return answer


def cookie_value(token: str) -> str:
    """What the cookie holds instead of the token: 64 hexadecimal digits."""
    return hmac.new(token.encode("utf-8", "surrogatepass"), b"quantailor gui cookie", hashlib.sha256).hexdigest()


def is_host_name(text: str) -> bool:
    """Whether this is a name that `proxies` may hold."""
    return _NAME.fullmatch(text) is not None


def _without_port(name: str) -> str:
    return name if name.endswith("]") else re.sub(r":\d+$", "", name)


def forwarded_prefix(headers: Mapping[str, str]) -> str:
    """The path below which a proxy serves us, as the guard lets it pass; "" where none does."""
    return headers.get(_PREFIX_HEADER, "")


def is_root_path(text: str) -> bool:
    """Whether this is a path that `root_path` may be: "/tools/qt"."""
    return not text or _PREFIX.fullmatch(text) is not None


def _below(scope: Scope, root: str) -> Scope:
    """The request as a proxy would pass it on that takes `root` off and names it."""
    name = _PREFIX_HEADER.encode()
    if not root or any(key.lower() == name for key, _ in scope["headers"]):
        return scope
    path = scope["path"]
    inside = path.removeprefix(root) if path.startswith(f"{root}/") else "/" if path == root else path
    return {**scope, "path": inside, "raw_path": quote(inside).encode(), "headers": [*scope["headers"], (name, root.encode())]}


def _redirecting_below(root: str, send: Send) -> Send:
    """NiceGUI does that where a proxy names the path."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(key, root.encode() + value if _is_bare(key, value, root) else value) for key, value in message.get("headers", ())]
            message = {**message, "headers": headers}
        await send(message)

    return sending


def _is_bare(key: bytes, value: bytes, root: str) -> bool:
    return key.lower() == b"location" and value.startswith(b"/") and not value.startswith(f"{root}/".encode())


def _with_plain_prefix(scope: Scope) -> Scope:
    """The request with a prefix that is a plain path without a slash at its end, or with none."""
    name = _PREFIX_HEADER.encode()
    given = [value for key, value in scope["headers"] if key.lower() == name]
    if not given:
        return scope
    prefix = given[0].decode("latin-1").rstrip("/")
    others = [(key, value) for key, value in scope["headers"] if key.lower() != name]
    is_plain = len(given) == 1 and _PREFIX.fullmatch(prefix)
    return {**scope, "headers": [*others, (name, prefix.encode())] if is_plain else others}


def _may_fetch(scope: Scope, headers: Mapping[str, str]) -> bool:
    """Whether the browser says that this comes from our own page, or that the user goes to a page of ours."""
    if headers.get("sec-fetch-site", "none") in _OWN_SITE:
        return True
    goes = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest", "document") == "document"
    return goes and scope["type"] == "http" and scope["method"] in _READING


def _onward(address: str) -> Response:
    safe = address.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    refresh = f'<meta http-equiv="refresh" content="0; url={safe}">'
    return HTMLResponse(f'<!doctype html><meta charset="utf-8">{refresh}<title>Quantailor</title>')


def _joined(scope: Scope) -> dict[str, str]:
    """Headers by name in lower case; one that is given twice has both values, which no check then takes for its own."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]}; {value}" if name in found else value
    return found


def _cookies(header: str, name: str) -> list[str]:
    """All values under that name: a page elsewhere on this machine can add one, but must not shut the user out."""
    pairs = (part.strip().partition("=") for part in header.split(";"))
    return [value for key, _, value in pairs if key == name]


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode("utf-8", "surrogatepass"))


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *((name.lower().encode(), value.encode()) for name, value in _SAFE_HEADERS.items())]
            message = {**message, "headers": headers}
        await send(message)

    return sending
