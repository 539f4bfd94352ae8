"""Every command: importing a module hangs its commands on `app`, in the order in which help lists them."""

from __future__ import annotations

import importlib

from quantailor.cli.root import app as app

for _name in ("hub", "steps", "sensitivity", "choosing", "study", "cost", "status", "sharing", "verdicts", "cleaning", "gui"):
    importlib.import_module(f"quantailor.cli.commands.{_name}")

__all__ = ["app"]
