"""Ctrl-C and its like: the first asks politely, the second insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Those of them that the platform has; SIGBREAK is Windows' Ctrl-Break."""


@contextmanager
def stop_signals(on_first: Callable[[], None]) -> Iterator[None]:
    """Call `on_first` at the first stop signal, raise KeyboardInterrupt at the second.

    A signal that this process ignores stays ignored. Outside the main thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        del number, frame
        if asked:
            raise KeyboardInterrupt
        asked = True
        on_first()

    present = [signal.Signals[name] for name in _NAMES if name in signal.Signals.__members__]
    earlier = {number: signal.getsignal(number) for number in present}
    replaced = {number: handler for number, handler in earlier.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in replaced:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
