"""What this app lets a training campaign do with its people's data; the service can ask for less, never for more.

A task comes signed, and is still judged: by its unit of privacy, how its noise is made, who sees a single update,
how many take part, and what it would add to what this device has spent. Everything against it is told.
Out of scope: whether the task is genuine (`fedrec.wire.signing`) and whether now is a good time (`eligibility`).
"""

from __future__ import annotations

import hashlib
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
        min_cohort: people in a campaign, at least.
        max_epsilon_period, period_seconds: spent in any such time.
        max_epsilon_lifetime: spent ever.
        max_delta: of one campaign.
        aggregators: of "secagg", "sealed", "plain", those that may carry an update.
        units: what one contribution may be: "user", or "interaction", which promises less.
        trusts: of "local", "distributed", "central"; "central" believes that the service adds the noise.
    """

    min_cohort: int = 100
    max_epsilon_period: float = 4.0
    period_seconds: float = 30 * DAY
    max_epsilon_lifetime: float = 16.0
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
            plan, aggregation = _plan(task), task["node"]["aggregation"]
            against = [*self._carrier(aggregation)]
            if plan is None:
                return [*against, "privacy: the task has no privacy plan"], math.inf, 1.0
            epsilon = plan.epsilon()
            against += [*self._plan(plan, epsilon, book, now), *_noise(plan, aggregation)]
            return against, epsilon, plan.delta
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadContent(f"a task that cannot be read ({error!s:.80}): update the app") from error

    def _carrier(self, aggregation: Mapping[str, Any]) -> Iterator[str]:
        kind = aggregation["kind"]
        if kind not in self.aggregators:
            yield f"aggregator: {kind}, this app allows {', '.join(self.aggregators)}"
        if kind == "secagg":
            members = aggregation["roster"]["members"]
            people = sum(member["users"] for member in members)
            smallest = max(float(aggregation["min_users"]), float(aggregation["min_nodes"]))
            if people < self.min_cohort:
                yield f"cohort: {people} people enrolled, this app wants {self.min_cohort}"
            if smallest < self.min_cohort / 2:
                yield f"cohort: a sum of {smallest:g} may be opened, this app wants half of {self.min_cohort}"

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


def _noise(plan: PrivacyPlan, aggregation: Mapping[str, Any]) -> Iterator[str]:
    """Shares of noise must add up to the plan's in every sum that this device helps to open."""
    if plan.distributed is None:
        return
    if aggregation["kind"] != "secagg":
        yield f"noise: a share of it hides nobody from who reads single updates ({aggregation['kind']})"
        return
    needed, least = plan.distributed.survivors * plan.denominator, float(aggregation["min_users"])
    if least < needed * (1 - _SLACK):
        yield f"noise: sized for {needed:g} people together, a sum of {least:g} may be opened"
    if aggregation["plan"] != hashlib.sha256(plan.model_dump_json().encode()).hexdigest():
        yield "noise: secure aggregation is bound to another privacy plan"


def _plan(task: Mapping[str, Any]) -> PrivacyPlan | None:
    from fedrec.privacy.plan import PrivacyPlan

    terms = task["node"]["privacy"]
    return None if terms is None else PrivacyPlan.model_validate(terms["plan"])
