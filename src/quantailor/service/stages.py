"""Progress of a job that has several stages."""

from __future__ import annotations

from quantailor.control import Control
from quantailor.jobs import JobControl

UNITS = {
    "convert": "bytes",
    "download": "bytes",
    "build": "bytes",
    "measure": "weights",
    "imatrix": "chunks",
    "null control": "chunks",
    "probes": "chunks",
    "weighing": "chunks",
    "whole mixes": "chunks",
    "sample of the sweep": "chunks",
    "sweep": "chunks",
    "verify": "chunks",
}
"""What a stage counts, by the beginning of its name."""


class Stages:
    """Names the stages of one job; each stage counts its own units."""

    def __init__(self, control: JobControl) -> None:
        self._control = control

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
        self._control.stage(name, next((unit for prefix, unit in UNITS.items() if name.startswith(prefix)), ""))
        self._control.log(f"{name} begins")
        return self._control

    def note(self, message: str) -> None:
        """A line for the job's log."""
        self._control.log(message)
