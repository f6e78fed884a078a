"""The book of what left this device: written before anything leaves, added to, never taken from.

A campaign is charged in full before its first release leaves: a device that is lost or killed in the middle has then
charged at least what was released, and one that released nothing has charged nothing.

    charged   a campaign was paid for: epsilon, delta, unit, trust, aggregator, rounds
    sent      a charged session is over: bytes, rounds, aggregator, reason
    cut off   a charged session was cut off: how much of it left is not known
    ended     a session is over that released nothing: reason, bytes of public keys
    refused   a task was refused: reasons
    metrics   counters were sent
    carried   what a deletion does not forget

Epsilons of campaigns add up (basic composition), deltas too. A book that was damaged and repaired counts as
exhausted: nobody can tell what was in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fedrec_client.store.base import Store

LOG, REPAIRS = "participation", "repairs"


@dataclass(frozen=True)
class Spent:
    """A sum of the book.

    Attributes:
        epsilon, delta: charged; infinite when the book was damaged.
        campaigns: how many.
    """

    epsilon: float
    delta: float
    campaigns: int


class Book:
    """Of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def note(self, what: str, now: float, **fields: Any) -> None:
        """Add an entry; on disk when this returns."""
        entry = {"what": what, "time": now} | fields
        self._store.append(LOG, json.dumps(entry, sort_keys=True, allow_nan=False).encode())

    def entries(self, what: str | None = None) -> list[dict[str, Any]]:
        """All entries, or those of one kind, oldest first."""
        entries = [json.loads(entry) for entry in self._store.entries(LOG)]
        return [entry for entry in entries if what in (None, entry["what"])]

    def spent(self, since: float = -math.inf) -> Spent:
        """What was charged from a time on."""
        if self.damaged:
            return Spent(math.inf, math.inf, 0)
        charged = [entry for entry in self.entries("charged") if entry["time"] >= since]
        carried = [entry for entry in self.entries("carried") if entry["last"] >= since]
        return Spent(
            sum(entry["epsilon"] for entry in charged + carried),
            sum(entry["delta"] for entry in charged + carried),
            len(charged) + sum(entry["campaigns"] for entry in carried),
        )

    def carry(self, now: float) -> Mapping[str, Any] | None:
        """What a deletion must not make the device forget: numbers, no item, no event; None: nothing was spent."""
        total = self.spent()
        if not total.campaigns and not self.damaged:
            return None
        damaged = not math.isfinite(total.epsilon)
        return {
            "epsilon": 1e9 if damaged else total.epsilon,
            "delta": 1.0 if damaged else total.delta,
            "campaigns": total.campaigns,
            "last": max(self.last_time, 0.0) or now,
        }

    @property
    def last_time(self) -> float:
        """When the device last took part; -inf: never."""
        times = [entry["time"] for entry in self.entries("charged")]
        return max(times + [entry["last"] for entry in self.entries("carried")], default=-math.inf)

    @property
    def damaged(self) -> bool:
        """Whether a repair of the store lost entries of any book."""
        return any(json.loads(entry)["lost"]["entries"] for entry in self._store.entries(REPAIRS))
