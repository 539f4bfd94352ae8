"""Work in threads whose results come back in order."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from quantailor.control import Control

AHEAD = 3
"""Items per thread that may be under way or wait to be taken."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Workers:
    """Threads that run a function on items. Use as a context manager.

    Args:
        n_threads: None takes all processors.
        control: asked before each result whether to go on.
    """

    def __init__(self, n_threads: int | None, control: Control) -> None:
        self._n_threads = n_threads or os.cpu_count() or 1
        self._control = control
        self._pool = ThreadPoolExecutor(self._n_threads)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Generator[_Result, None, None]:
        """Results in the items' order; items are taken only a few ahead, so that memory does not grow with their number."""
        waiting: deque[Future[_Result]] = deque()
        source = iter(items)
        try:
            while True:
                waiting.extend(
                    self._pool.submit(function, item) for item in itertools.islice(source, AHEAD * self._n_threads - len(waiting))
                )
                if not waiting:
                    return
                self._control.check()
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
