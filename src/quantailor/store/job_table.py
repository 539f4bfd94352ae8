"""The jobs and their logs, as the database holds them.

A job is *queued* until a worker claims it. A claim counts up `attempt`; whatever a worker writes names its attempt,
so that one that was declared dead and replaced can no longer touch the job. Which processes live is not known
here: see `quantailor.jobs`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from quantailor.errors import JobError
from quantailor.store.database import Database, Row

JobState = Literal["queued", "running", "paused", "interrupted", "done", "failed", "cancelled"]
JobRequest = Literal["", "pause", "cancel"]


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """One worker of a cluster, as a job sees it."""

    name: str
    host: str
    state: str
    """"setting up", "ready", "refused" or "lost"."""
    n_done: int
    """Tasks: chunks that were run, cells that were measured."""
    per_second: float | None
    is_slow: bool
    """Whether it is much slower than most."""
    words: str = ""
    """Why it takes no part."""


@dataclass(frozen=True, slots=True)
class ClusterReport:
    """The workers of a job."""

    address: str
    dashboard: str | None
    """Dask's page."""
    workers: tuple[WorkerReport, ...]


@dataclass(frozen=True, slots=True)
class Worker:
    """The process that runs a job. Its start time tells it from a later process with the same number."""

    pid: int
    process_started: float
    """Wall-clock seconds, as the operating system reports it."""
    host: str


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job's present stage is. Rate in units per second; the time left is a range in seconds."""

    stage: str = ""
    done: float = 0.0
    total: float = 0.0
    message: str = ""
    rate: float | None = None
    eta_low_s: float | None = None
    eta_high_s: float | None = None
    unit: str = ""
    """What `done` and `total` count; empty where it is no such thing."""
    stage_number: int = 0
    """Of `n_stages`, from 1; both are 0 where the work does not tell."""
    n_stages: int = 0
    overall: float | None = None
    """The share of the whole job's time that is over; None where only the stage is known. The time left is of the same."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was when it was read. Times are wall-clock seconds since 1970."""

    id: int
    kind: str
    arguments: Mapping[str, Any]
    state: JobState
    requested: JobRequest
    attempt: int
    """How many workers have claimed it so far."""
    progress: Progress
    created: float
    started: float | None
    """When the latest worker claimed it."""
    heartbeat: float | None
    finished: float | None
    error: str | None
    result: Any
    """What the work returned, as plain data."""
    worker: Worker | None
    log_path: str | None
    hub_commit: str | None
    """Of the repository that its model comes from, once that was looked up."""
    hub_path: str | None
    """Where the model is since it was downloaded."""
    cluster: object
    """The workers that it uses, as plain data; None where it uses this machine alone."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long work of one kind took on this machine."""

    stage: str
    """What kind of work it is, with all that makes it slower or faster beside its amount."""
    n_threads: int
    expected_seconds: float
    """What a trial of the machine makes of the same work."""
    seconds: float


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a job's log."""

    id: int
    logged: float
    """Seconds since 1970."""
    level: str
    message: str


_PROGRESS = tuple(field.name for field in fields(Progress))
_COLUMNS = (
    *("id", "kind", "arguments", "state", "requested", "attempt", *_PROGRESS),
    *("created", "started", "heartbeat", "finished", "error", "result", "pid", "process_started", "host", "log_path"),
    *("hub_commit", "hub_path", "cluster"),
)


