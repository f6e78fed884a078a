"""The one sealed row on which everything in a store hangs.

The root holds, for each table, the number of rows and the sum of a keyed hash over all of them, and a counter. It is
written in the same transaction as every change, so that a file whose rows are not exactly those of its root was
changed by something else: a row of an older copy, one taken away, one put elsewhere. The counter grows with every
change but an event's; the vault has a copy of it (see `held`), so that an older copy of the whole file is noticed.

The sum is the additive multiset hash of Clarke, Devadas, van Dijk, Gassend and Suh (2003, section 5): HMAC-SHA256 of
each row under a key that lies in no file, added modulo 2^256; the sums themselves are sealed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from fedrec.core.errors import StoreCorrupt
from fedrec_client.store._sealing import Sealer

TABLES = ("events", "records", "entries")
TABLE = "root"
_MODULUS = 1 << 256


@dataclass(frozen=True)
class Sum:
    """Of a table.

    Attributes:
        count: rows.
        total: of their hashes, modulo 2^256.
    """

    count: int = 0
    total: int = 0

    def add(self, digest: int) -> Self:
        """With a row more."""
        return replace(self, count=self.count + 1, total=(self.total + digest) % _MODULUS)

    def swap(self, before: int, after: int) -> Self:
        """With a row in the place of another."""
        return replace(self, total=(self.total - before + after) % _MODULUS)


@dataclass(frozen=True)
class Root:
    """See the module."""

    counter: int = 0
    sums: Mapping[str, Sum] = field(default_factory=lambda: dict.fromkeys(TABLES, Sum()))

    def with_sum(self, table: str, total: Sum) -> Self:
        """After a change of a table."""
        return replace(self, sums={**self.sums, table: total})

    def counted(self) -> Self:
        """After a change that counts."""
        return replace(self, counter=self.counter + 1)

    def seal(self, sealer: Sealer, store: bytes) -> bytes:
        """For the file."""
        plain = [
            self.counter,
            *([total.count, hex(total.total)] for total in map(self.sums.get, TABLES) if total),
        ]
        return sealer.seal(TABLE, store, json.dumps(plain).encode())

    @classmethod
    def open(cls, sealer: Sealer, store: bytes, sealed: bytes) -> Self:
        """Of the file.

        Raises:
            StoreCorrupt: it was sealed for another store, under another key, or is damaged.
        """
        counter, *sums = json.loads(sealer.open(TABLE, store, sealed))
        return cls(
            counter, {name: Sum(n, int(total, 16)) for name, (n, total) in zip(TABLES, sums, strict=True)}
        )


def stale(what: str) -> StoreCorrupt:
    """For a store that is not the one that was left here."""
    return StoreCorrupt(
        f"{what}: it was damaged, or an older copy was put in its place; open it with repair=True, which keeps what "
        "is sound and counts the privacy budget as spent and consent as withdrawn"
    )
