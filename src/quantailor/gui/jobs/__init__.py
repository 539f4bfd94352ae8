"""Jobs on a page: the dock below every screen, a card and a line that follow one job."""

from __future__ import annotations

from quantailor.app.jobs import JobReport, start_detached, submit
from quantailor.app.steps import Step, StepResult
from quantailor.gui.context import workspace


def start(step: Step[StepResult]) -> JobReport:
    """Queue a step, and start a process for it."""
    return start_detached(workspace(), submit(workspace(), step))
