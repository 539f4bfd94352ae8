"""Damages GGUF headers (or importance matrices) in many ways; each reading must end in a QuantailorError or succeed.

Run in its own process, because a crash must fail one test and not all: `header_fuzzer.py gguf|imatrix SEED CASES FOLDER`.
Prints how many readings failed with a QuantailorError and how many succeeded.
"""

from __future__ import annotations

import contextlib
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gguf_files import joined, small_file

from quantailor.analysis.importance.imatrix import Imatrix, ImatrixEntry
from quantailor.analysis.importance.imatrix_file import read_imatrix, write_imatrix
from quantailor.errors import QuantailorError
from quantailor.models.gguf_file import GGUFSource
from quantailor.models.identity import fingerprint

ODD = (0, 1, 2, 3, 4, 7, 8, 9, 31, 32, 33, 63, 64, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def odd_number(data: bytearray, rng: random.Random) -> None:
    size = rng.choice((4, 8))
    at = rng.randrange(max(1, len(data) - size))
    data[at : at + size] = (rng.choice(ODD) % 2 ** (8 * size)).to_bytes(size, "little")


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def splice(data: bytearray, rng: random.Random) -> None:
    start, length, to = rng.randrange(len(data)), rng.randrange(1, 64), rng.randrange(len(data))
    part = data[start : start + length]
    if rng.random() < 0.5:
        data[to:to] = part
    else:
        data[to : to + len(part)] = part


def remove(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.randrange(1, 32)]


def noise(data: bytearray, rng: random.Random) -> None:
    start = rng.randrange(len(data))
    data[start : start + 16] = rng.randbytes(16)


BLIND: tuple[Callable[[bytearray, random.Random], None], ...] = (flip_bits, odd_number, truncate, splice, remove, noise)


def damaged(data: bytes, rng: random.Random) -> bytes:
    target = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if target:
            rng.choice(BLIND)(target, rng)
    return bytes(target)


def odd_field(rng: random.Random) -> bytes:
    """The small file with one or two fields changed, the rest of the structure intact."""
    fields = small_file()
    changes = {}
    for name in rng.sample(sorted(fields), rng.choice((1, 1, 2))):
        old = fields[name]
        if len(old) in (4, 8):
            changes[name] = struct.pack("<I" if len(old) == 4 else "<Q", rng.choice(ODD) % 2 ** (8 * len(old)))
        elif rng.random() < 0.3:
            changes[name] = b""
        elif rng.random() < 0.5:
            changes[name] = fields[rng.choice(sorted(fields))]
        else:
            changes[name] = struct.pack("<Q", rng.choice(ODD)) + old[8:]
    return joined(changes)


def header(path: Path, *, with_arrays: bool) -> object:
    """What is not an array of a header, or the error's words."""
    try:
        with contextlib.closing(GGUFSource(path, with_arrays=with_arrays)) as source:
            scalars = [(key, repr(item)) for key, item in source.metadata.items() if item.value_type != "array"]
            return scalars, source.tensors, source.size_bytes
    except QuantailorError as error:
        return str(error)


def read_model(path: Path) -> None:
    assert header(path, with_arrays=False) == header(path, with_arrays=True)
    with contextlib.closing(GGUFSource(path)) as source:
        fingerprint(source)
        for tensor in source.tensors:
            source.rows(tensor.name, 0, min(2, tensor.n_rows))


def matrix_files(folder: Path) -> list[bytes]:
    """One matrix as GGUF and as the legacy format."""
    rng = np.random.default_rng(3)
    shapes = {"blk.0.attn_q.weight": (1, 32), "blk.0.ffn_up_exps.weight": (4, 16)}
    entries = {
        name: ImatrixEntry(rng.random(shape, dtype=np.float32), np.full(shape[0], 512, dtype=np.int64)) for name, shape in shapes.items()
    }
    path = folder / "whole.gguf"
    write_imatrix(Imatrix(entries, datasets=("prose.txt",), chunk_count=1, chunk_size=512), path, overwrite=True)
    legacy = struct.pack("<i", len(entries))
    for name, entry in entries.items():
        legacy += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 3, entry.sum2.size) + entry.sum2.tobytes()
    return [path.read_bytes(), legacy + struct.pack("<ii", 3, 9) + b"prose.txt"]


def main(kind: str, seed: int, n_cases: int, folder: Path) -> None:
    rng = random.Random(seed)
    whole = [joined()] if kind == "gguf" else matrix_files(folder)
    path = folder / "case.gguf"
    outcomes = [0, 0]
    for number in range(n_cases):
        by_field = kind == "gguf" and rng.random() < 0.4
        path.write_bytes(odd_field(rng) if by_field else damaged(whole[number % len(whole)], rng))
        try:
            read_model(path) if kind == "gguf" else read_imatrix(path)
            outcomes[1] += 1
        except QuantailorError as error:
            outcomes[0] += 1
            message = str(error)
            if len(message) > 1000 or not message.isprintable():
                raise AssertionError(f"case {number}: an unreadable message of {len(message)} letters") from error
        except BaseException:
            path.replace(folder / f"failed-{seed}-{number}.gguf")
            raise
    print(*outcomes)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
