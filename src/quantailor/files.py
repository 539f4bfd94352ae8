"""Files that appear whole or not at all.

Data go to a temporary file beside the final name, are flushed to the disk, and the file is renamed. What a killed
process left behind is removed by the next one that writes the same file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, Self

import psutil

from quantailor.errors import OutputError


class Closing(ABC):
    """What holds files open: close it after use, best by `with`."""

    __slots__ = ()

    @abstractmethod
    def close(self) -> None:
        """Let go of the files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Author(Protocol):
    """Who remembers which files it wrote, so that after being killed it can replace its own, and nobody else's."""

    def wrote(self, path: Path) -> bool:
        """Whether the file that is there now is one that it gave that name."""

    def writes(self, path: Path, whole: Path) -> None:
        """Hear that a whole file is about to get that name."""


_AUTHOR: ContextVar[Author | None] = ContextVar("author", default=None)

FilesState = tuple[tuple[str, int, int, int, int, int], ...]
"""Of every file its path, device, inode, size, and the times of its last change and of its state's, in nanoseconds."""

_TICK_S = 0.05
"""File systems count changes in steps of at most some milliseconds; a change within a step leaves no trace."""
_COARSE_TICK_S = 2.0
"""The same where times are whole seconds."""
START_BYTES = 512
"""Of a file, to tell what stands in its place."""
_LFS = (b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/", b"version http://git-media.io/v/")
"""Git LFS's pointers, and what it was called before."""
_XET = re.compile(rb'# xet version \d[^\n]*\n\s*(filesize|hash)\b|\{\s*"hash"\s*:\s*"[0-9a-f]{64}"\s*,\s*"(file_)?size"')
"""A TOML file whose first line tells the version (XetHub), or what newer clients of Xet store of a file."""
_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body")
_ANSWERS = re.compile(
    rb'<\?xml\b|<error>|\{\s*"(errors?|error_(code|message|type|description)|message|detail|status(_?code)?)"\s*:', re.IGNORECASE
)
"""How servers begin to say, as JSON or XML, why they do not give a file."""
_SAID = re.compile(
    rb"(entry|repository|revision|page|file) not found|not found|invalid (username or password|credentials|token)|unauthorized|forbidden|"
    rb"access (to model [\w./-]{1,100} is restricted|denied)|nosuchkey|accessdenied|expiredtoken|too many requests|rate limit|"
    rb"gateway time-?out|bad gateway|service unavailable|internal server error",
    re.IGNORECASE,
)
"""What such messages say. Nothing else of a file is shown: a link may lead to what is nobody's business."""
_UNPACK = "Unpack it, and give the files or the directory in it"
_FORMATS: Mapping[bytes, tuple[str, str]] = {
    b"GGUF": ("a GGUF file", "Give that file itself as the model"),
    b"PK\x03\x04": ("a zip archive or a PyTorch checkpoint", f"{_UNPACK}, or save the PyTorch model as safetensors"),
    b"\x1f\x8b": ("a gzip archive", _UNPACK),
    b"\xfd7zXZ": ("an xz archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", _UNPACK),
    b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"!<symlink>": ("a link of Cygwin or Samba", "Copy what the link leads to"),
    b"L\x00\x00\x00\x01\x14\x02\x00": ("a Windows shortcut", "Copy what the shortcut leads to"),
}
"""How files of other formats begin; what they are, and what to do."""
_SHORTEST_TEXT = 8
"""Bytes; fewer may be anything."""
_AGAIN = "Download the file again; where the server refuses it, sign in or ask for access first"
_REMEDY = "Check the folder, its permissions and the free space"


def expanded(path: Path | str) -> Path:
    """A path with ~ and ~NAME resolved; as it is where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def refuse_streams(path: Path) -> None:
    """Raise OSError for a pipe, which would keep us waiting, and for a device, which may never end; also for what is not there.

    A link to nothing and a pointer of Git LFS or Xet are not there either, and are called what they are.
    """
    if path.is_symlink() and not path.exists():
        raise OSError(errno.ENOENT, f"it is a link to {path.readlink()}, which is not there", str(path))
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise OSError(errno.EINVAL, "it is a pipe or a device. Save what it gives as a file, and give that", str(path))
    if stat.S_ISREG(mode):
        with path.open("rb") as stream:
            if found := pointer(stream.read(START_BYTES)):
                raise OSError(errno.ENOENT, f"it is {found.what}, not the file itself. {found.remedy}", str(path))


@dataclass(frozen=True, slots=True)
class StandIn:
    """Something that lies in place of a file."""

    what: str
    """With its article."""
    remedy: str


def pointer(start: bytes) -> StandIn | None:
    """What a version control system leaves in place of a large file, from the first `START_BYTES`; None for anything else."""
    start = start.removeprefix(b"\xef\xbb\xbf")
    if start.startswith(_LFS):
        return StandIn("a Git LFS pointer", "Run `git lfs pull` there, or download the file")
    return StandIn("a Xet pointer", "Download the file, or fetch it with the program that cloned it") if _XET.match(start) else None


def stand_in(start: bytes) -> StandIn | None:
    """The same, and a web page, a server's message or the text of a link, which no file of a model begins like."""
    begin = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if found := pointer(start):
        return found
    if begin.lower().startswith(_PAGES):
        return StandIn("a web page", "Download the file: on the hub its address has /resolve/, not /blob/")
    if _ANSWERS.match(begin):
        return StandIn(f"an error message of a server{_quoted(begin)}", _AGAIN)
    if start.startswith((b"../", b"/annex/")):
        return StandIn("the text of a link", "Download the file, or copy what the link leads to")
    return None


def stand_in_for_binary(start: bytes) -> StandIn | None:
    """The same, and any other text, for a file that begins with bytes no text has; "Entry not found" is one of the hub's."""
    if found := stand_in(start):
        return found
    try:
        text = start.decode("utf-8-sig", "strict" if len(start) < START_BYTES else "ignore")
    except UnicodeDecodeError:
        return None
    if len(start) < _SHORTEST_TEXT or not all(letter.isprintable() or letter in "\t\n\r" for letter in text):
        return None
    return StandIn(f"a text{_quoted(start)}", _AGAIN)


def other_format(start: bytes) -> StandIn | None:
    """A file of another format, or one that begins with zeros alone, from the first `START_BYTES` of what is not in the expected format."""
    if found := next((found for magic, found in _FORMATS.items() if start.startswith(magic)), None):
        return StandIn(*found)
    if len(start) >= _SHORTEST_TEXT and not any(start):
        return StandIn("a file that begins with zeros alone, as an unfinished download does", "Download the file again")
    return None


def _quoted(message: bytes) -> str:
    match = _SAID.search(message)
    return f' ("{match[0].decode()}")' if match else ""


def read_bytes(path: Path) -> bytes:
    """A whole file. Raises OSError, as `refuse_streams` does too."""
    refuse_streams(path)
    return path.read_bytes()


def temporary_path(path: Path) -> Path:
    """Where this process writes `path` until it is whole."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def remove_leftovers(path: Path) -> None:
    """Delete temporary files and folders of `path` whose processes are gone."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)\.(?:part|old)")
    with contextlib.suppress(OSError):
        for file in path.parent.iterdir():
            match = pattern.fullmatch(file.name)
            if match and not psutil.pid_exists(int(match[1])):
                if file.is_dir():
                    shutil.rmtree(file, ignore_errors=True)
                else:
                    file.unlink(missing_ok=True)


