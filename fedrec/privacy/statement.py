"""What a run may say about privacy: twelve fields, in words and in numbers, and never a bare epsilon.

The fields are those that a reader needs to evaluate a claim (Ponomareva et al. 2023, arXiv:2303.00654, on reporting),
with what is *not* covered among them. A run without privacy gets the same twelve. Every field is a mapping whose
`text` is a list of plain sentences; its other keys are the same facts for machines. Infinite numbers are null.

Out of scope: how a page looks, and gathering the facts of a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from fedrec.core.errors import ConfigError
from fedrec.core.files import PUBLIC, write_json
from fedrec.privacy._interpretation import tier
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.statement_fields import (
    Field,
    accountant_field,
    adjacency_field,
    guarantee_field,
    mechanism_field,
    number,
    released_field,
    sampling_field,
    unit_field,
    whole_user_epsilon,
)
from fedrec.privacy.threat_model import adversary, local_epsilon, uncovered

#: Names of the fields, in the order in which they are read.
FIELDS = (
    "unit",
    "adversary_and_trust",
    "adjacency",
    "guarantee",
    "released",
    "not_covered",
    "mechanism",
    "sampling",
    "accountant",
    "budget_period_and_composition",
    "audit",
    "provenance",
)

Statement = dict[str, Any]


class AuditFacts(BaseModel):
    """What an audit of this configuration found.

    Attributes:
        lower_bound: epsilon that the mechanism spends at least, at `confidence`.
        estimate: epsilon that fits the observations best; None: not estimated.
        canaries: made-up users that were looked for.
        largest_bound: the most that this number of canaries could ever have shown; None: not known.
        view: what the auditor saw, such as "the sum of every round" or "the final model".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lower_bound: float
    estimate: float | None = None
    confidence: float = 0.95
    canaries: int
    largest_bound: float | None = None
    view: str
    verdict: Literal["consistent", "VIOLATED", "inconclusive"]


