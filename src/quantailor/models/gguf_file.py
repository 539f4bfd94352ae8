"""A model in GGUF, one file or several: the header is read at once, rows only when they are asked for."""

from __future__ import annotations

import contextlib
import mmap
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantailor.errors import ModelError, ModelFormatError, TensorNotFoundError
from quantailor.ggml import codec, library
from quantailor.models.gguf_format import INTACT, MAGIC, Header, aligned, parse_header
from quantailor.models.gguf_shards import all_files, check_shards, piece_of, why_misnamed
from quantailor.models.random_access import RandomAccessFile, unreadable
from quantailor.models.source import name_of
from quantailor.numerics import Bytes, Floats
from quantailor.records import MetadataValue, TensorInfo


class _Part(RandomAccessFile):
    """One file: its header, read at once, and its rows."""

    def __init__(self, path: Path, *, with_arrays: bool) -> None:
        super().__init__(path)
        try:
            self.header = self._read_header(with_arrays=with_arrays)
        except ModelFormatError as error:
            self.close()
            raise piece_of(path) or error from error
        except OSError as error:
            self.close()
            raise unreadable(path, error) from error
        except BaseException:
            self.close()
            raise

    def _read_header(self, *, with_arrays: bool) -> Header:
        if self.size_bytes == 0:
            raise ModelFormatError(f"{self.path} is empty", remedy=INTACT)
        with (
            self.path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as view,
        ):
            return parse_header(view, self.size_bytes, str(self.path), with_arrays=with_arrays)

    def behind(self) -> bytes:
        """The first bytes behind the last tensor, where another file would begin; none at the end of the file."""
        end = max((stored.offset + stored.info.size_bytes for stored in self.header.tensors), default=self.header.data_offset)
        start = min(aligned(end, self.header.alignment), self.size_bytes)
        return self.read(start, min(start + len(MAGIC), self.size_bytes)).tobytes()


def _files(path: Path) -> list[Path]:
    """The file, or all shards; where one is missing, the file that there is may tell why. Raises ModelError."""
    try:
        return all_files(path)
    except ModelError as error:
        raise _misnamed(path) or error from None


def _misnamed(path: Path) -> ModelFormatError | None:
    with contextlib.suppress(ModelError), contextlib.closing(_Part(path, with_arrays=False)) as part:
        return why_misnamed(path, part.header.metadata, part.behind())
    return None


class GGUFSource:
    """A GGUF model; see `models.source.ModelSource`. Any shard of a split model opens all of them.

    Args:
        path: the file, or any shard.
        with_arrays: whether its metadata keep arrays; without them it is opened for its tensors alone.

    Raises:
        ModelError: a file cannot be read, is damaged, or is not of this model.
    """

    config_files: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def __init__(self, path: Path | str, *, with_arrays: bool = True) -> None:
        self._parts: list[_Part] = []
        try:
            for file in _files(Path(path)):
                self._parts.append(_Part(file, with_arrays=with_arrays))
            self._tensors, self._places = self._collect()
            check_shards([(part.path, part.header.metadata, part.behind()) for part in self._parts], len(self._tensors))
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
                        f"{part.path} repeats the tensor {name} of another shard: they are not of the same model and split",
                        remedy="Get the shards again, all of the same model",
                    )
                tensors[name], places[name] = stored.info, (part, stored.offset)
        return tensors, places

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
            raise TensorNotFoundError(
                f"{self.location} has no tensor {name}", remedy=f"`{shlex.join(('quantailor', 'inspect', self.location))}` lists them"
            ) from None

    def raw_rows(self, name: str, start: int, stop: int) -> Bytes:
        """Rows as they are stored, (stop - start, row_bytes). Raises IndexError for rows that are not there."""
        info = self.tensor(name)
        if not 0 <= start <= stop <= info.n_rows:
            raise IndexError(f"{name} has {info.n_rows} rows, not [{start}, {stop})")
        part, offset = self._places[name]
        row_bytes = library.stored_types()[info.type_name].row_bytes(info.n_cols)
        data = part.read(offset + start * row_bytes, offset + stop * row_bytes)
        return data.reshape(stop - start, row_bytes)

    def rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows as weights, (stop - start, n_cols)."""
        info = self.tensor(name)
        return codec.dequantize(self.raw_rows(name, start, stop), library.stored_types()[info.type_name], info.n_cols)

    def close(self) -> None:
        for part in self._parts:
            part.close()
