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
import os
import pkgutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import huggingface_hub.file_download
import huggingface_hub.hf_api  # noqa: F401
import numpy as np
import typer.main

import quantailor
from made_up_covariances import MadeUpCovariances
from quantailor.analysis.rounding.rounding import Rounding
from quantailor.ggml import library
from quantailor.records import TensorInfo

Reached = Callable[[str], None]


def import_everything() -> None:
    """All modules but those of the GUI; and the tree of commands, which Typer would build at each run."""
    for module in pkgutil.walk_packages(quantailor.__path__, "quantailor."):
        if not module.name.startswith(("quantailor.gui", "quantailor.__main__")):
            importlib.import_module(module.name)
    library.types()
    typer.main.get_command = cache(typer.main.get_command)
    from quantailor.cli.app import app

    typer.main.get_command(app)


def round_once() -> None:
    """What compensated rounding imports, and the machine code that it loads; most of a short command's time."""
    rows, rounding = np.ones((1, 64), np.float32), Rounding(None, MadeUpCovariances(), compensated=True)
    rounding.quantize(TensorInfo("any", rows.shape, "F32", rows.nbytes), 0, rows, library.types()["Q4_0"])


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
    import_everything()
    round_once()
    serve()
