"""Jobs as users handle them: submit, run here or detached, look, pause, resume, cancel, remove."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pydantic import TypeAdapter

from quantailor import files, jobs
from quantailor.app.executing import executing
from quantailor.app.measuring.cost import outline
from quantailor.control import NullControl
from quantailor.costs import machine
from quantailor.costs.needs import shortfalls
from quantailor.errors import JobError, QuantailorError, ResourceError, StoreError
from quantailor.jobs import Job, JobControl, Listener, Progress, Turns, job_ahead, reconcile
from quantailor.present import words
from quantailor.session import Workspace
from quantailor.session.workspace import SHOWN_BYTES
from quantailor.steps.hub.download import with_model_here
from quantailor.steps.stages import Stages
from quantailor.steps.step import ModelStep, Step, StepResult, from_json, to_json, unit_of
from quantailor.store import ClusterReport, LogLine, Pace, Store

_FOLLOW_SECONDS = 0.5
_CLUSTER = TypeAdapter(ClusterReport)


@dataclass(frozen=True, slots=True)
class JobReport(StepResult):
    """One job as users see it."""

    id: int
    kind: str
    state: str
    title: str
    progress: float
    """0 to 1; of the whole job where `is_whole`, else of its present stage."""
    message: str
    created: str
    """UTC, ISO 8601."""
    error: str | None = None
    eta_seconds: tuple[float, float] | None = None
    """How long the job will still take where `is_whole`, else its present stage."""
    log: tuple[str, ...] = ()
    elapsed_seconds: float | None = None
    """Of the latest attempt; None before the first."""
    rate: float | None = None
    """Units per second, of late."""
    unit: str = ""
    """What progress counts: "bytes", "chunks", "files", "weights"; empty where it is no such thing."""
    stage: str = ""
    stage_number: int = 0
    """The stage that runs, from 1, where the work tells how many there are; else 0."""
    n_stages: int = 0
    is_whole: bool = False
    """Whether progress and time left are the whole job's."""
    waits_for: int | None = None
    """The number of the job that has to end first; None where it does not wait for one."""
    cluster: ClusterReport | None = None
    """The workers that it uses, or used; None where this machine does all of it."""


def told_workers(cluster: ClusterReport) -> str:
    """ "2 of 3 workers ready, 1 slower than most"."""
    ready = [worker for worker in cluster.workers if worker.state == "ready"]
    slow = sum(worker.is_slow for worker in ready)
    said = f"{len(ready)} of {words.plural(len(cluster.workers), 'worker')} ready"
    return f"{said}, {slow} slower than most" if slow else said


@dataclass(frozen=True, slots=True)
class JobPlace:
    """One job and where it belongs."""

    job: JobReport
    fingerprint: str | None
    """Of the model that it works on, where that is known."""
    is_unclaimed: bool
    """It is queued, and no process was started for it."""
    ended_seconds_ago: float | None
    """None while it can go on."""


def job_places(workspace: Workspace) -> list[JobPlace]:
    """Every job, the newest first; those whose process has died are marked as interrupted."""
    reconcile(workspace.store)
    models = {str(location.path): location.key for location in reversed(workspace.store.every_location("model"))}
    return [_place(workspace, job, models) for job in workspace.store.jobs.all()]


def _place(workspace: Workspace, job: Job, models: Mapping[str, str]) -> JobPlace:
    named = (job.hub_path, *(job.arguments.get(key) for key in ("base", "model", "output", "file")))
    paths = [str(path) for path in named if path]
    ended = job.finished if job.state in ("done", "failed", "cancelled") else None
    return JobPlace(
        job=report_of(workspace, job),
        fingerprint=next((models[path] for path in paths if path in models), None),
        is_unclaimed=job.state == "queued" and job.worker is None,
        ended_seconds_ago=None if ended is None else max(0.0, workspace.store.now - ended),
    )


def job_lines(workspace: Workspace, job_id: int, *, after: int = 0) -> list[LogLine]:
    """A job's log in order; `after` is the number of the last line that was seen."""
    return workspace.store.jobs.log_lines(job_id, after=after)


