"""Who may talk to the server: the guard alone, and a real server that strangers attack."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest
from browser import Server
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.sync.client import connect
from websockets.typing import Origin

from quantailor.app.jobs import submit
from quantailor.app.library.projects import open_project
from quantailor.gui.guard import Guard, cookie_value
from quantailor.session import Workspace
from quantailor.steps.measure import MeasureStep

WORD = "open sesame & more+"
COOKIE = "quantailor_8371"
NAVIGATING = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
INSIDE = {"Cookie": f"{COOKIE}={cookie_value(WORD)}"}


async def _page(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"inside {request.url.path}?{request.url.query}")


async def _socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("inside")
    await websocket.close()


@pytest.fixture
def client() -> TestClient:
    """The guard before an application that lets everybody in."""
    routes = [Route("/{path:path}", _page, methods=["GET", "POST", "OPTIONS"]), WebSocketRoute("/socket", _socket)]
    guarded = Guard(Starlette(routes=routes), token=WORD, hosts={"127.0.0.1", "localhost", "[::1]"}, cookie=COOKIE)
    return TestClient(guarded, base_url="http://127.0.0.1:8371", follow_redirects=False)


def test_the_first_address_gives_a_cookie_and_loses_its_token(client: TestClient) -> None:
    answer = client.get(f"/p/1?token={quote(WORD)}&tensor=a%26b&blank=")
    assert (answer.status_code, answer.headers["location"]) == (303, "/p/1?tensor=a%26b&blank=")
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert "sesame" not in cookie
    assert "domain" not in cookie.lower()
    assert answer.headers["cache-control"] == "no-store"
    assert client.get("/p/1").text == "inside /p/1?"


@pytest.fixture
def proxied() -> TestClient:
    """The guard behind proxies called lab.example and lab.example:8443."""
    guarded = Guard(
        Starlette(routes=[Route("/{path:path}", _page)]),
        token=WORD,
        hosts={"127.0.0.1"},
        cookie=COOKIE,
        proxies=["lab.example", "dev:8443"],
    )
    return TestClient(guarded, base_url="http://127.0.0.1:8371", follow_redirects=False)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "lab.example"}, 200),
        ({"Host": "lab.example", "Origin": "https://lab.example"}, 200),
        ({"Host": "127.0.0.1:8371", "Origin": "https://lab.example"}, 200),
        ({"Host": "127.0.0.1:8371", "Origin": "https://dev:8443"}, 200),
        ({"Host": "dev:8443", "Origin": "https://dev:8443"}, 200),
        ({"Host": "127.0.0.1:8371", "Origin": "https://dev"}, 403),
        ({"Host": "127.0.0.1:8371", "Origin": "https://lab.example:9"}, 403),
        ({"Host": "127.0.0.1:8371", "Origin": "https://evil.lab.example"}, 403),
        ({"Host": "127.0.0.1:8371", "Origin": "ftp://lab.example"}, 403),
        ({"Host": "lab.example", "Origin": "https://evil.example"}, 403),
        ({"Host": "lab.example", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Host": "lab.example.evil.example"}, 421),
        ({"Host": "evil.example"}, 421),
    ],
)
def test_an_allowed_name_is_a_proxys(proxied: TestClient, headers: dict[str, str], status: int) -> None:
    assert proxied.get("/", headers={**INSIDE, **headers}).status_code == status
    assert proxied.get("/", headers=headers).status_code in (401, status)


@pytest.mark.parametrize(
    ("given", "path"), [("/tools/qt", "/tools/qt"), ("/tools/qt/", "/tools/qt"), ("//evil.example", "/"), ('/"><b', "/")]
)
def test_the_cookie_is_for_the_path_of_the_proxy(client: TestClient, given: str, path: str) -> None:
    answer = client.get(f"/?token={quote(WORD)}", headers={"X-Forwarded-Prefix": given, "Sec-Fetch-Site": "cross-site"} | NAVIGATING)
    assert f"Path={path};" in f"{answer.headers['set-cookie']};"
    assert f'content="0; url={path.rstrip("/")}/"' in answer.text


def test_entering_again_is_no_harm(client: TestClient) -> None:
    first, second = (client.get(f"/?token={quote(WORD)}") for _ in range(2))
    assert (first.status_code, first.headers["set-cookie"]) == (second.status_code, second.headers["set-cookie"])
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("path", ["//evil.example/", "/%5C%5Cevil.example", "/%0d%0aSet-Cookie:%20a=b", "/https://evil.example"])
def test_it_redirects_to_itself_only(client: TestClient, path: str) -> None:
    answer = client.get(f"http://127.0.0.1:8371{path}?token={quote(WORD)}")
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/")
    assert answer.headers["location"][1] not in "/\\"
    assert len(answer.headers.get_list("set-cookie")) == 1


def test_a_link_from_another_site_enters_with_a_step_between(client: TestClient) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    answer = client.get(f"/a%22%3E%3Cb?token={quote(WORD)}", headers=headers)
    assert answer.status_code == 200
    assert 'content="0; url=/a%22%3E%3Cb"' in answer.text
    assert COOKIE in answer.headers["set-cookie"]


@pytest.mark.parametrize(
    ("address", "headers", "status"),
    [
        ("/", {}, 401),
        ("/", {"Cookie": f"{COOKIE}=stale"}, 401),
        ("/", {"Cookie": f"{COOKIE}={quote(WORD)}"}, 401),
        ("/", {"Cookie": f"other_8372={cookie_value(WORD)}"}, 401),
        ("/", {"Cookie": f'{COOKIE}="; ;;==;\x01'}, 401),
        ("/?token=stale", INSIDE, 403),
        ("/?token=", {}, 403),
        ("/?token=%FF%00", {}, 403),
        (f"/?token={quote(WORD)}&token=other", {}, 403),
        ("/", {**INSIDE, "Host": "evil.example:8371"}, 421),
        ("/", {**INSIDE, "Host": "127.0.0.1.evil.example:8371"}, 421),
        ("/", {**INSIDE, "Host": "user@127.0.0.1:8371"}, 421),
        ("/", {**INSIDE, "Host": ""}, 421),
        (f"/?token={quote(WORD)}", {"Host": "evil.example:8371"}, 421),
        ("/", {**INSIDE, "Origin": "http://evil.example"}, 403),
        ("/", {**INSIDE, "Origin": "null"}, 403),
        ("/", {**INSIDE, "Origin": "http://127.0.0.1:9999"}, 403),
        ("/", {**INSIDE, "Origin": "http://["}, 403),
        ("/", {**INSIDE, "Origin": "http://127.0.0.1:8371/"}, 403),
        (f"/?token={quote(WORD)}", {"Origin": "http://evil.example"}, 403),
        ("/", {**INSIDE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ("/", {**INSIDE, "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, 403),
        ("/", {**INSIDE, "Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403),
        ("/", {"Cookie": "a=" + "b" * 100_000}, 431),
        ("/", {**INSIDE, **{f"X-{number}": "y" * 4000 for number in range(20)}}, 431),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
def test_strangers_stay_outside(client: TestClient, method: str, address: str, headers: dict[str, str], status: int) -> None:
    answer = client.request(method, address, headers=headers)
    by_cookie = "token=" in address and method not in ("GET", "HEAD") and status == 403 and "Origin" not in headers
    if by_cookie and headers == INSIDE:
        assert answer.status_code == 200, "an address's token is for going in, not for being there"
        return
    assert answer.status_code == (401 if by_cookie else status)
    assert "inside" not in answer.text
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "headers",
    [
        INSIDE,
        {**INSIDE, "Origin": "http://127.0.0.1:8371"},
        {**INSIDE, "Host": "localhost:9000", "Origin": "http://localhost:9000"},
        {**INSIDE, "Host": "[::1]:8371"},
        {**INSIDE, "Host": "LOCALHOST"},
        {"Cookie": f"{COOKIE}=planted; a=b; {COOKIE}={cookie_value(WORD)}"},
        {**INSIDE, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
        {**INSIDE, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
    ],
)
def test_the_user_is_let_in(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.get("/x", headers=headers)
    assert (answer.status_code, answer.text) == (200, "inside /x?")
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


def test_two_hosts_or_origins_are_neither() -> None:
    cookie = (b"cookie", INSIDE["Cookie"].encode())
    for double in (
        [(b"host", b"127.0.0.1:8371"), (b"host", b"evil.example")],
        [(b"host", b"127.0.0.1"), *[(b"origin", b"http://127.0.0.1")] * 2],
    ):
        assert _status([*double, cookie]) in (403, 421)


def _status(headers: list[tuple[bytes, bytes]]) -> object:
    sent: list[Message] = []

    async def enter(*_: object) -> None:
        raise AssertionError("a stranger came in")

    async def receive() -> Message:
        raise AssertionError("a stranger was heard")

    async def send(message: Message) -> None:
        sent.append(message)

    guard = Guard(enter, token=WORD, hosts={"127.0.0.1"}, cookie=COOKIE)
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"]


@pytest.mark.parametrize(
    "headers", [{}, {**INSIDE, "Origin": "null"}, {**INSIDE, "Origin": "http://evil.example"}, {**INSIDE, "Host": "evil.example"}]
)
def test_a_strangers_websocket_is_closed_before_it_opens(client: TestClient, headers: dict[str, str]) -> None:
    with pytest.raises(WebSocketDisconnect), client.websocket_connect(f"ws://127.0.0.1:8371/socket?token={quote(WORD)}", headers=headers):
        pass


def test_the_users_websocket_opens(client: TestClient) -> None:
    with client.websocket_connect("ws://127.0.0.1:8371/socket", headers={**INSIDE, "Origin": "http://127.0.0.1:8371"}) as websocket:
        assert websocket.receive_text() == "inside"


# A real server

OUTSIDE = "what lies outside stays outside"
ROUTES = """
import json
from nicegui import app, ui
from quantailor.gui import pages
pages.register()
print(json.dumps([route.path for route in app.routes if getattr(route, "path", "")]))
"""


class Attacked:
    """A server whose store holds a model and a queued job, and a file beside its home that nobody may read."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.home = folder / "home"
        self.outside = folder / "outside.txt"
        self.outside.write_text(OUTSIDE, encoding="utf-8")
        with Workspace.open(self.home) as workspace:
            self.fingerprint = open_project(workspace, base).fingerprint
            submit(workspace, MeasureStep(base=str(base)))
            self.database = workspace.home.database
        self.server = Server(self.home, "--token", WORD)
        self.cookie = f"quantailor_{self.server.port}={cookie_value(WORD)}"

    def rows(self) -> dict[str, list[tuple[object, ...]]]:
        """Everything in the store."""
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as store:
            tables = [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
            return {table: sorted(store.execute(f"SELECT * FROM {table}").fetchall(), key=repr) for table in tables}

    def ask(
        self, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET", body: bytes | None = None, seconds: float = 30
    ) -> tuple[int, str]:
        """Status and body; the path goes out as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=seconds)
        try:
            connection.request(method, path, body=body, headers=dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8", "replace")
        finally:
            connection.close()

    def is_well(self) -> bool:
        """Whether the user is still served."""
        return self.server.process.poll() is None and self.ask("/", {"Cookie": self.cookie})[0] == 200


@pytest.fixture(scope="module")
def attacked(books_llama_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    target = Attacked(tmp_path_factory.mktemp("attacked"), books_llama_base)
    yield target
    target.server.stop()


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every attack: the same rows, and a server that answers."""
    if "attacked" not in request.fixturenames:
        yield
        return
    target: Attacked = request.getfixturevalue("attacked")
    before = target.rows()
    assert before["jobs"]
    yield
    assert target.is_well(), "".join(target.server.lines)
    assert target.rows() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", ["/", "/compare", "/static/quantailor.css", "/_nicegui_ws/socket.io/?EIO=4&transport=polling", "/favicon.ico"]
)
def test_strangers_get_nothing_of_a_real_server(attacked: Attacked, path: str) -> None:
    own = f"http://127.0.0.1:{attacked.server.port}"
    for headers, wanted in (
        ({}, 401),
        ({"Cookie": attacked.cookie[:-1]}, 401),
        ({"Cookie": attacked.cookie, "Origin": "http://evil.example"}, 403),
        ({"Cookie": attacked.cookie, "Origin": "null"}, 403),
        ({"Cookie": attacked.cookie, "Host": f"evil.example:{attacked.server.port}"}, 421),
    ):
        assert attacked.ask(path, headers)[0] == wanted
    assert attacked.ask(path, {"Cookie": attacked.cookie, "Origin": own})[0] == 200


