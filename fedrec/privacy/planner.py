"""Makes the plan that keeps a target: calibrates the noise, finds integers that fit, refuses what cannot work.

Out of scope: what a plan is (`plan`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.privacy._headroom import with_room
from fedrec.privacy._metrics_budget import metrics_for
from fedrec.privacy.accounting import calibrate
from fedrec.privacy.feasibility import check
from fedrec.privacy.integers import Carried, Integers, integers_of
from fedrec.privacy.noise_models import MECHANISMS, default_mechanism
from fedrec.privacy.plan import PrivacyPlan, check_delta
from fedrec.privacy.settings import InteractionPlan, PrivacySettings


def make_plan(
    settings: PrivacySettings,
    *,
    population: int,
    rounds: int,
    schedule: Sequence[float],
    parameters: int,
    sampling_rate: float = 1.0,
    dense_gradient: bool = False,
    carried: Carried | None = None,
    separation: int | None = None,
) -> PrivacyPlan:
    """The plan that keeps a target.

    Args:
        settings: the target and who is trusted.
        population: N.
        rounds: T.
        schedule: relative noise multiplier of each round.
        parameters: P.
        sampling_rate: q, the probability of taking part in a round, as implemented.
        dense_gradient: the update is a gradient of all parameters; without signal it is refused (see `feasibility`).
        carried: trust "central": how clean sums travel as integers; None: as real numbers.
        separation: a device takes part in at most one of so many rounds in a row, and keeps to that itself; None:
            in any of them.

    Raises:
        PrivacyRefused: the guarantee would be meaningless, or nothing could be learned, and `force` is not set.
        ConfigError: settings that do not fit together; all problems in one message.
    """
    delta = population**-1.1 if settings.delta is None else settings.delta
    check_delta(delta, population)
    ever = 1.0 - (1.0 - sampling_rate) ** rounds
    if delta >= ever:
        raise PrivacyRefused(
            f"delta is {delta:.3g} and the probability of ever taking part is {ever:.3g}: a release without noise "
            "would pass as private; lower privacy.delta or raise federation.sampling_rate"
        )
    if len(schedule) != rounds:
        raise PrivacyRefused(f"noise schedule of {len(schedule)} rounds for {rounds}: expected one each")
    try:
        plan = _calibrated(
            settings, delta, population, rounds, schedule, parameters, sampling_rate, carried, separation
        )
    except ValidationError as error:
        raise ConfigError("privacy settings: " + "; ".join(map(_problem, error.errors()))) from error
    if not settings.force:
        check(plan, dense_gradient=dense_gradient)
    return plan


def _calibrated(
    settings: PrivacySettings,
    delta: float,
    population: int,
    rounds: int,
    schedule: Sequence[float],
    parameters: int,
    sampling_rate: float,
    carried: Carried | None,
    separation: int | None,
) -> PrivacyPlan:
    name = settings.mechanism
    model = MECHANISMS.get(name or default_mechanism(settings.unit, settings.trust), paths=True)
    accountant = settings.accountant if settings.accountant in model.accountants else model.accountants[0]
    fields: dict[str, Any] = {
        "unit": settings.unit,
        "trust": model.trust,
        "mechanism": name,
        "target_epsilon": settings.epsilon,
        "delta": delta,
        "population": population,
        "sampling": "everyone" if sampling_rate == 1.0 else "poisson",
        "sampling_rate": sampling_rate,
        "rounds": rounds,
        "clip_norm": settings.clip_norm,
        "accountant": accountant,
        "parameters": parameters,
        "adaptive": settings.adaptive,
        "interaction": (settings.interaction or InteractionPlan()) if "interaction" in model.needs else None,
        "carried": carried,
        "noise_seed": settings.noise_seed,
    }
    if separation is not None:
        fields |= {"sampling": "min_separation", "cycle": separation}
    fields |= model.planned(dict(settings.options), fields)
    if settings.metrics == "noised":
        fields["metrics"] = metrics_for(settings, fields)

    def at(z: float, integers: Integers | None) -> PrivacyPlan:
        multipliers = tuple(z * each for each in schedule)
        return PrivacyPlan(**fields, noise_multipliers=multipliers, distributed=integers)

    def kept(integers: Integers | None) -> PrivacyPlan:
        left = at(0.0, integers).kept_delta
        z = calibrate(lambda z: at(z, integers).releases(), settings.epsilon, left, accountant)
        return at(z, integers)

    if "distributed" in model.needs:
        integers = integers_of(settings, delta, rounds, parameters)
        return with_room(kept, integers, chosen=settings.scale is not None)
    plan = kept(None)
    for z in plan.noise_multipliers:
        plan.update_multiplier(z)
    return plan


def _problem(item: Any) -> str:
    """One validation error as text: where, and what was expected."""
    place = ".".join(str(part) for part in item["loc"])
    return (f"{place}: " if place else "") + str(item["msg"]).removeprefix("Value error, ")
