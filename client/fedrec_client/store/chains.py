"""Logs that only grow: each entry holds the hash of the one before, and a head holds number and hash of the last.

An entry that was removed, changed, put elsewhere or cut off at the end is missed when the log is read.
What is not noticed is a whole store put back to an earlier state: nothing on the device can tell that apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from fedrec.errors import StoreCorrupt

_START = bytes(32)


@dataclass(frozen=True)
class Head:
    """The end of a log.

    Attributes:
        count: entries so far.
        digest: [32] over all of them.
    """

    count: int = 0
    digest: bytes = _START

    def then(self, value: bytes) -> Head:
        """The head after one more entry."""
        return Head(self.count + 1, hashlib.sha256(self.digest + value).digest())

    def to_bytes(self, name: str) -> bytes:
        """For a sealed row."""
        return json.dumps([name, self.count, self.digest.hex()]).encode()

    @classmethod
    def parse(cls, text: bytes) -> tuple[str, Self]:
        """Name and head of `to_bytes`."""
        name, count, digest = json.loads(text)
        return name, cls(count, bytes.fromhex(digest))


def entry_text(name: str, before: Head, value: bytes) -> bytes:
    """An entry for a sealed row: its log, its number, the hash before it, and the value."""
    front = json.dumps([name, before.count + 1, before.digest.hex()]).encode()
    return len(front).to_bytes(2, "big") + front + value


def parse_entry(text: bytes) -> tuple[str, Head, bytes]:
    """Log, head before it, and value."""
    size = int.from_bytes(text[:2], "big")
    name, number, digest = json.loads(text[2 : 2 + size])
    return name, Head(number - 1, bytes.fromhex(digest)), text[2 + size :]


def heads_of(texts: Iterable[bytes]) -> dict[str, Head]:
    """The heads of all logs whose entries these are, in order.

    Raises:
        StoreCorrupt: an entry is missing or not in its place.
    """
    heads: dict[str, Head] = {}
    for text in texts:
        name, before, value = parse_entry(text)
        if before != heads.get(name, Head()):
            raise broken(name)
        heads[name] = before.then(value)
    return heads


def broken(name: str) -> StoreCorrupt:
    """For a log that does not hold together."""
    return StoreCorrupt(
        f"log {name!r} lacks entries or has them in another order: open the store with repair=True, which keeps "
        "what is sound and notes what was lost"
    )
