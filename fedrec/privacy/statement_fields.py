"""The fields of a privacy statement that follow from the plan, in words and in numbers.

Each is a mapping whose `text` is a list of plain sentences; the other keys are the same facts for machines. Who is
trusted, and what is not covered, is `trust`'s business; what happened in a run `statement`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, assert_never

from fedrec.privacy._composition import rounding_delta
from fedrec.privacy._interpretation import attack_power, tier
from fedrec.privacy.accounting import gaussian_mu, summary
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.noised_means import TUNING_NOT_COVERED
from fedrec.privacy.plan import PrivacyPlan

Field = dict[str, Any]


def unit_field(plan: PrivacyPlan | None) -> Field:
    """Who or what is protected."""
    if plan is None:
        return {
            "text": ["No one and nothing is protected: the run has no differential privacy."],
            "unit": "none",
        }
    if plan.unit == "user":
        text = "One user: everything that one user contributed to this run, over all its rounds and interactions."
        return {"text": [text], "unit": "user"}
    limits = plan.interaction
    most = limits.max_interactions if limits else None
    return {
        "text": [
            "One interaction of one user, not the user: someone's habits, which show in many interactions, are "
            "protected far less (see the guarantee).",
            f"At most {most} interactions of a user are used, the newest ones.",
        ],
        "unit": "interaction",
        "max_interactions": most,
    }


def adjacency_field(plan: PrivacyPlan | None) -> Field:
    """Which data sets the guarantee compares."""
    if plan is None:
        return {"text": ["None is defined."], "adjacency": None}
    what = "user's whole contribution" if plan.unit == "user" else "interaction's gradient"
    return {
        "text": [
            f"Two data sets are neighbours when one {what} is replaced by zero. How many users there are, "
            "and who, counts as known.",
            "A guarantee for replacing one user's data by any other user's would be weaker; its epsilon is given "
            "with the accountant.",
        ],
        "adjacency": plan.adjacency,
        "sensitivity": plan.clip_norm,
    }


def guarantee_field(plan: PrivacyPlan | None, rounds: int) -> Field:
    """Epsilon, delta and what they mean, for the whole plan."""
    if plan is None:
        return {"text": ["None. No finite epsilon holds for this run."], "epsilon": None, "delta": None}
    epsilon = plan.epsilon()
    costs = _costs(plan)
    # None where sampling makes the releases something else than one Gaussian.
    exact = gaussian_mu(plan.releases())
    power = attack_power(epsilon, plan.delta, exact)
    values: Field = {
        "epsilon": epsilon,
        "delta": plan.delta,
        "population": plan.population,
        "mu": costs["mu"],
        "rho": costs["rho"],
        "tier": tier(epsilon),
        "max_advantage": power["advantage"],
        "max_hits_at_1_percent_false_alarms": power["hits"],
        "rounds_planned": plan.rounds,
        "rounds_released": rounds,
    }
    text = [
        f"Epsilon {number(epsilon)} at delta {plan.delta:.2g} for each {plan.unit}, in a population of "
        f"{plan.population:,}: a {tier(epsilon)} guarantee (up to 1 strong, up to 10 reasonable, above weak).",
        _plainly(power, plan.unit),
        TUNING_NOT_COVERED,
    ]
    if plan.delta > 0.1 / plan.population:
        text.append(
            f"Delta is above a tenth of 1/N (N = {plan.population:,}). In that part of all cases the promise "
            "may fail altogether; smaller is better."
        )
    if rounds < plan.rounds:
        text.append(
            f"{rounds} of {plan.rounds} planned rounds were released. The epsilon is that of the whole plan, "
            "because when to stop may itself depend on the data."
        )
    whole = whole_user_epsilon(plan)
    if whole != epsilon:
        values["user_epsilon"] = whole
        text.append(
            f"For a whole user, the same releases have epsilon {number(whole)} at delta {plan.delta:.2g}: a "
            f"{tier(whole)} guarantee."
        )
    if plan.noise_seed is not None:
        values |= {"epsilon": None, "epsilon_if_noise_were_secret": epsilon, "tier": "none"}
        text = [
            "NOT PRIVATE: the noise comes from a known seed and can be subtracted. No finite epsilon holds for this "
            "run. What follows is what the same run would have with secret noise.",
            *text,
        ]
    return {"text": text, **values}


def released_field(
    plan: PrivacyPlan | None, rounds: int, metrics: str, exact_numbers: Sequence[str]
) -> Field:
    """What leaves the nodes or the coordinator."""
    if plan is None:
        text = [f"The sums of the users' updates of {rounds} rounds, without noise, and every model."]
    else:
        text = [mechanism_of(plan).released_sentence.format(rounds=rounds)]
    if plan is not None:
        text.append(
            "The model after every round and the final model; they are computed from those sums alone."
        )
        if plan.adaptive is not None:
            text.append("Each round's noised share of updates below the clip norm; it is charged.")
    text.append(_metrics_released(plan, metrics))
    if exact_numbers:
        text.append(f"Exact sums over the users of: {', '.join(exact_numbers)}.")
    return {
        "text": text,
        "rounds": rounds,
        "every_round": True,
        "metrics": metrics,
    }


def _metrics_released(plan: PrivacyPlan | None, metrics: str) -> str:
    if metrics == "exact":
        return "Sums of evaluation metrics over the users, exact, with counts for each item."
    if plan is None or plan.metrics is None:
        return "No evaluation metrics over the users."
    names = ", ".join(plan.metrics.names)
    if metrics == "none":
        return f"No evaluation metrics over the users, though {names} were planned and are part of epsilon."
    return (
        f"One noised sum of {names} and of the number of evaluated users, for the final model; it is charged. "
        "Nothing else of the evaluation: no counts of items, groups or lists."
    )


def mechanism_field(plan: PrivacyPlan | None) -> Field:
    """Clip, noise, denominator."""
    if plan is None:
        return {"text": ["No noise is added."], "noise": None}
    z = plan.noise_multipliers
    spread = f"{z[0]:.4g}" if min(z) == max(z) else f"{min(z):.4g} to {max(z):.4g}"
    mechanism = mechanism_of(plan)
    kind, where = mechanism.noise_kind, mechanism.noise_place
    text = [
        f"What one {plan.unit} adds is cut down to an L2 norm of at most {plan.clip_norm:g} over all parameters.",
        f"{kind} noise of {spread} times that norm is added {where}.",
        "An update that is broken counts as zero, and still counts.",
        f"Sums are divided by the fixed number {plan.denominator:g}, never by how many took part.",
    ]
    if plan.adaptive is not None:
        text.append("The clip norm follows a quantile of the update norms, found from noised counts.")
    values: Field = {
        "noise": kind,
        "trust": plan.trust,
        "clip_norm": plan.clip_norm,
        "noise_multipliers": list(z),
        "rounds": plan.rounds,
        "denominator": plan.denominator,
        "parameters": plan.parameters,
    }
    if plan.metrics is not None:
        text.append(
            f"Metrics: {len(plan.metrics.names)} values in [0, 1] and a 1 for each evaluated user, a vector of norm "
            f"at most {plan.metrics.bound:.3g}, with noise of {plan.metrics.noise_multiplier:.4g} times that."
        )
    if plan.options:
        values["options"] = dict(plan.options)
    for name in ("adaptive", "distributed", "interaction", "metrics"):
        part = getattr(plan, name)
        if part is not None:
            values[name] = part.model_dump(mode="json")
    if plan.distributed is not None:
        text.append("Updates are scaled and rounded at random to integers; the rounding is accounted for.")
    seeded = plan.noise_seed is not None
    text.append(
        "The noise is drawn from a seed that is written down: NOT PRIVATE."
        if seeded
        else "The noise is drawn from AES-256 in counter mode, under a fresh random key that is kept nowhere."
    )
    values["random_numbers"] = "seeded, not private" if seeded else "AES-256-CTR, fresh key"
    return {"text": text, **values}


def sampling_field(plan: PrivacyPlan | None) -> Field:
    """Who takes part in a round: as done, and as accounted."""
    if plan is None:
        return {"text": ["Of no consequence without a guarantee."], "implemented": None, "assumed": None}
    poisson = plan.turn_rate < 1.0 and plan.sampling != "min_separation"
    implemented = _implemented(plan)
    claimed = plan.amplification < 1.0
    text = [
        f"Implemented: {implemented}.",
        f"Assumed by the accountant: {implemented if claimed or plan.cycle else 'no sampling'}.",
    ]
    if poisson and not claimed:
        text.append(
            "No benefit is claimed for it: the server picks the cohort, and the guarantee is against it too."
        )
    if claimed:
        text.append("The benefit holds only against someone who does not learn who took part in which round.")
    values = {
        "implemented": plan.sampling,
        "sampling_rate": plan.sampling_rate,
        "cycle": plan.cycle,
        "assumed": plan.sampling if claimed or plan.cycle else "everyone",
        "amplification_claimed": claimed,
    }
    if plan.interaction is not None:
        text.append(
            f"Within a user, each local step uses each interaction with probability {plan.interaction.batch_rate:g} "
            "(Poisson), as implemented and as assumed; the device draws it and no one else sees it."
        )
        values["batch_rate"] = plan.interaction.batch_rate
    return {"text": text, **values}


def _implemented(plan: PrivacyPlan) -> str:
    """Who takes part in a round, in words."""
    drawn = f"joins {'its turn' if plan.cycle else 'each round'} with probability {plan.turn_rate:g}, independently"
    match plan.sampling:
        case "everyone":
            return "every user, in every round"
        case "poisson":
            return f"Poisson: each user {drawn}"
        case "min_separation":
            apart = "" if plan.cycle == 1 else f", and in at most one of {plan.cycle} in a row"
            return (
                f"devices that are here; each takes part in at most {plan.participations} of {plan.rounds} rounds"
                f"{apart}, which the device itself keeps"
            )
        case "cyclic":
            groups = f"users are spread over {plan.cycle} groups by a hash, and the groups take turns"
            return f"{groups}; each user {drawn if plan.turn_rate < 1.0 else 'joins every turn of its group'}"
        case _:
            assert_never(plan.sampling)


def accountant_field(plan: PrivacyPlan | None) -> Field:
    """How epsilon was computed, and what it would be otherwise."""
    if plan is None:
        return {"text": ["None was used."], "accountant": None}
    costs = _costs(plan)
    library = package_version("dp-accounting")
    gaussian = plan.amplification == 1.0 and costs["mu"] is not None
    if plan.accountant == "rdp":
        how = "Rényi divergences: a valid upper bound, looser than the truth."
    elif gaussian:
        how = "the closed form of the Gaussian mechanism: exact."
    else:
        how = "privacy loss distributions, with pessimistic rounding: a tight upper bound."
    text = [
        f"{plan.accountant.upper()} (dp-accounting {library}, fedrec {package_version('fedrec')}); here {how}",
        "The same schedule otherwise, at the same delta: "
        + "; ".join(
            f"{name} epsilon {number(value)}"
            for name, value in (
                ("by privacy loss distributions,", costs["pld"]),
                ("by Rényi divergences,", costs["rdp"]),
                ("without any benefit of sampling,", costs["without_amplification"]),
                ("when one contribution may be replaced by another,", costs["replace_one"]),
            )
            if value is not None
        )
        + ".",
    ]
    return {"text": text, "accountant": plan.accountant, "version": library, "same_schedule": costs}


def _plainly(power: Mapping[str, float], unit: str) -> str:
    who = "was in the data" if unit == "user" else "was among a user's interactions"
    whom = "a user" if unit == "user" else "one interaction"
    return (
        f"Read plainly: someone who sees all that was released and guesses whether {whom} {who} can, at "
        f"best, recognise {_percent(power['hits'])} of those who were, at the price of accusing 1% of "
        "those who were not. Blind guessing recognises 1%."
    )


@lru_cache(maxsize=16)
def _costs(plan: PrivacyPlan) -> Mapping[str, float | None]:
    return summary(plan.releases(), plan.delta - rounding_delta(plan, plan.charges))


@lru_cache(maxsize=16)
def whole_user_epsilon(plan: PrivacyPlan) -> float:
    """Epsilon of everything that a user contributed, where the plan may be about single interactions."""
    return mechanism_of(plan).user_epsilon()


def _percent(share: float) -> str:
    return (
        f"{share:.0%}"
        if 0.1 <= share < 0.995
        else (f"{share:.1%}" if share < 0.1 else "practically all (100%)")
    )


def number(epsilon: float) -> str:
    """An epsilon, for a sentence."""
    return "infinite" if math.isinf(epsilon) else f"{epsilon:.3g}" if epsilon < 1000 else f"{epsilon:,.0f}"


def package_version(package: str) -> str:
    """Version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
