"""Calls functions in a process of their own, because what they call may end it.

llama.cpp ends its process on input that it does not expect: an assertion, a stack that overflows, memory that runs out. Whatever
reaches it is therefore called through `call`, `stream` or `holding`, which raise `CrashError` where the process ends: what it was
doing, why, and what to do about it.

The process is started afresh, not forked (threads of OpenMP do not survive that), and lives as long as ours at most: a pipe ties
the two. Functions go there by name; arguments, items and results are pickled, so they should be small plain data. One process is
kept for the next call, which then costs a millisecond. Where the control asks to stop, the process is killed: what its work
stored is whole, and what it yielded was taken.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Concatenate, Generic, Literal, ParamSpec, TypeVar, cast

from quantailor.control import QUIET, Control
from quantailor.errors import CrashError
from quantailor.processes.messages import Answer, Call

POLL_SECONDS = 0.1
PATIENCE_SECONDS = 5.0
"""For a process that is about to end, and for its last words."""
N_LAST_WORDS = 20
_FOLDERS = re.compile(r"\S*[/\\](?=[^/\\\s]+:\d+: )")
"""In front of the source file that an assertion names."""

P = ParamSpec("P")
Result = TypeVar("Result")
Held = TypeVar("Held")

_logger = logging.getLogger("quantailor")


class _Process:
    """One worker, as seen from here."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "quantailor.processes.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "GGML_NO_BACKTRACE": "1"},
        )
        self._answers: queue.Queue[Answer | None] = queue.Queue()
        self._last_words: deque[str] = deque(maxlen=N_LAST_WORDS)
        self._doing = "beginning"
        self._is_busy = False
        self._listeners = [
            threading.Thread(target=target, args=(stream,), daemon=True)
            for target, stream in ((self._listen, self._process.stdout), (self._overhear, self._process.stderr))
        ]
        for thread in self._listeners:
            thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether it can take a request."""
        return not self._is_busy and self._process.poll() is None

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for thread in self._listeners:
            thread.join(PATIENCE_SECONDS)
        with contextlib.suppress(OSError):
            cast(IO[bytes], self._process.stdin).close()

    def run(self, request: Call, control: Control) -> Generator[object, None, object]:
        """Yield the items of a request and return its result. Raises what it raises, what `control` raises, and CrashError."""
        data, stdin = pickle.dumps(request), cast(IO[bytes], self._process.stdin)
        self._is_busy, self._doing = True, "beginning"
        with contextlib.suppress(OSError, ValueError):  # one that has ended cannot be told anything
            stdin.write(data)
            stdin.flush()
        while True:
            control.check()
            kind, value = self._next(control)
            if kind == "item":
                yield value
            elif kind in ("returned", "raised"):
                self._is_busy = False
                if kind == "raised":
                    raise cast(Exception, value)
                return value
            elif kind == "ending":
                raise cast(Exception, value)  # it stays busy: nobody will ask it again
            else:
                self._hear(kind, value, control)

    def _hear(self, kind: str, value: object, control: Control) -> None:
        if kind == "doing":
            self._doing = str(value)
        elif kind == "advance":
            control.advance(*cast(tuple[float, float, str], value))
        else:
            name, level, text = cast(tuple[str, int, str], value)
            logging.getLogger(name).log(level, "%s", text)

    def _next(self, control: Control) -> Answer:
        while True:
            try:
                answer = self._answers.get(timeout=POLL_SECONDS)
            except queue.Empty:
                control.check()
                continue
            if answer is None:
                self._answers.put(None)  # whoever asks it again learns the same
                control.check()  # it may have been stopped together with us
                raise self._crash()
            return answer

    def _crash(self) -> CrashError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_SECONDS)
        self._listeners[1].join(PATIENCE_SECONDS)
        code = self._process.returncode
        words = next((line for line in reversed(self._last_words) if line.strip()), "")
        if code is not None and code < 0 and signal.Signals(-code).name == "SIGKILL":
            return CrashError(
                self._doing,
                "it was killed, probably for lack of memory",
                remedy="Close other programs, or take fewer chunks at a time, a smaller context or a smaller model",
            )
        reason = ": ".join(filter(None, (_end(code), _FOLDERS.sub("", words))))
        return CrashError(self._doing, reason, remedy="Check the file with `quantailor inspect`, or try another llama-cpp-python")

    def _listen(self, stream: IO[bytes]) -> None:
        with stream, contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):
            while True:
                self._answers.put(pickle.load(stream))
        self._answers.put(None)

    def _overhear(self, stream: IO[bytes]) -> None:
        with stream:
            self._last_words.extend(line.decode(errors="replace").strip() for line in stream)


def _end(code: int | None) -> str:
    """How a process ended, in words."""
    if code is None:
        return "it does not answer"
    if code >= 0:
        return f"exit status {code}"
    name = signal.strsignal(-code) or "unknown signal"
    return f"{name.lower()}, {signal.Signals(-code).name}"


_idle: list[_Process] = []
"""At most one that waits for the next call."""
_lock = threading.Lock()


def _take() -> _Process:
    with _lock:
        waiting = _idle.pop() if _idle else None
    if waiting is not None and waiting.is_ready:
        return waiting
    if waiting is not None:
        waiting.close()
    return _Process()


def _give_back(process: _Process) -> None:
    """Keep it for the next call, where it is not within this one."""
    with _lock:
        if process.is_ready and not _idle:
            _idle.append(process)
            return
    process.close()


@atexit.register
def close_idle() -> None:
    """End the process that waits for a next call."""
    with _lock:
        waiting = [_idle.pop() for _ in range(len(_idle))]
    for process in waiting:
        process.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # it answers to the process that started it


@contextmanager
def _process() -> Iterator[_Process]:
    """One for this block."""
    process = _take()
    try:
        yield process
    finally:
        _give_back(process)


def _asked(
    function: Callable[..., object],
    arguments: tuple[object, ...],
    options: dict[str, object],
    use: Literal["nothing", "result", "held"] = "nothing",
) -> tuple[Call, Control]:
    control = options.pop("control", None)
    level = _logger.getEffectiveLevel()
    request = Call(function, arguments, options, _folder(), level, control is not None, use)
    return request, cast(Control, control) if control is not None else QUIET


def _folder() -> str | None:
    """The working directory; None where somebody deleted it."""
    try:
        return str(Path.cwd())
    except OSError:
        return None


def _drained(answers: Generator[object, None, object]) -> object:
    while True:
        try:
            next(answers)
        except StopIteration as end:
            return end.value


def call(function: Callable[P, Result], *arguments: P.args, **options: P.kwargs) -> Result:
    """Call a function of a module in a process of its own; its `control`, if it is given one, is asked here.

    Raises:
        CrashError: the process ended in it.
        Whatever the function and its control raise.
    """
    with _process() as process:
        return cast(Result, _drained(process.run(*_asked(function, arguments, dict(options)))))


def stream(function: Callable[P, Iterator[Result]], *arguments: P.args, **options: P.kwargs) -> Iterator[Result]:
    """The same for a function that yields: each item arrives as soon as it is known."""
    with _process() as process:
        yield from cast(Iterator[Result], process.run(*_asked(function, arguments, dict(options))))


class Apart(Generic[Held]):
    """An object that lives in a process of its own, see `holding`."""

    def __init__(self, process: _Process) -> None:
        self._process = process

    def call(self, function: Callable[Concatenate[Held, P], Result], *arguments: P.args, **options: P.kwargs) -> Result:
        """Call a function, usually a method of its class, with the object. Raises as `apart.call` does."""
        return cast(Result, _drained(self._process.run(*_asked(function, arguments, dict(options), "held"))))

    def stream(
        self, function: Callable[Concatenate[Held, P], Iterator[Result]], *arguments: P.args, **options: P.kwargs
    ) -> Iterator[Result]:
        """The same for a function that yields."""
        yield from cast(Iterator[Result], self._process.run(*_asked(function, arguments, dict(options), "held")))


@contextmanager
def holding(make: Callable[P, Held], *arguments: P.args, **options: P.kwargs) -> Iterator[Apart[Held]]:
    """Make an object in a process of its own, which keeps it until the block ends; it has a method `close`.

    Raises:
        CrashError: the process ended in it.
        Whatever `make` raises.
    """
    with _process() as process:
        _drained(process.run(*_asked(make, arguments, dict(options), "result")))
        try:
            yield Apart(process)
        except BaseException:
            process.close()  # and with it what is held
            raise
        _drained(process.run(*_asked(_close, (), {}, "held")))


def _close(held: object) -> None:
    """Release what is held."""
    cast(IO[bytes], held).close()
