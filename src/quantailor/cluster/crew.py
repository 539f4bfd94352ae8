"""The driver of some work: hands tasks to workers, hears what comes back, and copes with workers that fail.

Every worker is asked to set up the bench first. It then has two batches at most, so that it need not wait for us; a batch is as many
tasks as it does in `BATCH_SECONDS`. What a worker did before it failed counts. A task that failed is done elsewhere, at most twice. A
worker that vanishes, does not answer or fails again and again takes no further part, and its tasks go to others. Every item is given
once, whoever found it: what comes back late is not looked at.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, Protocol

from quantailor.cluster import worker as there
from quantailor.cluster.todo import MOST_ATTEMPTS, Todo
from quantailor.cluster.worker import IsSetUp, Order, Refused, Report
from quantailor.control import QUIET, Control, ProgressCounter
from quantailor.errors import ClusterError, Paused
from quantailor.processes.crews import Crew, Item, Task, Work
from quantailor.store import ClusterReport, WorkerReport

BATCH_SECONDS = 4.0
MOST_BATCHES = 2
"""Of one worker at a time."""
MOST_FAILURES = 3
"""After so many failures in a row, of different tasks, a worker is left out."""
SILENT_SECONDS = 30.0
"""A worker whose machine or process gives no sign of life for so long is left out."""
HUNG_TIMES = 20.0
"""A batch that takes so many times what was expected, and longer than the work's patience, hangs."""
WAIT_SECONDS = 60.0
"""For a worker, where there is none."""
LOOK_SECONDS, TELL_SECONDS = 1.0, 2.0
SLOW_SHARE = 0.5
"""A worker with less than this share of the usual rate is slow."""
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Member:
    """A worker as its scheduler sees it."""

    name: str
    host: str
    silent_seconds: float


class Connection(Protocol):
    """The way to the workers."""

    @property
    def is_lost(self) -> bool:
        """Whether the scheduler does not answer any more."""

    @property
    def address(self) -> str:
        """Of the scheduler."""

    @property
    def dashboard(self) -> str | None:
        """The page where Dask shows what its workers do."""

    def members(self) -> dict[str, Member]:
        """The workers that there are, by address."""

    def submit(self, address: str, function: Callable[..., object], *arguments: object) -> int:
        """Call a function on a worker; the number is that of its answer."""

    def answer(self, seconds: float) -> tuple[int, object] | None:
        """What came back next; the Exception where it is one. None after so many seconds."""

    def drop(self, number: int) -> None:
        """Its answer is not wanted any more."""


@dataclass(slots=True)
class _Batch(Generic[Task]):
    tasks: list[Task]
    weight: float


