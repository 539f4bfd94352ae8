"""Runs commands in forked children and kills them after a given time: kill tests need dozens of starts, each at no cost.

Reads a JSON object a line, {"words", "environment", "output", "kill_after_s"}, and answers with the child's exit code,
negative for a signal. `output` is a file for what the command prints.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

import huggingface_hub.file_download
import huggingface_hub.hf_api  # noqa: F401

import quantailor.app.library.hub  # noqa: F401
from quantailor import cli


def run_child(request: dict[str, Any]) -> None:
    os.environ.update(request["environment"])
    target = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(target, stream)
    code = cli.run(request["words"])
    sys.stdout.flush()
    os._exit(code)


def watch(pid: int, kill_after_s: float | None) -> int:
    begun = time.monotonic()
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if kill_after_s is not None and time.monotonic() - begun > kill_after_s:
            os.kill(pid, signal.SIGKILL)
            kill_after_s = None
        time.sleep(0.002)


for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        run_child(asked)
    sys.stdout.write(f"{watch(child, asked['kill_after_s'])}\n")
    sys.stdout.flush()