@dataclass(frozen=True, slots=True)
class _JobAuthor:
    """A job, of the files that it writes. Renaming keeps what it tells a file by: device, inode, size and time of its last change."""

    store: Store
    job_id: int

    def wrote(self, path: Path) -> bool:
        """Whether the file that is there now is one that this job gave that name."""
        return path.absolute() in self.store.locations("output", self._key(path))

    def writes(self, path: Path, whole: Path) -> None:
        """Note it before it has its name: a process may be killed right after."""
        self.store.record_location("output", self._key(whole), path)

    def _key(self, path: Path) -> str:
        there = path.stat()
        return f"{self.job_id}:{there.st_dev}:{there.st_ino}:{there.st_size}:{there.st_mtime_ns}"


def submit(workspace: Workspace, step: Step[StepResult]) -> int:
    """Queue a job for the step and return its number; an unfinished job for the same step is taken up again.

    Raises JobError where another process is at that very step now, ResourceError where disk or memory fall short (`preflight`), and what
    the step's own check finds wrong.
    """
    store = workspace.store
    jobs.reconcile(store)
    arguments = json.loads(to_json(step))
    same = (job for job in store.jobs.all() if (job.kind, job.arguments) == (step.kind, arguments))
    job = next((job for job in same if job.state not in ("done", "cancelled")), None)
    if job is None:
        _check(workspace, step)
        _require_resources_now(workspace, step)
        return store.jobs.create(step.kind, arguments).id
    with files.written_by(_JobAuthor(store, job.id)):
        _check(workspace, step)
    if job.state == "running":
        raise JobError(f"job {job.id} does this already", remedy=f"Follow it with `quantailor jobs show {job.id} --follow`")
    if (ahead := job_ahead(store, job, takes_turns)) is not None:
        raise JobError(
            f"job {job.id} does this already, and waits for job {ahead.id}",
            remedy=f"`quantailor jobs resume {job.id} --now` does not wait",
        )
    _require_resources_now(workspace, step)
    return jobs.resume(store, job.id).id


def _check(workspace: Workspace, step: Step[StepResult]) -> None:
    with workspace.keeping_models():
        step.check(workspace)


def preflight(workspace: Workspace, step: Step[StepResult]) -> tuple[str, ...]:
    """What is missing for a step, one sentence each; empty where it can start, or where that cannot be known."""
    if isinstance(step, ModelStep) and step.hub is not None:
        return ()
    try:
        with workspace.keeping_models():
            needs = step.needs(workspace)
    except QuantailorError:
        return ()  # the step itself says what is wrong
    return shortfalls(workspace.home.path, needs)


def _require_resources_now(workspace: Workspace, step: Step[StepResult]) -> None:
    """The same, unless it has to wait for a job that has them: it is looked at again when that has ended."""
    taken = step.takes_turns and any(takes_turns(job) for job in workspace.store.jobs.all(states=("running",)))
    if not taken:
        _require_resources(workspace, step)


def _require_resources(workspace: Workspace, step: Step[StepResult]) -> None:
    missing = preflight(workspace, step)
    if missing:
        raise ResourceError(f"cannot start: {'; '.join(missing)}")


def takes_turns(job: Job) -> bool:
    """Whether a job runs a model, which one does at a time."""
    try:
        return from_json(job.kind, json.dumps(job.arguments)).takes_turns
    except JobError:
        return False  # this version cannot run it


