"""The job dock at the bottom of every screen: stage, bar, rate, ETA, pause, resume, cancel, log.

It asks the store by itself once a second, so that it shows any job, whoever started it, and whatever became of the server.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from nicegui import run, ui

from quantailor.app import Workspace
from quantailor.app.jobs import (
    JobPlace,
    JobReport,
    cancel_job,
    job_lines,
    job_places,
    pause_job,
    remove_job,
    resume_job,
    start_detached,
    told_workers,
)
from quantailor.app.steps import kinds
from quantailor.errors import QuantailorError
from quantailor.gui.context import workspace
from quantailor.gui.page_words import on_page
from quantailor.gui.widgets import box, heading, icon_button, named, primary, quiet, tell_error, text, told
from quantailor.present.words import done_by, percent, rate, span

POLL_SECONDS = 1.0
ACTIVE = ("queued", "running", "pausing", "cancelling")
STOPPED = ("paused", "interrupted", "failed")
DONE_SECONDS = 120.0
"""So long a job that came to its end is still told of."""
LOG_LINES = 400
"""As many lines of the log are kept on the page."""
_MARKS = {"running": "running", "queued": "waiting", "pausing": "pausing", "cancelling": "cancelling"}
_dismissed: set[tuple[str, int, str]] = set()
"""Ends that somebody has waved away: home, job, time it was made."""


def dock() -> None:
    """Build the dock; it looks for jobs by itself."""
    _Dock()


def newest(jobs: list[JobReport]) -> JobReport | None:
    """The job to show: one that runs, else the first that waits, else the last that was stopped and can go on, else the last failure."""
    running = [job for job in jobs if job.state in ACTIVE and job.state != "queued"]
    waiting = [job for job in jobs if job.state == "queued"]
    if running or waiting:
        return (running or waiting)[-1]
    stopped = [job for job in jobs if job.state in STOPPED]
    return next((job for job in stopped if job.state != "failed"), next(iter(stopped), None))


def told_time(job: JobReport) -> str:
    """Elapsed time and what is left, as ranges: "2 min so far, 3 to 5 min left"."""
    parts = [f"{span(job.elapsed_seconds, job.elapsed_seconds)} so far"] if job.elapsed_seconds is not None else []
    if job.eta_seconds is not None and job.state == "running":
        of_stage = " in this stage" if job.n_stages != 1 and not job.is_whole else ""
        parts.append(f"{span(*job.eta_seconds)} left{of_stage}")
        if job.is_whole:
            parts.append(done_by(job.eta_seconds))
    return ", ".join(parts)


def told_rate(job: JobReport) -> str:
    """ "12.0 M weights per second, 2 of 3 workers ready"; empty while it is unknown."""
    if job.state != "running":
        return ""
    parts = [rate(job.rate, job.unit)] if job.rate is not None and job.unit else []
    return ", ".join([*parts, *([told_workers(job.cluster)] if job.cluster is not None else [])])


def workers_page(job: JobReport | None) -> str | None:
    """Dask's page on the workers of a job that runs."""
    page = None if job is None or job.state != "running" or job.cluster is None else job.cluster.dashboard
    return page if page is not None and page.startswith(("http://", "https://")) else None


def told_stage(job: JobReport) -> str:
    """ "2 of 3: probes, 8 chunks"."""
    return (f"{job.stage_number} of {job.n_stages}: " if job.n_stages > 1 else "") + job.message


