"""What the machine has left: disk and memory. The one place that asks for it, so that tests can say otherwise."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil

Range = tuple[float, float]


def n_threads() -> int:
    """Processors, which is what work takes unless it is told otherwise."""
    return os.cpu_count() or 1


def free_disk_bytes(path: Path) -> int | None:
    """Free for this user where `path` lies or will lie; None where that cannot be known."""
    try:
        return shutil.disk_usage(_existing(path)).free
    except OSError:
        return None


def filesystem(path: Path) -> int | None:
    """A number that is equal for places on one filesystem; None where that cannot be known."""
    try:
        return _existing(path).stat().st_dev
    except OSError:
        return None


def free_memory_bytes() -> int | None:
    """What a program can still take without anything else giving way, swap space included; None where that cannot be known."""
    try:
        return psutil.virtual_memory().available + psutil.swap_memory().free
    except (OSError, RuntimeError, psutil.Error):
        return None


def total_memory_bytes() -> int | None:
    """All memory there is, swap space included; None where that cannot be known."""
    try:
        return psutil.virtual_memory().total + psutil.swap_memory().total
    except (OSError, RuntimeError, psutil.Error):
        return None


def _existing(path: Path) -> Path:
    """The place itself, or the nearest folder above it that exists."""
    path = path.absolute()
    return next((place for place in (path, *path.parents) if place.exists()), path)
