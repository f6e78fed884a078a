"""Where a node keeps the secrets of an attempt between two messages: in memory, and nowhere else.

In process it is an attribute; under Flower it is the node's context, which a SuperNode holds in its own memory and
hands to the process of each message. Out of scope: what the bytes are (`fedrec.secagg.state`).
"""

from __future__ import annotations

from typing import Protocol


class Memory(Protocol):
    """Holds the bytes of at most one attempt."""

    def get(self) -> bytes | None:
        """The bytes, or None when there are none."""

    def put(self, data: bytes) -> None:
        """Keep these bytes in the place of any others."""

    def clear(self) -> None:
        """Forget them; again is free."""


class HeldMemory:
    """Memory of this process."""

    def __init__(self) -> None:
        self._data: bytes | None = None

    def get(self) -> bytes | None:
        """See `Memory`."""
        return self._data

    def put(self, data: bytes) -> None:
        """See `Memory`."""
        self._data = data

    def clear(self) -> None:
        """See `Memory`."""
        self._data = None
