"""Every field of a task counts: a weaker one makes a device refuse, or makes the charged epsilon rise."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import quick

from fedrec.core.errors import BadContent
from fedrec.privacy.integers import Integers
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import PrivacySettings
from fedrec.privacy.terms import PrivacyTerms
from fedrec.privacy.threat_model import local_epsilon
from fedrec.recommenders.private.dp_ease import DpEaseConfig
from fedrec.recommenders.registry import build
from fedrec.secagg.graph import log2_exposure
from fedrec.secagg.roster import Identity, Member, Roster
from fedrec.secagg.schedule import Schedule
from fedrec.secagg.terms import SecaggTerms
from fedrec_client.store.in_memory import MemoryStore
from fedrec_client.terms._task_terms import SIGMA, least_devices
from fedrec_client.terms.participation import Book
from fedrec_client.terms.policy import Policy
from fedrec_client.terms.task_evaluation import evaluate_task

DEVICES, ITEMS, EPSILON = 500, 300, 3.0


@lru_cache(maxsize=1)
def honest_task() -> dict[str, Any]:
    """What the project's own campaign would sign for 500 devices of one user each."""
    model = build(DpEaseConfig(top_items=40))
    settings = PrivacySettings(unit="user", trust="distributed", epsilon=EPSILON, delta=9e-6, force=True)
    sizes = [model.layout(ITEMS, round_).size for round_ in (1, 2)]
    plan = make_plan(
        settings, population=DEVICES, rounds=2, schedule=model.noise_schedule(2), parameters=max(sizes)
    )
    members = tuple(Member(name=str(k), key=Identity.create().public.hex()) for k in range(DEVICES))
    secagg = SecaggTerms(
        run="run", roster=Roster(members=members), range_users=DEVICES, clip_norm=plan.clip_norm,
        min_users=0.8 * DEVICES, plan="00", schedule=Schedule(refit_rounds=2, guarded=()),
    )  # fmt: skip
    privacy = PrivacyTerms(plan=plan, run="run", dataset="d", limit_epsilon=EPSILON)
    node = {
        "privacy": privacy.model_dump(mode="json"),
        "aggregation": secagg.model_dump(mode="json"),
        "evaluation": {},
    }
    return bound({"node": node, "rounds": 2})


def bound(task: dict[str, Any]) -> dict[str, Any]:
    """The task with its aggregation bound to its plan, as its signer would bind it."""
    try:
        plan = PrivacyPlan.model_validate(task["node"]["privacy"]["plan"])
    except ValueError:
        return task
    digest = hashlib.sha256(plan.model_dump_json().encode()).hexdigest()
    task["node"]["aggregation"]["plan"] = digest
    return task


def evaluated(task: dict[str, Any], policy: Policy | None = None) -> tuple[list[str], float]:
    against, epsilon, _ = evaluate_task(policy or Policy(), task, Book(MemoryStore()), 1.7e9)
    return against, epsilon


def test_an_honest_task_passes_at_its_own_epsilon() -> None:
    against, epsilon = evaluated(honest_task())
    assert not against
    assert epsilon == pytest.approx(EPSILON, rel=1e-3)


# -- every field ---------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], None]


def put(path: str, value: Any) -> Change:
    def change(task: dict[str, Any]) -> None:
        *way, last = path.split(".")
        at = task["node"]
        for name in way:
            at = at[name]
        at[last] = value

    return change


def members(count: int, **fields: Any) -> Change:
    def change(task: dict[str, Any]) -> None:
        roster = task["node"]["aggregation"]["roster"]["members"]
        roster[:] = [each | fields for each in roster[:count]]

    return change


