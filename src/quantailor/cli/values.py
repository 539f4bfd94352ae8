"""Sizes, lists and counts as users write and read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from quantailor.app.steps import AUTO, NONE, REPO, absolute
from quantailor.errors import OptionError
from quantailor.present import words


def parse_size(text: str) -> int:
    """Bytes of "4.2GiB", "700 MB", "4G" or "123456"; raises typer.BadParameter."""
    try:
        return words.parse_size(text)
    except OptionError as error:
        raise typer.BadParameter(str(error)) from None


def optional_seconds(text: str | None) -> float | None:
    """Seconds of "30m" or "1.5h", or None; raises typer.BadParameter."""
    try:
        return None if text is None else words.parse_duration(text)
    except OptionError as error:
        raise typer.BadParameter(str(error)) from None


def split_list(text: str | None) -> tuple[str, ...]:
    """The items of "Q4_K, Q6_K"; empty for None."""
    return tuple(item for item in (part.strip() for part in (text or "").split(",")) if item)


def optional_path(value: Path | None) -> str | None:
    """A path for a task, or None."""
    return None if value is None else absolute(value)


def covariances_choice(value: str) -> str:
    """One of the words, or a file as an absolute path."""
    return value if value in (AUTO, NONE) else absolute(value)


def imatrix_choice(value: str, *, of_repository: bool = False, words: Sequence[str] = (AUTO, NONE)) -> str:
    """One of the words, "repo" for a model of the hub, or a file as an absolute path; raises typer.BadParameter."""
    if value == REPO and not of_repository:
        raise typer.BadParameter("--imatrix repo takes what a repository of the hub ships; give ORG/NAME, or a file")
    return value if value in (REPO, *words) else absolute(value)
