"""The server: where it listens, who may come in, and how a browser finds it."""

from __future__ import annotations

import getpass
import importlib.util
import os
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psutil

from quantailor.app import Workspace, share_one_heap
from quantailor.errors import QuantailorError
from quantailor.gui.guard import Guard, is_host_name, is_root_path

DEFAULT_PORT = 8371
LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
_KEPT_BYTES = 24
MIN_REMOTE_TOKEN = 8
"""Characters that a token must have at least where others can reach the server."""
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_STATIC = Path(__file__).parent / "static"
_ICON = "✂"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """Where and how to serve."""

    home: Path | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    """None takes the default, or a free one where that is taken."""
    token: str | None = None
    """None takes the home's own; needed where `host` is not this machine alone."""
    allow: tuple[Path, ...] = ()
    """Folders that file pickers may show, besides the user's home, the working directory and Quantailor's own."""
    allow_hosts: tuple[str, ...] = ()
    """Names of proxies through which the server is reached, with their ports where these are not the usual ones."""
    root_path: str = ""
    """The path below which a proxy serves us that does not name it in X-Forwarded-Prefix, such as "/tools/qt"."""
    native: bool = False
    open_browser: bool = True


class ServeError(QuantailorError):
    """The server cannot start as asked."""


def serve(options: ServeOptions, say: Callable[[str], None] = print) -> None:
    """Run the server until it is stopped; `say` hears the address.

    Raises:
        ServeError: an address that needs a token, a port that is taken, or a name or path that is none.
    """
    if not is_root_path(options.root_path.rstrip("/")):
        raise ServeError(f"{options.root_path!r} is not a path of a server", remedy="Give it as browsers show it: /tools/qt")
    for name in options.allow_hosts:
        if not is_host_name(name.lower()):
            raise ServeError(f"{name!r} is not the name of a host", remedy="Give it as browsers show it: lab.example or lab.example:8443")
    _require_token(options)
    share_one_heap()
    port = _port(options)
    with Workspace.open(options.home) as workspace:
        token = options.token or _kept_token(workspace.home.path / "gui" / "token")
        native = options.native and _has_windows(say)
        _run(options, workspace, port=port, token=token, native=native, say=say)


def _kept_token(path: Path) -> str:
    """The home's own token, made where there is none that only its user can read: open tabs and bookmarks outlive the server."""
    try:
        is_private = os.name == "nt" or not path.stat().st_mode & 0o077
        known = path.read_text(encoding="ascii").strip()
        if is_private and len(known) >= _KEPT_BYTES:
            return known
    except (OSError, UnicodeDecodeError):
        pass
    token = secrets.token_urlsafe(_KEPT_BYTES)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
            stream.write(token)
    except OSError:  # a home that cannot be written to, or another server that is faster: this one's token lasts as long as it does
        return token
    return token


def _greet(options: ServeOptions, say: Callable[[str], None], *, port: int, token: str) -> None:
    say(f"Quantailor is at http://{_shown_name(options.host)}:{port}{_entry(token)}")
    if options.host in LOCAL and os.environ.get("SSH_CONNECTION"):
        say(f"From your own machine: {tunnel(port)}")


def _require_token(options: ServeOptions) -> None:
    is_closed = options.host in LOCAL and not options.allow_hosts
    is_random = options.token is None and options.host in LOCAL
    if is_closed or is_random or (options.token and len(options.token) >= MIN_REMOTE_TOKEN):
        return
    what = f"with a token of fewer than {MIN_REMOTE_TOKEN} characters" if options.token else "without a token"
    raise ServeError(
        f"serving on {', '.join((options.host, *options.allow_hosts))} {what} would let anybody in",
        remedy=f"Give --token, or stay local and tunnel: {tunnel(options.port or DEFAULT_PORT)}",
    )


def _entry(token: str) -> str:
    """The first URL's path."""
    return f"/?token={quote(token, safe='')}"


def _shown_name(host: str) -> str:
    """What to call the server in an address."""
    if host in _EVERYWHERE:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else "127.0.0.1" if host == "localhost" else host


