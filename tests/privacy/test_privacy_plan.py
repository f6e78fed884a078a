from __future__ import annotations

import json
import math
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_plans import CENTRAL
from privacy_plans import plan as plan_of
from pydantic import ValidationError

from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.privacy.accounting import GaussianRelease, SkellamRelease, epsilon
from fedrec.privacy.feasibility import feasibility, noise_to_clip
from fedrec.privacy.integers import MOST_ROUNDING_COST, Carried, Integers
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.settings import AdaptiveClip, InteractionPlan, PrivacySettings
from fedrec_server.cli.answer import Answer
from fedrec_simulations.cli.privacy_plan import plan as plan_command

USERS = 5000


def made(settings_: dict[str, Any] | None = None, **changes: Any) -> PrivacyPlan:
    chosen: dict[str, Any] = {"unit": "user", "epsilon": 3.0} | (settings_ or {})
    arguments: dict[str, Any] = {
        "population": USERS,
        "rounds": 10,
        "schedule": (1.0,) * changes.get("rounds", 10),
        "parameters": 500,
    }
    return make_plan(PrivacySettings(**chosen), **(arguments | changes))


MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "everyone": ({}, {}),
    "poisson": ({}, {"sampling_rate": 0.1}),
    "rdp": ({"accountant": "rdp"}, {"sampling_rate": 0.1}),
    "schedule": ({}, {"rounds": 3, "schedule": (1.0, 2.0, 0.5)}),
    "adaptive": ({"adaptive": AdaptiveClip(count_noise_multiplier=25.0)}, {"sampling_rate": 0.1}),
    "distributed": ({"trust": "distributed"}, {"sampling_rate": 0.1}),
    "distributed, 16 bits": ({"trust": "distributed", "bits": 16, "noise_seed": 1}, {"sampling_rate": 0.1}),
    "carried": ({}, {"sampling_rate": 0.1, "carried": Carried(scale=1000.0, wrap=1e-9)}),
    "local": ({"trust": "local"}, {"sampling_rate": 0.1}),
    "interaction": ({"unit": "interaction", "interaction": InteractionPlan(local_steps=3)}, {}),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_plan_keeps_its_target_and_survives_json(mode: str) -> None:
    chosen, arguments = MODES[mode]
    plan = made(chosen, **arguments)

    assert 3.0 * 0.999 <= plan.epsilon() <= 3.0
    again = PrivacyPlan.model_validate_json(plan.model_dump_json())
    assert again == plan
    assert again.epsilon() == plan.epsilon()
    assert json.loads(json.dumps(plan.model_dump(mode="json"), allow_nan=False))["delta"] == plan.delta
    assert plan.delta == USERS**-1.1
    spent = [plan.epsilon(rounds) for rounds in range(plan.rounds + 1)]
    assert spent[0] == 0.0 and spent == sorted(spent) and spent[-1] == plan.epsilon()


@settings(max_examples=30, deadline=None)
@given(
    target=st.floats(0.05, 50.0),
    rounds=st.integers(1, 300),
    population=st.integers(20, 10**7),
    trust=st.sampled_from(["central", "distributed", "local"]),
    data=st.data(),
)
def test_every_plan_keeps_its_target(
    target: float, rounds: int, population: int, trust: str, data: st.DataObject
) -> None:
    schedule = data.draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=rounds, max_size=rounds))
    plan = made(
        {"epsilon": target, "trust": trust, "bits": 48, "clip_norm": 0.3},
        population=population,
        rounds=rounds,
        schedule=schedule,
    )
    assert plan.epsilon() <= target
    assert plan.delta < 1 / population
    ratios = {z / share for z, share in zip(plan.noise_multipliers, schedule, strict=True)}
    assert max(ratios) == pytest.approx(min(ratios))


