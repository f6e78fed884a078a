"""A few counters with noise, once a day, for people who have agreed: all that an operator learns of use.

For each completed day the counters of `NAMES` are cut at `MOST` and each gets two-sided geometric noise (Ghosh,
Roughgarden and Sundararajan 2009) of scale b = len(NAMES) · MOST / epsilon, so that one day is epsilon-private for
its person: every day anew, which the report to the person adds up. Days without any use are reported as well.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping

from fedrec_client.events import Event, EventType

DAY = 86_400
NAMES = ("impressions", "clicks", "hides")
MOST = 20
EPSILON = 1.0
_CLICKS = {EventType.VIEW, EventType.PLAY, EventType.PURCHASE, EventType.LIKE}


def day_of(now: float) -> int:
    """Days since 1970."""
    return int(now // DAY)


def counters(events: Iterable[Event]) -> dict[str, int]:
    """What happened to recommendations, cut at `MOST` each."""
    counts = dict.fromkeys(NAMES, 0)
    for event in events:
        if event.type is EventType.IMPRESSION:
            counts["impressions"] += 1
        elif event.recommendation is not None and event.type in _CLICKS:
            counts["clicks"] += 1
        elif event.type is EventType.HIDE:
            counts["hides"] += 1
    return {name: min(count, MOST) for name, count in counts.items()}


def noised(counts: Mapping[str, int], epsilon: float = EPSILON) -> dict[str, float]:
    """Counters with noise; the difference of two geometric variables has the two-sided distribution."""
    decay = math.exp(-epsilon / (len(counts) * MOST))
    return {name: float(count + _geometric(decay) - _geometric(decay)) for name, count in counts.items()}


def _geometric(decay: float) -> int:
    """P(k) = (1 - decay) decay^k, from the operating system's generator."""
    uniform = (secrets.randbits(53) + 1) / 2.0**53
    return math.floor(math.log(uniform) / math.log(decay))