class JobTable:
    """Typed queries over jobs; `store.jobs`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, kind: str, arguments: Mapping[str, Any]) -> Job:
        """A new queued job. `arguments` are plain data, enough to run the job in another process."""
        # Escaped, a path that is not Unicode would be stored and could never be read again.
        row = (kind, json.dumps(arguments, ensure_ascii=False), self._database.now())
        return self.get(self._database.insert("INSERT INTO jobs (kind, arguments, created, state) VALUES (?, ?, ?, 'queued')", row))

    def get(self, job_id: int) -> Job:
        """The job of that number; raises JobError."""
        rows = self._database.query(_GET, (job_id,))
        if not rows:
            raise JobError(f"there is no job {job_id}", remedy="`quantailor jobs list` shows all jobs")
        return _job(rows[0])

    def all(self, *, states: Collection[str] = ()) -> list[Job]:
        """Jobs, the latest first; `states` keeps those in one of them."""
        jobs = [_job(row) for row in self._database.query(_ALL)]
        return [job for job in jobs if not states or job.state in states]

    def claim(self, job_id: int, worker: Worker) -> Job:
        """Make a queued job this worker's; raises JobError when it is not queued (another was faster, or it was cancelled)."""
        with self._database.transaction():
            job = self.get(job_id)
            if job.state != "queued":
                raise JobError(f"job {job_id} is {job.state}, not queued", remedy=f"`quantailor jobs show {job_id}` says more")
            values = {**asdict(worker), "id": job_id, "now": self._database.now()}
            self._database.change(_CLAIM, values)
            return self.get(job_id)

    def assign(self, job_id: int, worker: Worker) -> None:
        """Note which process was started for a queued job, and that it lives; nothing where that process has claimed it already."""
        self._database.change(_ASSIGN, {**asdict(worker), "id": job_id, "now": self._database.now()})

    def set_log_path(self, job_id: int, log_path: str) -> None:
        """Say where the worker's output goes."""
        self._database.change("UPDATE jobs SET log_path = ? WHERE id = ?", (log_path, job_id))

    def pin(self, job_id: int, hub_commit: str, hub_path: str | None) -> None:
        """Remember at which commit a job's model is, and where it is, once that is known."""
        self._database.change(
            "UPDATE jobs SET hub_commit = ?, hub_path = COALESCE(?, hub_path) WHERE id = ?", (hub_commit, hub_path, job_id)
        )

    def report(self, job_id: int, attempt: int, progress: Progress) -> None:
        """A worker's progress, which is a heartbeat too; ignored when the job is no longer that attempt's."""
        values = {**asdict(progress), "id": job_id, "attempt": attempt, "now": self._database.now()}
        self._database.change(_REPORT, values)

    def note_cluster(self, job_id: int, attempt: int, cluster: object) -> None:
        """Which workers a job uses, and what they do; plain data. Ignored when the job is no longer that attempt's."""
        sql = "UPDATE jobs SET cluster = ? WHERE id = ? AND attempt = ? AND state = 'running'"
        self._database.change(sql, (json.dumps(cluster), job_id, attempt))

    def beat(self, job_id: int, attempt: int) -> None:
        """Say that the worker lives."""
        sql = "UPDATE jobs SET heartbeat = ? WHERE id = ? AND attempt = ? AND state = 'running'"
        self._database.change(sql, (self._database.now(), job_id, attempt))

    def requested(self, job_id: int, attempt: int) -> JobRequest | None:
        """What was asked of a worker; None when the job is no longer that attempt's."""
        sql = "SELECT requested FROM jobs WHERE id = ? AND attempt = ? AND state = 'running'"
        rows = self._database.query(sql, (job_id, attempt))
        return rows[0][0] if rows else None

    def request(self, job_id: int, requested: JobRequest) -> None:
        """Ask the worker to pause or cancel, or take that back."""
        self._database.change("UPDATE jobs SET requested = ? WHERE id = ?", (requested, job_id))

    def finish(self, job_id: int, attempt: int, state: JobState, *, error: str | None = None, result: object = None) -> bool:
        """End a worker's attempt in `state`; False when the job is no longer that attempt's."""
        values = {
            "state": state,
            "error": error,
            "result": json.dumps(result),
            "now": self._database.now(),
            "id": job_id,
            "attempt": attempt,
        }
        return bool(self._database.change(_FINISH, values))

    def set_state(self, job_id: int, state: JobState) -> Job:
        """Put a job that nobody runs into another state, without request, error and worker."""
        self._database.change(_SET_STATE, {"state": state, "id": job_id, "now": self._database.now()})
        return self.get(job_id)

    def remove(self, job_id: int) -> None:
        """Delete a job and its log."""
        self._database.change("DELETE FROM jobs WHERE id = ?", (job_id,))

    def log(self, job_id: int, message: str, *, level: str = "info") -> None:
        """Add a line to a job's log."""
        sql = "INSERT INTO job_log (job, logged, level, message) VALUES (?, ?, ?, ?)"
        self._database.change(sql, (job_id, self._database.now(), level, message))

    def record_paces(self, paces: Iterable[Pace]) -> None:
        """Remember how long stages took."""
        rows = [(pace.stage, pace.n_threads, pace.expected_seconds, pace.seconds, self._database.now()) for pace in paces]
        self._database.change_many("INSERT INTO paces (stage, n_threads, expected_seconds, seconds, recorded) VALUES (?, ?, ?, ?, ?)", rows)

    def paces(self) -> list[Pace]:
        """All of them, the latest first."""
        rows = self._database.query("SELECT stage, n_threads, expected_seconds, seconds FROM paces ORDER BY id DESC LIMIT 1000")
        return [Pace(*row) for row in rows]

    def log_lines(self, job_id: int, *, after: int = 0) -> list[LogLine]:
        """A job's log in order; `after` is the id of the last line already seen."""
        sql = "SELECT id, logged, level, message FROM job_log WHERE job = ? AND id > ? ORDER BY id"
        rows = self._database.query(sql, (job_id, after))
        return [LogLine(*row) for row in rows]


