"""GGUF headers: bytes to records and back, with every count, length and offset checked before it is used.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little endian, versions 2 and 3:

    magic "GGUF", version u32, n_tensors u64, n_metadata u64
    metadata: key (u64 length, UTF-8), type u32, value; an array has element type u32, count u64, elements
    tensors:  name, n_dims u32, dims u64 each (fastest first), type u32, offset u64 from the start of the data
    padding to the alignment (`general.alignment`, 32 by default), data; every tensor starts aligned
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantailor.errors import ModelFormatError, UnsupportedModelError
from quantailor.files import other_format
from quantailor.ggml import library
from quantailor.qtypes import QType
from quantailor.records import MetadataValue, TensorInfo

MAGIC = b"GGUF"
VERSION = 3
READABLE_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_NAME_BYTES = 63
MAX_KEY_BYTES = 65535
MAX_ELEMENTS = 2**62
MAX_HEADER_BYTES = 2**28
"""Longest header that we read; the largest vocabularies take some 20 MiB."""
ALIGNMENT_KEY = "general.alignment"
INTACT = "Get an intact copy of the file"
_OLDER_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg")
"""ggml, ggmf, ggjt, ggla."""

_SCALARS: Mapping[int, tuple[str, str]] = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
_STRING, _ARRAY = 8, 9
_U64 = struct.Struct("<Q")
_FORMATS = dict(_SCALARS.values())
_TYPE_IDS = {name: number for number, (name, _) in _SCALARS.items()} | {"string": _STRING, "array": _ARRAY}

Value = bool | int | float | str


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor with the place of its data in one file; `offset` counts from the start of the file."""

    info: TensorInfo
    offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one GGUF file says of itself."""

    metadata: Mapping[str, MetadataValue]
    tensors: tuple[StoredTensor, ...]
    alignment: int
    data_offset: int
    """Where tensor data begin, in bytes from the start of the file."""


def aligned(size: int, alignment: int) -> int:
    """The size rounded up to a multiple of `alignment`."""
    return -(-size // alignment) * alignment


def alignment_of(metadata: Mapping[str, MetadataValue], name: str) -> int:
    """The file's alignment. Raises ModelFormatError where `general.alignment` is not a power of two."""
    stored = metadata.get(ALIGNMENT_KEY)
    if stored is None:
        return DEFAULT_ALIGNMENT
    value = stored.value
    if stored.value_type != "uint32" or not isinstance(value, int) or value < 1 or value & (value - 1) or value > 2**20:
        shown = value if isinstance(value, int) else stored.value_type
        raise ModelFormatError(f"{name} has the alignment {shown}, not a power of two up to {2**20}", remedy=INTACT)
    return value


# Reading


class _Cursor:
    """Reads little-endian values from a buffer and never past its end."""

    def __init__(self, data: memoryview, name: str) -> None:
        self.data, self.name, self.position = data, name, 0

    def fail(self, what: str) -> ModelFormatError:
        return ModelFormatError(f"{self.name} is corrupt at byte {self.position}: {what}", remedy=INTACT)

    def take(self, n_bytes: int, what: str) -> memoryview:
        if n_bytes > len(self.data) - self.position:
            raise self.fail(f"the file ends within {what}")
        part = self.data[self.position : self.position + n_bytes]
        self.position += n_bytes
        return part

    def number(self, letter: str, what: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter), what))[0]

    def count(self, what: str, *, least_bytes: int) -> int:
        """A count of things that take at least so many bytes each; more than the file can hold is an error."""
        count = int(self.number("Q", what))
        if count * least_bytes > len(self.data) - self.position:
            raise self.fail(f"{what} is {count}, more than the file can hold")
        return count

    def name_of(self, what: str, most_bytes: int) -> str:
        """A key or a tensor's name: UTF-8 that can be shown to people."""
        raw = bytes(self.take(self.count(f"the length of {what}", least_bytes=1), what))
        if not 0 < len(raw) <= most_bytes:
            raise self.fail(f"{what} has {len(raw)} bytes; 1 to {most_bytes} are legal")
        text = str(raw, "utf-8", "replace")
        if "\ufffd" in text or not text.isprintable():
            raise self.fail(f"{what} is not plain text: {_short(ascii(text))}")
        return text

    def texts(self, count: int, what: str, *, decoded: bool = True) -> tuple[str, ...]:
        """So many strings in a row; where they are not to be decoded they are passed over, and none is given."""
        data, position, end = self.data, self.position, len(self.data)
        texts = []
        for _ in range(count):
            start = position + _U64.size
            if start > end or (position := start + _U64.unpack_from(data, position)[0]) > end:
                raise self.fail(f"the file ends within {what}")
            if decoded:
                # Some vocabularies hold bytes that are not UTF-8; they survive a round trip this way.
                texts.append(str(data[start:position], "utf-8", "surrogateescape"))
        self.position = position
        return tuple(texts)