def test_amplification_is_claimed_for_secret_coins_and_a_trusted_server_only() -> None:
    poisson = made({}, sampling_rate=0.1)
    assert poisson.amplification == 0.1
    assert poisson.releases()[0] == GaussianRelease(poisson.noise_multipliers[0], 1, 0.1)
    assert made({}).amplification == 1.0
    for trust in ("distributed", "local"):
        assert made({"trust": trust}, sampling_rate=0.1).amplification == 1.0
    local, everyone = made({"trust": "local"}, sampling_rate=0.1), made({})
    assert local.noise_multipliers == everyone.noise_multipliers
    assert poisson.noise_multipliers[0] < everyone.noise_multipliers[0]


def test_the_denominator_is_fixed_and_noise_follows_the_clip_norm() -> None:
    plan = made({"clip_norm": 0.5}, sampling_rate=0.1)
    assert plan.denominator == pytest.approx(500)
    assert plan.noise_std(1) == pytest.approx(0.5 * plan.noise_multipliers[0])
    assert plan.noise_std(1, clip_norm=2.0) == pytest.approx(2.0 * plan.noise_multipliers[0])
    local = made({"trust": "local", "clip_norm": 0.5}, sampling_rate=0.1)
    assert local.noise_std(1) == pytest.approx(0.5 * local.noise_multipliers[0] * math.sqrt(500))
    with pytest.raises(PrivacyRefused, match="released_noise_std"):
        made({"unit": "interaction"}).noise_std(1)


def test_adaptive_clipping_is_paid_for() -> None:
    count = 4.0
    plan = made({"adaptive": AdaptiveClip(count_noise_multiplier=count), "epsilon": 10.0})
    fixed = made({"epsilon": 10.0})
    z = plan.noise_multipliers[0]

    # The pair (update, count of sensitivity 1/2) costs exactly one Gaussian of multiplier z.
    pair = [GaussianRelease(plan.noise_std(1)), GaussianRelease(2 * count)]
    assert epsilon(pair, 1e-6) == pytest.approx(epsilon([GaussianRelease(z)], 1e-6))
    assert z == fixed.noise_multipliers[0]
    assert plan.noise_std(1) > fixed.noise_std(1)


def test_a_count_with_too_little_noise_is_refused() -> None:
    with pytest.raises(PrivacyRefused, match=r"count_noise_multiplier is 0\.5.*set it to"):
        made({"adaptive": AdaptiveClip(count_noise_multiplier=0.5)})


@pytest.mark.parametrize(("corrupted", "honest"), [(0.0, 0.7), (0.2, 0.5), (0.9, 0.35)])
def test_distributed_noise_is_sized_for_the_honest_survivors(corrupted: float, honest: float) -> None:
    """Never for less than half of the survivors, whatever part of them is feared."""
    fields = {"trust": "distributed", "survivors": 0.7, "clip_norm": 2.0, "corrupted": corrupted}
    plan = made(fields, sampling_rate=0.1)
    integers = plan.distributed
    assert integers is not None
    l2, l1 = plan.integer_sensitivity
    release = plan.releases()[0]

    assert isinstance(release, SkellamRelease)
    assert (release.l2, release.l1) == (l2, l1)
    # Of the honest ones, the shares add up to what was accounted, and rounding has cost little.
    assert plan.share_variance(1) * honest * plan.denominator == pytest.approx(release.variance)
    assert 1.0 < l2 / (2.0 * integers.scale) <= 1.01
    assert l1 <= math.sqrt(500) * l2
    gaussian = made({"trust": "local", "accountant": "rdp"}, sampling_rate=0.1)
    assert plan.noise_multipliers[0] == pytest.approx(gaussian.noise_multipliers[0], rel=0.01)
    assert plan.noise_std(1) == pytest.approx(plan.noise_multipliers[0] * 2.0 / math.sqrt(honest), rel=0.011)


def test_rounding_takes_its_part_of_delta() -> None:
    plan = made({"trust": "distributed"})
    assert plan.distributed is not None
    assert plan.distributed.beta * plan.rounds == pytest.approx(plan.delta / 1000)
    assert plan.epsilon() > epsilon(plan.releases(), plan.delta, "rdp")
    careless = plan.model_copy(update={"distributed": plan.distributed.model_copy(update={"beta": 0.01})})
    with pytest.raises(PrivacyRefused, match="integers may fail"):
        careless.epsilon()


