"""Progress of a job that has several stages."""

from __future__ import annotations

from quantailor.control import Control
from quantailor.jobs import JobControl


class Stages:
    """Names the stages of one job; each stage counts its own units."""

    def __init__(self, control: JobControl) -> None:
        self._control = control

    def begin(self, name: str) -> Control:
        """Start a stage and return what its work reports to."""
        self._control.check()
        self._control.stage(name)
        return self._control

    def note(self, message: str) -> None:
        """A line for the job's log."""
        self._control.log(message)