def _short(text: str) -> str:
    """Enough of a name to find it, for messages of one line."""
    return text if len(text) <= 80 else f"{text[:77]}..."


def parse_header(data: memoryview, file_size: int, name: str, *, with_arrays: bool = True) -> Header:
    """Read a header.

    Args:
        data: the file, or enough of its beginning.
        file_size: bytes of the whole file; tensors must lie within.
        name: how messages call the file.
        with_arrays: whether the metadata keeps arrays. Without them (a vocabulary is several) everything else is read and checked
            alike, in a fraction of the time.

    Raises:
        ModelFormatError: no GGUF file, truncated, or inconsistent.
        UnsupportedModelError: a version, byte order or tensor type that we do not know.
    """
    # Released here: an error's traceback must not keep views that hinder the caller from closing a map.
    with data[:MAX_HEADER_BYTES] as start:
        return _parsed(_Cursor(start, name), file_size, with_arrays=with_arrays)


def _other_format(name: str, start: bytes) -> ModelFormatError:
    """The error for a file that begins with these bytes, which are not a GGUF file's."""
    if found := other_format(start):
        return ModelFormatError(f"{name} is {found.what}, not a GGUF file", remedy=found.remedy)
    if start.startswith(_OLDER_MAGICS):
        what = f"{name} is in a format of ggml older than GGUF, which llama.cpp no longer reads"
        return ModelFormatError(what, remedy="Get the model as GGUF, or as a Hugging Face directory")
    if start[8:10] == b'{"':
        return ModelFormatError(f"{name} is a safetensors file", remedy="Give the directory that it lies in, with its config.json")
    return ModelFormatError(f"{name} is not a GGUF file", remedy="Give a GGUF file or a Hugging Face directory")


def _parsed(cursor: _Cursor, file_size: int, *, with_arrays: bool) -> Header:
    name = cursor.name
    if bytes(cursor.data[:4]) != MAGIC:
        raise _other_format(name, bytes(cursor.data[:16]))
    cursor.position = 4
    version = cursor.number("I", "the version")
    if version not in READABLE_VERSIONS:
        big_endian = version != 0 and version & 0xFFFF == 0
        what = "is big-endian" if big_endian else f"has GGUF version {version}"
        raise UnsupportedModelError(f"{name} {what}", remedy="Convert it to little-endian GGUF version 3")
    n_tensors = cursor.count("the number of tensors", least_bytes=1)
    n_metadata = cursor.count("the number of metadata entries", least_bytes=1)
    metadata = _read_metadata(cursor, n_metadata, with_arrays=with_arrays)
    alignment = alignment_of(metadata, name)
    qtypes = {qtype.id: qtype for qtype in library.stored_types().values()}
    raw = [_read_tensor(cursor, qtypes) for _ in range(n_tensors)]
    data_offset = aligned(cursor.position, alignment)
    return Header(metadata, _placed(raw, data_offset, alignment, file_size, name), alignment, data_offset)


def _read_metadata(cursor: _Cursor, count: int, *, with_arrays: bool) -> dict[str, MetadataValue]:
    metadata: dict[str, MetadataValue | None] = {}
    for _ in range(count):
        key = cursor.name_of("a metadata key", MAX_KEY_BYTES)
        if key in metadata:
            raise cursor.fail(f"the metadata key {_short(key)} appears twice")
        metadata[key] = _read_value(cursor, _short(key), with_arrays=with_arrays)
    return {key: value for key, value in metadata.items() if value is not None}


