"""Finding a scale at which the sum of a cohort's integers, noise and all, stays below the modulus.

A large scale makes rounding cheap, a small one leaves room. Out of scope: what either costs (`integers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy.integers import MOST_ROUNDING_COST, Integers, scale_for, with_scale
from fedrec.privacy.plan import PrivacyPlan

#: How often the scale is lowered; each time the noise is calibrated again.
TRIES = 3


def with_room(at: Callable[[Integers], PrivacyPlan], integers: Integers, *, chosen: bool) -> PrivacyPlan:
    """The plan whose sums do not wrap around; a scale that no one `chosen` gives way, at the price of rounding.

    Args:
        at: the plan that keeps the target with given integers.
        integers: as wished for.
        chosen: their scale was set by hand, and stays.

    Raises:
        PrivacyRefused: there is no room, or only at a scale at which rounding would cost too much noise.
    """
    plan = at(integers)
    least = scale_for(MOST_ROUNDING_COST, integers, plan.clip_norm, plan.parameters)
    for _ in range(TRIES):
        if _fits(plan, integers):
            return plan
        if chosen or not _fits(plan, with_scale(integers, least)):
            break
        low, high = least, integers.scale
        for _ in range(40):
            middle = (low + high) / 2.0
            low, high = (middle, high) if _fits(plan, with_scale(integers, middle)) else (low, middle)
        # A little less, since with more rounding the noise will be a little more.
        integers = with_scale(integers, max(least, 0.98 * low))
        plan = at(integers)
    raise PrivacyRefused(_no_room(plan, integers, chosen=chosen))


def fits(plan: PrivacyPlan) -> bool:
    """Whether the sums of a plan stay below its modulus; True for plans without integers."""
    return plan.distributed is None or _fits(plan, plan.distributed)


def _fits(plan: PrivacyPlan, integers: Integers) -> bool:
    return _needed(plan, integers) <= 2.0**integers.bits


def _needed(plan: PrivacyPlan, integers: Integers) -> float:
    """Integers that the sum of a cohort takes at most; a cohort is at most 8 standard deviations above qN."""
    m = plan.denominator
    cohort = min(plan.population, m + 8.0 * math.sqrt(m) + 8.0)
    there = plan.model_copy(update={"distributed": integers})
    std = max(math.sqrt(there.share_variance(r) * cohort) for r in range(1, plan.rounds + 1))
    return integers.needed(cohort, plan.clip_norm, plan.parameters, std)


def _no_room(plan: PrivacyPlan, integers: Integers, *, chosen: bool) -> str:
    scale, instead = integers.scale, "raise privacy.bits or lower privacy.scale"
    if not chosen:
        scale = min(scale, scale_for(MOST_ROUNDING_COST, integers, plan.clip_norm, plan.parameters))
        instead = f"raise privacy.bits (a lower scale would cost more than {MOST_ROUNDING_COST:.0%} of noise)"
    bits = math.ceil(math.log2(_needed(plan, with_scale(integers, scale))))
    rotated = "" if integers.rotation_seed is None else ", rotated"
    return (
        f"privacy.bits is {integers.bits}: sums of {plan.denominator:.0f} users need "
        f"{max(bits, integers.bits + 1)} at scale {scale:.4g}{rotated}; {instead}"
    )
