"""Commands that are advised: complete with the home that this one was given, so that they work when they are typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_OURS = re.compile(r"`(quantailor [^`]+)`")


def with_home(text: str, home: str | Path | None) -> str:
    """A text whose commands of ours name that home, where they take one and name none."""
    return text if home is None else _OURS.sub(lambda match: f"`{_complete(match[1], str(home))}`", text)


def home_of(arguments: Sequence[str]) -> str | None:
    """The home that a command line names."""
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if word == "--home":
            return following
        if word.startswith("--home="):
            return word.removeprefix("--home=")
    return None


def _complete(command: str, home: str) -> str:
    from typer.core import TyperGroup
    from typer.main import get_command

    from quantailor.cli.app import app

    node: Any = get_command(app)
    words = command.split()[1:]
    while words and isinstance(node, TyperGroup) and words[0] in node.commands:
        node, words = node.commands[words[0]], words[1:]
    takes_one = any("--home" in parameter.opts for parameter in node.params)
    is_a_name = not words and any(parameter.required for parameter in node.params)
    return f"{command} --home {shlex.quote(home)}" if takes_one and not is_a_name and " --home" not in command else command