class JobButtons:
    """Pause, resume, cancel, try again and dismiss: whatever a job's state allows."""

    def __init__(self) -> None:
        self._job: JobReport | None = None
        self._unclaimed = False
        with box("qt-row qt-tight") as self._element:
            self._start = quiet("Start", told(self._do_start), icon="play_arrow").props("dense")
            self._pause = quiet("Pause", told(partial(self._do, pause_job)), icon="pause").props("dense")
            self._resume = quiet("Resume", told(partial(self._do, _resume)), icon="play_arrow").props("dense")
            self._again = quiet("Try again", told(partial(self._do, _resume)), icon="refresh").props("dense")
            self._dismiss = quiet("Dismiss", told(partial(self._do, remove_job))).props("dense")
            self._cancel = named(quiet("Cancel", self._ask, icon="stop").props("dense"), "Cancel the job")
        self.show(None)

    def show(self, job: JobReport | None, *, unclaimed: bool = False) -> None:
        """Offer what this job's state allows."""
        self._job, self._unclaimed = job, unclaimed
        state = "" if job is None else job.state
        self._element.set_visibility(state in ACTIVE or state in STOPPED)
        waits = job is not None and job.waits_for is not None
        self._start.set_visibility(state == "queued" and (unclaimed or waits))
        self._start.set_text("Start now" if waits else "Start")
        self._pause.set_visibility(state in ("running", "pausing") or (state == "queued" and not unclaimed))
        self._pause.set_enabled(state != "pausing")
        self._pause.set_text("Pausing" if state == "pausing" else "Pause")
        self._resume.set_visibility(state in ("paused", "interrupted"))
        self._again.set_visibility(state == "failed")
        self._dismiss.set_visibility(state == "failed")
        self._cancel.set_visibility(state in ACTIVE or state in ("paused", "interrupted"))
        self._cancel.set_enabled(state != "cancelling")

    async def _do(self, action: Callable[[Any, int], Any]) -> None:
        if self._job is not None:
            await run.io_bound(action, workspace(), self._job.id)

    async def _do_start(self) -> None:
        await self._do(partial(start_detached, now=self._job is not None and self._job.waits_for is not None))

    def _ask(self) -> None:
        job = self._job
        if job is None:
            return
        with ui.dialog(value=True).props('aria-label="Cancel the job"') as dialog, ui.card().classes("qt-ask"):
            heading(f"Cancel {job.kind} {job.title}?", 2, "qt-empty-title")
            text("What it has found so far is kept. To continue later, pause it instead.", "qt-muted")
            with box("qt-row qt-end-row"):
                quiet("Keep it", dialog.close)
                primary("Cancel the job", told(partial(self._cancelled, dialog)))

    async def _cancelled(self, dialog: ui.dialog) -> None:
        dialog.close()
        await self._do(cancel_job)


def _resume(at: Workspace, job_id: int) -> None:
    start_detached(at, resume_job(at, job_id).id)


