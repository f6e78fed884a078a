"""Loops that numba compiles at their first call, so that a process that never computes them needs no numba.

Where numba is not installed they run as Python: slow for a population, milliseconds for the one user of a device.
Out of scope: loops of networks, which need torch in any case (`fedrec.neural`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def jit(**options: Any) -> Any:
    """A decorator: `numba.njit` with these options, or the function as it is where numba is not installed.

    For loops that call one another, which numba has to see compiled: their module is imported when they are needed.
    """
    try:
        import numba
    except ModuleNotFoundError:
        return lambda function: function
    return numba.njit(**options)


def compiled(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: `numba.njit` with these options, imported and applied at the first call.

    Compiled once per machine where `cache` is true; the result is kept beside the source.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.cache
        def dispatcher() -> Callable[P, R]:
            made: Callable[P, R] = jit(**options)(function)
            return made

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return dispatcher()(*args, **kwargs)

        return call

    return decorate
