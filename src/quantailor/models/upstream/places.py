"""Folders of the user's cache that appear whole or not at all, also when two processes make the same one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import psutil

from quantailor import files
from quantailor.errors import OutputError


def cache_folder() -> Path:
    """The user's cache of Quantailor."""
    return platformdirs.user_cache_path("quantailor", appauthor=False)


def kept_folders() -> list[Path]:
    """What the user's cache holds for llama.cpp's converter: its sources, and the environments that were made for it."""
    return sorted(path for pattern in ("convert-*", "converter-*") for path in cache_folder().glob(pattern) if path.is_dir())


def half_made() -> list[Path]:
    """What making them left, also where it still goes on: folders with a process's number in their names."""
    return sorted(path for suffix in ("part", "old") for path in cache_folder().glob(f".convert*.{suffix}") if path.is_dir())


def user_of(folder: Path) -> int | None:
    """The number of a process that runs something of such a folder; None where there is none."""
    inside = f"{folder}{os.sep}"
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(word.startswith(inside) for word in process.cmdline()):
                return process.pid
    return None


@contextmanager
def new_folder(place: Path, *, is_whole: Callable[[Path], bool]) -> Iterator[Path]:
    """An empty folder that becomes `place` when the block ends well.

    What stands there and is not whole is removed; where another process was quicker, its folder stays. What killed processes
    left is removed. Raises OutputError where the cache cannot be written.
    """
    partial = files.temporary_path(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        files.remove_leftovers(place)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        _settle(partial, place, is_whole)
    except OSError as error:
        raise OutputError(
            f"cannot write {place}: {error.strerror or error}", remedy="Check its permissions and the free space, or set XDG_CACHE_HOME"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _settle(partial: Path, place: Path, is_whole: Callable[[Path], bool]) -> None:
    with contextlib.suppress(OSError):
        partial.rename(place)
        return
    if is_whole(place):
        return
    damaged = partial.with_suffix(".old")
    place.rename(damaged)
    shutil.rmtree(damaged, ignore_errors=True)
    partial.rename(place)
