"""What this app lets a training campaign do with its people's data; the service can ask for less, never for more.

A task comes signed, and is still judged: by its unit of privacy, how its noise is made, who sees a single update,
how many devices take part, and what it would add to what this device has spent. Everything against it is listed.
Out of scope: whether its terms fit each other (`task_terms`), whether the task is genuine (`fedrec.wire.signing`) and
whether now is a good time (`eligibility`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedrec.errors import BadContent
from fedrec_client.participation import Book

if TYPE_CHECKING:
    from fedrec.privacy.plan import PrivacyPlan

DAY = 86_400.0
#: Parts in 1e9 by which sums of epsilons may exceed a limit without being more.
_SLACK = 1e-9


@dataclass(frozen=True)
class Policy:
    """The app's limits.

    Attributes:
        min_cohort: devices in a campaign, at least, whatever number of users they declare; half as many in a sum.
        dishonest: part of the enrolled users that may work with the server and leave out their noise; a task is
            charged the epsilon that the noise of the others is worth.
        max_member_share: part of all users that one member of the roster may speak for, if it is more than one user.
        max_epsilon_period, period_seconds: spent in any such time.
        max_epsilon_lifetime: spent ever.
        max_metrics_epsilon_period, max_metrics_epsilon_lifetime: the same for reports of counters, apart from
            training; no report leaves beyond.
        max_delta: of one campaign.
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
        """Reasons why no campaign at all could be joined."""
        if book.damaged:
            yield "budget: the book of what was spent was damaged; nothing more is spent"
        elif book.spent().epsilon >= self.max_epsilon_lifetime:
            yield f"budget: epsilon {book.spent().epsilon:.3g} of {self.max_epsilon_lifetime:.3g} for life is spent"
        elif book.spent_within(self.period_seconds, now).epsilon >= self.max_epsilon_period:
            yield f"budget: the epsilon of this period ({self.max_epsilon_period:.3g}) is spent"

    def judge(self, task: Mapping[str, Any], book: Book, now: float) -> tuple[list[str], float, float]:
        """All that speaks against a task, and the epsilon and delta that it would cost.

        Args:
            task: payload of a verified document, format as in `fedrec_client.training`.
            book: of this device.
            now: seconds since 1970.

        Raises:
            BadContent: the task cannot be read.
        """
        try:
            from fedrec_client.task_terms import TaskTerms

            terms = TaskTerms.of(task)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadContent(f"a task that cannot be read ({_first_line(error)}): update the app") from error
        against = [*terms.against_carrier(self)]
        if terms.plan is None:
            return [*against, "privacy: the task has no privacy plan"], math.inf, 1.0
        epsilon = terms.epsilon(self.dishonest)
        against += [*self._plan(terms.plan, epsilon, book, now), *terms.against_plan()]
        return against, epsilon, terms.plan.delta

    def _plan(self, plan: PrivacyPlan, epsilon: float, book: Book, now: float) -> Iterator[str]:
        if plan.noise_seed is not None:
            yield "privacy: its noise can be foreseen, which protects nobody"
        if plan.unit not in self.units:
            yield f"unit: {plan.unit}, this app allows {', '.join(self.units)}"
        if plan.trust not in self.trusts:
            yield f"trust: {plan.trust} noise, this app allows {', '.join(self.trusts)}"
        if plan.delta > self.max_delta:
            yield f"delta: {plan.delta:.1e}, this app allows {self.max_delta:.1e}"
        for what, spent, limit in (
            ("this period", book.spent_within(self.period_seconds, now).epsilon, self.max_epsilon_period),
            ("a lifetime", book.spent().epsilon, self.max_epsilon_lifetime),
        ):
            if not spent + epsilon <= limit * (1 + _SLACK):
                yield f"budget: epsilon {epsilon:.3g} after {spent:.3g}, this app allows {limit:.3g} in {what}"


def _first_line(error: Exception) -> str:
    """What is wrong, without the several lines of a list of problems."""
    from pydantic import ValidationError

    problems = error.errors() if isinstance(error, ValidationError) else []
    return " ".join(str(problems[0]["msg"] if problems else error).split())[:200]