class _Dock:
    def __init__(self) -> None:
        self._place: JobPlace | None = None
        self._picked: int | None = None
        self._seen: object = None
        self._menu_seen: object = None
        self._running: set[int] = set()
        with ui.element("footer").classes("qt-dock").props('aria-label="Jobs"'):
            with box("qt-dock-row") as self._row:
                with box("qt-dock-what"):
                    self._title = text("No job is running", "qt-ellipsis qt-dock-title").props('role="status"')
                    self._stage = text("", "qt-small qt-muted qt-ellipsis")
                with box("qt-row") as self._middle:
                    self._bar = ui.linear_progress(0, show_value=False, size="8px", color=None).props('aria-label="Progress" rounded')
                    self._bar.style("color: var(--qt-accent)").classes("qt-grow")
                    self._share = text("", "qt-small qt-num qt-dock-share")
                with box("qt-dock-what") as self._times:
                    self._time = text("", "qt-small qt-ellipsis qt-dock-time")
                    self._rate = text("", "qt-small qt-muted qt-ellipsis")
                with box("qt-row qt-tight"):
                    self._workers = ui.link("Workers", "", new_tab=True).classes("qt-dock-link")
                    self._workers.props('aria-label="Workers, on the page of Dask"')
                    self._result = ui.link("See the result", "/").classes("qt-dock-link qt-dock-result")
                    self._buttons = JobButtons()
                    self._notify = icon_button("notifications", "Notify me when it is done").classes("qt-dock-notify")
                    self._notify.on("click", js_handler="() => window.quantailorNotify.ask()")
                    self._wave = icon_button("close", "Hide", self._wave_away)
                    self._others = quiet("", None).props("dense")
                    with self._others:
                        self._menu = ui.menu().props('aria-label="Other jobs"')
                    self._log_button = icon_button("notes", "Show the log", self._toggle_log)
            self._log = _Log()
        self._show([])
        self._timer = ui.timer(POLL_SECONDS, self._poll)

    async def _poll(self) -> None:
        try:
            places = await run.io_bound(job_places, workspace())
        except QuantailorError as error:
            self._timer.deactivate()
            tell_error(error)
            return
        if places is not None:
            self._tell_ends(places)
            self._show(places)
            await self._log.follow(None if self._place is None else self._place.job)

    def _tell_ends(self, places: list[JobPlace]) -> None:
        """Have the browser tell of jobs that ended since the last look, where it may."""
        for place in places:
            if place.job.id in self._running and place.job.state in ("done", "failed"):
                told = (f"quantailor-{place.job.id}-{place.job.created}", _headline(place.job, place), _under(place.job))
                ui.run_javascript(f"window.quantailorNotify.tell(...{json.dumps(told)})")
        self._running = {place.job.id for place in places if place.job.state in ACTIVE}

    def _show(self, places: list[JobPlace]) -> None:
        shown = self._chosen(places)
        self._place = shown
        if shown != self._seen or shown is None:
            self._seen = shown
            self._show_place(shown)
        self._show_others([place for place in places if _is_open(place) and (shown is None or place.job.id != shown.job.id)])

    def _chosen(self, places: list[JobPlace]) -> JobPlace | None:
        """The job that was picked while it is of interest, else the one that matters most."""
        by_id = {place.job.id: place for place in places}
        picked = by_id.get(self._picked) if self._picked is not None else None
        if picked is not None and (_is_open(picked) or _is_news(picked)):
            return picked
        best = newest([place.job for place in places])
        if places and _is_news(places[0]) and (best is None or best.state in STOPPED):
            return places[0]
        return None if best is None else by_id[best.id]

    def _show_place(self, place: JobPlace | None) -> None:
        job = None if place is None else place.job
        state = "" if job is None else job.state
        is_open = state in ACTIVE or state in STOPPED
        self._buttons.show(job, unclaimed=place is not None and place.is_unclaimed)
        moves = is_open and state != "failed"
        for element in (self._middle, self._times):
            element.set_visibility(moves)
        self._row.classes(add="" if moves else "qt-dock-still", remove="qt-dock-still" if moves else "")
        self._title.classes(add="qt-muted" if job is None else "", remove="" if job is None else "qt-muted")
        self._log_button.set_visibility(job is not None)
        self._notify.set_visibility(state == "running")
        self._wave.set_visibility(state == "done")
        self._show_link(place if state == "done" else None)
        self._title.set_text("No job is running" if job is None else _headline(job, place))
        self._title.classes(add="qt-bad" if state == "failed" else "", remove="" if state == "failed" else "qt-bad")
        self._stage.set_text("" if job is None else _under(job))
        self._time.set_text(told_time(job) if job is not None and state not in ("done", "failed") else "")
        self._rate.set_text("" if job is None else told_rate(job))
        page = workers_page(job)
        self._workers.set_visibility(page is not None)
        self._workers.props(f'href="{page or ""}"')
        if job is not None:
            self._bar.set_value(round(job.progress, 3))
            self._share.set_text(percent(job.progress, 0))

    def _show_link(self, place: JobPlace | None) -> None:
        step = None if place is None else kinds().get(place.job.kind)
        screen = None if step is None else step.screen
        there = place is not None and place.fingerprint is not None and screen is not None
        self._result.set_visibility(there)
        if there and place is not None and place.fingerprint is not None:
            self._result.props(f'href="/p/{place.fingerprint[:16]}/{screen}"')

    def _show_others(self, others: list[JobPlace]) -> None:
        seen = [(place.job.id, place.job.state) for place in others]
        self._others.set_visibility(bool(others))
        if seen == self._menu_seen:
            return
        self._menu_seen = seen
        states = Counter(_MARKS.get(place.job.state, place.job.state) for place in others)
        self._others.set_text(", ".join(f"+{number} {state}" for state, number in states.items()))
        self._menu.clear()
        with self._menu:
            for place in others:
                job = place.job
                mark = _MARKS.get(job.state, job.state) if job.waits_for is None else f"waiting for job {job.waits_for}"
                ui.menu_item(f"{job.kind} {job.title}: {mark}", lambda job_id=job.id: self._pick(job_id))

    def _pick(self, job_id: int) -> None:
        self._picked = job_id
        self._seen = None

    def _wave_away(self) -> None:
        if self._place is not None:
            _dismissed.add(_name_of(self._place))
            self._place, self._picked, self._seen = None, None, None
            self._show_place(None)

    async def _toggle_log(self) -> None:
        shown = self._log.toggle()
        self._log_button.props(f'aria-expanded="{str(shown).lower()}"')
        await self._log.follow(None if self._place is None else self._place.job)


