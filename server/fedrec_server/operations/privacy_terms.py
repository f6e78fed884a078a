"""From a configuration to the privacy plan of its run, and to the terms that nodes and coordinator hold on to."""

from __future__ import annotations

import secrets

from fedrec.core.errors import PrivacyRefused
from fedrec.core.stage import RoundContext
from fedrec.privacy.integers import WRAP_CHANCE, Carried
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.planner import make_plan
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.registry import build
from fedrec.rounds.build import chain_of, round_layout
from fedrec.secagg.encoding import encoding_for
from fedrec_server.operations.sections import NoPrivacy
from fedrec_server.operations.specification import TaskSpecification


def plan_of(
    config: TaskSpecification, n_users: int, n_items: int, *, separation: int | None = None
) -> PrivacyPlan | None:
    """The plan, or None where privacy is switched off.

    Args:
        config: of the run.
        n_users: N, unless the configuration names a population; with a separation the users of one cohort.
        n_items: I.
        separation: of a job: a device takes part in at most one of so many rounds in a row; None: in all.

    Raises:
        PrivacyRefused: the guarantee would be meaningless, or nothing could be learned.
        ConfigError: the mechanism does not fit what is sent.
    """
    if isinstance(config.privacy, NoPrivacy):
        return None
    least = n_users * (separation or 1)
    population = config.privacy.population or least
    if population < least:
        raise PrivacyRefused(
            f"privacy.population is {population} and there are {least} users: delta is chosen by it, so it may "
            "not be less; leave it out"
        )
    recommender = build(config.model)
    rounds = recommender.fixed_rounds or config.federation.rounds
    nodes, gradient = config.node_settings(), recommender.gradient_rounds
    layouts = [
        round_layout(recommender.layout(n_items, r), n_items, nodes, r, gradient=gradient)
        for r in range(1, rounds + 1)
    ]
    parameters = max(layout.size for layout in layouts)
    plan = make_plan(
        config.privacy,
        population=population,
        rounds=rounds,
        schedule=recommender.noise_schedule(rounds),
        parameters=parameters,
        sampling_rate=config.federation.sampling_rate if separation is None else n_users / population,
        separation=separation,
        dense_gradient=recommender.gradient_rounds,
        carried=_carried(config, n_users, parameters),
    )
    # What nodes and coordinator would refuse is refused before data is laid out for them.
    chain_of(nodes, plan, gradient=gradient)
    mechanism_of(plan).layout(layouts[0], RoundContext(1, n_items=n_items))
    return plan


def range_users(config: TaskSpecification, n_users: int) -> int:
    """For how many users the integers of secure aggregation have room."""
    return max(config.secagg.range_users or 0, n_users, 1)


def _carried(config: TaskSpecification, n_users: int, size: int) -> Carried | None:
    """How clean sums travel as integers, for which the noise that is added later has to be a little larger.

    Rounding costs sqrt(n) / scale, which is most for the longest vector, of `size` values.
    """
    privacy = config.privacy
    if isinstance(privacy, NoPrivacy) or (privacy.aggregator, privacy.unit, privacy.trust) != (
        "secagg",
        "user",
        "central",
    ):
        return None
    rotated = config.secagg.rotation
    encoding = encoding_for(
        size,
        config.secagg.bits,
        users=range_users(config, n_users),
        clip_norm=privacy.clip_norm,
        numbers=0,
        rotation_seed=0 if rotated else None,
    )
    return Carried(scale=encoding.scale, wrap=WRAP_CHANCE if rotated else 0.0)


def terms_of(
    config: TaskSpecification, n_users: int, n_items: int, dataset: str, *, separation: int | None = None
) -> PrivacyTerms | None:
    """The terms of a new run, or None where privacy is switched off; arguments and errors as of `plan_of`."""
    plan = plan_of(config, n_users, n_items, separation=separation)
    if plan is None or isinstance(config.privacy, NoPrivacy):
        return None
    privacy = config.privacy
    return PrivacyTerms(
        plan=plan,
        run=secrets.token_hex(8),
        dataset=dataset,
        limit_epsilon=privacy.limit_epsilon or plan.target_epsilon,
        ledger=None if privacy.ledger is None else privacy.ledger.absolute(),
    )
