"""Writes GGUF files as a stream: the exact size is known first, and a file gets its name only when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

from quantailor import files
from quantailor.errors import OutputError
from quantailor.models.gguf_format import ALIGNMENT_KEY, aligned, alignment_of, encode_header
from quantailor.numerics import Bytes
from quantailor.records import MetadataValue, TensorInfo

SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
SPARE_BYTES = 1 << 20
"""Left free on the disk."""


@dataclass(frozen=True, slots=True)
class PartLayout:
    """One file to be written."""

    header: bytes
    tensors: tuple[TensorInfo, ...]
    alignment: int

    @property
    def size_bytes(self) -> int:
        return len(self.header) + sum(aligned(tensor.size_bytes, self.alignment) for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class FileLayout:
    """A model to be written: one part, or the shards of a split one."""

    parts: tuple[PartLayout, ...]
    split: bool = False

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Those of all parts, in the order of the files."""
        return tuple(tensor for part in self.parts for tensor in part.tensors)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, exact."""
        return sum(part.size_bytes for part in self.parts)

    def paths(self, output: Path) -> tuple[Path, ...]:
        """Where the parts go: `output`, or `stem-00001-of-0000N.gguf` beside it."""
        if not self.split:
            return (output,)
        stem = output.name.removesuffix(".gguf")
        return tuple(output.with_name(f"{stem}-{number:05d}-of-{len(self.parts):05d}.gguf") for number in range(1, len(self.parts) + 1))


def layout(metadata: Mapping[str, MetadataValue], tensors: Sequence[TensorInfo], *, split_max_bytes: int | None = None) -> FileLayout:
    """Lay a model out.

    Args:
        metadata: in the order of the file.
        tensors: in the order of the file.
        split_max_bytes: most tensor bytes of one part; a larger tensor gets a part of its own. None writes one file. The first
            part carries all metadata, as llama.cpp's do. What a split base says of its own shards is left out.

    Raises:
        ModelFormatError: metadata that cannot be written.
    """
    metadata = {key: value for key, value in metadata.items() if key not in SPLIT_KEYS}
    alignment = alignment_of(metadata, "the file to be written")
    if split_max_bytes is None:
        return FileLayout((PartLayout(encode_header(metadata, tensors), tuple(tensors), alignment),))
    groups = _groups(tensors, split_max_bytes, alignment)
    parts = []
    for number, group in enumerate(groups):
        split = {
            SPLIT_KEYS[0]: MetadataValue("uint16", number),
            SPLIT_KEYS[1]: MetadataValue("uint16", len(groups)),
            SPLIT_KEYS[2]: MetadataValue("int32", len(tensors)),
        }
        if number and ALIGNMENT_KEY in metadata:
            split = {ALIGNMENT_KEY: metadata[ALIGNMENT_KEY], **split}
        parts.append(PartLayout(encode_header({**metadata, **split} if number == 0 else split, group), tuple(group), alignment))
    return FileLayout(tuple(parts), split=True)


def _groups(tensors: Sequence[TensorInfo], most: int, alignment: int) -> list[list[TensorInfo]]:
    groups: list[list[TensorInfo]] = [[]]
    size = 0
    for tensor in tensors:
        n_bytes = aligned(tensor.size_bytes, alignment)
        if groups[-1] and size + n_bytes > most:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += n_bytes
    return groups


def write_hollow(path: Path, planned: FileLayout) -> None:
    """Write a file of one part whose tensor data are a hole: it has its full length and takes the header's room on the disk.

    Raises OutputError where the file system does not take it.
    """
    part = planned.parts[0]
    with files.writing(path):
        path.write_bytes(part.header)
        os.truncate(path, part.size_bytes)


@dataclass(slots=True)
class _Room:
    """A tensor's place in the files."""

    part: int
    start: int
    size_bytes: int
    padding: int
    written: int = 0


