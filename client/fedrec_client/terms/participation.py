"""The book of what left this device: written before anything leaves, added to, never taken from.

A round of a job is charged before the masked vector leaves: a device that is lost or killed in the middle has then
charged at least what was released, and one that released nothing has charged nothing.

    charged   one participation in a job: round, epsilon, delta, unit, trust, aggregator
    sent      a charged session is over: bytes, rounds, aggregator, reason
    cut off   a charged session was cut off: how much of it left is not known
    ended     a session is over that released nothing: reason, bytes of public keys and sealed shares
    refused   a task was refused: reasons
    metrics   counters were sent
    carried   what a deletion does not forget

Epsilons of jobs add up (basic composition), deltas too; those of one job add up to what its plan says. A book that
was damaged and repaired, or put back to an older state, counts as exhausted: what was in it is not known.

A period is told by two clocks, because the device's own can be set at will. A charge leaves a period only when both
the device's clock and the newest signature that this device has accepted (`trusted_time`) are a whole period past
it: a clock set ahead frees nothing. A charge is dated by the clock under which it was written, brought down
to any earlier time that the book has noted since, but never before the newest signature from before the charge: a
clock that was ahead once does not lock a device for years, and a clock that was put back does not make a charge old.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fedrec_client.store.base import Store
from fedrec_client.store.repair import last_loss
from fedrec_client.store.trusted_time import signed_time

LOG = "participation"
#: Entries that count; "last" is when the newest of what a deletion carried over was charged.
_CHARGES = {"charged": "time", "carried": "last"}
#: An entry that says what the device's clock is, once it is behind the time of a charge by more than a day.
CLOCK = "clock"
_TOLERANCE_SECONDS = 86_400.0


@dataclass(frozen=True)
class Spent:
    """A sum of the book.

    Attributes:
        epsilon, delta: charged; infinite when the book was damaged.
        rounds: how many.
    """

    epsilon: float
    delta: float
    rounds: int


class Book:
    """Of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def note(self, what: str, now: float, **fields: Any) -> None:
        """Add an entry; on disk when this returns. A charge also notes the newest signature from before it."""
        self._store.append(LOG, entry(self._store, what, now, **fields))

    def entries(self, what: str | None = None) -> list[dict[str, Any]]:
        """All entries, or those of one kind, oldest first."""
        entries = [json.loads(each) for each in self._store.entries(LOG)]
        return [each for each in entries if what in (None, each["what"])]

    def spent(self, since: float = -math.inf) -> Spent:
        """What was charged from a time on."""
        return self._sum(charge for date, charge in self._dated() if date >= since)

    def spent_within(self, seconds: float, now: float) -> Spent:
        """What was charged in the period of so many seconds that ends now.

        Args:
            seconds: of the period.
            now: the device's clock, seconds since 1970; see the module for what it can and cannot do.
        """
        past = min(now, signed_time(self._store))
        return self._sum(charge for date, charge in self._dated() if not past - date >= seconds)

    def carry(self, now: float) -> Mapping[str, Any] | None:
        """What a deletion must not make the device forget: numbers, no item, no event; None: nothing was spent."""
        total = self.spent()
        if not total.rounds and not self.damaged:
            return None
        damaged = not math.isfinite(total.epsilon)
        return {
            "epsilon": 1e9 if damaged else total.epsilon,
            "delta": 1.0 if damaged else total.delta,
            "rounds": total.rounds,
            "last": max(self.last_time, 0.0) or now,
        }

    def correct(self, now: float) -> None:
        """Note the device's clock where charges are dated after it: it was ahead then, or is behind now."""
        if self.last_time > now + _TOLERANCE_SECONDS:
            self.note(CLOCK, now)

    @property
    def last_time(self) -> float:
        """When the device last took part; -inf: never."""
        return max((date for date, _ in self._dated()), default=-math.inf)

    @property
    def damaged(self) -> bool:
        """Whether a repair of the store may have lost entries of any book, or got older ones."""
        return bool(last_loss(self._store))

    def _dated(self) -> list[tuple[float, dict[str, Any]]]:
        """Charges with their dates, see the module."""
        dated, earliest = [], math.inf
        for each in reversed(self.entries()):
            if each["what"] == CLOCK:
                earliest = min(earliest, each["time"])
            elif each["what"] in _CHARGES:
                date = min(each[_CHARGES[each["what"]]], earliest)
                dated.append((max(date, each.get("signed", -math.inf)), each))
        return dated

    def _sum(self, charges: Iterable[Mapping[str, Any]]) -> Spent:
        if self.damaged:
            return Spent(math.inf, math.inf, 0)
        counted = list(charges)
        return Spent(
            sum(each["epsilon"] for each in counted),
            sum(each["delta"] for each in counted),
            sum(each.get("rounds", 1) for each in counted),
        )


def entry(store: Store, what: str, now: float, **fields: Any) -> bytes:
    """An entry of the book of a store, as `Book.note` writes it."""
    plain = {"what": what, "time": now} | fields
    if what in _CHARGES and math.isfinite(signed := signed_time(store)):
        plain["signed"] = signed
    return json.dumps(plain, sort_keys=True, allow_nan=False).encode()
