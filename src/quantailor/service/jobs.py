"""Jobs as users handle them: submit, run here or detached, look, pause, resume, cancel, remove."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from quantailor import jobs
from quantailor.errors import JobError, ResourceError
from quantailor.jobs import Job, JobControl, Listener
from quantailor.service import tasks
from quantailor.service.converting import convert
from quantailor.service.fetching import download, with_model_here, with_origin
from quantailor.service.making import make
from quantailor.service.preflight import preflight
from quantailor.service.probing import probe
from quantailor.service.proving import build, verify
from quantailor.service.refining import refine
from quantailor.service.results import JobReport, TaskResult
from quantailor.service.stages import Stages
from quantailor.service.study import study
from quantailor.service.sweeping import sweep
from quantailor.service.tasks import Task
from quantailor.service.work import compute_imatrix, measure
from quantailor.service.workspace import Workspace

_FOLLOW_SECONDS = 0.5


def submit(workspace: Workspace, task: Task) -> int:
    """Queue a job for the task and return its number; an unfinished job for the same task is taken up again.

    Raises JobError where another process is at that very task now, ResourceError where disk or memory fall short (`preflight`).
    """
    store = workspace.store
    jobs.reconcile(store)
    kind, arguments = tasks.kind_of(task), json.loads(tasks.to_json(task))
    for job in store.jobs.all():
        if (job.kind, job.arguments) != (kind, arguments) or job.state in ("done", "cancelled"):
            continue
        if job.state == "running":
            raise JobError(f"job {job.id} does this already", remedy=f"Follow it with `quantailor jobs show {job.id} --follow`")
        _require_resources(workspace, task)
        return jobs.resume(store, job.id).id
    _require_resources(workspace, task)
    return store.jobs.create(kind, arguments).id


def _require_resources(workspace: Workspace, task: Task) -> None:
    shortfalls = preflight(workspace, task)
    if shortfalls:
        raise ResourceError(f"cannot start: {'; '.join(shortfalls)}")


def run_job(
    workspace: Workspace, job_id: int, listener: Listener | None = None, *, on_stopping: Callable[[], None] | None = None
) -> TaskResult:
    """Run a queued job in this process. Ctrl-C pauses it at its next safe point; a second one stops it on the spot.

    `listener` hears of progress, `on_stopping` of the first Ctrl-C.

    Raises Paused or Cancelled when asked to stop, and what the work raises.
    """
    job = workspace.store.jobs.get(job_id)
    task = tasks.from_json(job.kind, json.dumps(job.arguments))
    found: list[TaskResult] = []

    def work(control: JobControl) -> None:
        stages = Stages(control)
        ready, origin = with_model_here(workspace, job_id, task, stages)
        if origin is not None:
            _require_resources(workspace, ready)
        found.append(with_origin(_run(workspace, job_id, ready, stages), origin))

    jobs.run(workspace.store, job_id, work, listener=listener, on_stopping=on_stopping)
    return found[0]


def _run(workspace: Workspace, job_id: int, task: Task, stages: Stages) -> TaskResult:
    match task:
        case tasks.DownloadTask():
            return download(workspace, job_id, task, stages)
        case tasks.ConvertTask():
            return convert(workspace, task, stages)
        case tasks.ImatrixTask():
            return compute_imatrix(workspace, task, stages)
        case tasks.MeasureTask():
            return measure(workspace, task, stages)
        case tasks.ProbeTask():
            return probe(workspace, task, stages)
        case tasks.SweepTask():
            return sweep(workspace, task, stages)
        case tasks.StudyTask():
            return study(workspace, task, stages)
        case tasks.RefineTask():
            return refine(workspace, task, stages)
        case tasks.BuildTask():
            return build(workspace, task, stages)
        case tasks.VerifyTask():
            return verify(workspace, task, stages)
        case tasks.MakeTask():
            return make(workspace, task, stages)


def start_detached(workspace: Workspace, job_id: int) -> JobReport:
    """Start a process of its own for a queued job; it outlives this one and its terminal."""
    argv = (sys.executable, "-m", "quantailor", "worker", str(job_id), "--home", str(workspace.home.path))
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
        listener(job.progress)
        if job.state not in ("queued", "running"):
            return
        pause.wait(_FOLLOW_SECONDS)


def pause_job(workspace: Workspace, job_id: int) -> JobReport:
    """Ask a job to stop at its next safe point."""
    return report_of(workspace, jobs.request_pause(workspace.store, job_id))


def resume_job(workspace: Workspace, job_id: int) -> JobReport:
    """Queue a stopped job again."""
    job = jobs.resume(workspace.store, job_id)
    if job.state == "running":
        raise JobError(f"job {job_id} runs on; the request to pause was taken back")
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
    share = progress.done / progress.total if progress.total else 0.0
    lines = workspace.store.jobs.log_lines(job.id) if with_log else []
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
        origin=_origin(job),
    )


def _elapsed_seconds(workspace: Workspace, job: Job) -> float | None:
    """How long the latest attempt has run, or ran."""
    if job.started is None:
        return None
    end = workspace.store.now if job.state == "running" else job.finished or job.heartbeat or job.started
    return max(0.0, end - job.started)


def _title(job: Job) -> str:
    """What a job works on and where it writes."""
    arguments = job.arguments
    if job.kind == "download":
        return str(arguments["repo_id"])
    subject = next((str(arguments[key]) for key in ("file", "model", "base") if arguments.get(key)), "")
    output = arguments.get("output")
    name = subject if subject == _repository(job) else Path(subject).name
    return f"{name} -> {Path(str(output)).name}" if output else name


def _repository(job: Job) -> str | None:
    """ORG/NAME where a job's model comes from the hub."""
    found = job.arguments if job.kind == "download" else job.arguments.get("hub")
    return str(found["repo_id"]) if found else None


def _origin(job: Job) -> str | None:
    return f"{_repository(job)}@{job.hub_commit}" if job.hub_commit else None