def run_job(
    workspace: Workspace,
    job_id: int,
    listener: Listener | None = None,
    *,
    on_stopping: Callable[[], None] | None = None,
    on_waiting: Callable[[JobReport], None] | None = None,
    now: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> StepResult:
    """Run a queued job in this process. Ctrl-C pauses it at its next safe point; a second one stops it on the spot.

    A job that runs a model waits while another one does, unless it is to start `now`. `listener` hears of progress, `on_stopping` of
    the first Ctrl-C, `on_waiting` of the job that is waited for. `clock` gives seconds that only grow.

    Raises Paused or Cancelled when asked to stop, and what the work raises.
    """
    job = workspace.store.jobs.get(job_id)
    step = from_json(job.kind, json.dumps(job.arguments))
    results: list[StepResult] = []
    waited: list[Job] = []

    def work(control: JobControl) -> None:
        stages = Stages(control, unit_of)
        author = _JobAuthor(workspace.store, job_id)
        with workspace.keeping_models(), workspace.watched(stages.begin), files.written_by(author):
            ready, origin = with_model_here(workspace, step, stages)
            if origin is not None:
                ready.check(workspace)
            if origin is not None or waited:
                _require_resources(workspace, ready)
            with suppress(QuantailorError):  # the work itself says what is wrong
                control.expect(outline(workspace, ready))
            with executing(workspace, ready, control) as executor:
                result = _timed(workspace, ready, control, Stages(control, unit_of, executor))
        results.append(result if origin is None else dataclasses.replace(result, origin=origin))

    def tell(ahead: Job) -> None:
        waited.append(ahead)
        if on_waiting is not None:
            on_waiting(report_of(workspace, ahead))

    turns = None if now else Turns(takes_turns, tell)
    jobs.run(workspace.store, job_id, work, listener=listener, on_stopping=on_stopping, turns=turns, clock=clock)
    return results[0]


def _timed(workspace: Workspace, step: Step[StepResult], control: JobControl, stages: Stages) -> StepResult:
    """Do it, and remember how long each kind of work took, also where it stops."""
    has_ended = False
    try:
        result = step.run(workspace, stages)
        has_ended = True
        return result
    finally:
        if isinstance(step, ModelStep) and step.compute.cluster is None and not step.compute.rpc:  # else it says nothing of this machine
            threads = min(step.compute.n_threads or machine.n_threads(), machine.n_threads())
            took = control.took(has_ended=has_ended)
            with suppress(StoreError):  # which must not hide why it stops
                workspace.store.jobs.record_paces(Pace(name, threads, expected, seconds) for name, expected, seconds in took)


@contextmanager
def telling(workspace: Workspace, listener: Listener) -> Iterator[Workspace]:
    """Inside, `listener` hears of reading large models to tell which they are."""
    with workspace.watched(partial(Told, listener)):
        yield workspace


class Told(NullControl):
    """Work that a listener hears of and nobody stops but by Ctrl-C."""

    def __init__(self, listener: Listener, stage: str) -> None:
        self._listener, self._stage = listener, stage

    def advance(self, done: float, total: float, message: str = "") -> None:
        """Tell it, unless it is over at once."""
        if total >= SHOWN_BYTES:
            self._listener(Progress(stage=self._stage, unit="bytes", done=done, total=total, message=message))


def start_detached(workspace: Workspace, job_id: int, *, now: bool = False) -> JobReport:
    """Start a process of its own for a queued job; it outlives this one and its terminal. `now` as for `run_job`."""
    words = ("worker", str(job_id), "--home", str(workspace.home.path), *(("--now",) if now else ()))
    argv = (sys.executable, "-m", "quantailor", *words)
    return report_of(workspace, jobs.submit(workspace.store, job_id, argv, workspace.home.log_of(job_id)))


def list_jobs(workspace: Workspace) -> list[JobReport]:
    """Every job, the newest first; those whose process has died are marked as interrupted."""
    jobs.reconcile(workspace.store)
    return [report_of(workspace, job) for job in workspace.store.jobs.all()]


def show_job(workspace: Workspace, job_id: int) -> JobReport:
    """One job with its log."""
    jobs.reconcile(workspace.store)
    return report_of(workspace, workspace.store.jobs.get(job_id), with_log=True)


def follow_job(workspace: Workspace, job_id: int, listener: Listener) -> None:
    """Report a job's progress until it ends."""
    pause = threading.Event()
    while True:
        jobs.reconcile(workspace.store)
        job = workspace.store.jobs.get(job_id)
        ahead = job_ahead(workspace.store, job, takes_turns) if job.state == "queued" else None
        listener(job.progress if ahead is None else Progress(stage=f"waiting for job {ahead.id}"))
        if job.state not in ("queued", "running"):
            return
        pause.wait(_FOLLOW_SECONDS)


def pause_job(workspace: Workspace, job_id: int) -> JobReport:
    """Ask a job to stop at its next safe point."""
    return report_of(workspace, jobs.request_pause(workspace.store, job_id))


def resume_job(workspace: Workspace, job_id: int) -> JobReport:
    """Queue a stopped job again. Raises JobError where it runs on, because a request to pause was taken back."""
    job = jobs.resume(workspace.store, job_id)
    if job.state == "running":
        raise JobError(f"job {job_id} continues; the request to pause was withdrawn")
    return report_of(workspace, job)


def cancel_job(workspace: Workspace, job_id: int) -> JobReport:
    """Stop a job for good."""
    return report_of(workspace, jobs.request_cancel(workspace.store, job_id))


def remove_job(workspace: Workspace, job_id: int) -> JobReport:
    """Forget a job that does not run."""
    report = show_job(workspace, job_id)
    jobs.remove(workspace.store, job_id)
    return report


def report_of(workspace: Workspace, job: Job, *, with_log: bool = False) -> JobReport:
    """A job as users see it."""
    progress = job.progress
    eta = None if progress.eta_low_s is None or progress.eta_high_s is None else (progress.eta_low_s, progress.eta_high_s)
    stage_share = progress.done / progress.total if progress.total else 0.0
    share = stage_share if progress.overall is None else progress.overall
    lines = workspace.store.jobs.log_lines(job.id) if with_log else []
    ahead = job_ahead(workspace.store, job, takes_turns) if job.state == "queued" else None
    return JobReport(
        id=job.id,
        kind=job.kind,
        state="pausing" if job.requested == "pause" else "cancelling" if job.requested == "cancel" else job.state,
        title=_title(job),
        progress=1.0 if job.state == "done" else share,
        message=": ".join(part for part in (progress.stage, progress.message) if part),
        created=datetime.fromtimestamp(job.created, UTC).isoformat(timespec="seconds"),
        error=job.error,
        eta_seconds=eta,
        log=tuple(line.message for line in lines),
        elapsed_seconds=_elapsed_seconds(workspace, job),
        rate=progress.rate,
        unit=progress.unit,
        stage=progress.stage,
        stage_number=progress.stage_number,
        n_stages=progress.n_stages,
        is_whole=progress.overall is not None,
        waits_for=None if ahead is None else ahead.id,
        origin=f"{_repository(job)}@{job.hub_commit}" if job.hub_commit else None,
        cluster=None if job.cluster is None else _CLUSTER.validate_python(job.cluster),
    )


def _elapsed_seconds(workspace: Workspace, job: Job) -> float | None:
    """How long the latest attempt has run, or ran."""
    if job.started is None or job.state == "queued":
        return None
    end = workspace.store.now if job.state == "running" else job.finished or job.heartbeat or job.started
    return max(0.0, end - job.started)


def _title(job: Job) -> str:
    """What a job works on and where it writes."""
    arguments = job.arguments
    if job.kind == "download":
        return str(arguments["repo_id"])
    if job.kind == "publish":
        return f"{Path(str(arguments['folder'])).name} -> {arguments['repo_id']}"
    subject = next((str(arguments[key]) for key in ("file", "model", "base") if arguments.get(key)), "")
    output = arguments.get("output")
    name = subject if subject == _repository(job) else Path(subject).name
    return f"{name} -> {Path(str(output)).name}" if output else name


def _repository(job: Job) -> str | None:
    """ORG/NAME where a job's model comes from the hub."""
    found = job.arguments if job.kind == "download" else job.arguments.get("hub")
    return str(found["repo_id"]) if found else None
