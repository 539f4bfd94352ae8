"""What the machine has left: disk and memory. The one place that asks for it, so that tests can say otherwise.

A container, or a service with a limit, has less memory than the machine: Linux says so in control groups, of both versions.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

Range = tuple[float, float]

OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
_PAGES_OF_FILES = (("inactive_file", "active_file"), ("total_inactive_file", "total_active_file"))
"""Which can give way: how version 2 calls them, and version 1 those of a group with all groups in it."""


class _Limit(NamedTuple):
    """Of one control group."""

    most_bytes: int
    taken_bytes: int
    """Without pages that can give way."""


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
        free, swap = psutil.virtual_memory().available, psutil.swap_memory().free
    except (OSError, RuntimeError, psutil.Error):
        return None
    return min([free, *(max(0, limit.most_bytes - limit.taken_bytes) for limit in _limits())]) + swap


def total_memory_bytes() -> int | None:
    """All memory that this process may ever take, swap space included; None where that cannot be known."""
    try:
        total, swap = psutil.virtual_memory().total, psutil.swap_memory().total
    except (OSError, RuntimeError, psutil.Error):
        return None
    return min([total, *(limit.most_bytes for limit in _limits())]) + swap


def _limits() -> Iterator[_Limit]:
    """Of our control groups and those around them; none where there are no control groups."""
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not controllers:
            yield from _limits_of(GROUPS, path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            yield from _limits_of(GROUPS / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _limits_of(mount: Path, path: str, most: str, taken: str) -> Iterator[_Limit]:
    place = mount / path.strip("/")
    for folder in (place, *(each for each in place.parents if each.is_relative_to(mount))):
        with contextlib.suppress(OSError, ValueError):  # "max", or a path that a container does not see
            most_bytes = int((folder / most).read_text(encoding="ascii"))
            rows = (line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
            counts = {name: int(number) for name, number in rows}
            pages = max(sum(counts.get(name, 0) for name in names) for names in _PAGES_OF_FILES)
            yield _Limit(most_bytes, max(0, int((folder / taken).read_text(encoding="ascii")) - pages))


def _existing(path: Path) -> Path:
    """The place itself, or the nearest folder above it that exists."""
    path = path.absolute()
    return next((place for place in (path, *path.parents) if place.exists()), path)