class GGUFWriter:
    """Writes tensor data in any order; a context manager.

    Parts are written under temporary names, flushed to the disk and renamed together at the end; whatever fails before,
    nothing is left under the final names. Raises OutputError.
    """

    def __init__(self, output: Path, planned: FileLayout, *, overwrite: bool = False) -> None:
        self._layout = planned
        self.paths = planned.paths(Path(output))
        self._temporary = [files.temporary_path(path) for path in self.paths]
        self._overwrite = overwrite
        self._streams: list[BinaryIO] = []
        self._rooms = list(_rooms(planned))
        self._next = 0

    def __enter__(self) -> Self:
        folder = self.paths[0].parent
        with files.writing(folder):
            for path in self.paths:
                files.refuse_existing(path, overwrite=self._overwrite)
                files.remove_leftovers(path)
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
        if free < self._layout.size_bytes + SPARE_BYTES:
            raise OutputError(
                f"{folder} has {free:,} bytes free, {self.paths[0].name} needs {self._layout.size_bytes:,}", remedy="Free some disk space"
            )
        try:
            for number, part in enumerate(self._layout.parts):
                with files.writing(self.paths[number]):
                    self._streams.append(self._temporary[number].open("wb"))
                self._put(number, 0, part.header)
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._discard()

    def write(self, chunk: Bytes) -> None:
        """The next bytes of the tensors' data, in any shape, (n_bytes,) or more; chunks need not end where tensors do.

        Raises OutputError where they cannot be written or are more than the tensors hold.
        """
        flat = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
        while len(flat):
            if self._next == len(self._rooms):
                raise OutputError(f"{self.paths[-1]} received more data than its tensors hold")
            room = self._rooms[self._next]
            data = flat[: room.size_bytes - room.written]
            self.place(self._next, room.written, data)
            flat = flat[len(data) :]
            self._next += room.written == room.size_bytes

    def place(self, number: int, start: int, chunk: Bytes) -> None:
        """Bytes of one tensor from `start` on, in any shape, (n_bytes,) or more. Each byte is to be given once.

        `number` is the tensor's in the order of the layout. Raises OutputError as `write` does.
        """
        data, room = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data, self._rooms[number]
        if start + len(data) > room.size_bytes:
            raise OutputError(f"{self.paths[room.part]} received more data than its tensors hold")
        self._put(room.part, room.start + start, data)
        room.written += len(data)
        if room.written == room.size_bytes and room.padding:
            self._put(room.part, room.start + room.size_bytes, bytes(room.padding))

    def _put(self, part: int, start: int, data: memoryview | bytes) -> None:
        if not self._streams:
            raise OutputError(f"{self.paths[0]} is not open for writing")
        with files.writing(self.paths[part]):
            self._streams[part].seek(start)
            self._streams[part].write(data)

    def _finish(self) -> None:
        for room in self._rooms:
            if room.written < room.size_bytes:
                raise OutputError(f"{self.paths[room.part]} is incomplete: not all tensors were written")
        for path, stream in zip(self.paths, self._streams, strict=True):
            with files.writing(path):
                stream.flush()
                os.fsync(stream.fileno())
                stream.close()
        renamed: list[Path] = []
        try:
            if len(self.paths) > 1:
                # Killed in between, old and new shards must not pass for one model: the first shard goes first and comes last.
                self.paths[0].unlink(missing_ok=True)
            for temporary, path in reversed(list(zip(self._temporary, self.paths, strict=True))):
                files.give_name(temporary, path, overwrite=self._overwrite)
                renamed.append(path)
        except OSError as error:
            for path in renamed:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise files.cannot_write(self.paths[0], error) from error
        files.sync_folder(self.paths[0].parent)

    def _discard(self) -> None:
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.close()
        self._streams = []
        for path in self._temporary:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _rooms(planned: FileLayout) -> Iterator[_Room]:
    for number, part in enumerate(planned.parts):
        start = len(part.header)
        for tensor in part.tensors:
            padding = aligned(tensor.size_bytes, part.alignment) - tensor.size_bytes
            yield _Room(number, start, tensor.size_bytes, padding)
            start += tensor.size_bytes + padding