def test_integers_that_would_wrap_around_are_refused() -> None:
    with pytest.raises(PrivacyRefused, match=r"privacy\.bits is 16: sums of 5000 users need \d+"):
        made({"trust": "distributed", "bits": 16})
    # A small cohort of the same population needs less room.
    made({"trust": "distributed", "bits": 24}, sampling_rate=0.01)


def test_few_bits_are_rotated_unless_something_else_is_said() -> None:
    def seed(**chosen: Any) -> int | None:
        integers = made({"trust": "distributed"} | chosen, sampling_rate=0.01).distributed
        assert integers is not None
        return integers.rotation_seed

    assert seed(bits=32) is None and seed(bits=20, rotate=False) is None
    assert seed(bits=20) is not None and seed(bits=32, rotate=True) is not None
    # Public, and another one in every plan, but where everything is to be repeatable.
    assert seed(bits=20) != seed(bits=20)
    assert seed(bits=20, noise_seed=1) == seed(bits=20, noise_seed=1) != seed(bits=20, noise_seed=2)


def test_16_bits_are_planned_by_trading_rounding_for_room() -> None:
    """600 users and 3,706 rows of 32: 1 % of rounding does not fit, 4 % do; a lower scale set by hand fits too."""
    crowd: dict[str, Any] = {"population": 600, "parameters": 3706 * 32}
    chosen = {"trust": "distributed", "epsilon": 8.0, "bits": 16, "force": True}
    narrow, wide = made(chosen, **crowd), made(chosen | {"bits": 32}, **crowd)
    assert narrow.distributed is not None and wide.distributed is not None
    cost = narrow.integer_sensitivity[0] / narrow.distributed.scale - 1
    assert 0.01 < cost <= MOST_ROUNDING_COST
    assert 8.0 * 0.999 <= narrow.epsilon() <= 8.0
    assert narrow.noise_std(1) == pytest.approx(wide.noise_std(1) * (1 + cost) / 1.01, rel=0.01)

    fits = narrow.distributed.scale
    assert made(chosen | {"scale": fits}, **crowd).noise_std(1) == pytest.approx(narrow.noise_std(1))
    with pytest.raises(PrivacyRefused, match=r"need 17 at scale .*, rotated; raise privacy\.bits or lower"):
        made(chosen | {"scale": 1.05 * fits}, **crowd)
    with pytest.raises(PrivacyRefused, match=r"need 17 at scale .*, rotated; .*cost more than 25% of noise"):
        made(chosen, **crowd | {"population": 6000})
    with pytest.raises(PrivacyRefused, match="need 19"):
        made(chosen | {"rotate": False}, **crowd)


def test_rotated_integers_are_charged_for_all_coordinates() -> None:
    """3,000 values travel as 3,072."""
    integers = Integers(scale=10.0, beta=1e-9, rotation_seed=1)
    rotated, plain = (
        plan_of(trust="distributed", accountant="rdp", parameters=parameters, distributed=each)
        for parameters, each in (
            (3000, integers),
            (3072, integers.model_copy(update={"rotation_seed": None})),
        )
    )
    assert integers.coordinates(3000) == 3072 and rotated.parameters == 3000
    assert rotated.integer_sensitivity == plain.integer_sensitivity
    assert rotated.epsilon() == plain.epsilon()


def test_noise_on_sums_that_travel_as_integers_covers_rounding() -> None:
    """500 values, which a rotation would make 512, at 100 steps per unit."""
    chosen = {"clip_norm": 2.0}
    plain, carried = made(chosen), made(chosen, carried=Carried(scale=100.0))
    assert carried.noise_multipliers == plain.noise_multipliers
    assert carried.epsilon() == plain.epsilon()
    assert carried.noise_std(1) == pytest.approx(plain.noise_std(1) * (1 + math.sqrt(512) / 100.0 / 2.0))