@pytest.mark.slow
def test_no_path_leads_outside(attacked: Attacked) -> None:
    """Every parameter of every route, as the user and as a stranger."""
    listed = subprocess.run([sys.executable, "-c", ROUTES], capture_output=True, text=True, check=True, timeout=60, env=_quiet(attacked))
    routes = json.loads(listed.stdout)
    assert any("{key:path}" in route for route in routes)
    assert "/static" in {route.rstrip("/") for route in [*routes, "/static"]}
    tried = 0
    for route in (*routes, "/static/{file:path}", "/_nicegui_ws/{rest:path}"):
        for filled in _filled(route, attacked.outside):
            status, body = attacked.ask(filled, {"Cookie": attacked.cookie})
            assert status < 500, (filled, body)
            assert OUTSIDE not in body, filled
            assert attacked.ask(filled)[0] == 401
            tried += 1
    assert tried > 40


def _quiet(attacked: Attacked) -> dict[str, str]:
    return {**os.environ, "NICEGUI_STORAGE_PATH": str(attacked.home / "gui")}


def _filled(route: str, outside: Path) -> list[str]:
    """The route with each hostile value in the place of each parameter."""
    up, plain = "../" * 20, str(outside)
    hostile = (
        up + plain.lstrip("/"),
        quote(up + plain.lstrip("/"), safe=""),
        quote(plain, safe=""),
        "/" + plain,
        quote(("..\\" * 20) + plain, safe=""),
        quote(quote(up + plain, safe=""), safe=""),
        "%00" + quote(plain, safe=""),
    )
    parts = route.split("/")
    places = [at for at, part in enumerate(parts) if part.startswith("{")]
    return [
        "/".join(value if index == at else "x" if index in places else part for index, part in enumerate(parts))
        for at in places
        for value in hostile
    ]


