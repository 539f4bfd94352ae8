"""Small GGUF files for tests, put together field by field and without the code under test."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from quantailor.models.gguf_format import Header, parse_header

Fields = dict[str, bytes]


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw)) + raw


SCALARS: Mapping[str, tuple[int, bytes]] = {
    "uint8": (0, b"\x07"),
    "int8": (1, b"\xf9"),
    "uint16": (2, struct.pack("<H", 700)),
    "int16": (3, struct.pack("<h", -700)),
    "uint32": (4, u32(70_000)),
    "int32": (5, struct.pack("<i", -70_000)),
    "float32": (6, struct.pack("<f", 0.5)),
    "bool": (7, b"\x01"),
    "string": (8, text("seven")),
    "uint64": (10, u64(2**40)),
    "int64": (11, struct.pack("<q", -(2**40))),
    "float64": (12, struct.pack("<d", 0.1)),
}
"""Every metadata type with its number and one value."""


def small_file() -> Fields:
    """A whole file by fields: all metadata types as scalars and arrays, then tensors in F32, Q8_0 and Q4_K."""
    fields: Fields = {"magic": b"GGUF", "version": u32(3), "n_tensors": u64(3), "n_metadata": u64(2 + 2 * len(SCALARS))}
    fields |= {"arch.key": text("general.architecture"), "arch.type": u32(8), "arch.value": text("llama")}
    fields |= {"align.key": text("general.alignment"), "align.type": u32(4), "align.value": u32(32)}
    for name, (number, value) in SCALARS.items():
        fields |= {f"{name}.key": text(f"x.{name}"), f"{name}.type": u32(number), f"{name}.value": value}
        fields |= {f"{name}s.key": text(f"x.{name}s"), f"{name}s.type": u32(9), f"{name}s.element": u32(number)}
        fields |= {f"{name}s.count": u64(2), f"{name}s.first": value, f"{name}s.second": value}
    fields |= _tensor("norm", (32,), 0, 0) | _tensor("embd", (32, 3), 8, 128) | _tensor("ffn", (256, 1, 2), 12, 256)
    fields["padding"] = bytes(-sum(map(len, fields.values())) % 32)
    return fields | {"data.norm": bytes(128), "data.embd": bytes(102) + bytes(26), "data.ffn": bytes(288)}


def _tensor(name: str, dims: tuple[int, ...], type_id: int, offset: int) -> Fields:
    fields = {f"{name}.name": text(f"{name}.weight"), f"{name}.n_dims": u32(len(dims))}
    fields |= {f"{name}.dim{index}": u64(dim) for index, dim in enumerate(dims)}
    return fields | {f"{name}.type_id": u32(type_id), f"{name}.offset": u64(offset)}


def joined(changes: Mapping[str, bytes] | None = None) -> bytes:
    """The small file with some fields replaced; the padding before the data is kept right."""
    fields = small_file() | dict(changes or {})
    if "padding" not in (changes or {}):
        head = [value for name, value in fields.items() if not name.startswith("data.") and name != "padding"]
        fields["padding"] = bytes(-sum(map(len, head)) % 32)
    return b"".join(fields.values())


def parsed(data: bytes) -> Header:
    """What the reader makes of these bytes as a whole file."""
    return parse_header(memoryview(data), len(data), "small.gguf")


def write(folder: Path, data: bytes, name: str = "small.gguf") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path
