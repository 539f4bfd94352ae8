"""Every command: importing a module hangs its commands on `app`, in the order in which help lists them."""

from __future__ import annotations

import importlib

from quantailor.cli.root import app as app

_MODULES = "hub steps planning making sensitivity choosing study cost status sharing verdicts cleaning serving gui"
for _name in _MODULES.split():
    importlib.import_module(f"quantailor.cli.commands.{_name}")