def _name_of(place: JobPlace) -> tuple[str, int, str]:
    return str(workspace().home.path), place.job.id, place.job.created


def _is_open(place: JobPlace) -> bool:
    return place.job.state in ACTIVE or place.job.state in STOPPED


def _is_news(place: JobPlace) -> bool:
    """Whether it came to its end a moment ago."""
    ended = place.ended_seconds_ago
    return place.job.state == "done" and ended is not None and ended < DONE_SECONDS and _name_of(place) not in _dismissed


def _headline(job: JobReport, place: JobPlace | None) -> str:
    what = f"{job.kind.capitalize()} {job.title}"
    if job.waits_for is not None:
        return f"{what} waits for job {job.waits_for}"
    if job.state == "queued":
        return f"{what} waits to be started" if place is not None and place.is_unclaimed else f"{what} starts"
    ends = {"paused": "is paused", "interrupted": "was interrupted", "failed": "failed", "done": "is done", "cancelling": "is cancelling"}
    return f"{what} {ends[job.state]}" if job.state in ends else what


def _under(job: JobReport) -> str:
    """The second line: what it does, or what became of it."""
    if job.state == "failed":
        return on_page(job.error or "")
    if job.state == "interrupted":
        return "Its process has ended. It will continue where it stopped."
    if job.waits_for is not None:
        return "It starts when that one ends: only one job at a time runs a model."
    if job.state == "done":
        return f"after {span(job.elapsed_seconds, job.elapsed_seconds)}" if job.elapsed_seconds is not None else ""
    return told_stage(job)


class _Log:
    """The drawer under the dock; it follows the job that is shown."""

    def __init__(self) -> None:
        self._job_id: int | None = None
        self._busy = False
        self._last, self._doing, self._n_lines = 0, "", 0
        self._element = ui.element("div").classes("qt-dock-log qt-mono").props('role="log" tabindex="0" aria-label="Job log"')
        self._element.set_visibility(False)

    def toggle(self) -> bool:
        """Open or close it; whether it is open now."""
        self._element.set_visibility(not self._element.visible)
        return bool(self._element.visible)

    async def follow(self, job: JobReport | None) -> None:
        """Add what is new, where it is open."""
        if not self._element.visible or self._busy:
            return
        if job is None or job.id != self._job_id:
            self._job_id, self._last, self._doing, self._n_lines = (None if job is None else job.id), 0, "", 0
            self._element.clear()
        if job is None:
            return
        self._busy = True
        try:
            lines = await run.io_bound(job_lines, workspace(), job.id, after=self._last) or []
        finally:
            self._busy = False
        self._last = lines[-1].id if lines else self._last
        shown = [f"{_clock(line.logged)}  {line.message}" for line in lines]
        if job.state == "running" and job.message and job.message != self._doing:
            self._doing = job.message
            shown.append(f"{_clock(time.time())}  {job.message}")
        self._add(shown)

    def _add(self, lines: list[str]) -> None:
        if lines and not self._n_lines:
            self._element.clear()
        elif not lines and list(self._element):
            return
        with self._element:
            for line in lines or ["Nothing has been logged yet."]:
                text(line, "qt-log-line")
        self._n_lines += len(lines)
        children = list(self._element)
        for old in children[: max(0, len(children) - LOG_LINES)]:
            self._element.remove(old)
        self._element.run_method("scrollTo", {"top": 1_000_000})


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))
