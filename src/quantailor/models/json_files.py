"""JSON files of a model directory, read so that nothing in them can do more than raise a clear error."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantailor.errors import ModelError, ModelFormatError
from quantailor.files import START_BYTES, other_format
from quantailor.models.random_access import refuse_missing, refuse_stand_in, unreadable

INTACT = "Download the model again"
NOT_UTF8 = "Save it as UTF-8, or download the model again"
OTHER_WAY = "Run `quantailor convert` first, which uses llama.cpp's own converter for it, and give its output"
INSIST = "A newer llama.cpp may know it: convert with `--way llama.cpp --converter FOLDER`"
_COMMENTS = ("//", "/*", "#")
MAX_FILE_BYTES = 64 << 20
"""Twice the largest tokenizer that is known."""

JsonObject = Mapping[str, Any]
"""A JSON object that a stranger wrote: whoever takes a value out of it checks what it is."""


def parse_json(data: bytes, name: str, *, unique: bool = False) -> dict[str, Any]:
    """A JSON object from UTF-8 text, where `unique` without a key that is there twice. Raises ModelFormatError naming `name`."""
    value = parse_any_json(data, name, unique=unique)
    if not isinstance(value, dict):
        raise ModelFormatError(f"{name} does not hold a JSON object", remedy=INTACT)
    return value


def parse_any_json(data: bytes, name: str, *, unique: bool = False) -> Any:
    """The same for any JSON value. Raises ModelFormatError."""
    text = ""
    try:
        text = str(data, "utf-8-sig")
        value = json.loads(text, object_pairs_hook=_unique if unique else None)
        if "\\ud" in text.lower():
            # Half of a surrogate pair is not text and could not be written.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        what, remedy = _no_json(data, text, error)
        raise ModelFormatError(f"{name} {what}", remedy=remedy) from error
    return value


def _no_json(data: bytes, text: str, error: Exception) -> tuple[str, str]:
    """What is wrong with text that is not JSON, and the remedy."""
    if found := other_format(data[:START_BYTES]):
        return f"is {found.what}, not JSON", found.remedy
    if b"\x00" in data[:4]:
        return "is not UTF-8 text (it looks like UTF-16)", NOT_UTF8
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("<<<<<<< "):
            return f"holds both sides of a merge conflict (line {number})", "Resolve the conflict, or download the model again"
    if isinstance(error, json.JSONDecodeError) and text[error.pos :].startswith(_COMMENTS):
        return f"has a comment in line {error.lineno}, which JSON does not allow", "Remove the comment, or download the model again"
    return f"is not valid JSON: {str(error)[:120]}", INTACT


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"it has {key[:80]!r} twice")
        found[key] = value
    return found


def read_bytes(path: Path) -> bytes:
    """A whole small file. Raises ModelError, ModelFormatError when it is larger than any tokenizer."""
    try:
        refuse_missing(path)
        # A pipe would keep us waiting, a device never end.
        if not path.is_file():
            raise ModelError(f"there is no file {path}", remedy=INTACT)
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > MAX_FILE_BYTES:
                raise ModelFormatError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB", remedy=INTACT)
            data = stream.read(size)
    except OSError as error:
        raise unreadable(path, error, remedy=INTACT) from error
    refuse_stand_in(path, data[:START_BYTES])
    return data


def is_there(path: Path) -> bool:
    """Whether there is such a file. Raises ModelError where that cannot be told, and for a link to nothing."""
    try:
        refuse_missing(path)
        if path.is_dir():
            raise ModelError(f"{path} is a directory where a file belongs", remedy=INTACT)
        return path.is_file()
    except OSError as error:
        raise unreadable(path, error, remedy=INTACT) from error


def read_text(path: Path) -> str:
    """A whole UTF-8 file. Raises ModelFormatError where it holds something else."""
    try:
        return str(read_bytes(path), "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"{path} is not UTF-8 text", remedy=NOT_UTF8) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    return parse_json(read_bytes(path), str(path))


def read_json_if_there(path: Path) -> dict[str, Any]:
    """The same, or an empty object where there is no such file."""
    return read_json(path) if is_there(path) else {}


def mapping(value: object) -> JsonObject:
    """`value` where it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: Any) -> list[dict[str, Any]]:
    """The JSON objects in a list; empty for anything that is not a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
