"""Runs a script or a module that ends with whoever started it: `runner.py PARTIAL TARGET ARGUMENTS...`.

TARGET is a script, or `-m` before the name of a module. Standard input carries nothing; when it closes, whoever asked is
gone, and this process, its children and the file PARTIAL ("" for none) go as well. It runs in interpreters that have no
Quantailor, so it needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import sys
import threading
from pathlib import Path


def _end_with_parent(pipe: int, partial: str) -> None:
    while os.read(pipe, 1024):
        pass
    if partial:
        with contextlib.suppress(OSError):
            Path(partial).unlink()
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main(partial: str, target: str, arguments: list[str]) -> None:
    """Run the target as `python TARGET ARGUMENTS` would."""
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(target=_end_with_parent, args=(pipe, partial), daemon=True).start()
    if target == "-m":
        del sys.path[0]
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(target).parent)
        sys.argv = [target, *arguments]
        runpy.run_path(target, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
