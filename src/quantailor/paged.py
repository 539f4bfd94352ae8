"""Large arrays in files without names: their pages give way where memory is wanted, and they end with the process."""

from __future__ import annotations

import mmap
import tempfile
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

_Scalar = TypeVar("_Scalar", bound=np.generic)


def in_file(values: npt.NDArray[_Scalar], folder: Path | None = None) -> npt.NDArray[_Scalar]:
    """The same values, of any shape (n, ...), read-only and from a file in a folder, or where temporary files go.

    Raises OSError where there is no room for it.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        values.tofile(file)
        return np.memmap(file, dtype=values.dtype, mode="r", shape=values.shape)


def let_go(values: npt.NDArray[_Scalar]) -> None:
    """Unmap what was read of a file, of any shape (n, ...); it stays in the system's cache as long as there is room.

    Nothing happens to an array in memory.
    """
    origin: object = values
    while isinstance(origin, np.ndarray):
        origin = origin.base
    if isinstance(origin, mmap.mmap) and hasattr(origin, "madvise"):
        origin.madvise(mmap.MADV_DONTNEED)