#: field -> changes to its weakest legal values, and beyond.
WEAKER: dict[str, list[Change]] = {
    "aggregation.kind": [
        put("aggregation", {"kind": "plain", "insecure": True}),
        put("aggregation", {"kind": "sealed", "run": "run", "public": "00" * 32}),
    ],
    "aggregation.run": [put("aggregation.run", "another")],
    "aggregation.roster": [members(3), members(99)],
    "aggregation.bits": [put("aggregation.bits", 16)],
    "aggregation.range_users": [put("aggregation.range_users", 1), put("aggregation.range_users", 2**40)],
    "aggregation.clip_norm": [put("aggregation.clip_norm", value) for value in (None, 1e-9, 1e9)],
    "aggregation.min_users": [put("aggregation.min_users", value) for value in (0, 1, 399)],
    "aggregation.threshold": [put("aggregation.threshold", 0.5000001)],
    "aggregation.neighbours": [put("aggregation.neighbours", value) for value in (2, 4, 20)],
    "aggregation.exact_sums": [put("aggregation.exact_sums", True)],
    "aggregation.schedule.tuning_rounds": [put("aggregation.schedule.tuning_rounds", 1)],
    "aggregation.schedule.refit_rounds": [put("aggregation.schedule.refit_rounds", 3)],
    "aggregation.schedule.evaluate_every": [put("aggregation.schedule.evaluate_every", 1)],
    "aggregation.schedule.refit_evaluation": [put("aggregation.schedule.refit_evaluation", True)],
    "member.users": [members(DEVICES, users=2), members(3, users=1000, vouched=True)],
    "privacy.run": [put("privacy.run", "another")],
    "privacy.ledger": [put("privacy.ledger", "/tmp/of-another")],
    "privacy.plan.unit": [put("privacy.plan.unit", "interaction")],
    "privacy.plan.trust": [put("privacy.plan.trust", value) for value in ("central", "local")],
    "privacy.plan.mechanism": [
        put("privacy.plan.mechanism", value) for value in ("central", "local", "unknown", "os:system")
    ],
    "privacy.plan.options": [put("privacy.plan.options", [["bands", 2], ["coefficients", [0.6, 0.8]]])],
    "privacy.plan.cycle": [put("privacy.plan.cycle", value) for value in (2, 50)],
    "privacy.plan.delta": [put("privacy.plan.delta", 0.0019)],
    "privacy.plan.population": [put("privacy.plan.population", 10_000)],
    "privacy.plan.rounds": [put("privacy.plan.rounds", 3)],
    "privacy.plan.clip_norm": [put("privacy.plan.clip_norm", 100.0)],
    "privacy.plan.noise_multipliers": [
        put("privacy.plan.noise_multipliers", value) for value in ([0.0, 0.0], [0.1, 5.0])
    ],
    "privacy.plan.accountant": [put("privacy.plan.accountant", "pld")],
    "privacy.plan.noise_seed": [put("privacy.plan.noise_seed", 1)],
    "privacy.plan.adaptive": [put("privacy.plan.adaptive", {"count_noise_multiplier": 1.0})],
    "privacy.plan.interaction": [put("privacy.plan.interaction", {})],
    "privacy.plan.carried": [put("privacy.plan.carried", {"scale": 1.0})],
    "privacy.plan.metrics": [
        put("privacy.plan.metrics", {"names": ["full/ndcg@10"], "noise_multiplier": 0.0})
    ],
    "privacy.plan.distributed": [put("privacy.plan.distributed", None)],
    "integers.scale": [put("privacy.plan.distributed.scale", 1e9)],
    "integers.bits": [put("privacy.plan.distributed.bits", value) for value in (8, 40)],
    "integers.survivors": [put("privacy.plan.distributed.survivors", 1.0)],
    "integers.corrupted": [put("privacy.plan.distributed.corrupted", 0.0)],
    "integers.beta": [put("privacy.plan.distributed.beta", 0.9)],
}
#: field -> why no value of it takes anything from a device.
HARMLESS = {
    "aggregation.rotate": "spreads real values before rounding; integers of a plan are rotated by the plan",
    "aggregation.noise_std": "room for noise that is added elsewhere",
    "aggregation.min_nodes": "the fewest devices follow from min_users too, and the larger of both counts",
    "aggregation.corrupted": "zero is its weakest value and the default; the chance of exposure is computed here",
    "aggregation.plan": "set by `bound` after every change; another one is refused (test below)",
    "aggregation.schedule": "field by field above",
    "aggregation.schedule.guarded": "every sum carries the plan's noise",
    "member.name": "a label",
    "member.key": "a key of no device makes one that never answers",
    "member.vouched": "with users, above",
    "privacy.plan": "field by field",
    "privacy.dataset": "a label of the ledger, which a device keeps by itself",
    "privacy.limit_epsilon": "a device has limits of its own",
    "privacy.plan.adjacency": "one value",
    "privacy.plan.target_epsilon": "a target: epsilon is computed anew from the noise",
    "privacy.plan.sampling": "with its rate; no amplification is claimed under trust distributed",
    "privacy.plan.sampling_rate": "smaller cohorts make larger shares of noise",
    "privacy.plan.parameters": "a longer vector than that is refused where it is made (test below)",
    "integers.rotation_seed": "public in any case",
}


def fields(model: type[Any], prefix: str) -> set[str]:
    return {f"{prefix}.{name}" for name in model.model_fields}


