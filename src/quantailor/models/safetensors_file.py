"""One safetensors file: its header is checked in full, then ranges of it are read when they are asked for.

Layout (https://github.com/huggingface/safetensors#format): header length u64 little endian, header JSON
{name: {"dtype", "shape", "data_offsets": [begin, end]}}, data. Offsets count from the end of the header.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

from quantailor.errors import ModelFormatError, UnsupportedModelError
from quantailor.files import START_BYTES, other_format
from quantailor.models.json_files import INTACT, parse_json
from quantailor.models.random_access import RandomAccessFile
from quantailor.numerics import Bytes

MAX_HEADER_BYTES = 100_000_000
"""The format's own limit."""
MAX_DIMS = 4
MAX_NAME = 200
"""Letters of an array's name; GGUF has 64."""
_KNOWN_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of a number."""
READABLE = ("BF16", "F16", "F32")
FLOAT8 = ("F8_E4M3", "F8_E5M2")
"""8-bit floats; they mean something with their scales only."""


@dataclass(frozen=True, slots=True, eq=False)
class StoredArray:
    """One array of a safetensors file."""

    file: SafetensorsFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """From the start of the file."""
    size_bytes: int

    def read(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop) of this array, (stop - start,)."""
        return self.file.read(self.offset + start, self.offset + stop)


class SafetensorsFile(RandomAccessFile):
    """A safetensors file; `.arrays` in the order of their names.

    Raises:
        ModelFormatError: truncated, corrupt or inconsistent.
        ModelError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self.arrays = self._read_header()
        except BaseException:
            self.close()
            raise

    def _corrupt(self, what: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path} is not an intact safetensors file: {what}", remedy=INTACT)

    def _refuse_other_format(self) -> None:
        """Raise ModelFormatError where the file begins like one of another format, as the length of a header seldom does."""
        if found := other_format(self.read(0, min(self.size_bytes, START_BYTES)).tobytes()):
            raise ModelFormatError(f"{self.path} is {found.what}, not a safetensors file", remedy=found.remedy)

    def _read_header(self) -> dict[str, StoredArray]:
        if self.size_bytes < 8:
            raise self._corrupt(f"it has {self.size_bytes} bytes")
        length = int.from_bytes(self.read(0, 8).tobytes(), "little")
        if length > min(self.size_bytes - 8, MAX_HEADER_BYTES):
            self._refuse_other_format()
            raise self._corrupt(f"its header says {length:,} bytes, the file has {self.size_bytes:,}")
        try:
            header = parse_json(self.read(8, 8 + length).tobytes(), f"the header of {self.path}", unique=True)
        except ModelFormatError:
            self._refuse_other_format()
            raise
        arrays = {name: self._array(name, entry, 8 + length) for name, entry in sorted(header.items()) if name != "__metadata__"}
        placed = sorted(arrays.values(), key=lambda array: (array.offset, array.size_bytes))
        for before, after in itertools.pairwise(placed):
            if before.offset + before.size_bytes > after.offset:
                raise self._corrupt(f"{before.name} and {after.name} overlap")
        end = max((array.offset + array.size_bytes for array in placed), default=8 + length)
        if end < self.size_bytes:
            raise self._corrupt(f"{self.size_bytes - end:,} bytes follow its last array")
        return arrays

    def _array(self, name: str, entry: object, data_offset: int) -> StoredArray:
        if not name.isprintable() or not 0 < len(name) <= MAX_NAME:
            raise self._corrupt(f"it has an array called {name[:80]!r}")
        if not isinstance(entry, dict):
            raise self._corrupt(f"the entry of {name} is not an object")
        dtype, shape, offsets = entry.get("dtype"), _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
        if not isinstance(dtype, str):
            raise self._corrupt(f"{name} has no dtype")
        if dtype not in _KNOWN_BITS:
            raise UnsupportedModelError(f"{name} in {self.path} has the dtype {dtype[:40]!r}", remedy="Use a BF16, F16 or F32 checkpoint")
        if shape is None or offsets is None or len(offsets) != 2:
            stored = str(entry.get("shape"))[:80], str(entry.get("data_offsets"))[:80]
            raise self._corrupt(f"{name} has the shape {stored[0]} and the offsets {stored[1]}")
        begin, end = offsets
        if not begin <= end <= self.size_bytes - data_offset:
            raise self._corrupt(f"{name} lies at {str(offsets)[:80]}, outside the file")
        if len(shape) > MAX_DIMS or math.prod(shape) * _KNOWN_BITS[dtype] != 8 * (end - begin):
            raise self._corrupt(f"{name} has the type {dtype} and the shape {str(shape)[:80]} but {end - begin} bytes")
        return StoredArray(self, name, dtype, shape, data_offset + begin, end - begin)


def _counts(value: object) -> tuple[int, ...] | None:
    """A list of counts (JSON knows floats and booleans as well), or None."""
    if isinstance(value, list) and all(type(number) is int and number >= 0 for number in value):
        return tuple(value)
    return None
