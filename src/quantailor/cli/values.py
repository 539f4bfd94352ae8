"""Sizes, lists and counts as users write and read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import typer

from quantailor.app.steps import AUTO, NONE, REPO, absolute

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS[f"{_letter}IB"] = 1024**_power
    _UNITS[f"{_letter}B"] = 1000**_power
_SIZE = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes of "4.2GiB", "700 MB" or "123456"; raises typer.BadParameter."""
    match = _SIZE.fullmatch(text)
    if not match or match.group(2).upper() not in _UNITS:
        raise typer.BadParameter(f"{text!r} is not a size; write for example 4.2GiB, 700MB or 123456")
    size = int(float(match.group(1)) * _UNITS[match.group(2).upper()])
    if size <= 0:
        raise typer.BadParameter(f"{text!r}: a size must be more than zero")
    return size


def split_list(text: str | None) -> tuple[str, ...]:
    """The items of "Q4_K, Q6_K"; empty for None."""
    return tuple(item for item in (part.strip() for part in (text or "").split(",")) if item)


def optional_path(value: Path | None) -> str | None:
    """A path for a task, or None."""
    return None if value is None else absolute(value)


def imatrix_choice(value: str, *, of_repository: bool = False, words: Sequence[str] = (AUTO, NONE)) -> str:
    """One of the words, "repo" for a model of the hub, or a file as an absolute path; raises typer.BadParameter."""
    if value == REPO and not of_repository:
        raise typer.BadParameter("--imatrix repo takes what a repository of the hub ships; give ORG/NAME, or a file")
    return value if value in (REPO, *words) else absolute(value)