@pytest.mark.slow
def test_the_token_is_nowhere(attacked: Attacked) -> None:
    for path in ("/", "/compare", f"/p/{attacked.fingerprint[:16]}/measure", "/nowhere", "/static/quantailor.css"):
        _, body = attacked.ask(path, {"Cookie": attacked.cookie})
        assert "sesame" not in body
        assert cookie_value(WORD) not in body
    attacked.ask(f"/?token={quote(WORD)}")
    attacked.ask("/nowhere?token=open+sesame", {"Cookie": attacked.cookie})
    attacked.is_well()
    assert "sesame" in attacked.server.lines[0]
    assert "sesame" not in "".join(attacked.server.lines[1:])
    kept = [path for path in attacked.home.rglob("*") if path.is_file() and b"sesame" in path.read_bytes()]
    assert kept == []


@pytest.mark.slow
def test_a_strangers_websocket_to_a_real_server(attacked: Attacked) -> None:
    port = attacked.server.port
    own, cookie = f"http://127.0.0.1:{port}", attacked.cookie
    for host, origin, given in (
        ("127.0.0.1", own, None),
        ("127.0.0.1", own, f"quantailor_{port}=stale"),
        ("127.0.0.1", "http://evil.example", cookie),
        ("127.0.0.1", "null", cookie),
        ("evil.example", f"http://evil.example:{port}", cookie),
    ):
        with socket.create_connection(("127.0.0.1", port)) as raw, pytest.raises(InvalidHandshake, match="403"):
            connect(_socket_url(port, host), sock=raw, origin=Origin(origin), additional_headers={"Cookie": given} if given else None)


_SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport=websocket"


def _socket_url(port: int, host: str = "127.0.0.1") -> str:
    return f"ws://{host}:{port}{_SOCKET}"


MEGABYTE = random.Random(0).randbytes(1 << 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    "message", [MEGABYTE, MEGABYTE.hex(), "42" + json.dumps(["event", "x" * (1 << 20)]), '42["event",{"client_id":[],"msg":', "4" * 100, ""]
)
def test_garbage_on_the_users_own_websocket(attacked: Attacked, message: bytes | str) -> None:
    headers = {"Cookie": attacked.cookie}
    origin = Origin(f"http://127.0.0.1:{attacked.server.port}")
    with connect(_socket_url(attacked.server.port), origin=origin, additional_headers=headers, max_size=None) as websocket:
        assert str(websocket.recv()).startswith("0")
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            websocket.send("40")
            websocket.send(message)
            while True:
                websocket.recv(timeout=0.5)


@pytest.mark.slow
def test_bytes_that_are_no_protocol(attacked: Attacked) -> None:
    upgrade = (
        f"GET {_SOCKET} HTTP/1.1\r\nHost: 127.0.0.1:{attacked.server.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nCookie: {attacked.cookie}\r\n\r\n"
    ).encode()
    for start in (b"", upgrade):
        with socket.create_connection(("127.0.0.1", attacked.server.port), timeout=20) as raw:
            raw.sendall(start)
            with contextlib.suppress(ConnectionError, TimeoutError):
                for at in range(0, len(MEGABYTE), 65536):
                    raw.sendall(MEGABYTE[at : at + 65536])
                while raw.recv(65536):
                    pass


@pytest.mark.slow
def test_a_megabyte_by_polling_and_in_headers(attacked: Attacked) -> None:
    polling = "/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    status, opened = attacked.ask(polling, {"Cookie": attacked.cookie})
    assert status == 200
    sid = json.loads(opened[1:])["sid"]
    post = functools.partial(attacked.ask, headers={"Cookie": attacked.cookie}, method="POST", body=MEGABYTE)
    assert post(f"{polling}&sid=stranger")[0] == 400
    with contextlib.suppress(TimeoutError):
        assert post(f"{polling}&sid={sid}", seconds=2)[0] == 400
    for header in ({"Cookie": "a=" + "b" * (1 << 20)}, {"X-Long": "y" * (1 << 20), "Cookie": attacked.cookie}):
        with contextlib.suppress(ConnectionError, http.client.HTTPException):
            assert attacked.ask("/", header)[0] in (400, 431)
