"""A digest of a checkpoint that we cannot read ourselves: equal as long as a conversion of it would be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from quantailor.models.random_access import unreadable
from quantailor.models.safetensors_file import MAX_HEADER_BYTES

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
TEXTS = (".json", ".jsonl", ".jinja", ".model", ".txt", ".tiktoken", ".py")
N_SAMPLES = 256
SAMPLE_BYTES = 4096


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 over configuration and tokenizer files, and names, sizes, headers and samples of the weight files.

    Reads a megabyte of each weight file beside its header. Raises ModelError where a file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in (*WEIGHTS, *TEXTS) and path.is_file()):
            digest.update(f"{path.name}\0{path.stat().st_size}\n".encode(errors="surrogateescape"))
            with path.open("rb") as stream:
                for part in _samples(stream, path) if path.suffix.lower() in WEIGHTS else _whole(stream):
                    digest.update(part)
    except OSError as error:
        raise unreadable(error.filename or folder, error) from error
    return digest.hexdigest()


def _whole(stream: BinaryIO) -> Iterator[bytes]:
    while part := stream.read(1 << 20):
        yield part


def _samples(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    size = path.stat().st_size
    length = 0
    if path.suffix.lower() == ".safetensors":
        length = min(8 + int.from_bytes(stream.read(8), "little"), size, MAX_HEADER_BYTES)
        stream.seek(0)
        yield stream.read(length)
    step = max(SAMPLE_BYTES, (size - length) // N_SAMPLES)
    for start in (*range(length, size, step), max(length, size - SAMPLE_BYTES)):
        stream.seek(start)
        yield stream.read(SAMPLE_BYTES)
