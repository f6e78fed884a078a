"""A few counters with noise, for users who have agreed: all that an operator learns of use.

For one completed day the counters of `fedrec.wire.counters` are cut and each gets two-sided geometric noise (Ghosh,
Roughgarden and Sundararajan 2009) of scale b = len(NAMES) * MOST / epsilon, so that a report is epsilon-private for
its user. Reports add up: a budget bounds them (`counter_reports`), and with it what the mean of many of them tells.
Days without any use are reported as well.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping

from fedrec.wire.counters import EPSILON, MOST, NAMES, bounded
from fedrec_client.store.events import Event, EventType

DAY = 86_400
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
    """Counters with noise, within the bounds of a report.

    Args:
        counts: cut at `MOST` here once more, whatever they are.
        epsilon: of all of them together.
    """
    decay = math.exp(-epsilon / (len(counts) * MOST))
    cut = {name: min(max(count, 0), MOST) for name, count in counts.items()}
    # The difference of two geometric variables has the two-sided distribution.
    return {name: bounded(count + _geometric(decay) - _geometric(decay)) for name, count in cut.items()}


def _geometric(decay: float) -> int:
    """P(k) = (1 - decay) decay^k, from the operating system's generator."""
    uniform = (secrets.randbits(53) + 1) / 2.0**53
    return math.floor(math.log(uniform) / math.log(decay))
