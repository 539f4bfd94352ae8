"""Workers of a made-up cluster, for tests of the driver: they answer when the test's clock says so, and fail when they are told to."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from toy_work import Square, Squares

from quantailor.cluster import worker
from quantailor.cluster.crew import ClusterCrew, Listeners, Member
from quantailor.cluster.places import Places, packed
from quantailor.cluster.worker import IsSetUp, Order, Refused, Report
from quantailor.control import QUIET, Control
from quantailor.errors import ClusterError
from quantailor.store import ClusterReport

ARITHMETIC: Any = None
CANCELLED_BEFORE_S = 10.0
"""So long before a scheduler counts as lost, everything that is asked comes back as cancelled."""


@dataclass
class MadeUp:
    """One worker: how long a task takes it, and what is wrong with it."""

    seconds: float = 1.0
    joins: float = 0.0
    """When it appears."""
    dies: float = float("inf")
    stops: float = float("inf")
    """When it falls silent."""
    hangs_at: frozenset[int] = frozenset()
    fails_at: frozenset[int] = frozenset()
    fails_always: bool = False
    refuses: str = ""
    facts: object = "squares"
    forgets: float = float("inf")
    """When it is started anew under its address, without what it held."""
    holds: set[str] = field(default_factory=set)
    done: list[int] = field(default_factory=list)
    free_at: float = 0.0
    busy_seconds: float = 0.0


class MadeUpConnection:
    """Answers in the order in which they would come."""

    def __init__(self, workers: dict[str, MadeUp], *, lost_at: float = float("inf")) -> None:
        self.now = 0.0
        self.workers, self._lost_at = workers, lost_at
        self._coming: list[tuple[float, int, object]] = []
        self._dropped: set[int] = set()
        self._number = 0
        self.dashboard: str | None = "http://127.0.0.1:8787/status"
        self.address = "tcp://127.0.0.1:8786"

    @property
    def is_lost(self) -> bool:
        return self.now >= self._lost_at

    def members(self) -> dict[str, Member]:
        there = {name: each for name, each in self.workers.items() if each.joins <= self.now < each.dies}
        return {name: Member(name, "shelf", max(0.0, self.now - each.stops)) for name, each in there.items()}

    def submit(self, address: str, function: Callable[..., object], *arguments: object) -> int:
        self._number += 1
        each = self.workers[address]
        begins = max(self.now, each.free_at)
        seconds, answer = self._answer(each, begins, function, *arguments)
        each.free_at = begins + seconds
        each.busy_seconds += seconds if answer is not None else 0.0
        if begins >= self._lost_at - CANCELLED_BEFORE_S:
            answer, each.free_at = ClusterError("the connection was lost"), begins
        if answer is not None and each.free_at < min(each.dies, each.stops):
            heapq.heappush(self._coming, (each.free_at, self._number, answer))
        return self._number

    def _answer(self, each: MadeUp, begins: float, function: Callable[..., object], *arguments: Any) -> tuple[float, object]:
        if function is worker.release:
            return 0.0, None
        if function is worker.set_up:
            each.holds.add(arguments[0].key)
            return 0.1, Refused(each.refuses) if each.refuses else IsSetUp(each.facts)
        if begins >= each.forgets and arguments[0] in each.holds:
            each.forgets = float("inf")
            each.holds.clear()
        if arguments[0] not in each.holds:
            return 0.0, Report((), 0.0, is_unknown=True)
        tasks: Sequence[int] = arguments[1]
        items: list[Square] = []
        for task in tasks:
            if task in each.hangs_at:
                return float("inf"), None
            if task in each.fails_at or each.fails_always:
                return each.seconds * len(items), Report(tuple(items), each.seconds * len(items), f"{task} gives NaN")
            each.done.append(task)
            items.append((task, task * task))
        return each.seconds * len(items), Report(tuple(items), each.seconds * len(items))

    def answer(self, seconds: float) -> tuple[int, object] | None:
        """The clock goes to the next answer, or on by so much."""
        while self._coming and self._coming[0][1] in self._dropped:
            heapq.heappop(self._coming)
        if self._coming and self._coming[0][0] <= self.now + seconds:
            at, number, answer = heapq.heappop(self._coming)
            self.now = max(self.now, at)
            return number, answer
        self.now += seconds
        return None

    def drop(self, number: int) -> None:
        self._dropped.add(number)


@dataclass
class Driven:
    """A driver of made-up workers, and what it said."""

    connection: MadeUpConnection
    work: Squares
    warnings: list[str] = field(default_factory=list)
    reports: list[ClusterReport] = field(default_factory=list)

    def crew(self, control: Control = QUIET) -> ClusterCrew[int, Square]:
        data = packed(self.work)
        order = Order("key", data, Places((), self.work.model.path, ""), ARITHMETIC)
        listeners = Listeners(control, self.warnings.append, self.reports.append)
        return ClusterCrew(self.connection, self.work, order, listeners, clock=lambda: self.connection.now)

    def squares(self, n: int) -> list[Square]:
        """All items, in the order in which they came."""
        crew = self.crew()
        crew.gather()
        found = list(crew.do(range(n)))
        crew.release()
        return found
