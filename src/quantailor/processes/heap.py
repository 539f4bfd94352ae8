"""What the C library keeps of memory that was given back."""

from __future__ import annotations

import contextlib
import ctypes

_M_TRIM_THRESHOLD, _M_ARENA_MAX = -1, -8
"""What glibc's mallopt calls the bytes at the end of a heap that it gives back, and the number of heaps."""


def share_one_heap() -> None:
    """One heap for all threads from now on: glibc gives each its own, and keeps there what the largest work once needed."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries have no such thing
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_TRIM_THRESHOLD, 1 << 16)


def give_back() -> None:
    """Give the system what was freed: glibc keeps blocks of up to 32 MB, and after work on many matrices that is most of a process."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # other C libraries have no such thing
        ctypes.CDLL(None).malloc_trim(0)