@dataclass(slots=True)
class _Worker(Generic[Task]):
    """What is known of a worker."""

    name: str
    host: str
    state: Literal["setting up", "ready", "refused", "lost"] = "setting up"
    batches: dict[int, _Batch[Task]] = field(default_factory=dict)
    """By the number of their answers, in the order in which they were sent."""
    sign: float = 0.0
    """When it was sent its present batch, or answered."""
    busy_seconds: float = 0.0
    weight: float = 0.0
    """Done so far."""
    n_done: int = 0
    n_failures: int = 0
    """In a row."""
    words: str = ""
    """Its last ones."""

    @property
    def rate(self) -> float:
        """Weight per second."""
        return self.weight / self.busy_seconds if self.busy_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who hears of the workers."""

    control: Control
    """Asked whether to go on while there is nothing to do."""
    warn: Callable[[str], None]
    report: Callable[[ClusterReport], None]


class ClusterCrew(Crew[Task, Item]):
    """The workers of a cluster that do some work. Call `gather` before anything else, and `release` at the end."""

    def __init__(
        self,
        connection: Connection,
        work: Work[Task, Item],
        order: Order,
        listeners: Listeners,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection, self._work, self._order, self._listeners, self._clock = connection, work, order, listeners, clock
        self._workers: dict[str, _Worker[Task]] = {}
        self._set_ups: dict[int, str] = {}
        self.facts = None
        self._has_facts = False
        self._looked = self._told = float("-inf")
        self._alone_since = clock()

    def gather(self) -> None:
        """Wait for the first worker that has set up its bench; others join when they have.

        Raises ClusterError where none can, or where there is none; Paused where the scheduler does not answer.
        """
        while not self._ready():
            self._listeners.control.check()
            self._look(None)
            self._hear(None)

    def do(self, tasks: Sequence[Task], *, control: Control = QUIET) -> Iterator[Item]:
        """The item of every task, as soon as it is known.

        Raises ClusterError where a task failed everywhere or no worker is fit, Paused where the scheduler does not answer.
        """
        todo = Todo(self._work, tasks)
        progress = ProgressCounter(control, sum(map(self._work.weight, tasks)))
        try:
            while todo.n_open:
                control.check()
                self._look(todo)
                self._hand_out(todo)
                for item in self._hear(todo):
                    task = todo.finish(item)
                    if task is not None:
                        yield item
                        progress.add(self._work.weight(task), self._work.label(task))
        finally:
            for one in self._workers.values():
                self._drop_batches(one)
            self._tell()

    def release(self) -> None:
        """Let the workers free their memory."""
        for address, one in self._workers.items():
            if one.state == "ready":
                self._connection.submit(address, there.release, self._order.key)

    # Workers come and go

    def _ready(self) -> list[_Worker[Task]]:
        return [one for one in self._workers.values() if one.state == "ready"]

    def _look(self, todo: Todo[Task, Item] | None) -> None:
        """Meet new workers, and leave out those that are gone, silent or stuck."""
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        if self._connection.is_lost:
            raise Paused(
                f"the scheduler at {self._connection.address} does not answer; what came back so far is kept",
                remedy="Start it and its workers again, then run the same command again",
            )
        members = self._connection.members()
        for address, member in members.items():
            if address not in self._workers and member.silent_seconds < SILENT_SECONDS:
                self._workers[address] = _Worker(member.name, member.host)
                self._ask_to_set_up(address)
        for address, one in self._workers.items():
            if one.state in ("setting up", "ready"):
                self._judge(address, one, members.get(address), todo)
        self._require_workers(now)
        if now - self._told >= TELL_SECONDS:
            self._tell()

    def _ask_to_set_up(self, address: str) -> None:
        one = self._workers[address]
        one.state, one.sign = "setting up", self._clock()
        self._set_ups[self._connection.submit(address, there.set_up, self._order)] = address

    def _judge(self, address: str, one: _Worker[Task], member: Member | None, todo: Todo[Task, Item] | None) -> None:
        if member is None:
            self._leave_out(address, "is gone", todo)
        elif member.silent_seconds >= SILENT_SECONDS:
            self._leave_out(address, "gives no sign of life", todo)
        elif one.batches:
            expected = next(iter(one.batches.values())).weight / one.rate if one.rate else 0.0
            if self._clock() - one.sign >= max(self._work.patience_seconds, HUNG_TIMES * expected):
                self._leave_out(address, "does not finish", todo)

    def _leave_out(self, address: str, why: str, todo: Todo[Task, Item] | None, state: Literal["refused", "lost"] = "lost") -> None:
        one = self._workers[address]
        one.state, one.words = state, why
        self._listeners.warn(f"{self._called(address)} {why}, and takes no further part")
        for number, batch in enumerate(self._drop_batches(one)):
            if todo is not None:
                self._blame(todo, batch, address if number == 0 else None, why)

    def _require_workers(self, now: float) -> None:
        if any(one.state in ("setting up", "ready") for one in self._workers.values()):
            self._alone_since = now
            return
        refused = [address for address, one in self._workers.items() if one.state == "refused"]
        if refused and len(refused) == len(self._workers):
            words = self._workers[refused[0]].words
            raise ClusterError(f"no worker at {self._connection.address} can take part: {self._called(refused[0])} {words}")
        if now - self._alone_since < WAIT_SECONDS:
            return
        if not self._workers:
            raise ClusterError(
                f"there are no workers at {self._connection.address}", remedy=f"Start some: `dask worker {self._connection.address}`"
            )
        raise Paused(
            f"no worker is left at {self._connection.address}; what came back so far is kept",
            remedy="Start workers again, then run the same command again",
        )

    def _called(self, address: str) -> str:
        one = self._workers[address]
        return f"worker {one.name} on {one.host}" if one.name != address else f"worker {address} on {one.host}"

    def _tell(self) -> None:
        self._told = self._clock()
        rates = [one.rate for one in self._workers.values() if one.rate]
        usual = statistics.median(rates) if rates else 0.0
        reports = tuple(
            WorkerReport(
                name=one.name,
                host=one.host,
                state=one.state,
                n_done=one.n_done,
                per_second=one.n_done / one.busy_seconds if one.busy_seconds else None,
                is_slow=bool(one.rate) and one.rate < SLOW_SHARE * usual,
                words=one.words,
            )
            for one in self._workers.values()
        )
        self._listeners.report(ClusterReport(self._connection.address, self._connection.dashboard, reports))

    # Tasks go out, items come back

    def _hand_out(self, todo: Todo[Task, Item]) -> None:
        ready = [(address, one) for address, one in self._workers.items() if one.state == "ready"]
        rates = [one.rate for _, one in ready if one.rate]
        usual = statistics.median(rates) if rates else 0.0
        for n_batches in range(MOST_BATCHES):
            for address, one in ready:
                if len(one.batches) > n_batches:
                    continue
                most = min(BATCH_SECONDS * (one.rate or usual), todo.weight_waiting / (MOST_BATCHES * len(ready)))
                tasks = todo.take(address, most, alone=len(ready) == 1)
                if tasks:
                    if not one.batches:
                        one.sign = self._clock()
                    number = self._connection.submit(address, there.do, self._order.key, tasks)
                    one.batches[number] = _Batch(tasks, sum(map(self._work.weight, tasks)))

    def _hear(self, todo: Todo[Task, Item] | None) -> Iterator[Item]:
        """Items of all answers that are here; waits a little where there is none."""
        items: deque[Item] = deque()
        seconds = _POLL_SECONDS
        while (answer := self._connection.answer(seconds)) is not None:
            items.extend(self._heard(*answer, todo))
            seconds = 0.0
        return iter(items)

    def _heard(self, number: int, answer: object, todo: Todo[Task, Item] | None) -> Sequence[Item]:
        set_up = self._set_ups.pop(number, None)
        if set_up is not None:
            self._was_set_up(set_up, answer, todo)
            return ()
        address = next((address for address, one in self._workers.items() if number in one.batches), None)
        if address is None or todo is None:
            return ()  # late: its tasks went to others
        one = self._workers[address]
        batch, one.sign = one.batches.pop(number), self._clock()
        if isinstance(answer, ClusterError):  # the connection's, which says nothing of the tasks
            todo.give_back(batch.tasks)
            self._ask_to_set_up(address)
            return ()
        if not isinstance(answer, Report):
            self._blame(todo, batch, address, f"{type(answer).__name__}: {answer}")
            return ()
        if answer.is_unknown:
            todo.give_back(batch.tasks)
            self._ask_to_set_up(address)
            return ()
        return self._reported(address, batch, answer, todo)

    def _was_set_up(self, address: str, answer: object, todo: Todo[Task, Item] | None) -> None:
        one = self._workers[address]
        if one.state != "setting up":
            return
        if isinstance(answer, ClusterError):
            self._leave_out(address, "cannot be reached", todo)
        elif not isinstance(answer, IsSetUp):
            self._leave_out(address, answer.words if isinstance(answer, Refused) else f"failed: {answer}", todo, "refused")
        elif self._has_facts and answer.facts != self.facts:
            self._leave_out(address, "runs the model differently from the first worker", todo, "refused")
        else:
            one.state, self.facts, self._has_facts = "ready", answer.facts, True

    def _reported(self, address: str, batch: _Batch[Task], report: Report, todo: Todo[Task, Item]) -> Sequence[Item]:
        one, items = self._workers[address], list[Item](report.items)  # type: ignore[arg-type]
        weights = {self._work.key(task): self._work.weight(task) for task in batch.tasks}
        one.busy_seconds += report.seconds
        one.n_done += len(items)
        one.weight += sum(weights.get(self._work.key_of(item), 0.0) for item in items)
        if report.failure is None:
            one.n_failures = 0
            return items
        known = {self._work.key_of(item) for item in items}
        left = _Batch([task for task in batch.tasks if self._work.key(task) not in known], 0.0)
        self._blame(todo, left, address, report.failure)
        one.n_failures += 1
        if one.n_failures >= MOST_FAILURES:
            self._leave_out(address, f"failed {one.n_failures} times in a row ({report.failure})", todo)
        return items

    def _blame(self, todo: Todo[Task, Item], batch: _Batch[Task], address: str | None, why: str) -> None:
        """Let others do what is left of a batch. Raises ClusterError where the first of it failed too often."""
        failed = todo.give_back(batch.tasks, address)
        if len(failed) >= MOST_ATTEMPTS:
            places = ", ".join(dict.fromkeys(map(self._called, failed)))
            raise ClusterError(f"{self._work.label(batch.tasks[0])} failed {len(failed)} times, on {places}: {why}")
        if address is not None and failed:
            self._listeners.warn(f"{self._called(address)} failed at {self._work.label(batch.tasks[0])}, which other workers do now: {why}")

    def _drop_batches(self, one: _Worker[Task]) -> list[_Batch[Task]]:
        for number in one.batches:
            self._connection.drop(number)
        batches, one.batches = list(one.batches.values()), {}
        return batches
