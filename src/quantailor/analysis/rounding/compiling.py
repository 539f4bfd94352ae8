"""Loops that numpy cannot express, compiled by numba when they are first called, and kept on disk from then on.

A function that others call becomes part of each of them. Otherwise a process that compiles them and one that finds them on the disk may
call different copies of it, compiled in different surroundings, whose sums round otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
R = TypeVar("R")


class Compiled(Generic[P, R]):
    """A function as machine code that runs without the GIL. Numba is imported when it is first called, from Python or from another one.

    Division by zero gives what it does in numpy: side by side with others stand rows without a scale.

    Args:
        function: what to compile.
        loosely: whether sums and maxima may be taken in any order, and nothing is NaN.
    """

    def __init__(self, function: Callable[P, R], *, loosely: bool = False) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._fastmath = {"contract", "nnan", "nsz", "reassoc"} if loosely else {"contract"}

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self._machine_code(*args, **kwargs)

    @functools.cached_property
    def _machine_code(self) -> Callable[P, R]:
        import numba

        try:
            made = numba.njit(cache=True, nogil=True, forceinline=True, fastmath=self._fastmath, error_model="numpy")(self._function)
        except RuntimeError:  # neither the package's folder nor the user's can be written
            made = numba.njit(nogil=True, forceinline=True, fastmath=self._fastmath, error_model="numpy")(self._function)
        return cast(Callable[P, R], made)

    @property
    def _numba_type_(self) -> object:
        """What numba takes this for where another compiled function calls it: the function that it made itself."""
        import numba

        return numba.typeof(self._machine_code)


def compiled(function: Callable[P, R]) -> Compiled[P, R]:
    """See `Compiled`. One that another calls stands in the same file: what is kept on disk is made anew when that file changes."""
    return Compiled(function)


def compiled_loosely(function: Callable[P, R]) -> Compiled[P, R]:
    """As `compiled`, and loosely."""
    return Compiled(function, loosely=True)
