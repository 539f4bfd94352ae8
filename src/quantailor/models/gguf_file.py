"""A model in GGUF, one file or several: the header is read at once, rows only when they are asked for."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantailor.errors import ModelError, ModelFormatError, TensorNotFoundError
from quantailor.ggml import codec, library
from quantailor.models.gguf_format import INTACT, Header, parse_header
from quantailor.models.random_access import RandomAccessFile, unreadable
from quantailor.models.source import name_of
from quantailor.numerics import Bytes, Floats
from quantailor.records import MetadataValue, TensorInfo

SHARD_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class _Part(RandomAccessFile):
    """One file: its header, read at once, and its rows."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self.header = self._read_header()
        except OSError as error:
            self.close()
            raise unreadable(path, error) from error
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> Header:
        if self.size_bytes == 0:
            raise ModelFormatError(f"{self.path} is empty", remedy=INTACT)
        with (
            self.path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            return parse_header(view, self.size_bytes, str(self.path))


class GGUFSource:
    """A GGUF model; see `models.source.ModelSource`. Any shard of a split model opens all of them.

    Raises:
        ModelError: a file cannot be read, is damaged, or is not of this model.
    """

    config_files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __init__(self, path: Path | str) -> None:
        self._parts: list[_Part] = []
        try:
            for file in _all_files(Path(path)):
                self._parts.append(_Part(file))
            self._tensors, self._places = self._collect()
            self._check_shards()
        except BaseException:
            self.close()
            raise
        self.metadata: Mapping[str, MetadataValue] = self._parts[0].header.metadata

    def _collect(self) -> tuple[dict[str, TensorInfo], dict[str, tuple[_Part, int]]]:
        tensors: dict[str, TensorInfo] = {}
        places: dict[str, tuple[_Part, int]] = {}
        for part in self._parts:
            for stored in part.header.tensors:
                name = stored.info.name
                if name in tensors:
                    raise ModelFormatError(
                        f"{part.path} repeats the tensor {name} of another shard", remedy="Get an intact copy of the model"
                    )
                tensors[name], places[name] = stored.info, (part, stored.offset)
        return tensors, places

    def _check_shards(self) -> None:
        for number, part in enumerate(self._parts):
            stored = part.header.metadata
            stated = stored["split.no"].value if "split.no" in stored else number
            count = stored["split.count"].value if "split.count" in stored else len(self._parts)
            if (stated, count) != (number, len(self._parts)):
                raise ModelFormatError(
                    f"{part.path} is shard {_shown(stated)} of {_shown(count)}, not {number} of {len(self._parts)}",
                    remedy="Keep the shards' original names, and all shards in one directory",
                )
        expected = self._parts[0].header.metadata.get("split.tensors.count")
        if len(self._parts) > 1 and expected is not None and expected.value != len(self._tensors):
            raise ModelFormatError(
                f"{self.location} and its shards hold {len(self._tensors)} tensors, not {_shown(expected.value)}",
                remedy="Get an intact copy of the model",
            )

    @property
    def name(self) -> str:
        return name_of(self.metadata, self.files[0].stem)

    @property
    def location(self) -> str:
        return str(self.files[0])

    @property
    def architecture(self) -> str:
        """For people too: bytes that are not UTF-8 become replacement characters, controls become spaces."""
        stored = self.metadata.get("general.architecture")
        if stored is None or not isinstance(stored.value, str):
            return "unknown"
        plain = stored.value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return "".join(letter if letter.isprintable() else " " for letter in plain).strip() or "unknown"

    @property
    def files(self) -> tuple[Path, ...]:
        """The file, or all shards in order."""
        return tuple(part.path for part in self._parts)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(part.size_bytes for part in self._parts)

    @property
    def tensors(self) -> Sequence[TensorInfo]:
        return list(self._tensors.values())

    def tensor(self, name: str) -> TensorInfo:
        """One tensor. Raises TensorNotFoundError."""
        try:
            return self._tensors[name]
        except KeyError:
            raise TensorNotFoundError(f"{self.location} has no tensor {name}", remedy="`quantailor inspect` lists them") from None

    def raw_rows(self, name: str, start: int, stop: int) -> Bytes:
        """Rows as they are stored, (stop - start, row_bytes). Raises IndexError for rows that are not there."""
        info = self.tensor(name)
        if not 0 <= start <= stop <= info.n_rows:
            raise IndexError(f"{name} has {info.n_rows} rows, not [{start}, {stop})")
        part, offset = self._places[name]
        row_bytes = library.types()[info.type_name].row_bytes(info.n_cols)
        data = part.read(offset + start * row_bytes, offset + stop * row_bytes)
        return data.reshape(stop - start, row_bytes)

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows as weights, (stop - start, n_cols)."""
        info = self.tensor(name)
        return codec.dequantize(self.raw_rows(name, start, stop), library.types()[info.type_name], info.n_cols)

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _all_files(path: Path) -> list[Path]:
    """The file itself, or every shard of the set that it belongs to. Raises ModelError for a missing shard."""
    match = SHARD_NAME.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if not 1 <= int(match["number"]) <= count:
        raise ModelFormatError(f"{path} is not one of {count} shards", remedy="Give the path of the first shard")
    files = [path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    for file in files:
        if file != path and not os.path.lexists(file):
            raise ModelError(f"the shard {file} is missing", remedy="Put all shards into one directory")
    return files


def _shown(value: object) -> str:
    return str(value) if isinstance(value, int) else type(value).__name__