_GET = """
    SELECT id, kind, arguments, state, requested, attempt, stage, done, total, message, rate, eta_low_s, eta_high_s,
        unit, stage_number, n_stages, overall, created, started, heartbeat, finished, error, result, pid, process_started, host, log_path,
        hub_commit, hub_path, cluster
    FROM jobs WHERE id = ?"""
_ALL = """
    SELECT id, kind, arguments, state, requested, attempt, stage, done, total, message, rate, eta_low_s, eta_high_s,
        unit, stage_number, n_stages, overall, created, started, heartbeat, finished, error, result, pid, process_started, host, log_path,
        hub_commit, hub_path, cluster
    FROM jobs ORDER BY id DESC"""
_CLAIM = """
    UPDATE jobs SET state = 'running', attempt = attempt + 1, requested = '', error = NULL, result = NULL, finished = NULL,
        stage = '', done = 0, total = 0, message = '', rate = NULL, eta_low_s = NULL, eta_high_s = NULL,
        unit = '', stage_number = 0, n_stages = 0, overall = NULL, cluster = NULL,
        started = :now, heartbeat = :now, pid = :pid, process_started = :process_started, host = :host
    WHERE id = :id"""
_ASSIGN = """
    UPDATE jobs SET pid = :pid, process_started = :process_started, host = :host, heartbeat = :now WHERE id = :id AND state = 'queued'"""
_REPORT = """
    UPDATE jobs SET stage = :stage, done = :done, total = :total, message = :message, rate = :rate,
        eta_low_s = :eta_low_s, eta_high_s = :eta_high_s,
        unit = :unit, stage_number = :stage_number, n_stages = :n_stages, overall = :overall, heartbeat = :now
    WHERE id = :id AND attempt = :attempt AND state = 'running'"""
_FINISH = """
    UPDATE jobs SET state = :state, error = :error, result = :result, requested = '', finished = :now, heartbeat = :now,
        rate = NULL, eta_low_s = NULL, eta_high_s = NULL, pid = NULL, process_started = NULL, host = NULL
    WHERE id = :id AND attempt = :attempt AND state = 'running'"""
_SET_STATE = """
    UPDATE jobs SET state = :state, requested = '', error = NULL, rate = NULL, eta_low_s = NULL, eta_high_s = NULL,
        finished = CASE WHEN :state = 'queued' THEN NULL ELSE :now END, pid = NULL, process_started = NULL, host = NULL
    WHERE id = :id"""


def _job(row: Row) -> Job:
    values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    pid, process_started, host = (values.pop(name) for name in ("pid", "process_started", "host"))
    progress = Progress(*(values.pop(name) for name in _PROGRESS))
    arguments, result, cluster = json.loads(values.pop("arguments")), values.pop("result"), values.pop("cluster")
    return Job(
        **values,
        arguments=arguments,
        result=None if result is None else json.loads(result),
        cluster=None if cluster is None else json.loads(cluster),
        progress=progress,
        worker=None if pid is None else Worker(pid, process_started, host),
    )
