"""Evaluates a task against the app's policy: everything that speaks against it, and what it would cost.

A task comes signed, and is still evaluated: by its unit of privacy, how its noise is made, who sees a single update,
how many devices take part, and what it would add to what this device has spent. Everything against it is listed.
Out of scope: whether the task is genuine (`fedrec.wire.signing`), whether now is a good time (`eligibility`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedrec.core.errors import BadContent
from fedrec.privacy.plan import PrivacyPlan
from fedrec_client.terms._task_terms import TaskTerms
from fedrec_client.terms.participation import Book
from fedrec_client.terms.policy import SLACK, Policy


@dataclass(frozen=True)
class Price:
    """What one more participation costs; the prices of all of them are the cost of the plan.

    Attributes:
        epsilon, delta: to charge.
    """

    epsilon: float
    delta: float


def evaluate_task(
    policy: Policy, task: Mapping[str, Any], book: Book, now: float, participations: int = 0
) -> tuple[list[str], Price]:
    """All that speaks against a task, and what taking part once more would cost.

    Args:
        policy: the app's limits.
        task: payload of a verified document, format as in `fedrec_client.training`.
        book: of this device.
        now: seconds since 1970.
        participations: in which this device was charged for the job before.

    Raises:
        BadContent: the task cannot be read.
    """
    try:
        terms = TaskTerms.of(task)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadContent(f"a task that cannot be read ({_first_line(error)}): update the app") from error
    against = [*terms.against_carrier(policy)]
    if terms.plan is None:
        return [*against, "privacy: the task has no privacy plan"], Price(math.inf, 1.0)
    if participations >= terms.plan.participations:
        against.append(
            f"rounds: this device took part {participations} times, which is all that the plan covers"
        )
    before, after = (terms.epsilon(policy.dishonest, n) for n in (participations, participations + 1))
    # All of delta with the first one: epsilons are of the same delta.
    more = after - before if math.isfinite(after) else math.inf
    price = Price(more, 0.0 if participations else terms.plan.delta)
    against += [*_against_plan(policy, terms.plan, price.epsilon, book, now), *terms.against_plan()]
    return against, price


def _against_plan(policy: Policy, plan: PrivacyPlan, epsilon: float, book: Book, now: float) -> Iterator[str]:
    if plan.noise_seed is not None:
        yield "privacy: its noise can be foreseen and hides no user"
    if plan.unit not in policy.units:
        yield f"unit: {plan.unit}, this app allows {', '.join(policy.units)}"
    if plan.trust not in policy.trusts:
        yield f"trust: {plan.trust} noise, this app allows {', '.join(policy.trusts)}"
    if plan.delta > policy.max_delta:
        yield f"delta: {plan.delta:.1e}, this app allows {policy.max_delta:.1e}"
    for what, spent, limit in (
        ("this period", book.spent_within(policy.period_seconds, now).epsilon, policy.max_epsilon_period),
        ("a lifetime", book.spent().epsilon, policy.max_epsilon_lifetime),
    ):
        if not spent + epsilon <= limit * (1 + SLACK):
            yield f"budget: epsilon {epsilon:.3g} after {spent:.3g}, this app allows {limit:.3g} in {what}"


def _first_line(error: Exception) -> str:
    """What is wrong, without the several lines of a list of problems."""
    from pydantic import ValidationError

    problems = error.errors() if isinstance(error, ValidationError) else []
    return " ".join(str(problems[0]["msg"] if problems else error).split())[:200]
