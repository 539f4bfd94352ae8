"""Where text goes: results to standard output, progress and errors to standard error.

`--json` prints one document: {"version", "command", "result"} or {"version", "command", "error"}; see docs/JSON.md.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from quantailor.errors import QuantailorError

VERSION = 2
_PLAIN_WIDTH = 200


def console(*, stderr: bool = False) -> Console:
    """A console that never truncates tables for a file or a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=not stream.isatty(), width=None if stream.isatty() else _PLAIN_WIDTH)


def table(title: str, columns: Mapping[str, str], rows: Sequence[Sequence[str | Text]]) -> Table:
    """A table; `columns` maps a heading to "left" or "right". Brackets in texts are brackets, whatever stands in them."""
    result = Table(title=escape(title), title_justify="left", header_style="bold", box=None, pad_edge=False)
    for heading, justify in columns.items():
        result.add_column(escape(heading), justify="right" if justify == "right" else "left", no_wrap=justify != "wrap")
    for row in rows:
        result.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return result


def print_json(command: str, result: object) -> None:
    """One JSON document on standard output."""
    document = {"version": VERSION, "command": command, "result": _plain(result)}
    sys.stdout.write(json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n")


def print_json_error(command: str, error: QuantailorError, remedy: str | None) -> None:
    """The document of a command that failed."""
    told = {"type": type(error).__name__, "message": error.message, "remedy": remedy}
    sys.stdout.write(json.dumps({"version": VERSION, "command": command, "error": told}, ensure_ascii=False) + "\n")


def print_error(error: QuantailorError, remedy: str | None) -> None:
    """One line on standard error."""
    sys.stderr.write(f"error: {error if remedy is None else QuantailorError(error.message, remedy=remedy)}\n")


def _plain(value: object) -> Any:
    """Records as mappings; numbers that JSON does not know (inf, nan) as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
