"""Progress of a job that has several stages."""

from __future__ import annotations

from collections.abc import Callable

from quantailor.control import Control, Timed
from quantailor.jobs import JobControl
from quantailor.processes.crews import HERE, Executor
from quantailor.processes.heap import give_back


class Stages:
    """Names the stages of one job; each stage counts its own units.

    Args:
        control: the job's.
        unit_of: what a stage of some name counts.
        executor: who does the job's work.
        moment: when stages end, see `until`.
    """

    def __init__(self, control: JobControl, unit_of: Callable[[str], str], executor: Executor = HERE, moment: float | None = None) -> None:
        self.executor = executor
        self._control, self._unit_of, self._moment = control, unit_of, moment
        self._warned = set[str]()

    def until(self, moment: float) -> Stages:
        """The same, whose stages raise `control.TimeUp` from a moment of `time.monotonic` on."""
        return Stages(self._control, self._unit_of, self.executor, moment)

    def limit(self, seconds: float) -> None:
        """Say that measuring ends after so many more seconds at the latest."""
        self._control.limit(seconds)

    @property
    def job_id(self) -> int:
        """The number of the job."""
        return self._control.job.id

    @property
    def control(self) -> Control:
        """What the present stage's work reports to."""
        return self._control

    def part(self, number: int, n_parts: int) -> None:
        """Say which of how many parts of the job comes next, from 1; it may have several stages."""
        self._control.part(number, n_parts)

    def begin(self, name: str) -> Control:
        """Start a stage and return what its work reports to."""
        self._control.check()
        give_back()  # what the stage before needed
        self._control.stage(name, self._unit_of(name))
        self._control.log(f"{name} begins")
        return self._control if self._moment is None else Timed(self._control, self._moment)

    def note(self, message: str) -> None:
        """A line for the job's log."""
        self._control.log(message)

    def warn(self, message: str) -> None:
        """The same for what a user should hear at once, and once: several parts of a job may find it."""
        if message not in self._warned:
            self._warned.add(message)
            self._control.log(message, level="warning")
