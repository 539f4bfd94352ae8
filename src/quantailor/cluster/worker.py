"""What runs on a worker of Dask: it sets up a bench, keeps it, and does tasks with it.

The bench lives in a process of its own, so that the worker stays responsive, survives what ends llama.cpp, and can say why. It holds
one at a time: work on another model takes the place of the first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from quantailor.cluster.arithmetic import Arithmetic, arithmetic
from quantailor.cluster.places import Places, unpacked
from quantailor.errors import ClusterError, QuantailorError
from quantailor.processes.crews import APART, Crew, Work

IDLE_SECONDS = 600.0
"""After so long without a task the bench is given up: whoever asked may be gone."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is asked to set up."""

    key: str
    data: bytes
    """Of `places.packed`."""
    places: Places
    arithmetic: Arithmetic


@dataclass(frozen=True, slots=True)
class IsSetUp:
    """A bench is set up."""

    facts: object


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker cannot take part; why, in words."""

    words: str


@dataclass(frozen=True, slots=True)
class Report:
    """What came of some tasks."""

    items: tuple[object, ...]
    seconds: float
    failure: str | None = None
    """Why it ended before the last task, in words."""
    is_unknown: bool = False
    """Whether the worker knows nothing of the work: it was started anew."""


class _Bench:
    """The bench that this worker holds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key = ""
        self._work: Work[object, object] | None = None
        self._crew: Crew[object, object] | None = None
        self._stack = ExitStack()
        self._timer: threading.Timer | None = None

    def set_up(self, key: str, work: Work[object, object]) -> object:
        """Give up what was held, set up another bench, and return its facts."""
        with self._lock:
            self._let_go()
            self._key, self._work = key, work
            return self._opened().facts

    def do(self, key: str, tasks: Sequence[object]) -> Report:
        """Do tasks, one after the other, until one fails."""
        with self._lock:
            if key != self._key:
                return Report((), 0.0, is_unknown=True)
            items: list[object] = []
            started, failure = time.perf_counter(), None
            try:
                items.extend(self._opened().do(tasks))  # one by one: what was done before a failure counts
            except Exception as error:
                failure = _words(error)
                self._close()
            finally:
                self._wait_for_more()
            return Report(tuple(items), time.perf_counter() - started, failure)

    def release(self, key: str) -> None:
        """Give the bench up, unless it is of other work."""
        with self._lock:
            if key == self._key:
                self._let_go()

    def _opened(self) -> Crew[object, object]:
        if self._crew is None:
            if self._work is None:
                raise ClusterError("no work is set up")
            self._crew = self._stack.enter_context(APART.on(self._work))
            self._wait_for_more()
        return self._crew

    def _wait_for_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(IDLE_SECONDS, self.release, (self._key,))
        self._timer.daemon = True
        self._timer.start()

    def _let_go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._close()
        self._key, self._work = "", None

    def _close(self) -> None:
        stack, self._stack, self._crew = self._stack, ExitStack(), None
        try:
            stack.close()
        except QuantailorError:
            return  # its process has ended already


_bench = _Bench()


def set_up(order: Order) -> IsSetUp | Refused:
    """Check that this machine rounds as it should and has the model; load it."""
    try:
        difference = order.arithmetic.difference(arithmetic())
        if difference is not None:
            return Refused(difference)
        return IsSetUp(_bench.set_up(order.key, unpacked(order.data, order.places)))
    except Exception as error:
        return Refused(_words(error))


def do(key: str, tasks: Sequence[object]) -> Report:
    """Do tasks with the bench that is set up."""
    return _bench.do(key, tasks)


def release(key: str) -> None:
    """Free the memory that the bench takes."""
    _bench.release(key)


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, QuantailorError) else f"{type(error).__name__}: {error}"
