"""Loops that numpy cannot express, compiled by numba when they are first called, and kept on disk from then on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function as machine code that runs without the GIL; numba is imported when it is first called."""
    return _later(function, frozenset({"contract"}))


def compiled_loosely(function: Callable[P, R]) -> Callable[P, R]:
    """As `compiled`; sums and maxima may be taken in any order, and nothing may be NaN."""
    return _later(function, frozenset({"contract", "nnan", "nsz", "reassoc"}))


def _later(function: Callable[P, R], fastmath: frozenset[str]) -> Callable[P, R]:
    @functools.cache
    def machine_code() -> Callable[P, R]:
        import numba

        return cast(Callable[P, R], numba.njit(cache=True, nogil=True, fastmath=set(fastmath))(function))

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return machine_code()(*args, **kwargs)

    return call
