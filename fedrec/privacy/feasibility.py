"""Can anything be learned under a plan? Said before training, with the levers that help, each computed.

The noise of a round has L2 norm z C sqrt(P); the mean of m clipped updates, at most C. Their ratio z sqrt(P) / m must
be well below 1 for gradient descent. Sums of counts and sufficient statistics concentrate their signal in few
directions and bear more noise, so for them the ratio is a warning and not a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self

from fedrec.core.errors import PrivacyRefused
from fedrec.privacy._releases import GaussianRelease, Release
from fedrec.privacy.accounting import calibrate
from fedrec.privacy.plan import PrivacyPlan

#: Below: the mean update stands out; above 1: it drowns.
EASY, LOST = 0.3, 1.0
#: Beyond it a guarantee says nothing that anyone could act on.
LARGEST_EPSILON = 100.0

Verdict = Literal["can learn", "hard", "cannot learn"]


@dataclass(frozen=True)
class Feasibility:
    """How a plan's noise compares to what is to be learned.

    Attributes:
        ratio: noise-to-clip ratio of the noisiest round, see `noise_to_clip`.
        verdict: in words.
        advice: one line per lever with the ratio that it leads to, the best first; empty where none is needed.
    """

    ratio: float
    verdict: Verdict
    advice: tuple[str, ...]


def feasibility(plan: PrivacyPlan) -> Feasibility:
    """Evaluate a plan; takes a second or two, since every lever asks for its own calibration."""
    ratio = noise_to_clip(plan)
    verdict: Verdict = "can learn" if ratio < EASY else "hard" if ratio <= LOST else "cannot learn"
    return Feasibility(ratio, verdict, () if verdict == "can learn" else _advice(plan))


def noise_to_clip(plan: PrivacyPlan) -> float:
    """Noise of the noisiest round over the largest possible mean update, both as L2 norms.

    z sqrt(P) / m with m = qN, with z of the independent noise that disturbs as much where noise is correlated; times
    sqrt(m) with trust "local", where every user adds the whole noise. For unit "interaction" each user takes
    T steps over batches of b, and the ratio is z sqrt(P) / (b sqrt(T m)).
    """
    rounds, root = range(1, plan.rounds + 1), math.sqrt(plan.parameters)
    if plan.interaction is not None:
        batch = plan.interaction.batch_rate * plan.interaction.max_interactions
        steps = plan.interaction.local_steps * plan.denominator
        return max(plan.noise_multipliers) * root / (batch * math.sqrt(steps))
    model, l2 = plan.noise_model, plan.clip_norm + plan.rounding
    noisiest = max(model.effective_std(round_, l2) for round_ in rounds)
    return noisiest * root / (plan.clip_norm * plan.denominator)


def check(plan: PrivacyPlan, *, dense_gradient: bool) -> None:
    """Refuse what promises nothing or cannot learn.

    Args:
        plan: of a run.
        dense_gradient: the update is a gradient of all parameters; for other models the ratio is no verdict.

    Raises:
        PrivacyRefused: with the reason and what helps.
    """
    if plan.target_epsilon > LARGEST_EPSILON:
        raise PrivacyRefused(
            f"privacy.epsilon is {plan.target_epsilon:g}: above {LARGEST_EPSILON:g} it protects no one; "
            "choose 1 to 10, or set privacy.force"
        )
    if plan.unit != "user" or not dense_gradient or noise_to_clip(plan) <= LOST:
        return
    found = feasibility(plan)
    raise PrivacyRefused(
        f"noise is {found.ratio:.2g} times the largest possible mean update: nothing can be learned; "
        + "; ".join(found.advice)
        + "; or set privacy.force to try"
    )


@dataclass(frozen=True)
class _Setting:
    """What the levers move: a plan of equal noise in all rounds, by its few numbers."""

    plan: PrivacyPlan
    epsilon: float
    delta: float
    population: int
    rate: float
    cycle: int
    rounds: int
    parameters: int
    trust: str

    @classmethod
    def of(cls, plan: PrivacyPlan) -> Self:
        return cls(
            plan,
            plan.target_epsilon,
            plan.delta,
            plan.population,
            plan.sampling_rate,
            plan.cycle or 1,
            plan.rounds,
            plan.parameters,
            plan.trust,
        )

    def ratio(self) -> float:
        """Noise-to-clip ratio after calibration; Gaussian noise stands in for discrete noise."""
        z = calibrate(self._releases, self.epsilon, self.delta, self.plan.accountant, rough=True)
        m, root = self.rate * self.population, math.sqrt(self.parameters)
        if self.plan.interaction is not None:
            limits = self.plan.interaction
            batch = limits.batch_rate * limits.max_interactions
            return z * root / (batch * math.sqrt(limits.local_steps * m))
        if self.trust == "local":
            return z * root / math.sqrt(m)
        integers = self.plan.distributed
        return z * root / m / (1.0 if integers is None else math.sqrt(integers.honest))

    def _releases(self, z: float) -> list[Release]:
        limits = self.plan.interaction
        if limits is not None:
            return [GaussianRelease(z, limits.local_steps * self.rounds, limits.batch_rate)]
        secret = self.trust == "central" and self.plan.sampling != "min_separation"
        rate = min(self.rate * self.cycle, 1.0) if secret else 1.0
        return [GaussianRelease(z, math.ceil(self.rounds / self.cycle), rate)]


def _advice(plan: PrivacyPlan) -> tuple[str, ...]:
    """Each lever on its own, the best first."""
    now = _Setting.of(plan)
    base = now.ratio()
    moved = sorted((lever.ratio(), text) for text, lever in _levers(now))
    # A plan of unequal noise is scaled as one of equal noise is.
    scale = noise_to_clip(plan) / base
    return tuple(f"{text}: ratio {ratio * scale:.2g}" for ratio, text in moved if ratio < 0.99 * base)


def _levers(now: _Setting) -> Iterator[tuple[str, _Setting]]:
    if now.rate < 1.0:
        yield "everyone in every round", replace(now, rate=1.0, cycle=1)
    if now.rounds > 1:
        fewer = max(1, now.rounds // 4)
        yield f"{fewer} rounds instead of {now.rounds}", replace(now, rounds=fewer)
    if now.parameters > 1:
        yield (
            "half the parameters (smaller embeddings, fewer items)",
            replace(now, parameters=now.parameters // 2),
        )
    larger = 10 * now.population
    yield (
        f"10 times the population ({larger} users, {now.rate * larger:.0f} a round)",
        replace(now, population=larger, delta=min(now.delta, larger**-1.1)),
    )
    yield f"epsilon {2 * now.epsilon:g} instead of {now.epsilon:g}", replace(now, epsilon=2 * now.epsilon)
    if now.trust == "local" and now.plan.interaction is None:
        yield "trust 'distributed' or 'central' instead of 'local'", replace(now, trust="central")
