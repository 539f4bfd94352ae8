"""Passes that only take time, for what a cluster's driver adds to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from quantailor.cluster import worker
from quantailor.cluster.dask import DaskConnection
from quantailor.cluster.worker import IsSetUp, Order, Report
from quantailor.control import Control
from quantailor.processes.crews import Bench, ModelFiles, Work

Pass = tuple[int, int]
"""A tensor and one of its probes."""


@dataclass(frozen=True)
class Sleeping(Work[Pass, Pass]):
    """Probes of tensors, each of which sleeps."""

    seconds: float
    model: ModelFiles
    is_apart: ClassVar[bool] = True

    def bench(self) -> SleepingBench:
        """Nothing is loaded."""
        return SleepingBench(self.seconds)

    def on_threads(self, n_threads: int) -> Sleeping:
        """It uses none."""
        del n_threads
        return self

    def key(self, task: Pass) -> Pass:
        """The task is its own key."""
        return task

    def key_of(self, item: Pass) -> Pass:
        """An item is its task."""
        return item

    def group(self, task: Pass) -> int:
        """The tensor."""
        return task[0]

    def weight(self, task: Pass) -> float:
        """All take the same time."""
        del task
        return 1.0

    def label(self, task: Pass) -> str:
        """The tensor and the probe."""
        return f"tensor {task[0]}, probe {task[1]}"


class SleepingBench(Bench[Pass, Pass]):
    """Sleeps for every task."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def facts(self) -> object:
        """None."""
        return None

    def do(self, tasks: Sequence[Pass], *, control: Control) -> Iterator[Pass]:
        """Sleep for each of them."""
        for task in tasks:
            control.check()
            time.sleep(self._seconds)
            yield task

    def close(self) -> None:
        """Nothing is held."""


def _set_up(order: Order) -> IsSetUp:
    del order
    return IsSetUp(None)


def _sleep(seconds: float, key: str, tasks: Sequence[object]) -> Report:
    del key
    started = time.perf_counter()
    for _ in tasks:
        time.sleep(seconds)
    return Report(tuple(tasks), time.perf_counter() - started)


class SleepingConnection(DaskConnection):
    """Workers that sleep in the threads of one process instead of keeping a bench each. `client` is Dask's."""

    def __init__(self, client: Any, address: str, seconds: float) -> None:
        super().__init__(client, address)
        self._seconds = seconds

    def submit(self, address: str, function: Callable[..., object], *arguments: object) -> int:
        """As the other's."""
        if function is worker.set_up:
            return super().submit(address, _set_up, *arguments)
        if function is worker.do:
            return super().submit(address, _sleep, self._seconds, *arguments)
        return super().submit(address, id, *arguments)
