"""The terms of a task, and what is wrong with them by themselves or beside each other.

A device trusts the signature of a task to say who wrote it, not that it is a good one. Every field counts: one that
is weaker than the privacy plan needs makes the device refuse, or makes the charged epsilon rise. Devices are counted,
not what they declare: an operator who makes devices up is met by `Policy.dishonest`, and beyond that part by nothing.
Out of scope: what an app allows (`policy`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fedrec.core.errors import AggregationRefused, PrivacyRefused
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.terms import PrivacyTerms
from fedrec.privacy.threat_model import local_epsilon
from fedrec.secagg.graph import log2_exposure
from fedrec.secagg.terms import LEAST_THRESHOLD, CohortTerms, SecaggTerms, Terms, parse_terms
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
        cycle: a device takes part in at most one of so many rounds in a row; None: in any.
        evaluation: settings of an evaluation, as they came.
    """

    aggregation: Terms
    privacy: PrivacyTerms | None
    rounds: int
    cycle: int | None
    evaluation: Mapping[str, Any]

    @classmethod
    def of(cls, task: Mapping[str, Any]) -> TaskTerms:
        """The terms of a task's payload; raises KeyError, TypeError or ValueError where they cannot be read."""
        node = task["node"]
        privacy = None if node["privacy"] is None else PrivacyTerms.model_validate(node["privacy"])
        cycle = task.get("cycle")
        return cls(
            parse_terms(node["aggregation"]),
            privacy,
            int(task.get("rounds", privacy.plan.rounds if privacy else 1)),
            None if cycle is None else int(cycle),
            node.get("evaluation") or {},
        )

    @property
    def plan(self) -> PrivacyPlan | None:
        """The privacy plan."""
        return None if self.privacy is None else self.privacy.plan

    def epsilon(self, dishonest: float, participations: int | None = None) -> float:
        """What taking part so often costs when a part of the cohort adds no noise and tells the server so.

        Args:
            dishonest: the part.
            participations: rounds in which this device takes part; None: as many as it may.
        """
        assert self.plan is not None
        secagg = self.aggregation
        try:
            count = self.plan.participations if participations is None else participations
            plan = self.plan.of_participations(count)
            if not plan.rounds:
                return 0.0
            planned = plan.epsilon()
            if plan.distributed is None or not isinstance(secagg, CohortTerms):
                return planned
            honest = secagg.rules.min_users - dishonest * secagg.max_nodes * secagg.max_users
            return math.inf if honest <= 0 else max(planned, local_epsilon(plan, honest))
        except PrivacyRefused:
            # The plan says itself that it bounds nothing, for example because rounding takes all of delta.
            return math.inf

    def against_carrier(self, policy: Policy) -> Iterator[str]:
        """What speaks against the way in which updates are summed."""
        terms = self.aggregation
        kind = "secagg" if isinstance(terms, CohortTerms) else terms.kind
        if kind not in policy.aggregators:
            yield f"aggregator: {kind}, this app allows {', '.join(policy.aggregators)}"
        if isinstance(terms, SecaggTerms):
            yield "cohort: a roster that is fixed for all rounds; devices take part in cohorts"
        if not isinstance(terms, CohortTerms):
            return
        devices, least = self._target(terms), least_devices(terms)
        if devices < policy.min_cohort:
            yield f"cohort: {devices} devices, this app wants {policy.min_cohort}"
        if least < policy.min_cohort / 2:
            yield f"cohort: a sum of {least} devices may be opened, this app wants half of {policy.min_cohort}"
        if terms.max_users > 1 and terms.max_users > policy.max_member_share * devices:
            yield (
                f"cohort: one member may speak for {terms.max_users} of {devices} users, this app allows "
                f"{policy.max_member_share:.0%}"
            )
        if terms.rules.threshold < LEAST_THRESHOLD:
            yield f"threshold: {terms.rules.threshold:g} of a neighbourhood, expected 2/3 or more"
        yield from _exposure(terms, {terms.max_nodes, devices, max(least, 2)}, policy.dishonest)
        if terms.rules.exact_sums:
            yield "privacy: exact sums are allowed by the terms"

    def _target(self, terms: CohortTerms) -> int:
        """Devices for which the plan's noise is sized."""
        return terms.rules.min_nodes if self.plan is None else round(self.plan.denominator)

    def against_plan(self) -> Iterator[str]:
        """What speaks against the plan beside the other terms; a task without one is refused before."""
        assert self.privacy is not None
        plan, terms = self.privacy.plan, self.aggregation
        if plan.metrics is not None:
            yield "metrics: the plan releases some, and this device holds nothing out to be evaluated"
        if "held_data" in self.evaluation:
            yield "evaluation: held_data belongs to simulations, not to a device"
        if self.privacy.ledger is not None:
            yield "ledger: the task names a folder, this device keeps its own book"
        if self.rounds > plan.rounds:
            yield f"rounds: {self.rounds} announced, the plan has {plan.rounds}"
        if self.cycle != plan.cycle or plan.sampling not in ("everyone", "min_separation"):
            yield (
                f"rounds: one in {self.cycle} is announced, the plan has sampling {plan.sampling} and a cycle of "
                f"{plan.cycle}"
            )
        if not isinstance(terms, CohortTerms):
            if plan.distributed is not None:
                yield f"noise: a share of it hides no one from a server that reads single updates ({terms.kind})"
            return
        rules = terms.rules
        yield from _schedule(plan, rules)
        if rules.run != self.privacy.run:
            yield "noise: secure aggregation is of another run than the privacy plan"
        if rules.plan != hashlib.sha256(plan.model_dump_json().encode()).hexdigest():
            yield "noise: secure aggregation is bound to another privacy plan"
        if rules.clip_norm != plan.clip_norm:
            yield f"clip norm: {rules.clip_norm} for sums, {plan.clip_norm} in the plan"
        if plan.distributed is None:
            return
        needed = plan.distributed.survivors * plan.denominator
        if rules.min_users < needed * (1 - _SLACK):
            yield f"noise: sized for {needed:g} users together, a sum of {rules.min_users:g} may be opened"
        if rules.bits < plan.distributed.bits:
            yield f"bits: sums modulo 2^{rules.bits}, the plan needs 2^{plan.distributed.bits}"


def least_devices(terms: CohortTerms) -> int:
    """Fewest devices in a sum that may be opened: the largest members first, until there are enough users."""
    return max(terms.rules.min_nodes, math.ceil(terms.rules.min_users * (1 - _SLACK) / terms.max_users))


def _exposure(terms: CohortTerms, sizes: set[int], dishonest: float) -> Iterator[str]:
    for size in sorted(sizes):
        try:
            degree = terms.degree(size)
            needed = terms.rules.shares_needed(degree)
            exposed = log2_exposure(size, degree, needed, dishonest)
        except AggregationRefused as error:
            yield f"threshold: {error}"
            continue
        if exposed > -SIGMA:
            yield (
                f"threshold: {needed} of {degree} neighbours open what one of {size} devices sent; with "
                f"{dishonest:.0%} of them dishonest too likely (2^{exposed:.0f})"
            )


def _schedule(plan: PrivacyPlan, terms: SecaggTerms) -> Iterator[str]:
    schedule = terms.schedule
    if schedule.refit_rounds > plan.rounds or schedule.tuning_rounds:
        yield (
            f"schedule: {schedule.tuning_rounds} and {schedule.refit_rounds} rounds, the plan has {plan.rounds} of "
            "phase final"
        )
    if schedule.evaluate_every or schedule.refit_evaluation:
        yield "schedule: evaluations, which the plan does not cover"
