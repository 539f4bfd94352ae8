"""How long work reports progress and learns that it should stop.

Work calls `check` at points where stopping loses nothing, and `advance` when a unit is finished. Who runs
the work decides what both do: a job writes them to the store, a test counts, a script ignores them.
"""

from __future__ import annotations

import time
from typing import Protocol


class TimeUp(Exception):
    """The time or the passes that work was given are used up. Whoever gave them goes on with what there is."""


class Passes:
    """How often work may still run a chunk of text through a model in which something is quantized; None for as often as it takes."""

    def __init__(self, left: int | None = None) -> None:
        self._left = left

    def take(self, wanted: int) -> int:
        """How many of these there are; they are then used up."""
        if self._left is None:
            return wanted
        taken = max(0, min(wanted, self._left))
        self._left -= taken
        return taken


class Control(Protocol):
    """What long work needs from whoever runs it."""

    def check(self) -> None:
        """Return, or raise `errors.Paused` or `errors.Cancelled` if somebody asked for that."""

    def advance(self, done: float, total: float, message: str = "") -> None:
        """Say that `done` of `total` units are finished; `message` names the current thing."""


class NullControl:
    """Never stops the work and reports to nobody."""

    def check(self) -> None:
        """Nothing asks this work to stop."""

    def advance(self, done: float, total: float, message: str = "") -> None:
        """Nobody is listening."""


class Timed:
    """A control that also raises `TimeUp`, from a moment of `time.monotonic` on."""

    def __init__(self, control: Control, moment: float) -> None:
        self._control, self._moment = control, moment

    def check(self) -> None:
        """As the other control's; raises TimeUp."""
        self._control.check()
        if time.monotonic() >= self._moment:
            raise TimeUp("the time is up")

    def advance(self, done: float, total: float, message: str = "") -> None:
        """As the other control's."""
        self._control.advance(done, total, message)


class Watched(NullControl):
    """A control that is asked whether to go on, and hears of progress from elsewhere."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def check(self) -> None:
        """As the other control's."""
        self._control.check()


QUIET: Control = NullControl()
"""The control of work that nobody watches."""


class ProgressCounter:
    """Adds up finished work and reports it.

    Args:
        control: whom to report to.
        total: all of the work, in any unit.
    """

    def __init__(self, control: Control, total: float) -> None:
        self._control, self._total, self._done = control, total, 0.0

    def add(self, amount: float, message: str) -> None:
        """So much more is finished; `message` names what it was."""
        self._done += amount
        self._control.advance(self._done, self._total, message)
