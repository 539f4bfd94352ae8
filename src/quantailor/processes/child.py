"""Programs of others that do not outlive us: llama.cpp's converter, pip and venv, all started through `runner`."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, cast

from quantailor.control import Control

RUNNER = Path(__file__).with_name("runner.py")
POLL_SECONDS = 0.1
MAX_LINE_BYTES = 1 << 16
PATIENCE_SECONDS = 3.0
"""For output that is still on its way when the process has ended."""
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY")


def environment(**changes: str) -> dict[str, str]:
    """Our environment without secrets and progress settings, with `changes`."""
    kept = {name: value for name, value in os.environ.items() if not _SECRET.search(name.upper()) and not name.startswith("TQDM_")}
    return {**kept, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", **changes}


def run(
    python: Path,
    arguments: Sequence[str],
    *,
    environment: dict[str, str],
    control: Control,
    on_line: Callable[[str], None],
    partial: Path | None = None,
) -> int:
    """Run `python ARGUMENTS` (a script, or `-m` and a module) to its end.

    Args:
        python: the interpreter.
        arguments: what it runs, and with what.
        environment: its whole environment.
        control: asked whether to go on; where it raises, the process and its children are killed.
        on_line: called with each line of its output; a carriage return ends one too.
        partial: a file that is deleted when the process does not come to its end.

    Returns:
        Its exit status.

    Raises:
        OSError: it cannot be started.
        Whatever `control` and `on_line` raise.
    """
    process = subprocess.Popen(
        [str(python), str(RUNNER), "" if partial is None else str(partial), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=sys.platform != "win32",
    )
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read_lines, args=(cast(IO[bytes], process.stdout), lines), daemon=True).start()
    try:
        _follow(process, lines, control, on_line)
        return _ended(process, control)
    except BaseException:
        _kill(process)
        if partial is not None:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        raise
    finally:
        cast(IO[bytes], process.stdin).close()


def _follow(process: subprocess.Popen[bytes], lines: queue.Queue[str | None], control: Control, on_line: Callable[[str], None]) -> None:
    waited = 0.0
    while waited < PATIENCE_SECONDS:
        control.check()
        try:
            line = lines.get(timeout=POLL_SECONDS)
        except queue.Empty:
            # A child of its own that lives on may hold its output open.
            waited += POLL_SECONDS if process.poll() is not None else 0.0
            continue
        if line is None:
            return
        on_line(line)


def _ended(process: subprocess.Popen[bytes], control: Control) -> int:
    """The exit status; a process may close its output before it ends."""
    while True:
        control.check()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_SECONDS)


def _read_lines(stream: IO[bytes], lines: queue.Queue[str | None]) -> None:
    with stream:
        rest = b""
        while data := os.read(stream.fileno(), 1 << 16):
            *whole, rest = re.split(rb"[\r\n]+", rest + data)
            if len(rest) > MAX_LINE_BYTES:
                whole, rest = [*whole, rest], b""
            for line in filter(None, whole):
                lines.put(_plain(line))
        if rest:
            lines.put(_plain(rest))
    lines.put(None)


def _plain(line: bytes) -> str:
    """Text without control characters."""
    text = line.decode("utf-8", "replace").rstrip()
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        if sys.platform == "win32":
            process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    process.wait()
