"""The screens; `register` tells NiceGUI of all of them."""

from __future__ import annotations

import importlib

_SCREENS = ("home", "model", "structure", "measure", "choose", "build", "verify", "compare", "experts")


def register() -> None:
    """Add every screen's routes to the server."""
    for name in _SCREENS:
        module = importlib.import_module(f"quantailor.gui.pages.{name}")
        module.register()