def test_a_chance_of_wrapping_around_is_taken_off_delta() -> None:
    """Both of two neighbouring sums may wrap, in each of ten rounds."""
    delta, wrap = USERS**-1.1, 1e-6
    plan = made({}, carried=Carried(scale=100.0, wrap=wrap))
    assert plan.epsilon() == pytest.approx(epsilon(plan.releases(), delta - 20 * wrap))
    assert plan.noise_multipliers > made({}, carried=Carried(scale=100.0)).noise_multipliers
    with pytest.raises(PrivacyRefused, match="integers may fail"):
        made({}, carried=Carried(scale=100.0, wrap=1e-5))


def test_integers_for_clean_sums_do_not_go_with_other_modes() -> None:
    carried = Carried(scale=100.0)
    for chosen in (
        {"adaptive": AdaptiveClip(count_noise_multiplier=25.0)},
        {"trust": "local"},
        {"trust": "distributed"},
        {"unit": "interaction"},
    ):
        with pytest.raises(
            ConfigError, match=r"sums carried by integers (need a fixed clip norm|are not for)"
        ):
            made(chosen, carried=carried)


@pytest.mark.parametrize("delta", [1 / USERS, 0.5])
def test_delta_of_one_in_the_population_is_refused(delta: float) -> None:
    for force in (False, True):
        with pytest.raises(PrivacyRefused, match="1/N"):
            made({"delta": delta, "force": force})
    with pytest.raises(PrivacyRefused, match="1/N"):
        plan_of(delta=1e-3)


def test_warnings_say_when_delta_is_large_and_noise_foreseeable() -> None:
    assert [line for line in made({}).warnings() if "1/(10 N)" in line]
    assert made({"delta": 1e-9}).warnings() == []
    assert any("NOT PRIVATE" in line for line in made({"noise_seed": 1, "delta": 1e-9}).warnings())


def test_a_release_without_noise_never_passes_for_rarely_taking_part() -> None:
    with pytest.raises(PrivacyRefused, match="ever taking part"):
        made({}, rounds=1, schedule=(1.0,), sampling_rate=1e-6)


def test_meaningless_targets_need_force() -> None:
    with pytest.raises(PrivacyRefused, match="protects no one"):
        made({"epsilon": 500.0})
    assert made({"epsilon": 500.0, "force": True}).epsilon() <= 500.0


def test_noise_in_which_a_gradient_drowns_is_refused() -> None:
    hopeless = {"parameters": 10**8}
    with pytest.raises(PrivacyRefused, match=r"nothing can be learned; .*ratio .*set privacy\.force"):
        made({}, dense_gradient=True, **hopeless)
    forced = made({"force": True}, dense_gradient=True, **hopeless)
    assert feasibility(forced).verdict == "cannot learn"
    assert made({}, dense_gradient=False, **hopeless) == forced


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 5},
        {"noise_multipliers": (1.0, 1.0, 1.0, -1.0)},
        {"noise_multipliers": (1.0, 1.0, 1.0, math.nan)},
        {"noise_multipliers": (1.0, 1.0, 1.0, math.inf)},
        {"sampling": "poisson"},
        {"sampling_rate": 0.5},
        {"trust": "distributed"},
        {"distributed": Integers(scale=10.0, beta=1e-9)},
        {"interaction": InteractionPlan()},
        {"unit": "interaction"},
        {"unit": "interaction", "interaction": InteractionPlan()},
        {"adaptive": AdaptiveClip(count_noise_multiplier=9.0), "trust": "local"},
        {"clip_norm": 0.0},
        {"clip_norm": math.inf},
        {"population": 0},
        {"adjacency": "replace-one"},
        {"colour": "red"},
    ],
)
def test_a_plan_that_disagrees_with_itself_cannot_be_built(changes: dict[str, Any]) -> None:
    PrivacyPlan(**CENTRAL, noise_multipliers=(4.0,) * 4)
    with pytest.raises(ValidationError):
        PrivacyPlan(**{**CENTRAL, "noise_multipliers": (4.0,) * 4, **changes})


def test_settings_that_do_not_fit_are_one_line() -> None:
    adaptive = AdaptiveClip(count_noise_multiplier=9.0)
    with pytest.raises(ConfigError, match="adaptive clipping are not for mechanism") as caught:
        made({"trust": "local", "adaptive": adaptive})
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="noise multipliers must be finite"):
        made({}, schedule=(1.0,) * 9 + (-1.0,))
    with pytest.raises(PrivacyRefused, match="noise schedule of 2 rounds for 10"):
        made({}, schedule=(1.0, 1.0))


