"""Loops that numba compiles at their first call, so that a process that never computes them needs no numba.

A server sums and applies updates without any of them, so the operator's program works where numba is not installed.
Out of scope: loops that call one another, which numba has to see compiled (`fedrec.neural.views`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def compiled(**options: Any) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: `numba.njit` with these options, imported and applied at the first call.

    Compiled once per machine where `cache` is true; the result is kept beside the source.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.cache
        def dispatcher() -> Callable[P, R]:
            import numba

            made: Callable[P, R] = numba.njit(**options)(function)
            return made

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return dispatcher()(*args, **kwargs)

        return call

    return decorate
