"""A cluster in small, without Dask: two benches that share nothing do the tasks of some work in another order."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import numpy as np

from quantailor.control import QUIET, Control
from quantailor.processes.crews import Bench, Crew, Item, Task, Work


class _Crew(Crew[Task, Item]):
    def __init__(self, benches: list[Bench[Task, Item]], done: list[object]) -> None:
        self._benches, self._done = benches, done
        self.facts = benches[0].facts()

    def do(self, tasks: Sequence[Task], *, control: Control = QUIET) -> Iterator[Item]:
        for n_done, place in enumerate(np.random.default_rng(1).permutation(len(tasks)), 1):
            control.check()
            self._done.append(tasks[place])
            yield from self._benches[place % 2].do([tasks[place]], control=QUIET)
            control.advance(n_done, len(tasks))


class Elsewhere:
    """An executor; `done` are the tasks that it did."""

    def __init__(self) -> None:
        self.done: list[object] = []

    @contextmanager
    def on(self, work: Work[Task, Item]) -> Iterator[Crew[Task, Item]]:
        with ExitStack() as stack:
            travelled: list[Work[Task, Item]] = [copy.copy(work) for _ in range(2)]
            yield _Crew([stack.enter_context(closing(each.bench())) for each in travelled], self.done)
