"""The terms of a task, and what is wrong with them by themselves or beside each other.

A device trusts the signature of a task to say who wrote it, not that it is a good one. Every field counts: one that
is weaker than the privacy plan needs makes the device refuse, or makes the charged epsilon rise. Devices are counted,
not what they declare: an operator who makes devices up is met by `Policy.dishonest`, and beyond that part by nothing.
Out of scope: what an app allows (`policy`).
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedrec.core.errors import AggregationRefused, PrivacyRefused
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.terms import PrivacyTerms
from fedrec.privacy.threat_model import local_epsilon
from fedrec.secagg.graph import log2_exposure
from fedrec.secagg.terms import LEAST_THRESHOLD, SecaggTerms, Terms, parse_terms
from fedrec_client.terms.policy import Policy

#: -log2 of the chance that corrupted devices and a cheating server open what one device sent.
SIGMA = 40.0
_SLACK = 1e-9


@dataclass(frozen=True)
class TaskTerms:
    """What a task binds its devices to.

    Attributes:
        aggregation: how updates are summed.
        privacy: the privacy plan's terms; None: there is none.
        rounds: that the task announces.
        evaluation: settings of an evaluation, as they came.
    """

    aggregation: Terms
    privacy: PrivacyTerms | None
    rounds: int
    evaluation: Mapping[str, Any]

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> TaskTerms:
        """The terms of a task's payload; raises KeyError, TypeError or ValueError where they cannot be read."""
        node = task["node"]
        privacy = None if node["privacy"] is None else PrivacyTerms.model_validate(node["privacy"])
        return cls(
            parse_terms(node["aggregation"]),
            privacy,
            int(task.get("rounds", privacy.plan.rounds if privacy else 1)),
            node.get("evaluation") or {},
        )

    @property
    def plan(self) -> PrivacyPlan | None:
        """The privacy plan."""
        return None if self.privacy is None else self.privacy.plan

    def epsilon(self, dishonest: float) -> float:
        """What taking part costs when a part of the enrolled users adds no noise and tells the server so."""
        assert self.plan is not None
        secagg = self.aggregation
        try:
            planned = self.plan.epsilon()
            if self.plan.distributed is None or not isinstance(secagg, SecaggTerms):
                return planned
            honest = secagg.min_users - dishonest * secagg.roster.users
            return math.inf if honest <= 0 else max(planned, local_epsilon(self.plan, honest))
        except PrivacyRefused:
            # The plan says itself that it bounds nothing, for example because rounding takes all of delta.
            return math.inf

    def against_carrier(self, policy: Policy) -> Iterator[str]:
        """What speaks against the way in which updates are summed."""
        secagg = self.aggregation
        if secagg.kind not in policy.aggregators:
            yield f"aggregator: {secagg.kind}, this app allows {', '.join(policy.aggregators)}"
        if not isinstance(secagg, SecaggTerms):
            return
        devices, least = len(secagg.roster), least_devices(secagg)
        if devices < policy.min_cohort:
            yield f"cohort: {devices} devices enrolled, this app wants {policy.min_cohort}"
        if least < policy.min_cohort / 2:
            yield f"cohort: a sum of {least} devices may be opened, this app wants half of {policy.min_cohort}"
        largest = max((member.users for member in secagg.roster.members), default=0)
        if largest > 1 and largest > policy.max_member_share * secagg.roster.users:
            yield (
                f"cohort: one member speaks for {largest} of {secagg.roster.users} users, this app allows "
                f"{policy.max_member_share:.0%}"
            )
        if secagg.threshold < LEAST_THRESHOLD:
            yield f"threshold: {secagg.threshold:g} of a neighbourhood, expected 2/3 or more"
        for size in {devices, max(least, 2)}:
            try:
                degree = secagg.degree(size)
                exposed = log2_exposure(size, degree, secagg.shares_needed(degree), policy.dishonest)
            except AggregationRefused as error:
                yield f"threshold: {error}"
                continue
            if exposed > -SIGMA:
                yield (
                    f"threshold: {secagg.shares_needed(degree)} of {degree} neighbours open what one of {size} "
                    f"devices sent; with {policy.dishonest:.0%} of them dishonest too likely (2^{exposed:.0f})"
                )
        if secagg.exact_sums:
            yield "privacy: exact sums are allowed by the terms"

    def against_plan(self) -> Iterator[str]:
        """What speaks against the plan beside the other terms; a task without one is refused before."""
        assert self.privacy is not None
        plan, secagg = self.privacy.plan, self.aggregation
        if plan.metrics is not None:
            yield "metrics: the plan releases some, and this device holds nothing out to be evaluated"
        if "held_data" in self.evaluation:
            yield "evaluation: held_data belongs to simulations, not to a device"
        if self.privacy.ledger is not None:
            yield "ledger: the task names a folder, this device keeps its own book"
        if self.rounds > plan.rounds:
            yield f"rounds: {self.rounds} announced, the plan has {plan.rounds}"
        if not isinstance(secagg, SecaggTerms):
            if plan.distributed is not None:
                yield f"noise: a share of it hides no one from a server that reads single updates ({secagg.kind})"
            return
        yield from _schedule(plan, secagg)
        if secagg.run != self.privacy.run:
            yield "noise: secure aggregation is of another run than the privacy plan"
        if secagg.plan != hashlib.sha256(plan.model_dump_json().encode()).hexdigest():
            yield "noise: secure aggregation is bound to another privacy plan"
        if secagg.clip_norm != plan.clip_norm:
            yield f"clip norm: {secagg.clip_norm} for sums, {plan.clip_norm} in the plan"
        if plan.distributed is None:
            return
        needed = plan.distributed.survivors * plan.denominator
        if secagg.min_users < needed * (1 - _SLACK):
            yield f"noise: sized for {needed:g} users together, a sum of {secagg.min_users:g} may be opened"
        if secagg.bits < plan.distributed.bits:
            yield f"bits: sums modulo 2^{secagg.bits}, the plan needs 2^{plan.distributed.bits}"


def least_devices(terms: SecaggTerms) -> int:
    """Fewest devices in a sum that may be opened: the largest members first, until there are enough users."""
    users = sorted((member.users for member in terms.roster.members), reverse=True)
    totals = itertools.accumulate(users)
    enough = next(
        (k + 1 for k, total in enumerate(totals) if total >= terms.min_users * (1 - _SLACK)), len(users)
    )
    return max(terms.min_nodes, enough)


def _schedule(plan: PrivacyPlan, terms: SecaggTerms) -> Iterator[str]:
    schedule = terms.schedule
    if schedule.refit_rounds > plan.rounds or schedule.tuning_rounds:
        yield (
            f"schedule: {schedule.tuning_rounds} and {schedule.refit_rounds} rounds, the plan has {plan.rounds} of "
            "phase final"
        )
    if schedule.evaluate_every or schedule.refit_evaluation:
        yield "schedule: evaluations, which the plan does not cover"
