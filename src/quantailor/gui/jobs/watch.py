"""A line that follows one job from the page that started it; the dock shows the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import run, ui

from quantailor.app.jobs import show_job
from quantailor.errors import QuantailorError
from quantailor.gui.context import workspace
from quantailor.gui.widgets import box, text
from quantailor.present.words import percent, span

POLL_SECONDS = 0.5


def watch_job(job_id: int, on_done: Callable[[], Any], *, on_stop: Callable[[], Any] | None = None) -> None:
    """Show a job's stage and bar until it ends.

    Args:
        job_id: the job.
        on_done: called once when it is done.
        on_stop: called once when it failed, was paused or cancelled.
    """
    _Watch(job_id, on_done, on_stop)


class _Watch:
    def __init__(self, job_id: int, on_done: Callable[[], Any], on_stop: Callable[[], Any] | None) -> None:
        self._id, self._on_done, self._on_stop = job_id, on_done, on_stop
        with box("qt-stack qt-m-tight") as self._element:
            self._element.props('role="status"')
            self._bar = ui.linear_progress(0, show_value=False, size="8px", color=None).props('rounded aria-label="Progress"')
            self._bar.style("color: var(--qt-accent)")
            self._line = text("Starting …", "qt-small qt-muted")
        self._timer = ui.timer(POLL_SECONDS, self._look)

    async def _look(self) -> None:
        try:
            job = await run.io_bound(show_job, workspace(), self._id)
        except QuantailorError as error:
            self._line.set_text(str(error))
            self._timer.deactivate()
            return
        if job is None:
            return
        self._bar.set_value(round(job.progress, 3))
        left = f", {span(*job.eta_seconds)} left" if job.eta_seconds is not None and job.state == "running" else ""
        waiting = "" if job.waits_for is None else f"waits for job {job.waits_for}"
        self._line.set_text(job.error or f"{waiting or job.message or job.state}, {percent(job.progress, 0)}{left}")
        self._line.classes(toggle="" if job.error is None else "qt-bad")
        if job.state == "done":
            self._end(self._on_done)
        elif job.state in ("failed", "cancelled", "paused", "interrupted"):
            self._line.set_text(job.error or f"{job.kind} {job.state}")
            self._end(self._on_stop)

    def _end(self, action: Callable[[], Any] | None) -> None:
        self._timer.deactivate()
        if action is not None:
            action()
