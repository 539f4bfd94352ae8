"""The `Control` of a running job: progress goes to the store, requests come from it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from quantailor.errors import Cancelled, Paused
from quantailor.jobs.outline import Outline, Phase
from quantailor.jobs.rate import RateMeter
from quantailor.store import ClusterReport, Job, Progress, Store

CHECK_EVERY_S = 0.2
"""How often `check` asks the store."""
SHOW_EVERY_S = 0.1
"""How often a listener hears of progress."""
WRITE_EVERY_S = 0.5
"""How often progress is written to the store."""

COUNTED = "chunks"
"""What the stages of one phase count together."""

Listener = Callable[[Progress], None]


class JobControl:
    """What the work of one job calls; any of its threads may. `clock` gives seconds that only grow."""

    def __init__(self, store: Store, job: Job, *, listener: Listener | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.job = job
        self._store = store
        self._listener = listener
        self._clock = clock
        self._lock = threading.RLock()
        self._stopping = False
        self._meter = RateMeter()
        self._progress = Progress()
        self._part = (0, 0)
        self._outline: Outline | None = None
        self._checked = self._shown = self._written = float("-inf")

    @property
    def progress(self) -> Progress:
        """The latest progress."""
        return self._progress

    def request_stop(self) -> None:
        """Pause at the next `check`; safe to call in a signal handler."""
        self._stopping = True

    def check(self) -> None:
        """Return, or raise Paused or Cancelled when that was asked, or when the job is no longer ours."""
        if self._stopping:
            raise self._paused()
        with self._lock:
            now = self._clock()
            if now - self._checked < CHECK_EVERY_S:
                return
            self._checked = now
        requested = self._store.jobs.requested(self.job.id, self.job.attempt)
        if requested is None:
            raise Paused(f"job {self.job.id} was removed or taken over by another process")
        if requested == "cancel":
            raise Cancelled(f"job {self.job.id} is cancelled", remedy="What it measured so far is kept")
        if requested == "pause":
            raise self._paused()

    def part(self, number: int, n_parts: int) -> None:
        """Say which of how many parts comes next, from 1; the stages that follow belong to it."""
        self._part = (number, n_parts)

    def expect(self, phases: Sequence[Phase]) -> None:
        """Say what the whole job is expected to take: from now on progress tells of it, and the time left is the job's."""
        with self._lock:
            self._outline = Outline(phases, self._clock()) if phases else None

    def took(self, *, has_ended: bool) -> list[tuple[str, float, float]]:
        """What is worth remembering of how long work took (`Outline.took`); nothing of a job that was taken up again."""
        with self._lock:
            if self._outline is None or self.job.attempt > 1:
                return []
            return self._outline.took(self._clock(), has_ended=has_ended)

    def limit(self, seconds: float) -> None:
        """Say that measuring ends after so many more seconds at the latest."""
        with self._lock:
            if self._outline is not None:
                self._outline.until(self._clock() + seconds)

    def stage(self, name: str, unit: str = "") -> None:
        """Begin a stage of the job that counts its own units."""
        with self._lock:
            self._meter = RateMeter()
            if self._outline is not None:
                self._outline.stage(name, self._clock(), counts=unit == COUNTED)
            self._progress = self._of_the_job(Progress(stage=name, unit=unit, stage_number=self._part[0], n_stages=self._part[1]))
            self._show()
            self.flush()

    def advance(self, done: float, total: float, message: str = "") -> None:
        """Take note of progress; it reaches the listener and the store a few times per second."""
        with self._lock:
            now = self._clock()
            if total != self._progress.total:
                self._meter = RateMeter()
            self._meter.add(now, done)
            if self._outline is not None:
                self._outline.advance(done, now)
            finished = done >= total
            if not finished and now - self._shown < SHOW_EVERY_S and now - self._written < WRITE_EVERY_S:
                self._progress = replace(self._progress, done=done, total=total, message=message)
                return
            self._progress = self._estimated(done, total, message)
            if finished or now - self._shown >= SHOW_EVERY_S:
                self._shown = now
                self._show()
            if finished or now - self._written >= WRITE_EVERY_S:
                self.flush()

    def log(self, message: str, *, level: str = "info") -> None:
        """Add a line to the job's log."""
        self._store.jobs.log(self.job.id, message, level=level)

    def cluster(self, report: ClusterReport) -> None:
        """Say which workers the job uses, and what they do."""
        self._store.jobs.note_cluster(self.job.id, self.job.attempt, asdict(report))

    def flush(self) -> None:
        """Write the latest progress now."""
        with self._lock:
            self._written = self._clock()
            self._store.jobs.report(self.job.id, self.job.attempt, self._progress)

    def _estimated(self, done: float, total: float, message: str) -> Progress:
        estimate = self._meter.estimate()
        rate, low, high = (None, None, None) if estimate is None else (estimate.mean, *estimate.seconds_for(total - done))
        found = replace(self._progress, done=done, total=total, message=message, rate=rate, eta_low_s=low, eta_high_s=high)
        return self._of_the_job(found)

    def _of_the_job(self, progress: Progress) -> Progress:
        """The same with the time left of the whole job, where that is known."""
        if self._outline is None:
            return progress
        low, high, now = progress.eta_low_s, progress.eta_high_s, self._clock()
        left = self._outline.left(now, None if low is None or high is None else (low, high))
        return replace(progress, eta_low_s=left[0], eta_high_s=left[1], overall=self._outline.share(now, left))

    def _show(self) -> None:
        if self._listener is not None:
            self._listener(self._progress)

    def _paused(self) -> Paused:
        return Paused(f"job {self.job.id} is paused", remedy=f"`quantailor jobs resume {self.job.id}` goes on where it stopped")
