"""A model in GGUF, one file or several: the header is read at once, rows only when they are asked for."""

from __future__ import annotations

import mmap
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantailor.errors import ModelError, ModelFormatError, TensorNotFoundError
from quantailor.ggml import codec, library
from quantailor.models.gguf_format import Header, parse_header
from quantailor.records import MetadataValue, TensorInfo

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SHARD_NAME = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class _Part:
    """One file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as stream:
                self.size_bytes = stream.seek(0, 2)
                if self.size_bytes == 0:
                    raise ModelFormatError(f"{path} is empty", remedy="Get an intact copy of the file")
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror or error}", remedy="Check the path") from error
        view = memoryview(self._map)
        try:
            self.header: Header = parse_header(view, self.size_bytes, str(path))
        except BaseException:
            view.release()
            self._map.close()
            raise
        view.release()

    def read(self, start: int, stop: int) -> Bytes:
        return np.frombuffer(self._map[start:stop], dtype=np.uint8)

    def close(self) -> None:
        self._map.close()


class GGUFSource:
    """A GGUF model; see `models.source.ModelSource`. Any shard of a split model opens all of them.

    Raises:
        ModelError: a file cannot be read, is damaged, or is not of this model.
    """

    def __init__(self, path: Path | str) -> None:
        self._parts: list[_Part] = []
        try:
            for file in _all_files(Path(path)):
                self._parts.append(_Part(file))
            self._tensors, self._places = self._collect()
        except BaseException:
            self.close()
            raise
        self.metadata: Mapping[str, MetadataValue] = self._parts[0].header.metadata
        self._check_shards()

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
        expected = self.metadata.get("split.tensors.count")
        if len(self._parts) > 1 and expected is not None and expected.value != len(self._tensors):
            self.close()
            raise ModelFormatError(
                f"{self.location} and its shards hold {len(self._tensors)} tensors, not {expected.value}",
                remedy="Get an intact copy of the model",
            )

    @property
    def name(self) -> str:
        stored = self.metadata.get("general.name")
        return str(stored.value) if stored is not None and stored.value_type == "string" and stored.value else self.files[0].stem

    @property
    def location(self) -> str:
        return str(self.files[0])

    @property
    def architecture(self) -> str:
        stored = self.metadata.get("general.architecture")
        return str(stored.value) if stored is not None else "unknown"

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
        try:
            return self._tensors[name]
        except KeyError:
            raise TensorNotFoundError(f"{self.location} has no tensor {name}", remedy="`quantailor inspect` lists them") from None

    def raw_rows(self, name: str, start: int, stop: int) -> Bytes:
        info = self.tensor(name)
        part, offset = self._places[name]
        row_bytes = library.types()[info.type_name].row_bytes(info.n_cols)
        data = part.read(offset + start * row_bytes, offset + stop * row_bytes)
        return data.reshape(stop - start, row_bytes)

    def rows(self, name: str, start: int, stop: int) -> Floats:
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
        raise ModelFormatError(f"{path} is no shard of {count}", remedy="Give the first shard")
    files = [path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    for file in files:
        if not file.exists():
            raise ModelError(f"the shard {file} is missing", remedy="Put all shards into one directory")
    return files