class StatementFacts(BaseModel):
    """What was so in a run, as measured by whoever ran it.

    Attributes:
        rounds: rounds that were released.
        engine: how it ran, such as "in process" or "Flower".
        nodes: number of nodes.
        users_per_node: fewest users on a node.
        aggregator: "plain" or "sealed": the coordinator sees what every node sends; "secagg": sums over nodes.
        least_nodes: fewest nodes in a sum of secure aggregation.
        staleness: S: up to S + 1 cohorts were at work at once; 0: one after the other.
        simulated: its integers were summed without the cryptography.
        metrics: of the evaluation, what left the nodes: "exact" sums, which only a run without a plan lets out, sums
            that were "noised" under the plan, or "none".
        held_data: exact metrics were computed beside the run, by a researcher who holds the data himself.
        selected: rounds or settings were chosen by looking at these users' held-out interactions.
        tuned: settings were chosen in other runs on this data that are not charged here.
        exact_numbers: names of numbers that leave nodes without noise beside the update, such as "loss".
        lists_served: lists of recommendations are computed where the users' data is not.
        ledger: where spending is booked; None: nowhere.
        other_plans, other_epsilon, other_delta: what the account has spent in other runs, as far as the ledger knows.
        audit: of this configuration, or None.
        code: version of the code, with the commit if known.
        config_hash: fingerprint of the whole configuration.
        packages: versions of what computes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rounds: int
    engine: str
    nodes: int
    users_per_node: int
    aggregator: str = "plain"
    least_nodes: int = 0
    staleness: int = 0
    simulated: bool = False
    metrics: Literal["exact", "noised", "none"] = "none"
    held_data: bool = False
    selected: bool = False
    tuned: bool = False
    exact_numbers: tuple[str, ...] = ()
    lists_served: bool = False
    ledger: str | None = None
    other_plans: int = 0
    other_epsilon: float = 0.0
    other_delta: float = 0.0
    audit: AuditFacts | None = None
    code: str
    config_hash: str
    packages: Mapping[str, str] = {}


def statement(plan: PrivacyPlan | None, facts: StatementFacts) -> Statement:
    """The twelve fields by name, with `headline`, `warnings` and `private` before them.

    Raises:
        ConfigError: exact sums of metrics, or noised ones that are not in the plan, beside a plan.
    """
    if plan is not None and (
        facts.metrics == "exact" or (facts.metrics == "noised" and plan.metrics is None)
    ):
        raise ConfigError(
            f"metrics {facts.metrics!r} beside a privacy plan: a private run releases those of its plan, or none"
        )
    made = {
        "unit": unit_field(plan),
        "adversary_and_trust": adversary(
            plan,
            facts.aggregator,
            facts.nodes,
            facts.users_per_node,
            least_nodes=facts.least_nodes,
            simulated=facts.simulated,
        ),
        "adjacency": adjacency_field(plan),
        "guarantee": guarantee_field(plan, facts.rounds),
        "released": _overlapping(
            released_field(plan, facts.rounds, facts.metrics, facts.exact_numbers), facts.staleness
        ),
        "not_covered": {
            "text": uncovered(
                plan,
                plain=facts.aggregator != "secagg",
                metrics=facts.metrics,
                held_data=facts.held_data,
                exact_numbers=facts.exact_numbers,
                selected=facts.selected,
                tuned=facts.tuned,
                lists_served=facts.lists_served,
            ),
            "metrics": facts.metrics,
            "held_data": facts.held_data,
            "exact_numbers": list(facts.exact_numbers),
        },
        "mechanism": mechanism_field(plan),
        "sampling": sampling_field(plan),
        "accountant": accountant_field(plan),
        "budget_period_and_composition": _budget(plan, facts),
        "audit": _audit(plan, facts.audit),
        "provenance": _provenance(facts),
    }
    private = plan is not None and plan.noise_seed is None
    head = {
        "format": 1,
        "private": private,
        "headline": _headline(plan, made["guarantee"]),
        "warnings": _warnings(plan, facts),
    }
    return {**head, **{name: _finite(made[name]) for name in FIELDS}}


def write_statement(folder: Path, made: Statement) -> Path:
    """Write `privacy.json` into a run folder."""
    path = folder / "privacy.json"
    write_json(path, made, PUBLIC)
    return path


# The fields --------------------------------------------------------------------------------------------


def _overlapping(field: Field, staleness: int) -> Field:
    """What is released, where rounds overlap."""
    if not staleness:
        return field
    told = (
        f"Up to {staleness + 1} cohorts were at work at once, each on the model that it was given; a sum up to "
        f"{staleness} versions old counts with less weight. Each cohort is one release over its own members and is "
        "charged to them alone, applied or not."
    )
    return field | {"text": [*field["text"], told], "staleness": staleness}


def _budget(plan: PrivacyPlan | None, facts: StatementFacts) -> Field:
    if plan is None:
        return {"text": ["Nothing is booked: there is no budget."], "ledger": facts.ledger}
    metrics = " and the release of metrics" if plan.metrics is not None else ""
    text = [f"The epsilon covers all {plan.rounds} rounds{metrics} of this run together, not one round."]
    if facts.ledger is None:
        text.append("No ledger is kept: what other runs on the same users spent is not known and adds up.")
    else:
        text.append(
            "Each release is booked in an append-only ledger before it leaves; at the limit it refuses."
        )
        text.append("A new installation starts an empty ledger: what was spent before is then forgotten.")
        if facts.other_plans:
            text.append(
                f"Other runs on the same users and data have spent epsilon {number(facts.other_epsilon)} at delta "
                f"{facts.other_delta:.2g} ({facts.other_plans} plans). This comes on top of the guarantee above."
            )
        else:
            text.append("It knows of no other run on the same users and data.")
    text.append("Later runs on the same users and data add to what is said here; nothing is ever given back.")
    return {
        "text": text,
        "period": "this run",
        "ledger": facts.ledger,
        "other_plans": facts.other_plans,
        "other_epsilon": facts.other_epsilon,
        "other_delta": facts.other_delta,
    }


def _audit(plan: PrivacyPlan | None, audit: AuditFacts | None) -> Field:
    if audit is None:
        return {
            "text": ["This run was not audited: no one tried to refute what it says."],
            "audit": None,
        }
    text = [
        f"{audit.verdict}: {audit.canaries} made-up users were looked for in {audit.view}; epsilon is at least "
        f"{audit.lower_bound:.3g} at {audit.confidence:.0%} confidence."
    ]
    if plan is not None:
        text[0] += f" The stated one is {number(plan.epsilon())} at delta {plan.delta:.2g}."
    if audit.estimate is not None:
        text.append(f"The estimate is {audit.estimate:.3g}.")
    if audit.largest_bound is not None:
        text.append(
            f"With this many canaries no bound above {audit.largest_bound:.3g} could have been shown."
        )
    text.append("An audit can refute a guarantee, never prove it.")
    return {"text": text, "audit": audit.model_dump(mode="json")}


def _provenance(facts: StatementFacts) -> Field:
    return {
        "text": [
            f"Code {facts.code}; configuration {facts.config_hash}.",
            f"Engine: {facts.engine}, {facts.nodes} node{'s' if facts.nodes != 1 else ''}, the smallest with "
            f"{facts.users_per_node} user{'s' if facts.users_per_node != 1 else ''}.",
            *(
                [", ".join(f"{name} {number}" for name, number in facts.packages.items()) + "."]
                if facts.packages
                else []
            ),
        ],
        "code": facts.code,
        "config_hash": facts.config_hash,
        "engine": facts.engine,
        "packages": dict(facts.packages),
    }


# Above the fields --------------------------------------------------------------------------------------


def _headline(plan: PrivacyPlan | None, guarantee: Field) -> str:
    if plan is None:
        return "No differential privacy: nothing is promised to the users in this data."
    trust = mechanism_of(plan).trusted
    if "user_epsilon" in guarantee:
        trust = f"for a whole user it is {number(guarantee['user_epsilon'])}; {trust}"
    if plan.noise_seed is not None:
        return "NOT PRIVATE: the noise comes from a known seed. It may only be used to see what privacy would cost."
    what = f"all {plan.rounds} rounds" + (" and their metrics" if plan.metrics else "")
    return (
        f"Epsilon {number(guarantee['epsilon'])} for each {plan.unit} at delta {plan.delta:.2g}, over {what}, among "
        f"{plan.population:,} users; {trust}."
    )


def _warnings(plan: PrivacyPlan | None, facts: StatementFacts) -> list[str]:
    out = []
    if plan is None:
        out.append(
            "NO DIFFERENTIAL PRIVACY: what is released can tell that a user took part, and what they did."
        )
    else:
        if plan.noise_seed is not None:
            out.append(
                "NOT PRIVATE: the noise comes from a known seed and can be subtracted (simulation only)."
            )
        epsilon = whole_user_epsilon(plan)
        if tier(epsilon) == "weak":
            out.append(f"WEAK: for a whole user, epsilon is {number(epsilon)} at delta {plan.delta:.2g}.")
        if facts.exact_numbers:
            out.append(f"EXACT NUMBERS leave the nodes without noise: {', '.join(facts.exact_numbers)}.")
        if mechanism_of(plan).needs_secure_aggregation and facts.aggregator != "secagg":
            own = local_epsilon(plan, facts.users_per_node)
            out.append(
                "NO SECURE AGGREGATION: the server sees each node's contribution; against the server epsilon is "
                f"{number(own)} at delta {plan.delta:.2g}."
            )
    if facts.audit is not None and facts.audit.verdict == "VIOLATED":
        out.append("VIOLATED: an audit refuted the stated guarantee.")
    return out


def _finite(value: Any) -> Any:
    """The value with null for what JSON cannot say."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
