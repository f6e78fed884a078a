"""What an epsilon means to someone who is not a statistician: a word, and how well the best attacker can do.

The attacker knows everything but whether one user's data was used, sees everything that was released, and guesses.
Out of scope: whether the stated epsilon holds (`accounting`, audits).
"""

from __future__ import annotations

import math
from statistics import NormalDist

from fedrec.privacy._gaussian import gaussian_delta

#: Rate of false alarms at which an attacker's hits are quoted.
FALSE_ALARMS = 0.01


def tier(epsilon: float) -> str:
    """strong (to 1), reasonable (to 10) or weak, the tiers of Ponomareva et al. 2023, arXiv:2303.00654."""
    if epsilon <= 1:
        return "strong"
    return "reasonable" if epsilon <= 10 else "weak"


def attack_power(epsilon: float, delta: float, mu: float | None = None) -> dict[str, float]:
    """The most that any attacker can reach: bounds, both in [0, 1].

    Args:
        epsilon, delta: of the guarantee.
        mu: of the Gaussian that the releases amount to exactly, if they do; the bounds are then met (Dong, Roth & Su
            2019, arXiv:1905.02383), otherwise they follow from the pair (Kairouz, Oh & Viswanath 2015).

    Returns:
        advantage: largest difference between hits and false alarms; 0: blind guessing.
        hits: share of the users in the data who are recognised, at 1 % false alarms.
    """
    if mu is not None and math.isfinite(mu):
        hits = NormalDist().cdf(NormalDist().inv_cdf(FALSE_ALARMS) + mu)
        return {"advantage": gaussian_delta(mu, 0.0), "hits": hits}
    if math.isinf(epsilon):
        return {"advantage": 1.0, "hits": 1.0}
    shrunk = math.exp(-epsilon)
    advantage = (1 - shrunk + 2 * delta * shrunk) / (1 + shrunk)
    # e^epsilon overflows long before the other bound stops being the smaller one.
    growing = math.exp(min(epsilon, 50.0)) * FALSE_ALARMS + delta
    return {
        "advantage": min(1.0, advantage),
        "hits": min(1.0, growing, 1 - shrunk * (1 - delta - FALSE_ALARMS)),
    }
