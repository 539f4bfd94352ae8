"""Loops that numpy cannot express, compiled by numba when they are first called, and kept on disk from then on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function as machine code that runs without the GIL; numba is imported when it is first called."""

    @functools.cache
    def machine_code() -> Callable[P, R]:
        import numba

        return cast(Callable[P, R], numba.njit(cache=True, nogil=True)(function))

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return machine_code()(*args, **kwargs)

    return call
