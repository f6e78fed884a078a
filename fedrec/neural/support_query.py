"""Work that can be halved: learn the personal part from the older events, the shared part from the newer ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

from fedrec.core.errors import ConfigError

if TYPE_CHECKING:
    from fedrec.neural.batched import Work


@runtime_checkable
class Halves(Protocol):
    """What work must offer beside its loss."""

    def half(self, *, newer: bool) -> Self:
        """The same work on the newer or the older half of the events."""


def halved(work: Work, *, newer: bool) -> Work:
    """One half of a work.

    Raises:
        ConfigError: this work learns from a history as a whole.
    """
    if not isinstance(work, Halves):
        raise ConfigError(
            f"{type(work).__name__} learns from a history as a whole: choose another level than 'fedrecon'"
        )
    half: Work = work.half(newer=newer)
    return half
