"""Whether a checkpoint brings code: some of llama.cpp's classes let transformers run what a directory holds."""

from __future__ import annotations

from pathlib import Path

from quantailor.errors import UnsupportedModelError
from quantailor.models.json_files import parse_json, read_bytes

REMEDY = "Read the code, then give --trust-remote-code to run it with your rights"


def refuse_code(folder: Path) -> None:
    """Raise UnsupportedModelError where a directory has Python files, or JSON files that name code (`auto_map`).

    Raises ModelError where a JSON file cannot be read or is damaged.
    """
    for path in sorted(folder.glob("*")):
        if path.suffix.lower() in (".py", ".pyc", ".pyw"):
            raise UnsupportedModelError(f"{folder} brings code: {path.name}", remedy=REMEDY)
        if path.suffix.lower() == ".json" and path.is_file() and (found := _code_in(_parsed(path))):
            raise UnsupportedModelError(f"{path} names code to run: {found[:120]!r}", remedy=REMEDY)


def _parsed(path: Path) -> object:
    """Also files that hold a list."""
    return parse_json(b'{"it":' + read_bytes(path) + b"}", str(path))


def _code_in(value: object) -> str:
    """What the first `auto_map` in it names; empty where there is none."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if item.get("auto_map"):
                return str(item["auto_map"])
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return ""
