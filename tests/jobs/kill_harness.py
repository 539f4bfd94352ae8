"""Kill a command at random moments until it is done: what any resumable command must survive.

SIGKILL (on Windows TerminateProcess) leaves a process no chance to tidy up, which is the point.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class KillReport:
    """How often the command was killed before it ended by itself, and what it printed in the end."""

    n_kills: int
    output: str


def kill_until_done(
    argv: Sequence[str],
    *,
    longest_s: float,
    max_kills: int,
    seed: int,
    environment: Mapping[str, str] | None = None,
) -> KillReport:
    """Run `argv` again and again, killing it after a random time of up to `longest_s`, `max_kills` times at most.

    The run that is not killed must end with exit status 0; AssertionError with its output otherwise.
    """
    moments = random.Random(seed)
    n_kills = 0
    while True:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        try:
            output, _ = process.communicate(timeout=moments.uniform(0, longest_s) if n_kills < max_kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            n_kills += 1
            continue
        assert process.returncode == 0, output
        return KillReport(n_kills, output)
