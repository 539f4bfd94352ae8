"""One job's progress on a page: what it does now, how far it is, how long it will still take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import run, ui

from quantailor.app.jobs import JobReport, show_job
from quantailor.app.library.projects import ProjectReport
from quantailor.gui.context import workspace
from quantailor.gui.jobs.dock import ACTIVE, told_time
from quantailor.gui.page_words import on_page
from quantailor.gui.widgets import box, heading, icon_button, note, text, told
from quantailor.present.words import percent

POLL_SECONDS = 0.7
_ENDED = {
    "failed": "It failed.",
    "cancelled": "It was cancelled.",
    "paused": "It is paused; resume it in the dock below.",
    "interrupted": "Its process has ended; resume it in the dock below.",
}


class JobCard:
    """Hidden until `watch` names a job; `on_done` hears of its success."""

    def __init__(self, label: str, on_done: Callable[[JobReport], Any]) -> None:
        self._on_done, self._job_id = on_done, 0
        with ui.element("section").classes("qt-card").props(f'aria-label="{label}" aria-live="polite"') as self.element:
            with box("qt-row qt-spread"):
                self._title = heading(label, 2, "qt-card-title")
                self._close = icon_button("close", "Hide", self._hide)
            with box("qt-row"):
                self._bar = ui.linear_progress(0, show_value=False, size="10px", color=None).props(f'rounded aria-label="{label}"')
                self._bar.classes("qt-grow").style("color: var(--qt-accent)")
                self._share = text("", "qt-num qt-job-share")
            with box("qt-row qt-spread qt-small qt-muted"):
                self._doing, self._time = text(""), text("", "qt-num")
            self._problem = note("", "bad")
        self._label = label
        self._hide()
        self._timer = ui.timer(POLL_SECONDS, told(self._poll), active=False)

    def _hide(self) -> None:
        self.element.set_visibility(False)

    def watch(self, job: JobReport) -> None:
        """Show this job from now on."""
        self._job_id = job.id
        self.element.set_visibility(True)
        self._show(job)
        self._timer.activate()

    async def _poll(self) -> None:
        job = await run.io_bound(show_job, workspace(), self._job_id)
        if job is None or job.id != self._job_id:
            return
        self._show(job)
        if job.state == "done":
            self._timer.deactivate()
            self._hide()
            result = self._on_done(job)
            if result is not None:
                await result
        elif job.state in ("failed", "cancelled"):
            self._timer.deactivate()

    def _show(self, job: JobReport) -> None:
        is_active = job.state in ACTIVE
        self._title.set_text(f"{self._label} {job.title}")
        self._bar.set_value(round(job.progress, 3))
        self._share.set_text(percent(job.progress, 0))
        waiting = "" if job.waits_for is None else f"waits for job {job.waits_for}"
        self._doing.set_text(waiting or (job.message if job.state == "running" else job.state))
        self._time.set_text(told_time(job) if is_active else "")
        self._close.set_visibility(not is_active)
        self._problem.set_visibility(not is_active and job.state != "done")
        self._problem.set_text(" ".join(part for part in (_ENDED.get(job.state, ""), on_page(job.error or "")) if part))


def unfinished(project: ProjectReport, kind: str) -> JobReport | None:
    """The project's latest job of a kind that has not come to its end."""
    found = (show_job(workspace(), job_id) for job_id in project.active_jobs)
    return next((job for job in found if job.kind == kind), None)
