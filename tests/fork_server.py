"""Runs functions in forked children of a process that has everything imported, so that a start costs next to nothing.

Reads a JSON object a line (the fields of `faults.Request`) and answers with two lines: the child's process id when it
begins, and its exit code when it has ended, negative for a signal.

A child counts the moments at which something becomes durable: before and after each COMMIT of sqlite, each rename and each
removal of a file. It notes them in a file, and ends itself by SIGKILL at the one it was asked to.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import os
import pkgutil
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, cast
from unittest import mock

import huggingface_hub.file_download
import huggingface_hub.hf_api  # noqa: F401
import numpy as np
import typer.main

import quantailor
from made_up_covariances import MadeUpCovariances
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.ggml import library
from quantailor.present.charts.describe import Axis, Chart
from quantailor.present.charts.drawing import draw
from quantailor.processes import worker
from quantailor.records import TensorInfo

Reached = Callable[[str], None]
LATE = ("scipy.linalg", "scipy.optimize", "scipy.sparse.csgraph", "scipy.special", "sentencepiece.sentencepiece_model_pb2")
"""What commands import when they need it."""


def import_everything() -> None:
    """All modules but those of the GUI, and what they import late; and the tree of commands, which Typer would build at each run."""
    for name in LATE:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(quantailor.__path__, "quantailor."):
        if not module.name.startswith(("quantailor.gui", "quantailor.__main__")):
            importlib.import_module(module.name)
    library.types()
    typer.main.get_command = cache(typer.main.get_command)
    from quantailor.cli.app import app

    typer.main.get_command(app)


def draw_and_round_once() -> None:
    """What figures and compensated rounding import, and the machine code that is loaded; most of a short command's time."""
    draw(Chart("", Axis(), Axis(), ()), "png")
    rows, rounding = np.ones((1, 64), np.float32), Rounding(None, MadeUpCovariances(), compensated=True)
    rounding.quantize(TensorInfo("any", rows.shape, "F32", rows.nbytes), 0, rows, library.types()["Q4_0"])


class ForkedWorker:
    """The process behind `apart` as a child of ours, which has everything imported: what is used of `Popen`."""

    def __init__(self) -> None:
        ends = [os.pipe() for _ in range(3)]
        (theirs_in, ours_in), *outs = ends
        self.pid, self.returncode = os.fork(), cast(int | None, None)
        if self.pid == 0:
            mock.patch.stopall()  # a moment is one of the command's own process
            for number, descriptor in enumerate((theirs_in, *(write for _, write in outs))):
                os.dup2(descriptor, number)
            for descriptor in itertools.chain(*ends):
                os.close(descriptor)
            os.environ["GGML_NO_BACKTRACE"] = "1"
            worker.main()
        for descriptor in (theirs_in, *(write for _, write in outs)):
            os.close(descriptor)
        self.stdin = os.fdopen(ours_in, "wb")
        self.stdout, self.stderr = (os.fdopen(read, "rb") for read, _ in outs)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("worker", timeout)
            time.sleep(0.001)
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def fork_workers() -> None:
    """Have `apart` fork its processes, too: a fresh one imports for a third of a second."""
    popen = subprocess.Popen

    def started(command: Sequence[str], **options: Any) -> object:
        return ForkedWorker() if worker.__name__ in command else popen(command, **options)

    mock.patch.object(subprocess, "Popen", started).start()


def draw_nothing() -> None:
    """Figures take half of the time of a verdict: what counts here is when their files appear, not what they show."""
    from matplotlib.figure import Figure

    def saved(figure: Figure, stream: BinaryIO, **_: object) -> None:
        stream.write(b"a figure")

    mock.patch.object(Figure, "savefig", saved).start()


def noting(moments: Path, stop_at: int | None) -> Reached:
    """A function that notes a moment, and at the one with this number (from 0) ends the process."""
    lines = moments.open("ab", buffering=0)
    numbers = itertools.count()

    def reached(moment: str) -> None:
        number = next(numbers)
        lines.write(f"{moment}\n".encode())
        if number == stop_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached


def watch_files(reached: Reached) -> None:
    """Note every rename and removal; `pathlib`, `shutil` and huggingface_hub all come here."""

    def watched(original: Callable[..., None], what: str, *arguments: Any, **options: Any) -> None:
        reached(f"before {what} {arguments[0]}")
        original(*arguments, **options)
        reached(f"after {what} {arguments[0]}")

    for name in ("rename", "replace", "unlink", "remove"):
        mock.patch.object(os, name, partial(watched, getattr(os, name), name)).start()


def watch_commits(reached: Reached) -> None:
    """Note every COMMIT of connections that are opened from now on."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
            if sql != "COMMIT":
                return super().execute(sql, parameters)
            reached("before COMMIT")
            cursor = super().execute(sql, parameters)
            reached("after COMMIT")
            return cursor

    mock.patch.object(sqlite3, "connect", partial(sqlite3.connect, factory=Connection)).start()


def run_child(request: dict[str, Any]) -> None:
    """Call the function; never returns."""
    os.environ.update(request["environment"])
    folder = Path(request["folder"])
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    fork_workers()
    draw_nothing()
    reached = noting(folder / "moments", request["stop_at"])
    watch_files(reached)
    watch_commits(reached)
    module, _, name = request["function"].partition(":")
    code = getattr(importlib.import_module(module), name)(request["arguments"])
    sys.stdout.flush()
    os._exit(code or 0)


def serve() -> None:
    """Answer until standard input closes."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                run_child(json.loads(line))
            except BaseException:
                sys.excepthook(*sys.exc_info())
                sys.stderr.flush()
                os._exit(70)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", ".*multi-threaded")  # what a worker needs of the threads of its parent, it makes anew
    import_everything()
    draw_and_round_once()
    serve()
