"""How a running job looks: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars

from quantailor.app.jobs import Listener, Progress
from quantailor.cli.output import console
from quantailor.present import words

_PLAIN_INTERVAL_SECONDS = 10.0


@contextmanager
def listening(title: str, *, quiet: bool = False) -> Iterator[Listener]:
    """A listener that shows progress on standard error until the block ends."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bars(title) as listener:
            yield listener
    else:
        yield _PlainLines(title)


@contextmanager
def reading(*, quiet: bool = False) -> Iterator[Listener]:
    """A listener that shows progress only between its first report and its last one."""
    with ExitStack() as shown:
        listeners: list[Listener] = []

        def listen(report: Progress) -> None:
            if not listeners:
                listeners.append(shown.enter_context(listening("identify", quiet=quiet)))
            listeners[0](report)
            if report.done >= report.total:
                listeners.clear()
                shown.close()

        yield listen


@contextmanager
def _bars(title: str) -> Iterator[Listener]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[tail]}"))
    with Bars(*columns, console=console(stderr=True), transient=True) as progress:
        bars: dict[str, int] = {}

        def show(report: Progress) -> None:
            stage = report.stage or title
            bar = title if report.overall is not None else stage  # a job that is known as a whole has one bar
            if bar not in bars:
                bars[bar] = progress.add_task(stage, total=None, tail="")
            done, total = (report.done, report.total or None) if report.overall is None else (report.overall, 1.0)
            progress.update(progress.task_ids[bars[bar]], description=stage, completed=done, total=total, tail=_tail(report))

        yield show


def _tail(report: Progress) -> str:
    eta = None if report.eta_low_s is None or report.eta_high_s is None else (report.eta_low_s, report.eta_high_s)
    rate = "" if not report.rate else f"{report.rate:.3g}/s"
    by = words.done_by(eta) if eta is not None and report.overall is not None else ""
    return "  ".join(part for part in (rate, words.time_left(eta), by, report.message) if part)


class _PlainLines:
    """A line when a stage begins, every ten seconds, and when it ends; with the share of the whole job where that is known."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._last: dict[str, float] = {}
        self._finished: set[str] = set()

    def __call__(self, report: Progress) -> None:
        stage = report.stage or self._title
        now = time.monotonic()
        finished = bool(report.total) and report.done >= report.total
        due = now - self._last.get(stage, -_PLAIN_INTERVAL_SECONDS) >= _PLAIN_INTERVAL_SECONDS
        if stage in self._finished or not (due or finished):
            return
        self._last[stage] = now
        if finished:
            self._finished.add(stage)
        of_stage = report.done / report.total if report.total else 0.0
        share = f"{100 * (of_stage if report.overall is None else report.overall):3.0f} %"
        sys.stderr.write(f"{stage}: {share}  {_tail(report)}".rstrip() + "\n")
        sys.stderr.flush()
