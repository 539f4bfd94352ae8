"""Tasks that are left, and who takes which.

A worker goes on with the group that it worked on last, then takes one that nobody has begun, then helps with the largest rest: a mix that
is set in its model, or a tensor whose rows it has read, is not set or read more often than there are workers for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Generic

from quantailor.processes.crews import Item, Task, Work

MOST_ATTEMPTS = 3
"""A task is done elsewhere at most twice after it failed."""


class Todo(Generic[Task, Item]):
    """The tasks of one call."""

    def __init__(self, work: Work[Task, Item], tasks: Sequence[Task]) -> None:
        self._work = work
        self._open = {work.key(task): task for task in tasks}
        self._groups: dict[Hashable, deque[Task]] = {}
        for task in self._open.values():
            self._groups.setdefault(work.group(task), deque()).append(task)
        self._fresh = deque(self._groups)
        self._latest: dict[str, Hashable] = {}
        self._again: deque[Task] = deque()
        self._failed_on: dict[Hashable, list[str]] = {}
        self.weight_waiting = sum(map(work.weight, tasks))
        """Of the tasks that nobody has taken."""

    @property
    def n_open(self) -> int:
        """Tasks whose items are not here yet."""
        return len(self._open)

    def take(self, worker: str, most: float, *, alone: bool) -> list[Task]:
        """Tasks for a worker, of so much weight or the next one; `alone` where no other could take what failed there."""
        for _ in range(len(self._again)):
            task = self._again.popleft()
            if alone or worker not in self._failed_on.get(self._work.key(task), ()):
                return self._taken([task])
            self._again.append(task)
        taken: list[Task] = []
        weight = 0.0
        while not taken or weight < most:
            group = self._next_group(worker)
            if group is None:
                break
            task = group.popleft()
            weight += self._work.weight(task)
            if taken and weight > most:
                group.appendleft(task)
                break
            taken.append(task)
        return self._taken(taken)

    def finish(self, item: Item) -> Task | None:
        """The task of an item; None where it was finished before."""
        return self._open.pop(self._work.key_of(item), None)

    def give_back(self, tasks: Sequence[Task], worker: str | None = None) -> list[str]:
        """Tasks that were taken and are not finished. Where a worker failed, the first of them failed there: all workers where it did."""
        left = [task for task in tasks if self._work.key(task) in self._open]
        self.weight_waiting += sum(map(self._work.weight, left))
        self._again.extend(left)
        if not left or worker is None:
            return []
        failed = self._failed_on.setdefault(self._work.key(left[0]), [])
        failed.append(worker)
        return failed

    def _taken(self, tasks: list[Task]) -> list[Task]:
        self.weight_waiting -= sum(map(self._work.weight, tasks))
        return tasks

    def _next_group(self, worker: str) -> deque[Task] | None:
        name = self._latest.get(worker)
        if not self._groups.get(name):
            while self._fresh and not self._groups[self._fresh[0]]:
                self._fresh.popleft()
            if not self._fresh:
                self._groups = {each: tasks for each, tasks in self._groups.items() if tasks}
                if not self._groups:
                    return None
            name = self._fresh.popleft() if self._fresh else max(self._groups, key=lambda each: len(self._groups[each]))
            self._latest[worker] = name
        return self._groups[name]
