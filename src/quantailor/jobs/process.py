"""Processes that run jobs: who they are, whether they live, and how one is started that outlives its starter."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import psutil

from quantailor.errors import JobError
from quantailor.store import Worker

START_TOLERANCE_S = 2.0
"""A process number is the same process when its start time is that close; clocks are corrected now and then."""
HEARTBEAT_LOST_S = 60.0
"""A worker on another computer counts as dead after so long without a heartbeat."""

_logger = logging.getLogger(__name__)


def this_worker() -> Worker:
    """The process that calls."""
    process = psutil.Process()
    return Worker(process.pid, process.create_time(), socket.gethostname())


def worker_of(pid: int) -> Worker | None:
    """A process of this computer; None when it has ended."""
    try:
        return Worker(pid, psutil.Process(pid).create_time(), socket.gethostname())
    except psutil.Error:
        return None


def is_alive(worker: Worker, *, heartbeat: float | None, now: float) -> bool:
    """Whether that worker still runs; `heartbeat` and `now` decide for one on another computer."""
    if worker.host != socket.gethostname():
        return heartbeat is not None and now - heartbeat < HEARTBEAT_LOST_S
    try:
        process = psutil.Process(worker.pid)
        same = abs(process.create_time() - worker.process_started) < START_TOLERANCE_S
        return same and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def spawn_detached(argv: Sequence[str], log_path: Path) -> int:
    """Start a process that outlives this one and its terminal; its process number.

    Its output goes to the end of `log_path`. Raises JobError when it cannot be started.
    """
    try:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("ab") as log:
            process = _start(argv, log.fileno())
    except OSError as error:
        raise JobError(
            f"cannot start {argv[0]} with its log at {log_path}: {error.strerror or error}", remedy="Run it without --detach"
        ) from error
    # Waiting in the background lets the system forget the process when it ends, however long we live.
    threading.Thread(target=process.wait, name=f"wait for {process.pid}", daemon=True).start()
    _logger.info("started process %d, log %s", process.pid, log_path)
    return process.pid


def _start(argv: Sequence[str], log: int) -> subprocess.Popen[bytes]:
    creation_flags = 0
    if sys.platform == "win32":
        creation_flags = subprocess.DETACHED_PROCESS | subprocess.CREATE_NEW_PROCESS_GROUP
    return subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        creationflags=creation_flags,
        start_new_session=sys.platform != "win32",
    )
