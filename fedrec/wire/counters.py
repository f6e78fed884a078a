"""What a device may report of the use of its lists, and the bounds that device and service share.

A report holds the counters of `NAMES` for one day, each cut at `MOST`, with two-sided geometric noise of scale
`SCALE` and cut again, at `LEAST` and `GREATEST`. The second cut touches 0.5 % of honest values, on both sides alike
(its bias is below 0.03), and makes the greatest value of an honest report the greatest that any report can have: the
service cuts there, too. Out of scope: the noise itself and the sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

NAMES = ("impressions", "clicks", "hides")
#: Events of a kind that count, per day.
MOST = 20
#: Of one report; a day's counters change by at most len(NAMES) * MOST when a user's data are replaced.
EPSILON = 1.0
SCALE = len(NAMES) * MOST / EPSILON
#: Beyond which noise is cut; P(|noise| > 6 scales) = 0.0025.
TAIL = 6 * SCALE
LEAST, GREATEST = -TAIL, MOST + TAIL
#: After so many days a report that the service did not take is given up; tokens are remembered longer.
DAYS_TRIED = 7
TOKEN_HEX = 32


def bounded(value: float) -> float:
    """The value that counts.

    Raises:
        ValueError: it is not finite.
    """
    if not math.isfinite(value):
        raise ValueError(f"a counter of {value}: expected a finite number")
    return min(max(value, LEAST), GREATEST)


def checked(counters: Mapping[str, float]) -> dict[str, float]:
    """A report as it counts.

    Raises:
        ValueError: it is empty, has other names, or a value is not finite.
    """
    if not counters or set(counters) - set(NAMES):
        raise ValueError(f"counters: expected some of {', '.join(NAMES)}")
    return {name: bounded(value) for name, value in counters.items()}
