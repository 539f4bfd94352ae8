"""Commands that are killed at every moment at which something becomes durable, and what must be true afterwards.

`fork_server` runs them. A test gets the `forked` fixture and calls `kill_at_each_moment` with a way to prepare a home.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

import fuzzing
from quantailor.jobs import resolve
from quantailor.store import Store
from stores import first_difference

SERVER = Path(__file__).with_name("fork_server.py")
MOST_MOMENTS = 7
"""A run with more moments is killed at so many of them, which change with the seed."""


@dataclass(frozen=True)
class Request:
    """A call for the fork server."""

    arguments: Sequence[str]
    folder: str
    stop_at: int | None = None
    function: str = "quantailor.cli:run"
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int
    out: str
    err: str
    moments: list[str]

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def stopped_at(self, moment: int) -> bool:
        """Whether it was killed at this moment, or ended before it: progress is written by the clock, so that moments vary in number."""
        return self.was_killed or (self.code == 0 and len(self.moments) <= moment)

    @property
    def result(self) -> Any:
        """The result in the JSON document of a command that must have succeeded."""
        assert self.code == 0, f"exit {self.code}: {self.out}{self.err}"
        return json.loads(self.out)["result"]


class Forked:
    """A running fork server and the folder in which its children leave what they print."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process = process
        self._folders = (folder / str(number) for number in itertools.count())

    def run(
        self,
        *arguments: object,
        stop_at: int | None = None,
        function: str = "quantailor.cli:run",
        environment: Mapping[str, str] | None = None,
        kill_when: Callable[[], object] | None = None,
    ) -> Ended:
        """Run a command, or another function of a module, until it ends or is killed.

        Args:
            arguments: the words of the command.
            stop_at: the number of the moment at which it ends itself, from 0.
            function: `module:name` of what to call with the words.
            environment: variables to set.
            kill_when: asked all the time; once it says yes, the child is killed.
        """
        folder = next(self._folders)
        folder.mkdir()
        request = Request([str(word) for word in arguments], str(folder), stop_at, function, environment or {})
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(asdict(request)) + "\n")
        stdin.flush()
        child = int(stdout.readline())
        if kill_when is not None:
            while not kill_when() and psutil.pid_exists(child):
                time.sleep(0.002)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        code = int(stdout.readline())
        out, err, moments = ((folder / name).read_text(encoding="utf-8") for name in ("out", "err", "moments"))
        return Ended(code, out, err, moments.splitlines())


@contextlib.contextmanager
def forking(folder: Path) -> Iterator[Forked]:
    """A fork server."""
    path = os.pathsep.join(sys.path)
    command = [sys.executable, str(SERVER)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "HF_HUB_DISABLE_TELEMETRY": "1"},
    ) as process:
        yield Forked(process, folder)
        assert process.stdin is not None
        process.stdin.close()


@dataclass(frozen=True)
class Killed:
    """A command that was killed at one moment and then run to its end."""

    moment: str
    home: Path
    done_before: int
    """How much was done when it was killed."""
    result: Any


def kill_at_each_moment(
    forked: Forked,
    words: Callable[[Path], Sequence[object]],
    tmp_path: Path,
    done: Callable[[Store, Path], int],
    *,
    prepared: Path | None = None,
) -> list[Killed]:
    """Kill a command at every moment, each in a fresh home, and let it end in a second run.

    Each second run ends with the store of a run that was left alone, row for row, and all of its jobs are done.

    Args:
        forked: where the command runs.
        words: of the command, for a home in which it will run.
        tmp_path: for the homes, `alone` among them.
        done: what of the work is in a store, or in the files beside it; at a kill and at the end it is never less than before.
        prepared: a home to begin with; nothing if None.

    Returns:
        One report per kill.
    """

    def home_called(name: str) -> Path:
        home = tmp_path / name
        if prepared is not None:
            shutil.copytree(prepared, home)
        return home

    def run(home: Path, stop_at: int | None = None) -> Ended:
        return forked.run(*words(home), "--home", home, "--json", stop_at=stop_at)

    def count(home: Path) -> int:
        if not resolve(home).database.exists():
            return 0
        with Store(resolve(home).database) as store:
            return done(store, home)

    alone = home_called("alone")
    whole = run(alone)
    assert whole.result is not None
    reports: list[Killed] = []
    for moment in fuzzing.some(range(len(whole.moments)), MOST_MOMENTS):
        home = home_called(f"killed-{moment}")
        before = count(home)
        killed = run(home, moment)
        assert killed.stopped_at(moment), killed
        done_before = count(home)
        assert done_before >= before
        ended = run(home)
        reports.append(Killed((killed.moments or [""])[-1], home, done_before, ended.result))
        assert count(home) >= done_before
        with Store(resolve(alone).database) as one, Store(resolve(home).database) as other:
            assert first_difference(one, other) is None, killed.moments
            assert {job.state for job in other.jobs.all()} == {"done"}
    return reports
