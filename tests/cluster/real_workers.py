"""A scheduler of Dask and its workers as processes that tests can kill, and commands that use them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

PATIENCE_S = 300.0
Words = tuple[object, ...]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.05)


def fill_disk(process: int) -> None:
    """From now on a worker, and what it has started, can write no byte more to any file."""
    import resource

    for each in (process, *(child.pid for child in psutil.Process(process).children(recursive=True))):
        resource.prlimit(each, resource.RLIMIT_FSIZE, (0, 0))


@dataclass
class Cluster:
    """What runs, with everything that it keeps in one folder."""

    folder: Path
    protocol: str = "tcp"
    port: int = field(default_factory=free_port)
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{self.protocol}://127.0.0.1:{self.port}"

    def _start(self, module: str, *words: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{module}.log").open("ab")
        environment = os.environ | {"QUANTAILOR_HOME": str(self.folder / "home"), "PYTHONWARNINGS": "ignore"}
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.{module}", *words], cwd=self.folder, env=environment, stdout=log, stderr=log
            )

    def start_scheduler(self) -> None:
        where = ("--host", "127.0.0.1", "--port", str(self.port), "--protocol", self.protocol)
        self.scheduler = self._start("dask_scheduler", *where, "--no-dashboard")
        wait_until(self._answers)

    def _answers(self) -> bool:
        with socket.socket() as found:
            return found.connect_ex(("127.0.0.1", self.port)) == 0

    def add_worker(self) -> subprocess.Popen[bytes]:
        """One without Dask's nanny, so that it stays dead."""
        self.workers.append(
            self._start(
                "dask_worker", self.address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--host", f"{self.protocol}://127.0.0.1"
            )
        )
        return self.workers[-1]

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            if process is not None:
                process.send_signal(signal.SIGKILL)
                process.wait()
        self.workers.clear()


@contextmanager
def cluster(folder: Path, n_workers: int, *, protocol: str = "tcp") -> Iterator[Cluster]:
    folder.mkdir()
    running = Cluster(folder, protocol)
    try:
        running.start_scheduler()
        for _ in range(n_workers):
            running.add_worker()
        yield running
    finally:
        running.end()


def start(home: Path, *words: object) -> subprocess.Popen[str]:
    """A command of Quantailor."""
    return subprocess.Popen(
        [sys.executable, "-m", "quantailor", *map(str, words), "--home", str(home), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def result(command: subprocess.Popen[str]) -> dict[str, Any]:
    """What it printed, when it has ended well."""
    out, err = command.communicate(timeout=5 * PATIENCE_S)
    assert command.returncode == 0, out + err
    found: dict[str, Any] = json.loads(out)["result"]
    return found
