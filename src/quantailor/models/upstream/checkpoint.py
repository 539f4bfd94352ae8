"""A digest of a checkpoint that we cannot read ourselves: equal as long as a conversion of it would be."""

from __future__ import annotations

import hashlib
from pathlib import Path

import xxhash

from quantailor.control import QUIET, Control, ProgressCounter
from quantailor.models.random_access import unreadable

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".json", ".jsonl", ".jinja", ".model", ".txt", ".tiktoken", ".py")
_BLOCK_BYTES = 4 << 20


def checkpoint_files(folder: Path) -> list[Path]:
    """Weights, configuration, vocabulary and code of a directory, by name. Raises ModelError where it cannot be read."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    except OSError as error:
        raise unreadable(error.filename or folder, error) from error


def checkpoint_digest(folder: Path, *, control: Control = QUIET) -> str:
    """SHA-256 over the names of a checkpoint's files and a digest of each (XXH3, 128 bits), all of it read.

    Raises ModelError where a file cannot be read; Paused, Cancelled from `control`.
    """
    paths = checkpoint_files(folder)
    digest = hashlib.sha256()
    try:
        progress = ProgressCounter(control, sum(path.stat().st_size for path in paths))
        for path in paths:
            digest.update(f"{path.name}\0{file_digest(path, control, progress)}\n".encode(errors="surrogateescape"))
    except OSError as error:
        raise unreadable(error.filename or folder, error) from error
    return digest.hexdigest()


def file_digest(path: Path, control: Control = QUIET, progress: ProgressCounter | None = None) -> str:
    """XXH3 (128 bits) of a file's bytes. Raises OSError; Paused, Cancelled from `control`."""
    content = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while part := stream.read(_BLOCK_BYTES):
            control.check()
            content.update(part)
            if progress is not None:
                progress.add(len(part), path.name)
    return content.hexdigest()
