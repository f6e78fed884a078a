"""Devices that come when they are there, and keep themselves to one of `cycle` rounds in a row."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy._releases import GaussianRelease
from fedrec.privacy.accounting import epsilon as epsilon_of
from fedrec.privacy.ledger import Account, Ledger, Limit
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import AdaptiveClip, PrivacySettings
from fedrec.privacy.statement_fields import sampling_field

TRUSTS = ("central", "distributed", "local")


def made(
    trust: str, rounds: int, cycle: int | None, *, z: tuple[float, ...] = (), **chosen: Any
) -> PrivacyPlan:
    return make_plan(
        PrivacySettings(**({"unit": "user", "epsilon": 3.0, "trust": trust} | chosen)),
        population=10_000,
        rounds=rounds,
        schedule=z or (1.0,) * rounds,
        parameters=200,
        sampling_rate=1.0 if cycle is None else 0.01,
        separation=cycle,
    )


@settings(max_examples=30, deadline=None)
@given(trust=st.sampled_from(TRUSTS), rounds=st.integers(1, 60), times=st.integers(1, 80))
def test_as_many_releases_are_accounted_as_rounds_that_a_device_can_be_in(
    trust: str, rounds: int, times: int
) -> None:
    cycle = min(math.ceil(rounds / times), 100)
    plan = made(trust, rounds, cycle)

    assert plan.participations <= times
    assert len(plan.releases()) == plan.participations == math.ceil(rounds / cycle)
    assert plan.amplification == 1.0
    assert plan.epsilon() <= plan.target_epsilon
    assert plan.epsilon() == pytest.approx(plan.epsilon_of_participations(plan.participations))
    assert plan.denominator == pytest.approx(100)
    assert PrivacyPlan.model_validate_json(plan.model_dump_json()) == plan
    # No way of keeping apart gets a device into more rounds.
    for start in range(1, min(cycle, rounds) + 1):
        assert len(range(start, rounds + 1, cycle)) <= plan.participations


@settings(max_examples=15, deadline=None)
@given(
    shares=st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=2, max_size=7),
    cycle=st.integers(1, 4),
)
def test_no_choice_of_rounds_costs_more_than_is_accounted(shares: list[float], cycle: int) -> None:
    plan = made("central", len(shares), cycle, z=tuple(shares))
    rounds = range(len(shares))
    for times in range(plan.participations + 1):
        bound = plan.epsilon_of_participations(times)
        for chosen in itertools.combinations(rounds, times):
            if any(b - a < cycle for a, b in itertools.pairwise(chosen)):
                continue
            releases = [GaussianRelease(plan.noise_multipliers[k]) for k in chosen]
            assert epsilon_of(releases, plan.kept_delta, plan.accountant) <= bound * (1 + 1e-9) + 1e-12
    with pytest.raises(PrivacyRefused, match="the plan allows"):
        plan.epsilon_of_participations(plan.participations + 1)


def test_apart_needs_less_noise_than_all_rounds_and_as_much_as_few_rounds() -> None:
    every, apart, few = made("distributed", 20, 1), made("distributed", 20, 10), made("distributed", 2, 1)
    assert apart.noise_multipliers[0] < every.noise_multipliers[0]
    assert apart.noise_multipliers[0] == pytest.approx(few.noise_multipliers[0], rel=1e-3)


def test_the_ledger_of_a_job_charges_each_user_for_the_rounds_they_can_be_in(tmp_path: Path) -> None:
    plan, account = made("distributed", 10, 5), Account("each of the users", "films")
    with Ledger.open(tmp_path, Limit(plan.target_epsilon, plan.delta)) as ledger:
        ledger.reserve(account, "job", plan)
        spent = []
        for round_ in range(1, 11):
            ledger.charge(account, "job", round_, f"{round_:064x}")
            spent.append(ledger.spent(account).epsilon)
    once, twice = plan.epsilon_of_participations(1), plan.epsilon_of_participations(2)
    assert spent == pytest.approx([once] * 5 + [twice] * 5)
    assert twice == pytest.approx(plan.epsilon()) and twice <= plan.target_epsilon


def test_what_a_statement_says() -> None:
    found = sampling_field(made("distributed", 20, 10))
    assert "takes part in at most 2 of 20 rounds, and in at most one of 10 in a row" in found["text"][0]
    assert "the device itself keeps" in found["text"][0]
    assert not found["amplification_claimed"] and found["assumed"] == "min_separation"
    assert "in a row" not in sampling_field(made("distributed", 20, 1))["text"][0]


def test_plans_that_do_not_hold_together() -> None:
    plan = made("distributed", 20, 10)
    banded = {"trust": "central", "mechanism": "banded", "accountant": "pld", "distributed": None}
    for changes, message in (
        ({"cycle": None}, "'cyclic' and 'min_separation' have one"),
        ({"cycle": 200}, "expected at most 1/cycle"),
        ({"sampling": "cyclic"}, "groups of users that take turns are not for mechanism 'distributed'"),
        (banded, "rounds between which a device keeps out by itself are not for mechanism 'banded'"),
    ):
        with pytest.raises(ValueError, match=message):
            PrivacyPlan.model_validate(dict(plan) | changes)
    with pytest.raises(ValueError, match="expected 2 groups or more"):
        PrivacyPlan.model_validate(dict(plan) | {"sampling": "cyclic", "cycle": 1})
    with pytest.raises(Exception, match="metrics ask all users of the population at once"):
        made("central", 20, 10, metrics="noised")


def test_adaptive_clipping_is_accounted_apart_too() -> None:
    plan = made("central", 20, 10, adaptive=AdaptiveClip(count_noise_multiplier=50.0))
    assert len(plan.releases()) == 2
