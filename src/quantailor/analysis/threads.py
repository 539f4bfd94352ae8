"""Work in threads: results that come back in order, and a stack as large as the work needs."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from threadpoolctl import threadpool_limits

from quantailor.control import Control

AHEAD = 3
"""Items per thread that may be under way or wait to be taken."""

LEAST_STACK_BYTES = 8 << 20
"""What main threads have on most systems."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def with_stack(n_bytes: int, function: Callable[[], _Result]) -> _Result:
    """Call a function in a thread with a stack of so many bytes, or the half, or a quarter, where the system gives no more.

    Memory is taken as far as the stack is used.
    """
    while True:
        before = threading.stack_size(n_bytes)
        try:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(function).result()
        except RuntimeError:  # the thread cannot be started
            if n_bytes < 2 * LEAST_STACK_BYTES:
                raise
            n_bytes //= 2
        finally:
            threading.stack_size(before)


class Workers:
    """Threads that run a function on items, each with a BLAS of one thread. Use as a context manager.

    A BLAS with threads of its own would give other bits on other machines, and fight with ours for the processors.

    Args:
        n_threads: None takes all processors.
        control: asked before each result whether to go on.
    """

    def __init__(self, n_threads: int | None, control: Control) -> None:
        self._n_threads = n_threads or os.cpu_count() or 1
        self._control = control
        self._pool = ThreadPoolExecutor(self._n_threads)
        self._blas: threadpool_limits | None = None

    def __enter__(self) -> Workers:
        self._blas = threadpool_limits(1, user_api="blas")
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._blas is not None:
            self._blas.restore_original_limits()

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
