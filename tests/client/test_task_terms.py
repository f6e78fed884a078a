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
from fedrec.secagg.roster import Identity, Roster
from fedrec.secagg.schedule import Schedule
from fedrec.secagg.terms import CohortTerms, SecaggTerms
from fedrec_client.store.in_memory import MemoryStore
from fedrec_client.terms._task_terms import SIGMA, least_devices
from fedrec_client.terms.participation import Book
from fedrec_client.terms.policy import Policy
from fedrec_client.terms.task_evaluation import evaluate_task

DEVICES, ITEMS, EPSILON = 500, 300, 3.0


@lru_cache(maxsize=1)
def honest_task() -> dict[str, Any]:
    """What the project's own job would sign for cohorts of 500 devices, each in both rounds."""
    model = build(DpEaseConfig(top_items=40))
    settings = PrivacySettings(unit="user", trust="distributed", epsilon=EPSILON, delta=9e-6, force=True)
    sizes = [model.layout(ITEMS, round_).size for round_ in (1, 2)]
    plan = make_plan(
        settings, population=DEVICES, rounds=2, schedule=model.noise_schedule(2), parameters=max(sizes)
    )
    rules = SecaggTerms(
        run="run", roster=Roster(members=()), range_users=2 * DEVICES, clip_norm=plan.clip_norm,
        min_users=0.8 * DEVICES, plan="00", schedule=Schedule(refit_rounds=2, guarded=()),
    )  # fmt: skip
    terms = CohortTerms(rules=rules, signer=Identity.create().public.hex(), max_nodes=DEVICES)
    privacy = PrivacyTerms(plan=plan, run="run", dataset="d", limit_epsilon=EPSILON)
    node = {
        "privacy": privacy.model_dump(mode="json"),
        "aggregation": terms.model_dump(mode="json"),
        "evaluation": {},
    }
    return bound({"node": node, "rounds": 2, "cycle": None})


def bound(task: dict[str, Any]) -> dict[str, Any]:
    """The task with its aggregation bound to its plan, as its signer would bind it."""
    try:
        plan = PrivacyPlan.model_validate(task["node"]["privacy"]["plan"])
    except ValueError:
        return task
    digest = hashlib.sha256(plan.model_dump_json().encode()).hexdigest()
    task["node"]["aggregation"]["rules"]["plan"] = digest
    return task


def evaluated(task: dict[str, Any], policy: Policy | None = None) -> tuple[list[str], float]:
    """What speaks against it, and the epsilon of both participations."""
    against, epsilon = list[str](), 0.0
    for times in range(2):
        found, price = evaluate_task(policy or Policy(), task, Book(MemoryStore()), 1.7e9, times)
        against += found
        epsilon += price.epsilon
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


#: field -> changes to its weakest legal values, and beyond.
WEAKER: dict[str, list[Change]] = {
    "aggregation.kind": [
        put("aggregation", {"kind": "plain", "insecure": True}),
        put("aggregation", {"kind": "sealed", "run": "run", "public": "00" * 32}),
    ],
    "cohort.max_nodes": [put("aggregation.max_nodes", value) for value in (750, 5000)],
    "cohort.max_users": [put("aggregation.max_users", value) for value in (2, 1000)],
    "rules.run": [put("aggregation.rules.run", "another")],
    "rules.roster": [put("aggregation.rules.roster", {"members": [{"name": "x", "key": "00" * 32}]})],
    "rules.bits": [put("aggregation.rules.bits", 16)],
    "rules.range_users": [put("aggregation.rules.range_users", value) for value in (1, 2**40)],
    "rules.clip_norm": [put("aggregation.rules.clip_norm", value) for value in (None, 1e-9, 1e9)],
    "rules.min_users": [put("aggregation.rules.min_users", value) for value in (0, 1, 399)],
    "rules.threshold": [put("aggregation.rules.threshold", 0.5000001)],
    "rules.neighbours": [put("aggregation.rules.neighbours", value) for value in (2, 4, 20)],
    "rules.exact_sums": [put("aggregation.rules.exact_sums", True)],
    "schedule.tuning_rounds": [put("aggregation.rules.schedule.tuning_rounds", 1)],
    "schedule.refit_rounds": [put("aggregation.rules.schedule.refit_rounds", 3)],
    "schedule.evaluate_every": [put("aggregation.rules.schedule.evaluate_every", 1)],
    "schedule.refit_evaluation": [put("aggregation.rules.schedule.refit_evaluation", True)],
    "schedule.guarded": [put("aggregation.rules.schedule.guarded", ["train"])],
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
    "cohort.kind": "names the terms; another kind is above",
    "cohort.rules": "field by field",
    "cohort.signer": "signs rosters, which hold keys that devices made themselves",
    "cohort.dropout": "a smaller one makes fewer neighbours, whose chance of exposure is computed here",
    "rules.kind": "one value",
    "rules.rotate": "spreads real values before rounding; integers of a plan are rotated by the plan",
    "rules.noise_std": "room for noise that is added elsewhere",
    "rules.min_nodes": "the fewest devices follow from min_users too, and the larger of both counts",
    "rules.corrupted": "zero is its weakest value and the default; the chance of exposure is computed here",
    "rules.plan": "set by `bound` after every change; another one is refused (test below)",
    "rules.schedule": "field by field above",
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
        fields(CohortTerms, "cohort") | fields(SecaggTerms, "rules") | fields(Schedule, "schedule")
        | fields(PrivacyTerms, "privacy") | fields(PrivacyPlan, "privacy.plan") | fields(Integers, "integers")
    )  # fmt: skip
    assert (set(WEAKER) - {"aggregation.kind"}) | set(HARMLESS) == everything
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
    task["node"]["aggregation"]["rules"]["plan"] = "00" * 32
    assert any("another privacy plan" in line for line in evaluated(task)[0])


