"""What all pages share in one server: the workspace, and the folders whose files the browser may be shown."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from nicegui import ui

from quantailor.app import Workspace
from quantailor.errors import OutputError
from quantailor.files import expanded
from quantailor.gui.guard import forwarded_prefix
from quantailor.present.words import shortened

MAX_NAME_BYTES = 255
"""What file systems take as the name of one file or folder."""


@dataclass(frozen=True)
class Context:
    """One server's own."""

    workspace: Workspace
    roots: tuple[Path, ...]
    """File pickers stay inside these."""

    def allowed(self, path: str | Path) -> Path:
        """The path with links and dots resolved. Raises OutputError where it lies outside the roots, or no system takes it."""
        long = next((part for part in Path(path).parts if len(os.fsencode(part)) > MAX_NAME_BYTES), None)
        if long is not None or "\0" in str(path):
            what = f"the name {shortened(long, 40)} is longer than {MAX_NAME_BYTES} bytes" if long else "a name holds a null character"
            raise OutputError(f"{what}, which no file can be called", remedy="Choose another name")
        resolved = expanded(path).resolve()
        if any(resolved.is_relative_to(root) for root in self.roots):
            return resolved
        named = ", ".join(map(str, self.roots))
        raise OutputError(
            f"{path} lies outside the folders that this server may use ({named})", remedy="Start it with --allow FOLDER to add one"
        )


def outside(path: str) -> str:
    """A path of this server as the page's browser must ask for it: below the prefix of a proxy. NiceGUI's links do that by themselves."""
    return forwarded_prefix(ui.context.client.request.headers) + path


def show_address(path: str) -> None:
    """Let the browser show this path, without going there."""
    ui.navigate.history.replace(outside(path))


_current: Context | None = None


def use(context: Context) -> None:
    """Make this the server's context."""
    global _current
    _current = context


def context() -> Context:
    """The server's context. Raises RuntimeError where no server runs."""
    if _current is None:
        raise RuntimeError("no server has set its context")
    return _current


def workspace() -> Workspace:
    """The server's workspace."""
    return context().workspace
