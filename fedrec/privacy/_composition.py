"""How several plans of one account add up, when the later ones were chosen after seeing what the earlier ones gave.

A schedule fixed in advance is accounted tightly (privacy-loss distributions). Plans chosen along the way are an
adaptive composition, for which a *filter* is needed: a rule that stops in time whatever was chosen. Three are valid:

* Gaussian: only Gaussian noise without sampling; the squared mu add up (Smith & Thakurta 2022, arXiv:2210.17520).
* Rényi: Rényi divergences at one order add up (Feldman & Zrnic 2021, arXiv:2008.11193). The best order is not known
  in advance, so each of a dozen counts as a filter of its own.
* basic: epsilons and deltas of the whole plans add up (Rogers et al. 2016, arXiv:1605.08294).

An account may go on while any of them allows it. They share delta: on every path of choices one of them is kept to at
the end, also on the way there, and the outcomes that end under each fail with at most its part of delta.

Out of scope: writing anything down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fedrec.privacy._gaussian import gaussian_epsilon
from fedrec.privacy._releases import Release
from fedrec.privacy._renyi import ORDERS, rdp, rdp_epsilon
from fedrec.privacy.accounting import gaussian_mu
from fedrec.privacy.plan import PrivacyPlan

#: Parts of delta; they add up to one.
_GAUSSIAN, _BASIC, _RENYI = 0.5, 0.25, 0.25
_FILTER_ORDERS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 14.0, 20.0, 32.0)

#: A plan, and how many of its first charges were made: its rounds, then its metrics.
Used = tuple[PrivacyPlan, int]


def composed_epsilon(used: Sequence[Used], delta: float) -> tuple[float, float]:
    """(epsilon, delta) that holds over all the plans together; one plan alone has its own accountant and delta.

    Args:
        used: the plans.
        delta: of the account.
    """
    if not used:
        return 0.0, 0.0
    if len(used) == 1:
        plan, rounds = used[0]
        return plan_epsilon(plan, rounds), plan.delta
    left = delta - sum(rounding_delta(plan, rounds) for plan, rounds in used)
    if left <= 0:
        return math.inf, delta
    filters = _gaussian(used, _GAUSSIAN * left), _renyi(used, _RENYI * left), _basic(used, _BASIC * delta)
    return min(filters), delta


def rounding_delta(plan: PrivacyPlan, rounds: int) -> float:
    """Part of delta that rounding to integers takes in a plan's first rounds."""
    return plan.lost_delta(rounds)


@lru_cache(maxsize=256)
def plan_epsilon(plan: PrivacyPlan, rounds: int) -> float:
    """Epsilon of a plan's first rounds by its own accountant; remembered, since a distribution takes seconds."""
    return plan.epsilon(rounds)


def _gaussian(used: Sequence[Used], delta: float) -> float:
    mu = gaussian_mu(_releases(used))
    return math.inf if mu is None else gaussian_epsilon(mu, delta)


def _renyi(used: Sequence[Used], delta: float) -> float:
    allowed = np.where(np.isin(ORDERS, _FILTER_ORDERS), rdp(_releases(used)), np.inf)
    return rdp_epsilon(allowed, delta / len(_FILTER_ORDERS))


def _basic(used: Sequence[Used], delta: float) -> float:
    """Whole plans, since where a plan was stopped may be a choice too."""
    if sum(plan.delta for plan, _ in used) > delta:
        return math.inf
    return sum(plan_epsilon(plan, plan.charges) for plan, _ in used)


def _releases(used: Sequence[Used]) -> list[Release]:
    return [release for plan, rounds in used for release in plan.releases(rounds)]
