"""Reads ranges of one file from any thread. Nothing is mapped: a file that shrinks meanwhile is then an error and no crash."""

from __future__ import annotations

import os
import sys
import threading
import weakref
from pathlib import Path

import numpy as np

from quantailor.errors import ModelError, ModelFormatError
from quantailor.files import START_BYTES, StandIn, pointer, stand_in, stand_in_for_binary
from quantailor.numerics import Bytes

_MOST_AT_ONCE = 1 << 30
"""Bytes of one read; some systems refuse 2 GiB."""
_UNFINISHED = ".aria2"
"""Follows a file's name while aria2 downloads it; the file has its full size from the beginning, with holes."""
_FREE = (".md", ".jinja", ".txt")
"""Files that may begin with anything."""


class RandomAccessFile:
    """A file open for reading. Raises ModelError where it cannot be opened or read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            refuse_missing(path)
            if not path.is_file():
                kind = " (it is a directory)" if path.is_dir() else " (it is a pipe or a device)" if path.exists() else ""
                raise ModelError(f"there is no file {path}{kind}", remedy="Check the path")
            control = path.with_name(f"{path.name}{_UNFINISHED}")
            if os.path.isfile(control):  # noqa: PTH113 - a name that is too long for it is no error
                raise ModelFormatError(
                    f"{path} is not whole: {control.name} beside it says that aria2 has not finished its download",
                    remedy=f"Finish the download, or delete {control.name} if the file is whole",
                )
            flags = os.O_RDONLY
            if sys.platform == "win32":
                flags |= os.O_BINARY
            self._descriptor = os.open(path, flags)
        except (OSError, ValueError) as error:
            raise unreadable(path, error) from error
        self._closing = weakref.finalize(self, os.close, self._descriptor)
        self.size_bytes = os.fstat(self._descriptor).st_size
        start = self.read(0, min(self.size_bytes, START_BYTES)).tobytes()
        if found := stand_in_for_binary(start):
            raise _stands_in_place(path, found)

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop) as a fresh array, (stop - start,).

        Raises:
            ModelFormatError: the file ends before.
            ModelError: it cannot be read.
        """
        data = np.empty(stop - start, dtype=np.uint8)
        done = 0
        try:
            while done < len(data):
                count = self._read_part(data[done : done + _MOST_AT_ONCE], start + done)
                if not count:
                    raise ModelFormatError(
                        f"{self.path} has become shorter and now ends at byte {start + done}", remedy="Get an intact copy"
                    )
                done += count
        except (OSError, ValueError) as error:
            raise unreadable(self.path, error) from error
        return data

    def _read_part(self, target: Bytes, at: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [target.data], at)
        with self._lock:
            os.lseek(self._descriptor, at, os.SEEK_SET)
            part = os.read(self._descriptor, len(target))
        target[: len(part)] = np.frombuffer(part, dtype=np.uint8)
        return len(part)

    def close(self) -> None:
        # The system may give the number to another file.
        self._descriptor = -1
        self._closing()


def unreadable(path: Path | str, error: Exception, *, remedy: str = "Check the path") -> ModelError:
    """The error for a file that cannot be read, with what the system says of it."""
    why = error.strerror if isinstance(error, OSError) and error.strerror else error
    return ModelError(f"cannot read {path}: {why}", remedy=remedy)


def refuse_missing(path: Path) -> None:
    """Raise ModelError where a path is a link to something that is not there."""
    if path.is_symlink() and not path.exists():
        raise ModelError(f"{path} is a link to {path.readlink()}, which is not there", remedy="Download the model again")


def refuse_stand_in(path: Path, start: bytes) -> None:
    """Raise ModelFormatError where a file's first `START_BYTES` are those of something that stands in its place.

    That is what git keeps of a large file, a web page, a server's message, or the text of a link; templates and cards may be any of these
    but the first.
    """
    if found := pointer(start) if path.suffix in _FREE else stand_in(start):
        raise _stands_in_place(path, found)


def _stands_in_place(path: Path, found: StandIn) -> ModelFormatError:
    return ModelFormatError(f"{path} is {found.what}, not the file itself", remedy=found.remedy)