def test_no_field_of_a_task_is_forgotten() -> None:
    everything = (
        fields(SecaggTerms, "aggregation") | fields(Schedule, "aggregation.schedule") | fields(Member, "member")
        | fields(PrivacyTerms, "privacy") | fields(PrivacyPlan, "privacy.plan") | fields(Integers, "integers")
    )  # fmt: skip
    assert set(WEAKER) | set(HARMLESS) == everything
    assert not set(WEAKER) & set(HARMLESS)


@pytest.mark.parametrize("field", sorted(WEAKER))
def test_a_weaker_field_is_refused_or_charged_more(field: str) -> None:
    for change in WEAKER[field]:
        task = copy.deepcopy(honest_task())
        change(task)
        if not field.startswith("aggregation.kind"):
            bound(task)
        try:
            against, epsilon = evaluated(task)
        except BadContent as error:
            assert "\n" not in str(error)
            continue
        assert against or epsilon > EPSILON * 1.001, field


@given(changes=st.lists(st.sampled_from(sorted(WEAKER)), min_size=1, max_size=3, unique=True), data=st.data())
@quick
def test_weaker_fields_do_not_make_up_for_each_other(changes: list[str], data: st.DataObject) -> None:
    task = copy.deepcopy(honest_task())
    for field in changes:
        try:
            data.draw(st.sampled_from(WEAKER[field]))(task)
        except (KeyError, TypeError):
            return  # a change of something that another one took away
    if "aggregation.kind" not in changes:
        bound(task)
    try:
        against, epsilon = evaluated(task)
    except BadContent:
        return
    assert against or epsilon > EPSILON * 1.001


def test_a_task_bound_to_another_plan_is_refused() -> None:
    task = copy.deepcopy(honest_task())
    task["node"]["aggregation"]["plan"] = "00" * 32
    assert any("another privacy plan" in line for line in evaluated(task)[0])


# -- users are counted ----------------------------------------------------------------------------------------------


def test_made_up_devices_that_declare_many_users() -> None:
    """One real device beside two of a thousand users each: the noise would be theirs, and they leave it out."""
    for vouched in (False, True):
        task = copy.deepcopy(honest_task())
        roster = task["node"]["aggregation"]["roster"]["members"]
        del roster[3:]
        for member in roster[1:]:
            member |= {"users": 1000, "vouched": vouched}
        task["node"]["aggregation"] |= {"min_users": 1601, "range_users": 2001}
        task["node"]["privacy"]["plan"]["population"] = 2001
        try:
            against, _ = evaluated(bound(task))
        except BadContent as error:
            assert not vouched and "users and vouched is false" in str(error)
            continue
        kinds = {line.partition(":")[0] for line in against}
        assert vouched and "cohort" in kinds
        assert any("speaks for 1000" in line for line in against) and any(
            "3 devices" in line for line in against
        )


@pytest.mark.parametrize("dishonest", [0.0, 0.1, 0.2, 0.5, 0.9])
def test_the_charge_is_what_the_honest_part_is_worth(dishonest: float) -> None:
    plan = PrivacyPlan.model_validate(honest_task()["node"]["privacy"]["plan"])
    _, charged = evaluated(honest_task(), Policy(dishonest=dishonest))
    left = (0.8 - dishonest) * DEVICES
    expected = math.inf if left <= 0 else max(plan.epsilon(), local_epsilon(plan, left))
    assert charged == pytest.approx(expected)
    assert (charged > EPSILON * 1.001) == (dishonest > 0.1 + 1e-9)


def test_the_default_graph_hides_a_device_and_a_thin_one_does_not() -> None:
    terms = SecaggTerms.model_validate(honest_task()["node"]["aggregation"])
    degree = terms.degree(DEVICES)
    assert log2_exposure(DEVICES, degree, terms.shares_needed(degree), 0.1) <= -SIGMA
    assert log2_exposure(DEVICES, 2, 2, 0.1) > -SIGMA


@given(st.lists(st.integers(1, 50), min_size=3, max_size=40), st.floats(0, 1))
@quick
def test_the_fewest_devices_are_the_largest_members(users: list[int], part: float) -> None:
    roster = Roster(
        members=tuple(
            Member(name=str(k), key=f"{k:064x}", users=n, vouched=n > 1) for k, n in enumerate(users)
        )
    )
    wanted = part * sum(users)
    terms = SecaggTerms(run="r", roster=roster, range_users=sum(users), clip_norm=1.0, min_users=wanted)
    found = least_devices(terms)
    assert found == 3 or sum(sorted(users)[-found:]) >= wanted * (1 - 1e-9)
    assert found == 3 or sum(sorted(users)[-(found - 1) :]) < wanted


def test_a_task_survives_json() -> None:
    assert evaluated(json.loads(json.dumps(honest_task())))[0] == []
