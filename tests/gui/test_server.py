"""Where the server listens, what it prints, and what it leaves behind."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import socket
from pathlib import Path

import httpx
import pytest
from browser import Server, serving

from quantailor.gui import ServeOptions, serve
from quantailor.gui.server import DEFAULT_PORT, ServeError, tunnel


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])  # noqa: S104
@pytest.mark.parametrize("token", [None, "", "short"])
def test_serving_others_needs_a_token(tmp_path: Path, host: str, token: str | None) -> None:
    said: list[str] = []
    with pytest.raises(ServeError, match=f"serving on {host} with.* would let anybody in") as refused:
        serve(ServeOptions(home=tmp_path / "home", host=host, token=token), say=said.append)
    assert refused.value.remedy is not None
    assert tunnel(DEFAULT_PORT) in refused.value.remedy
    assert tunnel(DEFAULT_PORT).startswith(f"ssh -L {DEFAULT_PORT}:127.0.0.1:{DEFAULT_PORT} ")
    assert said == []
    assert not (tmp_path / "home").exists()


def test_a_port_that_was_asked_for_and_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=rf"port {port} cannot be used.*Leave --port out"):
            serve(ServeOptions(home=tmp_path, port=port))


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"192\.0\.2\.1 is not an address of this machine"):
        serve(ServeOptions(home=tmp_path, host="192.0.2.1", token="long enough for that"))  # noqa: S106


@pytest.mark.slow
def test_the_default_port_or_a_free_one(tmp_path: Path) -> None:
    with serving(tmp_path / "one") as first, serving(tmp_path / "two") as second:
        assert first.port != second.port
        assert second.port != DEFAULT_PORT
        assert _status(first) == _status(second) == 303
        assert httpx.get(second.url(f"/?token={first.token}")).status_code == 403


def _status(server: Server) -> int:
    return httpx.get(server.entry).status_code


@pytest.mark.slow
def test_nothing_appears_in_the_working_directory(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    server = Server(tmp_path / "home", cwd=folder)
    try:
        with httpx.Client(follow_redirects=True) as client:
            assert client.get(server.entry).status_code == 200
    finally:
        server.stop()
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_a_remote_server_answers_to_its_own_names_only(tmp_path: Path) -> None:
    server = _Remote(tmp_path / "home")
    try:
        for host, wanted in ((f"127.0.0.1:{server.port}", 303), (f"{socket.gethostname()}:{server.port}", 303), ("evil.example", 421)):
            assert httpx.get(server.entry, headers={"Host": host}).status_code == wanted
    finally:
        server.stop()


class _Remote(Server):
    """Served on all addresses."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, "--host", "0.0.0.0", "--token", "long-enough-for-that")  # noqa: S104

    def _address(self) -> tuple[int, str]:
        from browser import START_SECONDS, wait_for

        def printed() -> int | None:
            found = [line for line in self.lines if f"http://{socket.gethostname()}:" in line]
            return int(found[0].rsplit(":", 1)[1].split("/")[0]) if found else None

        return wait_for(printed, "the server prints its address", seconds=START_SECONDS), "long-enough-for-that"


@pytest.mark.slow
def test_without_a_window_it_says_why_and_serves_a_browser(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--native") as server:
        assert any(line.startswith("No native window: ") and "browser" in line for line in server.lines)
        assert _status(server) == 303


@pytest.mark.parametrize(
    ("installed", "display", "reason"),
    [
        (set(), ":0", "pywebview is not installed"),
        ({"webview", "qtpy"}, "", "there is no display"),
        ({"webview"}, ":0", "needs GTK or Qt"),
    ],
)
def test_each_reason_for_no_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: set[str], display: str, reason: str) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: _spec(name) if name in installed else None)
    monkeypatch.setattr("quantailor.gui.server._run", lambda *_, native, **__: said.append(f"native: {native}"))
    said: list[str] = []
    serve(ServeOptions(home=tmp_path / "home", native=True, open_browser=False), say=said.append)
    assert reason in said[0]
    assert said[1] == "native: False"


def _spec(name: str) -> importlib.machinery.ModuleSpec:
    return importlib.machinery.ModuleSpec(name, None)
