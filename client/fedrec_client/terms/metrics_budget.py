"""What reports of counters have cost a user, and whether one more may leave.

Out of scope: reports (`counter_reports`), the budget of training (`policy`, `participation`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedrec.wire.counters import EPSILON
from fedrec_client.terms.participation import Book
from fedrec_client.terms.policy import Policy

#: In the store: a report that the service has not taken yet.
PENDING = "metrics/pending"
#: In the book: a report, noted before it leaves; what a deletion does not make the device forget.
NOTED, CARRIED = "metrics", "metrics carried"
#: Stands for "unknown" where a number is needed; no limit allows it.
_UNKNOWN = 1e9
_SLACK = 1e-9


def spent(book: Book, since: float = -math.inf) -> float:
    """Epsilon of all reports from a time on; infinite when the book was damaged."""
    if book.damaged:
        return math.inf
    noted = sum(entry["epsilon"] for entry in book.entries(NOTED) if entry["time"] >= since)
    return float(noted + sum(entry["epsilon"] for entry in book.entries(CARRIED) if entry["last"] >= since))


def exhausted(book: Book, policy: Policy, now: float) -> str:
    """Why no more report may leave; empty: one may."""
    for what, before, limit in (
        ("life", spent(book), policy.max_metrics_epsilon_lifetime),
        ("this period", spent(book, now - policy.period_seconds), policy.max_metrics_epsilon_period),
    ):
        if not before + EPSILON <= limit * (1 + _SLACK):
            return f"counters: epsilon {before:.3g} of {limit:.3g} for {what} is spent"
    return ""


def carry(book: Book, now: float) -> Mapping[str, Any] | None:
    """For a note of the kind `CARRIED` in a fresh store; None: nothing was spent."""
    total = spent(book)
    if not total:
        return None
    times = [float(entry["time"]) for entry in book.entries(NOTED)]
    times += [float(entry["last"]) for entry in book.entries(CARRIED)]
    return {"epsilon": total if math.isfinite(total) else _UNKNOWN, "last": max(times, default=now)}