# -- rounds and cohorts ----------------------------------------------------------------------------------------------


def test_participations_beyond_the_plan_are_refused() -> None:
    against, price = evaluate_task(Policy(), honest_task(), Book(MemoryStore()), 1.7e9, 2)
    assert any("took part 2 times" in line for line in against) and price.epsilon == 0


@pytest.mark.parametrize(("cycle", "rounds"), [(2, 2), (1, 2), (None, 3)])
def test_rounds_that_the_plan_does_not_cover_are_refused(cycle: int | None, rounds: int) -> None:
    against, _ = evaluated(honest_task() | {"cycle": cycle, "rounds": rounds})
    assert any(line.startswith("rounds: ") for line in against)


def test_a_cohort_that_is_smaller_than_the_app_wants_is_refused() -> None:
    assert not evaluated(honest_task(), Policy(min_cohort=DEVICES))[0]
    against, _ = evaluated(honest_task(), Policy(min_cohort=DEVICES + 1))
    assert any(f"cohort: {DEVICES} devices" in line for line in against)


def test_over_selection_of_made_up_devices_costs() -> None:
    """A made-up part of the largest cohort adds no noise, whatever the target is."""
    task = copy.deepcopy(honest_task())
    task["node"]["aggregation"]["max_nodes"] = round(1.3 * DEVICES)
    assert evaluated(task)[1] > evaluated(honest_task())[1]


@pytest.mark.parametrize("dishonest", [0.0, 0.1, 0.2, 0.5, 0.9])
def test_the_charge_is_what_the_honest_part_is_worth(dishonest: float) -> None:
    plan = PrivacyPlan.model_validate(honest_task()["node"]["privacy"]["plan"])
    _, charged = evaluated(honest_task(), Policy(dishonest=dishonest))
    left = (0.8 - dishonest) * DEVICES
    expected = math.inf if left <= 0 else max(plan.epsilon(), local_epsilon(plan, left))
    assert charged == pytest.approx(expected)
    assert (charged > EPSILON * 1.001) == (dishonest > 0.1 + 1e-9)


def test_the_default_graph_hides_a_device_and_a_thin_one_does_not() -> None:
    terms = CohortTerms.model_validate(honest_task()["node"]["aggregation"])
    degree = terms.degree(DEVICES)
    assert log2_exposure(DEVICES, degree, terms.rules.shares_needed(degree), 0.1) <= -SIGMA
    assert log2_exposure(DEVICES, 2, 2, 0.1) > -SIGMA


@given(st.integers(1, 50), st.floats(0, 1))
@quick
def test_the_fewest_devices_are_the_largest_members(users: int, part: float) -> None:
    rules = SecaggTerms(
        run="r",
        roster=Roster(members=()),
        range_users=2000,
        min_users=part * 40 * users,
        schedule=Schedule(guarded=()),
    )
    found = least_devices(CohortTerms(rules=rules, signer="00" * 32, max_nodes=40, max_users=users))
    assert found == 3 or found * users >= rules.min_users * (1 - 1e-9)
    assert found == 3 or (found - 1) * users < rules.min_users


def test_a_task_survives_json() -> None:
    assert evaluated(json.loads(json.dumps(honest_task())))[0] == []