def refuse_own_input(output: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError where writing `output` would replace a file that is read for it."""
    for path in map(expanded, inputs):
        with contextlib.suppress(OSError, ValueError):
            if path.is_file() and path.samefile(expanded(output)):
                raise OutputError(f"{output} is the input {path}", remedy="Choose another name for the output")


@contextmanager
def written_by(author: Author) -> Iterator[None]:
    """Inside, files that must not be replaced are remembered by their author, which may replace its own."""
    token = _AUTHOR.set(author)
    try:
        yield
    finally:
        _AUTHOR.reset(token)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError where a file exists that must not be replaced: whatever is no regular file never.

    A file that its author wrote before it was killed may be replaced, see `written_by`.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise cannot_write(path, error) from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise OutputError(f"{path} is {kind}, which a file cannot replace", remedy="Choose another name for the output")
    author = _AUTHOR.get()
    if not overwrite and not (author is not None and author.wrote(path)):
        raise OutputError(f"{path} exists", remedy="Choose another name, or give --force to replace it")


def cannot_write(path: Path, error: OSError) -> OutputError:
    """The error for a file that the system does not let us write."""
    return OutputError(f"cannot write {path}: {error.strerror or error}", remedy=_REMEDY)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises OutputError, as `cannot_write` words it, where the system refuses something within the block."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


@contextmanager
def whole_file(path: Path, *, overwrite: bool = True) -> Iterator[BinaryIO]:
    """A stream whose content becomes `path` when the block ends well; nothing changes otherwise.

    Raises OutputError where the file exists and must not be replaced, or cannot be written.
    """
    refuse_existing(path, overwrite=overwrite)
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with temporary.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        give_name(temporary, path, overwrite=overwrite)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def give_name(whole: Path, path: Path, *, overwrite: bool) -> None:
    """Rename a file that is whole; its author hears of it before, unless whatever is there may be replaced anyway. Raises OSError."""
    author = _AUTHOR.get()
    if author is not None and not overwrite:
        author.writes(path, whole)
    whole.replace(path)


def write_text(path: Path, text: str, *, overwrite: bool = True) -> Path:
    """Write UTF-8 text; raises as `whole_file` does."""
    with whole_file(path, overwrite=overwrite) as stream:
        stream.write(text.encode("utf-8"))
    return path


def state_of(paths: Iterable[Path]) -> FilesState:
    """What tells files from what they were before; links are followed. Raises OSError where one cannot be looked at."""
    found = []
    for path in paths:
        state = path.stat()
        found.append((str(path.absolute()), state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns))
    return tuple(found)


def is_settled(state: FilesState) -> bool:
    """Whether any change from now on would show in the files' state: the last one is longer ago than their clock's step."""
    return _unsettled_s(state) <= 0


def wait_until_settled(state: FilesState) -> None:
    """Wait for that; nothing where the clock of the file system is ahead of ours."""
    if (seconds := _unsettled_s(state)) <= _COARSE_TICK_S:
        time.sleep(max(0.0, seconds))


def _unsettled_s(state: FilesState) -> float:
    """Seconds until it is settled."""
    is_coarse = all(at % 1_000_000_000 == 0 for at in _changes(state))
    return max(_changes(state), default=0) / 1e9 + (_COARSE_TICK_S if is_coarse else _TICK_S) - time.time()


def _changes(state: FilesState) -> list[int]:
    # On Windows st_ctime is when the file was made.
    return [entry[4] if sys.platform == "win32" else entry[5] for entry in state]


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable, where the platform can open folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