# --- feasibility


def test_ratio_is_noise_over_clip_norm() -> None:
    plan = made({"clip_norm": 3.0}, parameters=40_000)
    assert noise_to_clip(plan) == pytest.approx(plan.noise_multipliers[0] * 200 / USERS)
    local = made({"trust": "local"}, parameters=40_000)
    assert noise_to_clip(local) == pytest.approx(noise_to_clip(plan) * math.sqrt(USERS))


def test_ratio_of_movielens_like_users() -> None:
    # ML-1M, 3706 items of 32 numbers, 604 of 6040 users, 100 rounds, epsilon 3: .87.
    plan = made({}, population=6040, rounds=100, sampling_rate=0.1, parameters=3706 * 32)
    found = feasibility(plan)
    assert found.ratio == pytest.approx(0.87, abs=0.01)
    assert found.verdict == "hard"


def test_levers_are_computed_and_hold() -> None:
    plan = made({}, rounds=40, sampling_rate=0.1, parameters=50_000)
    found = feasibility(plan)
    promised = {line.split(": ratio ")[0]: float(line.split(": ratio ")[1]) for line in found.advice}

    everyone = made({}, rounds=40, parameters=50_000)
    assert promised["everyone in every round"] == pytest.approx(noise_to_clip(everyone), rel=0.06)
    fewer = made({}, rounds=10, sampling_rate=0.1, parameters=50_000)
    assert promised["10 rounds instead of 40"] == pytest.approx(noise_to_clip(fewer), rel=0.06)
    double = made({"epsilon": 6.0}, rounds=40, sampling_rate=0.1, parameters=50_000)
    assert promised["epsilon 6 instead of 3"] == pytest.approx(noise_to_clip(double), rel=0.06)
    larger = made({}, rounds=40, sampling_rate=0.1, parameters=50_000, population=10 * USERS)
    (text,) = (text for text in promised if "population" in text)
    assert promised[text] == pytest.approx(noise_to_clip(larger), rel=0.06)
    assert list(promised.values()) == sorted(promised.values())


def test_no_advice_where_none_is_needed() -> None:
    assert feasibility(made({}, parameters=10)).advice == ()


# --- the command


def run(line: str) -> Answer:
    app = typer.Typer()
    app.command()(plan_command)
    answer = typer.main.get_command(app).main(line.split(), standalone_mode=False)
    assert isinstance(answer, Answer)
    return answer


def test_the_command_says_what_a_target_asks_for() -> None:
    answer = run("--epsilon 3 --population 100000 --rounds 200 --cohort 1000 --parameters 237184")
    costs = answer.document["epsilon"]

    assert 2.99 < costs["pld"] <= 3.0 < costs["replace_one"] < costs["rdp"] < costs["without_amplification"]
    assert answer.document["noise_multiplier"] == pytest.approx(0.709, abs=0.002)
    assert answer.document["noise_to_clip"] == pytest.approx(0.345, abs=0.002)
    assert answer.document["verdict"] == "hard" and answer.document["advice"]
    assert PrivacyPlan.model_validate(answer.document["plan"]).epsilon() == costs["kept"]


def test_the_command_refuses_what_cannot_learn_unless_told_otherwise() -> None:
    line = "--epsilon 1 --population 1000 --rounds 50 --parameters 200000 --trust distributed"
    with pytest.raises(PrivacyRefused, match="nothing can be learned"):
        run(line)
    assert run(f"{line} --force").document["verdict"] == "cannot learn"
    assert run(f"{line} --closed-form").document["verdict"] == "cannot learn"


def test_the_command_shows_what_interaction_level_means_for_a_user() -> None:
    answer = run(
        "--epsilon 2 --population 5000 --rounds 2 --parameters 99 --unit interaction --max-interactions 20"
    )
    assert answer.document["epsilon"]["kept"] <= 2.0
    assert answer.document["epsilon"]["whole_user"] > 20.0
