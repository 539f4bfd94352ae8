"""Work that is made of tasks, and who does it: this machine, or workers elsewhere.

A step says what its `Work` is: how to set up a `Bench` (a loaded model, say) and which tasks there are. An `Executor` gives the `Crew`
that has set it up and does tasks, in any order; every task gives one item, plain data, and whoever asked stores it. `HERE` does them in
order on one bench of this machine. The room `cluster` spreads them over workers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from quantailor.control import QUIET, Control
from quantailor.files import FilesState
from quantailor.processes import apart
from quantailor.processes.apart import Apart

Task = TypeVar("Task")
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The model that work is about: where it is, which it is, and the state that its files are in."""

    path: Path
    fingerprint: str = ""
    state: FilesState = ()


class Bench(ABC, Generic[Task, Item]):
    """What tasks are done with. Whatever it gives depends on the task alone, not on what was done before."""

    @abstractmethod
    def facts(self) -> object:
        """What all benches of the same work must have in common, as plain data."""

    @abstractmethod
    def do(self, tasks: Sequence[Task], *, control: Control) -> Iterator[Item]:
        """The item of every task, each as soon as it is known."""

    @abstractmethod
    def close(self) -> None:
        """Release what it holds."""


class Work(ABC, Generic[Task, Item]):
    """How to set up a bench, and what its tasks are like. It can be pickled, and names files by `Path`: workers may have them elsewhere."""

    model: ModelFiles
    """What it is about."""
    is_apart: ClassVar[bool]
    """Whether it may end its process, and so needs one of its own."""

    @property
    def files(self) -> tuple[ModelFiles, ...]:
        """All models that it reads."""
        return (self.model,)

    @property
    def patience_seconds(self) -> float:
        """How long a task may take before it counts as hanging, whatever others take."""
        return 600.0

    @abstractmethod
    def bench(self) -> Bench[Task, Item]:
        """Set it up. Raises QuantailorError where that cannot be."""

    @abstractmethod
    def on_threads(self, n_threads: int) -> Self:
        """The same with so many threads, unless it says how many."""

    @abstractmethod
    def key(self, task: Task) -> Hashable:
        """What tells the task from others."""

    @abstractmethod
    def key_of(self, item: Item) -> Hashable:
        """The key of the task that an item is of."""

    @abstractmethod
    def group(self, task: Task) -> Hashable:
        """Tasks of a group are done faster one after the other."""

    @abstractmethod
    def weight(self, task: Task) -> float:
        """How much work it is beside others."""

    @abstractmethod
    def label(self, task: Task) -> str:
        """What it is, in words."""


class Crew(ABC, Generic[Task, Item]):
    """Those who have set up the bench of some work."""

    facts: object
    """What their benches have in common."""

    @abstractmethod
    def do(self, tasks: Sequence[Task], *, control: Control = QUIET) -> Iterator[Item]:
        """The item of every task, each as soon as it is known, in any order. Raises what the work and `control` raise."""


class Executor(Protocol):
    """Who does work."""

    def on(self, work: Work[Task, Item]) -> AbstractContextManager[Crew[Task, Item]]:
        """The crew that does it, until the block ends. Raises what setting up the bench raises."""


class _Here:
    """This machine, task by task."""

    def __init__(self, *, always_apart: bool = False) -> None:
        self._always_apart = always_apart

    @contextmanager
    def on(self, work: Work[Task, Item]) -> Iterator[Crew[Task, Item]]:
        if work.is_apart or self._always_apart:
            with apart.holding(_bench, work) as held:
                yield _Apart(held)
        else:
            with closing(work.bench()) as bench:
                yield _Beside(bench)


HERE: Executor = _Here()
APART: Executor = _Here(always_apart=True)
"""The same, in a process of its own whatever the work is."""


class _Beside(Crew[Task, Item]):
    """A bench in this process."""

    def __init__(self, bench: Bench[Task, Item]) -> None:
        self._bench, self.facts = bench, bench.facts()

    def do(self, tasks: Sequence[Task], *, control: Control = QUIET) -> Iterator[Item]:
        return self._bench.do(tasks, control=control)


class _Apart(Crew[Task, Item]):
    """A bench in a process of its own."""

    def __init__(self, held: Apart[Bench[Task, Item]]) -> None:
        self._held, self.facts = held, held.call(_facts)

    def do(self, tasks: Sequence[Task], *, control: Control = QUIET) -> Iterator[Item]:
        return self._held.stream(_items, tasks, control=control)


def _bench(work: Work[Task, Item]) -> Bench[Task, Item]:
    return work.bench()


def _facts(bench: Bench[Task, Item]) -> object:
    return bench.facts()


def _items(bench: Bench[Task, Item], tasks: Sequence[Task], *, control: Control) -> Iterator[Item]:
    return bench.do(tasks, control=control)