def tunnel(port: int) -> str:
    """The line that brings the port to a user's own machine over SSH."""
    return f"ssh -L {port}:127.0.0.1:{port} {getpass.getuser()}@{socket.gethostname()}"


def _port(options: ServeOptions) -> int:
    """The wanted port, or a free one where none was asked for by number. Raises ServeError."""
    wanted = options.port if options.port is not None else DEFAULT_PORT
    if bound := _bound(options.host, wanted):
        return bound
    free = _bound(options.host, 0)
    if free is None:
        raise ServeError(f"{options.host} is not an address of this machine", remedy="Leave --host out to serve this machine alone")
    if options.port is None:
        return free
    raise ServeError(f"port {wanted} cannot be used: it is taken or reserved", remedy="Leave --port out to get a free one")


def _bound(host: str, port: int) -> int | None:
    """The port that binding gave (a free one for 0), or None where it failed."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def _has_windows(say: Callable[[str], None]) -> bool:
    """Whether a window of our own can be shown; says so where it cannot."""
    if importlib.util.find_spec("webview") is None:
        say("No native window: pywebview is not installed (pip install pywebview). Use the address in a browser.")
        return False
    if not _has_display():
        say("No native window: there is no display. Use the address in a browser.")
        return False
    if sys.platform.startswith("linux") and not any(importlib.util.find_spec(name) for name in ("gi", "qtpy")):
        say("No native window: pywebview needs GTK or Qt (pip install 'pywebview[qt]'). Use the address in a browser.")
        return False
    return True


def _has_display() -> bool:
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _has_browser() -> bool:
    """Whether opening one makes sense: a display of this session's own."""
    return not os.environ.get("SSH_CONNECTION") and _has_display()


def _hosts(host: str) -> set[str]:
    """Every name and address that leads here, as `Host` has it without a port."""
    here = {"127.0.0.1", "localhost", "[::1]"}
    if host in LOCAL:
        return here
    return here | (_own_names() if host in _EVERYWHERE else {f"[{host.lower()}]" if ":" in host else host.lower()})


def _own_names() -> set[str]:
    """What this machine is called, and all its addresses."""
    name = socket.gethostname().lower()
    addresses = (item.address.lower() for items in psutil.net_if_addrs().values() for item in items if item.family in _FAMILIES)
    shown = (f"[{address}]" if ":" in address else address for address in addresses)
    return {name, f"{name.split('.')[0]}.local", socket.getfqdn().lower(), *shown}


def add_pages(workspace: Workspace, allow: Sequence[Path] = ()) -> None:
    """Make NiceGUI serve the pages of a workspace; `allow` are folders that file pickers may show besides the usual ones."""
    from nicegui import app, ui

    from quantailor.gui import context, pages, theme

    roots = tuple(dict.fromkeys(path.expanduser().resolve() for path in (Path.home(), Path.cwd(), workspace.home.path, *allow)))
    context.use(context.Context(workspace, roots))
    app.add_static_files("/static", _STATIC)
    ui.add_css(theme.variables(), shared=True)
    pages.register()


def _run(options: ServeOptions, workspace: Workspace, *, port: int, token: str, native: bool, say: Callable[[str], None]) -> None:
    # NiceGUI reads this when it is imported: its storage would else go to the working directory.
    os.environ["NICEGUI_STORAGE_PATH"] = str(workspace.home.path / "gui")
    from nicegui import app, ui

    add_pages(workspace, options.allow)
    proxies, root_path = [name.lower() for name in options.allow_hosts], options.root_path.rstrip("/")
    if native:
        app.native.window_args["url"] = f"http://{_shown_name(options.host)}:{port}{_entry(token)}"
    app.add_middleware(Guard, token=token, hosts=_hosts(options.host), cookie=f"quantailor_{port}", proxies=proxies, root_path=root_path)
    app.on_startup(lambda: _greet(options, say, port=port, token=token))
    ui.run(
        host=options.host,
        port=port,
        title="Quantailor",
        favicon=_ICON,
        language="en-US",
        dark=None,
        reload=False,
        show=_entry(token) if options.open_browser and not native and _has_browser() else False,
        native=native,
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=10,
        timeout_graceful_shutdown=3,
    )
