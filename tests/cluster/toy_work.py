"""Work in small for the tests of clusters: tasks are numbers, items their squares; some make a bench fail."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from quantailor.control import Control
from quantailor.errors import InferenceError
from quantailor.processes.crews import Bench, ModelFiles, Work

Square = tuple[int, int]


@dataclass(frozen=True)
class Squares(Work[int, Square]):
    """Numbers to square."""

    model: ModelFiles
    seconds: float = 0.0
    """For each."""
    refused: frozenset[int] = frozenset()
    killing: frozenset[int] = frozenset()
    """Numbers that end the bench's process."""
    n_threads: int | None = None
    group_size: int = 4
    is_apart: ClassVar[bool] = True
    notes: Path | None = field(default=None)
    """Where a line is written for each number that is squared."""

    def bench(self) -> _Bench:
        return _Bench(self)

    def on_threads(self, n_threads: int) -> Squares:
        return self

    def key(self, task: int) -> int:
        return task

    def key_of(self, item: Square) -> int:
        return item[0]

    def group(self, task: int) -> int:
        return task // self.group_size

    def weight(self, task: int) -> float:
        return 1.0

    def label(self, task: int) -> str:
        return f"number {task}"


class _Bench(Bench[int, Square]):
    def __init__(self, work: Squares) -> None:
        self._work = work

    def facts(self) -> object:
        return "squares"

    def do(self, tasks: Sequence[int], *, control: Control) -> Iterator[Square]:
        for task in tasks:
            if task in self._work.refused:
                raise InferenceError(f"{task} gives NaN", remedy="Leave it out")
            if task in self._work.killing:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self._work.seconds)
            if self._work.notes is not None:
                with self._work.notes.open("a", encoding="ascii") as notes:
                    notes.write(f"{task}\n")
            yield task, task * task

    def close(self) -> None:
        pass
