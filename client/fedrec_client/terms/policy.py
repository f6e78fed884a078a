"""What this app lets a training job do with its users' data; the service can ask for less, never for more.

Out of scope: a task against it (`task_evaluation`), and whether now is a good time (`eligibility`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedrec_client.terms.participation import Book

DAY = 86_400.0
#: Parts in 1e9 by which sums of epsilons may exceed a limit without being more.
SLACK = 1e-9


@dataclass(frozen=True)
class Policy:
    """The app's limits.

    Attributes:
        min_cohort: devices in a cohort, at least, for which noise is sized; half as many in a sum.
        dishonest: part of the enrolled users that may work with the server and leave out their noise; a task is
            charged the epsilon that the noise of the others is worth.
        max_member_share: part of all users that one member of the roster may speak for, if it is more than one user.
        max_epsilon_period, period_seconds: spent in any such time.
        max_epsilon_lifetime: spent ever.
        max_metrics_epsilon_period, max_metrics_epsilon_lifetime: the same for reports of counters, apart from
            training; no report leaves beyond.
        max_delta: of one job.
        aggregators: of "secagg", "sealed", "plain", those that may carry an update.
        units: what one contribution may be: "user", or "interaction", which promises less.
        trusts: of "local", "distributed", "central"; "central" believes that the service adds the noise.
    """

    min_cohort: int = 100
    dishonest: float = 0.1
    max_member_share: float = 0.05
    max_epsilon_period: float = 4.0
    period_seconds: float = 30 * DAY
    max_epsilon_lifetime: float = 16.0
    max_metrics_epsilon_period: float = 4.0
    max_metrics_epsilon_lifetime: float = 16.0
    max_delta: float = 1e-5
    aggregators: tuple[str, ...] = ("secagg",)
    units: tuple[str, ...] = ("user",)
    trusts: tuple[str, ...] = ("local", "distributed")

    def exhausted(self, book: Book, now: float) -> Iterator[str]:
        """Reasons why no job at all could be joined."""
        if book.damaged:
            yield "budget: the book of what was spent was damaged; nothing more is spent"
        elif book.spent().epsilon >= self.max_epsilon_lifetime:
            yield f"budget: epsilon {book.spent().epsilon:.3g} of {self.max_epsilon_lifetime:.3g} for life is spent"
        elif book.spent_within(self.period_seconds, now).epsilon >= self.max_epsilon_period:
            yield f"budget: the epsilon of this period ({self.max_epsilon_period:.3g}) is spent"