def _read_value(cursor: _Cursor, key: str, *, with_arrays: bool) -> MetadataValue | None:
    """None for an array that is passed over."""
    kind = cursor.number("I", f"the type of {key}")
    if kind == _STRING:
        return MetadataValue("string", cursor.texts(1, key)[0])
    if kind in _SCALARS:
        type_name, letter = _SCALARS[kind]
        return MetadataValue(type_name, cursor.number(letter, key))
    if kind != _ARRAY:
        raise cursor.fail(f"{key} has the unknown metadata type {kind}")
    element = cursor.number("I", f"the element type of {key}")
    if element == _STRING:
        count = cursor.count(f"the length of {key}", least_bytes=8)
        texts = cursor.texts(count, key, decoded=with_arrays)
        return MetadataValue("array", texts, "string") if with_arrays else None
    if element not in _SCALARS:
        raise cursor.fail(f"{key} is an array of the unknown type {element}")
    type_name, letter = _SCALARS[element]
    size = struct.calcsize("<" + letter)
    count = cursor.count(f"the length of {key}", least_bytes=size)
    numbers = cursor.take(count * size, key)
    return MetadataValue("array", struct.unpack(f"<{count}{letter}", numbers), type_name) if with_arrays else None


def _read_tensor(cursor: _Cursor, qtypes: Mapping[int, QType]) -> StoredTensor:
    """A tensor whose offset still counts from where data begin."""
    name = cursor.name_of("a tensor's name", MAX_NAME_BYTES)
    n_dims = cursor.number("I", f"the dimensions of {name}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.fail(f"{name} has {n_dims} dimensions")
    fields = struct.Struct(f"<{n_dims}QIQ")
    *dims, type_id, offset = fields.unpack(cursor.take(fields.size, f"the description of {name}"))
    shape = tuple(reversed(dims))
    qtype = qtypes.get(type_id)
    if qtype is None:
        raise _unreadable(name, type_id, cursor.name)
    if any(size < 1 for size in shape) or math.prod(shape) > MAX_ELEMENTS:
        raise cursor.fail(f"{name} has the shape {shape}")
    if not qtype.divides(shape[-1]):
        raise cursor.fail(f"{name} has rows of {shape[-1]} weights, not a multiple of {qtype.name}'s block of {qtype.block_size}")
    size = qtype.row_bytes(shape[-1]) * (math.prod(shape) // shape[-1])
    return StoredTensor(TensorInfo(name, shape, qtype.name, size), offset)


def _unreadable(tensor: str, type_id: int, file: str) -> UnsupportedModelError:
    known = library.type_name(type_id)
    if known is not None:
        return UnsupportedModelError(
            f"{tensor} in {file} has the type {known} ({type_id}), which ggml uses for inputs and cannot store",
            remedy="Start from the model that this file was made from",
        )
    whose = (
        "which the llama.cpp installed here no longer supports" if type_id < library.load().type_count else "which llama.cpp does not know"
    )
    return UnsupportedModelError(
        f"{tensor} in {file} has the tensor type {type_id}, {whose}",
        remedy="Start from the 16-bit model that this file was made from; if the type is newer than llama-cpp-python, update that",
    )


def _placed(raw: Sequence[StoredTensor], data_offset: int, alignment: int, file_size: int, name: str) -> tuple[StoredTensor, ...]:
    placed: list[StoredTensor] = []
    names: set[str] = set()
    for info, offset in ((tensor.info, tensor.offset) for tensor in raw):
        if info.name in names:
            raise ModelFormatError(f"{name} holds the tensor {info.name} twice", remedy=INTACT)
        names.add(info.name)
        if offset % alignment:
            raise ModelFormatError(f"{name} is corrupt: {info.name} starts at {offset}, not aligned to {alignment}", remedy=INTACT)
        end = data_offset + offset + info.size_bytes
        if end > file_size:
            raise ModelFormatError(f"{name} is truncated: {info.name} ends at byte {end}, the file has {file_size}", remedy=INTACT)
        placed.append(StoredTensor(info, data_offset + offset))
    end = 0
    for stored in sorted(placed, key=lambda stored: stored.offset):
        if stored.offset < end:
            raise ModelFormatError(f"{name} is corrupt: {stored.info.name} overlaps the tensor before it", remedy=INTACT)
        end = stored.offset + stored.info.size_bytes
    return tuple(placed)


# Writing


def encode_header(metadata: Mapping[str, MetadataValue], tensors: Sequence[TensorInfo], *, n_tensors: int | None = None) -> bytes:
    """The header of a version 3 file whose tensors lie in this order, padded to where data begin.

    Raises ModelFormatError for values that their type cannot hold, and for tensors that no reader would take.
    """
    alignment = alignment_of(metadata, "the file to be written")
    _check_tensors(tensors)
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors) if n_tensors is None else n_tensors, len(metadata))]
    for key, value in metadata.items():
        if not 1 <= len(key.encode("utf-8", "replace")) <= MAX_KEY_BYTES or not key.isprintable():
            raise ModelFormatError(f"{_short(ascii(key))} cannot be a metadata key; {MAX_KEY_BYTES} bytes of plain text can")
        parts.append(encode_entry(key, value))
    qtypes = library.stored_types()
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts.append(_texts((tensor.name,)) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, qtypes[tensor.type_name].id, offset))
        offset += aligned(tensor.size_bytes, alignment)
    header = b"".join(parts)
    return header + bytes(aligned(len(header), alignment) - len(header))


