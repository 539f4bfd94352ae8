"""The process behind `apart`: runs what it is asked to and sends back what that gives. Ends when its standard input closes."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import queue
import signal
import threading
import traceback
from collections.abc import Iterator
from typing import IO

from quantailor.control import NullControl
from quantailor.processes import messages
from quantailor.processes.messages import Call, Kind

IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Signals that a terminal sends to its whole group: whoever asked decides what they mean, and ends this process."""


class _Line:
    """The way back."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._lock = stream, threading.Lock()

    def send(self, kind: Kind, value: object) -> None:
        data = pickle.dumps((kind, value))
        with self._lock:
            self._stream.write(data)
            self._stream.flush()


class _Reports(NullControl):
    """A control whose progress goes back; it never stops the work, because whoever asked ends this process."""

    def __init__(self, line: _Line) -> None:
        self._line = line

    def advance(self, done: float, total: float, message: str = "") -> None:
        self._line.send("advance", (done, total, message))


class _Log(logging.Handler):
    def __init__(self, line: _Line) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        self._line.send("log", (record.name, record.levelno, record.getMessage()))


class _Worker:
    def __init__(self, line: _Line) -> None:
        self._line = line
        self._held: object = None
        messages.listen(lambda what: line.send("doing", what))
        messages.listen_for_end(lambda why: line.send("ending", why))
        logging.getLogger("quantailor").addHandler(_Log(line))

    def answer(self, request: Call) -> None:
        """Run one request to its end."""
        try:
            if request.folder is not None:
                os.chdir(request.folder)
            logging.getLogger("quantailor").setLevel(request.log_level)
            self._line.send("returned", self._result(request))
        except Exception as error:
            self._line.send("raised", _portable(error))

    def _result(self, request: Call) -> object:
        options = {**request.options, "control": _Reports(self._line)} if request.reports else request.options
        first = (self._held,) if request.use == "held" else ()
        result = request.function(*first, *request.arguments, **options)
        if request.use == "result":
            self._held, result = result, None
        if isinstance(result, Iterator):
            for item in result:
                self._line.send("item", item)
            return None
        return result


def _portable(error: Exception) -> Exception:
    """The error with where it came from, in a form that survives the way back."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def _read(stream: IO[bytes], requests: queue.Queue[Call]) -> None:
    """Pass requests on until the pipe closes: then nobody is left who waits for an answer."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            requests.put(pickle.load(stream))
    messages.remove_partial()
    os._exit(0)


def _no_core_files() -> None:
    """A stack or a model in a core file would fill the disk."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Answer requests until whoever asks is gone."""
    for name in IGNORED:
        if name in signal.Signals.__members__:
            signal.signal(signal.Signals[name], signal.SIG_IGN)
    _no_core_files()
    answers, requests = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)  # what libraries print belongs to no answer
    waiting: queue.Queue[Call] = queue.Queue()
    threading.Thread(target=_read, args=(requests, waiting), daemon=True).start()
    worker = _Worker(_Line(answers))
    while True:
        worker.answer(waiting.get())


if __name__ == "__main__":
    main()
