"""What `apart` and `worker` say to each other: pickles, one after the other, through the worker's standard input and output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["doing", "log", "advance", "item", "returned", "raised", "ending"]
Answer = tuple[Kind, object]
"""What a worker says: the last of a request is "returned" or "raised", the last of all may be "ending", with an error."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call for the worker."""

    function: Callable[..., object]
    arguments: tuple[object, ...]
    options: Mapping[str, object]
    folder: str | None
    """The working directory that paths are meant in; None where there is none."""
    log_level: int
    """Records of the logger "quantailor" from this level on are wanted."""
    reports: bool
    """Whether the function takes a `control`, whose progress is wanted."""
    use: Literal["nothing", "result", "held"] = "nothing"
    """Hold what the function gives, or call it with what is held before its arguments."""


_listeners: list[Callable[[str], None]] = []


def listen(listener: Callable[[str], None]) -> None:
    """Call this from now on with what `doing` is told."""
    _listeners.append(listener)


def doing(what: str) -> None:
    """Say what begins now ("loading tiny.gguf"), so that whoever waits can tell what this process ended in."""
    for listener in _listeners:
        listener(what)


_last_listeners: list[Callable[[Exception], None]] = []


def listen_for_end(listener: Callable[[Exception], None]) -> None:
    """Call this from now on with what `ending` is told."""
    _last_listeners.append(listener)


def ending(why: Exception) -> None:
    """Say that a library ends this process now, so that whoever waits raises this and no `CrashError`."""
    for listener in _last_listeners:
        listener(why)


_partial: Path | None = None


def remove_when_left(path: Path | None) -> None:
    """Name the half-written file to remove where whoever waits ends before this process is done; None when there is none any more."""
    global _partial
    _partial = path


def remove_partial() -> None:
    """Remove that file."""
    if _partial is not None:
        with contextlib.suppress(OSError):
            _partial.unlink(missing_ok=True)