def encode_entry(key: str, value: MetadataValue) -> bytes:
    """One entry of the metadata as a header holds it. Raises ModelFormatError for a value that its type cannot hold."""
    return _texts((key,)) + _encoded(key, value)


def _check_tensors(tensors: Sequence[TensorInfo]) -> None:
    qtypes = library.stored_types()
    names: set[str] = set()
    for tensor in tensors:
        qtype = qtypes.get(tensor.type_name)
        if not 1 <= len(tensor.name.encode("utf-8", "replace")) <= MAX_NAME_BYTES or not tensor.name.isprintable():
            raise ModelFormatError(f"{_short(ascii(tensor.name))} cannot be a tensor's name; {MAX_NAME_BYTES} bytes of plain text can")
        if tensor.name in names:
            raise ModelFormatError(f"the tensor {tensor.name} would be written twice")
        if qtype is None or not 1 <= len(tensor.shape) <= MAX_DIMS or not qtype.divides(tensor.n_cols):
            raise ModelFormatError(f"{tensor.name} of shape {tensor.shape} cannot be written as {tensor.type_name}")
        if tensor.n_elements < 1 or tensor.size_bytes != qtype.row_bytes(tensor.n_cols) * tensor.n_rows:
            raise ModelFormatError(f"{tensor.name} of shape {tensor.shape} does not take {tensor.size_bytes} bytes as {tensor.type_name}")
        names.add(tensor.name)


def _texts(texts: Sequence[Any]) -> bytes:
    parts: list[bytes] = []
    for text in texts:
        raw = text.encode("utf-8", "surrogateescape")
        parts += (_U64.pack(len(raw)), raw)
    return b"".join(parts)


def _encoded(key: str, value: MetadataValue) -> bytes:
    try:
        if value.value_type != "array":
            return struct.pack("<I", _TYPE_IDS[value.value_type]) + _plain(value.value_type, (value.value,))
        if not isinstance(value.value, tuple) or value.element_type is None:
            raise TypeError("an array needs a tuple and an element type")
        head = struct.pack("<IIQ", _ARRAY, _TYPE_IDS[value.element_type], len(value.value))
        return head + _plain(value.element_type, value.value)
    except (struct.error, TypeError, KeyError, AttributeError, OverflowError, UnicodeError) as error:
        raise ModelFormatError(f"the metadata value of {_short(key)} cannot be written as {value.value_type}: {error}") from error


def _plain(type_name: str, values: Sequence[object]) -> bytes:
    if type_name == "string":
        return _texts(values)
    if type_name == "bool" and not all(isinstance(value, bool) for value in values):
        raise TypeError("a bool is True or False")
    return struct.pack(f"<{len(values)}{_FORMATS[type_name]}", *values)
