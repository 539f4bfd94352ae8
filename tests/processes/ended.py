"""What the tests of `apart` call in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from quantailor.control import Control
from quantailor.errors import ImatrixError
from quantailor.processes import apart
from quantailor.processes.messages import doing, remove_when_left


def pid() -> int:
    return os.getpid()


def end(how: str) -> None:
    """Say something and end in one of the ways in which llama.cpp ends a process."""
    doing("loading tiny.gguf")
    print("/build/ggml/src/ggml.c:12: GGML_ASSERT(a->ne[0] > 0) failed", file=sys.stderr, flush=True)
    if how == "abort":
        os.abort()
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.Signals[how])


def count(n: int, *, control: Control) -> Iterator[int]:
    for number in range(n):
        yield number
        control.advance(number + 1, n, f"number {number}")


def count_and_wait(place: Path) -> Iterator[int]:
    remove_when_left(place.with_suffix(".part"))
    place.with_suffix(".part").touch()
    place.write_text(str(os.getpid()), encoding="utf-8")
    yield 1
    time.sleep(600)


def refuse() -> None:
    raise ImatrixError("it does not fit", remedy="Take another")


class Counter:
    """Something to hold."""

    def __init__(self, start: int, place: Path) -> None:
        self.number, self.place = start, place

    def next(self) -> int:
        self.number += 1
        return self.number

    def end(self) -> None:
        os._exit(3)

    def close(self) -> None:
        self.place.write_text("closed", encoding="utf-8")


def wait_for_ever(arguments: list[str]) -> None:
    """A program that waits for something that is done apart."""
    for _ in apart.stream(count_and_wait, Path(arguments[0])):
        pass


if __name__ == "__main__":
    from ended import wait_for_ever as waiting  # by its name, for the other process

    waiting(sys.argv[1:])
