"""The privacy plan: one frozen object that binds everything a guarantee depends on, so that it cannot disagree.

A person asks for epsilon; the plan holds what follows: sampling as implemented, clip norm, noise of every round,
the fixed denominator, delta, accountant. Nodes and coordinator take all of it from here, and epsilon can be computed
again from the plan alone.

Letters: N population, q sampling rate, T rounds, C clip norm, z noise multiplier, P parameters, m = qN cohort.
Out of scope: whether anything can be learned under it (`feasibility`), and carrying it out (`mechanism`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedrec.errors import ConfigError, PrivacyRefused
from fedrec.privacy.accounting import Accountant, calibrate
from fedrec.privacy.accounting import epsilon as epsilon_of
from fedrec.privacy.releases import GaussianRelease, Release, SkellamRelease
from fedrec.privacy.settings import AdaptiveClip, InteractionPlan, PrivacySettings, Trust, Unit

__all__ = ["AdaptiveClip", "Integers", "InteractionPlan", "PrivacyPlan", "PrivacySettings", "make_plan"]

#: Rounding may enlarge the integer sensitivity by this part when the scale is chosen here.
ROUNDING_COST = 0.01
#: Of delta, what rounding may take over all rounds.
ROUNDING_DELTA = 1e-3


class Integers(BaseModel):
    """How a distributed sum is carried by integers.

    Attributes:
        scale: integer steps per unit of the update.
        bits: sums are taken modulo 2^bits.
        survivors: part of the cohort that must reply; noise shares are sized for it.
        beta: probability, per round, that rounding moves a user's integers further than the sensitivity says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale: float = Field(gt=0)
    bits: int = Field(default=32, ge=8, le=48)
    survivors: float = Field(default=0.8, gt=0, le=1)
    beta: float = Field(gt=0, lt=1)


class PrivacyPlan(BaseModel):
    """What a run releases and what bounds it; see the module's text.

    Attributes:
        unit: whose contribution is hidden.
        trust: "central": the coordinator sees clean sums and adds the noise; "distributed": devices add shares of
            it; "local": every device adds all of it (always so for unit "interaction").
        adjacency: one unit's contribution is zeroed out; the population is public.
        target_epsilon, delta: what was asked for.
        population: N, public.
        sampling: as implemented: "poisson", an independent secret coin per user and round, or "everyone".
        sampling_rate: q.
        rounds: T.
        clip_norm: C, L2 bound of one user's whole update (unit "interaction": of one example's gradient).
        noise_multipliers: z of each round (unit "interaction": of every local step of that round).
        accountant: by which the target is kept.
        parameters: P, length of the longest vector sent.
        adaptive, distributed, interaction: details of the modes that need them.
        noise_seed: not None: noise can be foreseen, so NOTHING is private; for simulations on public data.
    """

    # A target may be infinite (no privacy asked for), which JSON has no number for.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    unit: Unit
    trust: Trust
    adjacency: Literal["zero-out"] = "zero-out"
    target_epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    population: int = Field(ge=1)
    sampling: Literal["everyone", "poisson"]
    sampling_rate: float = Field(gt=0, le=1)
    rounds: int = Field(ge=1)
    clip_norm: float = Field(gt=0, allow_inf_nan=False)
    noise_multipliers: tuple[float, ...]
    accountant: Accountant = "pld"
    parameters: int = Field(ge=1)
    adaptive: AdaptiveClip | None = None
    distributed: Integers | None = None
    interaction: InteractionPlan | None = None
    noise_seed: int | None = None

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        problems = [text for text, wrong in self._problems() if wrong]
        if problems:
            raise ValueError("; ".join(problems))
        _check_delta(self.delta, self.population)
        return self

    def _problems(self) -> list[tuple[str, bool]]:
        z = self.noise_multipliers
        return [
            (f"{len(z)} noise multipliers for {self.rounds} rounds", len(z) != self.rounds),
            (
                "noise multipliers must be finite numbers of at least 0",
                not all(0 <= value < math.inf for value in z),
            ),
            (
                f"sampling is {self.sampling!r} at rate {self.sampling_rate:g}: 'everyone' means rate 1",
                (self.sampling == "everyone") != (self.sampling_rate == 1.0),
            ),
            (
                "trust 'distributed' needs its integers, and nothing else has them",
                (self.trust == "distributed") != (self.distributed is not None),
            ),
            (
                "unit 'interaction' needs its local steps, and nothing else has them",
                (self.unit == "interaction") != (self.interaction is not None),
            ),
            (
                "unit 'interaction' adds its noise on the device: trust must be 'local'",
                self.unit == "interaction" and self.trust != "local",
            ),
            (
                "distributed noise is accounted by 'rdp'",
                self.trust == "distributed" and self.accountant != "rdp",
            ),
            (
                "adaptive clipping needs unit 'user' and trust 'central'",
                self.adaptive is not None and (self.unit, self.trust) != ("user", "central"),
            ),
        ]

    @property
    def denominator(self) -> float:
        """qN: fixed, whoever came."""
        return self.sampling_rate * self.population

    @property
    def amplification(self) -> float:
        """Sampling rate that may be claimed: only of secret coins, and against those who do not see who replied."""
        return self.sampling_rate if self.sampling == "poisson" and self.trust == "central" else 1.0

    def noise_std(self, round_: int, clip_norm: float | None = None) -> float:
        """Standard deviation of the noise on each value of the released sum of round `round_` (from 1).

        Raises:
            PrivacyRefused: unit "interaction", whose noise depends on the model's step.
        """
        if self.unit == "interaction":
            raise PrivacyRefused(
                "noise of unit 'interaction' depends on the model: use released_noise_std of `interaction`"
            )
        z, clip = self.noise_multipliers[round_ - 1], self.clip_norm if clip_norm is None else clip_norm
        if self.trust == "local":
            return z * clip * math.sqrt(self.denominator)
        if self.distributed is not None:
            return math.sqrt(self.share_variance(round_) * self.denominator) / self.distributed.scale
        return self.update_multiplier(z) * clip

    def update_multiplier(self, z: float) -> float:
        """Noise multiplier of the update itself where the count of unclipped updates takes part of the budget.

        Andrew et al. 2021 (arXiv 1905.03871), theorem 1: z_Δ = (z^-2 - (2 σ_b)^-2)^(-1/2), so that the pair of
        releases costs as much as one Gaussian of multiplier z.
        """
        if self.adaptive is None or z == 0:
            return z
        left = z**-2 - (2 * self.adaptive.count_noise_multiplier) ** -2
        if left <= 0:
            raise PrivacyRefused(
                f"privacy.adaptive.count_noise_multiplier is {self.adaptive.count_noise_multiplier:g}: expected more "
                f"than {z / 2:g}, half the noise multiplier of the whole; set it to {2 * z:.3g} or more"
            )
        return float(left**-0.5)

    @property
    def integer_sensitivity(self) -> tuple[float, float]:
        """(L2, L1) sensitivity of the rounded update, in integer units.

        Kairouz, Liu and Steinke 2021 (arXiv 2102.06387), proposition 26; integers satisfy L1 <= min(sqrt(P) L2, L2²).
        """
        if self.distributed is None:
            raise PrivacyRefused("integers belong to trust 'distributed': this plan has none")
        l2 = _rounded_norm(self.clip_norm * self.distributed.scale, self.parameters, self.distributed.beta)
        return l2, max(l2, min(math.sqrt(self.parameters) * l2, l2 * l2))

    def share_variance(self, round_: int) -> float:
        """Variance, in integer units, of the noise that one user's device adds."""
        if self.distributed is None:
            raise PrivacyRefused("noise shares belong to trust 'distributed': this plan has none")
        l2, _ = self.integer_sensitivity
        floor = self.distributed.survivors * self.denominator
        return (self.noise_multipliers[round_ - 1] * l2) ** 2 / floor

    def releases(self, rounds: int | None = None) -> list[Release]:
        """Everything that the first `rounds` rounds release about one unit."""
        done = self.noise_multipliers[: self.rounds if rounds is None else rounds]
        if self.interaction is not None:
            steps, rate = self.interaction.local_steps, self.interaction.batch_rate
            return [GaussianRelease(z, steps, rate) for z in done]
        if self.distributed is not None:
            l2, l1 = self.integer_sensitivity
            return [SkellamRelease(l2, l1, (z * l2) ** 2) for z in done]
        return [GaussianRelease(z, 1, self.amplification) for z in done]

    def epsilon(self, rounds: int | None = None, accountant: Accountant | None = None) -> float:
        """Epsilon at `delta` of the first `rounds` rounds; what rounding may break is taken off delta first."""
        lost = 0.0 if self.distributed is None else self.distributed.beta * self.rounds
        if lost >= self.delta:
            raise PrivacyRefused(
                f"rounding may fail with probability {lost:.2g}: expected far less than delta {self.delta:.2g}; "
                "lower distributed.beta"
            )
        return epsilon_of(self.releases(rounds), self.delta - lost, accountant or self.accountant)

    def warnings(self) -> list[str]:
        """What must be said beside the guarantee."""
        lines = []
        if self.noise_seed is not None:
            lines.append(
                "NOT PRIVATE: the noise comes from a seed; whoever knows it can take the noise away."
            )
        if self.delta > 0.1 / self.population:
            lines.append(
                f"delta = {self.delta:.2g} is above 1/(10 N) = {0.1 / self.population:.2g}: over the population, "
                "some user's data may leak outright with a probability that is not negligible."
            )
        return lines


def make_plan(
    settings: PrivacySettings,
    *,
    population: int,
    rounds: int,
    schedule: Sequence[float],
    parameters: int,
    sampling_rate: float = 1.0,
    dense_gradient: bool = False,
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

    Raises:
        PrivacyRefused: the guarantee would be meaningless, or nothing could be learned, and `force` is not set.
        ConfigError: settings that do not fit together; all problems in one message.
    """
    from fedrec.privacy.feasibility import check

    delta = population**-1.1 if settings.delta is None else settings.delta
    _check_delta(delta, population)
    ever = 1.0 - (1.0 - sampling_rate) ** rounds
    if delta >= ever:
        raise PrivacyRefused(
            f"delta is {delta:.3g} and the probability of ever taking part is {ever:.3g}: a release without noise "
            "would pass as private; lower privacy.delta or raise federation.sampling_rate"
        )
    if len(schedule) != rounds:
        raise PrivacyRefused(f"noise schedule of {len(schedule)} rounds for {rounds}: expected one each")
    try:
        plan = _calibrated(settings, delta, population, rounds, schedule, parameters, sampling_rate)
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
) -> PrivacyPlan:
    accountant: Accountant = "rdp" if settings.trust == "distributed" else settings.accountant
    fields: dict[str, Any] = {
        "unit": settings.unit,
        "trust": "local" if settings.unit == "interaction" else settings.trust,
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
        "interaction": (settings.interaction or InteractionPlan())
        if settings.unit == "interaction"
        else None,
        "noise_seed": settings.noise_seed,
    }
    if settings.trust == "distributed":
        fields["distributed"] = _integers(settings, delta, rounds, parameters)

    def at(z: float) -> PrivacyPlan:
        return PrivacyPlan(**fields, noise_multipliers=tuple(z * each for each in schedule))

    lost = fields["distributed"].beta * rounds if settings.trust == "distributed" else 0.0
    plan = at(calibrate(lambda z: at(z).releases(), settings.epsilon, delta - lost, accountant))
    for z in plan.noise_multipliers:
        plan.update_multiplier(z)
    if plan.distributed is not None:
        _check_room(plan, plan.distributed)
    return plan


def _integers(settings: PrivacySettings, delta: float, rounds: int, parameters: int) -> Integers:
    beta = delta * ROUNDING_DELTA / rounds
    scale = settings.scale
    if scale is None:
        # Rounding adds about P/4 to the squared sensitivity; the rest of the bound is smaller, and checked.
        reach = math.sqrt(parameters)
        while _rounded_norm(reach, parameters, beta) > reach * (1.0 + ROUNDING_COST):
            reach *= 1.25
        scale = reach / settings.clip_norm
    return Integers(scale=scale, bits=settings.bits, survivors=settings.survivors, beta=beta)


def _check_room(plan: PrivacyPlan, integers: Integers) -> None:
    """The sum of a cohort's clipped integers and noise must not wrap around; a cohort is at most 8 sd above qN."""
    m = plan.denominator
    cohort = min(plan.population, m + 8.0 * math.sqrt(m) + 8.0)
    sd = max(math.sqrt(plan.share_variance(r) * cohort) for r in range(1, plan.rounds + 1))
    # A stochastically rounded value is up to 1 further from zero.
    needed = 2.0 * (cohort * (plan.clip_norm * integers.scale + 1.0) + 8.0 * sd)
    if needed > 2.0**integers.bits:
        raise PrivacyRefused(
            f"privacy.bits is {integers.bits}: sums of {cohort:.0f} users need "
            f"{math.ceil(math.log2(needed))} at scale {integers.scale:.4g}; raise privacy.bits or lower privacy.scale"
        )


def _check_delta(delta: float, population: int) -> None:
    if delta >= 1.0 / population:
        raise PrivacyRefused(
            f"privacy.delta is {delta:.3g} for {population} users: expected less than 1/N = {1 / population:.3g}, "
            "since 1/N allows to publish one user outright; leave it out for N^-1.1"
        )


def _problem(item: Any) -> str:
    """One validation error as text: where, and what was expected."""
    place = ".".join(str(part) for part in item["loc"])
    return (f"{place}: " if place else "") + str(item["msg"]).removeprefix("Value error, ")


def _rounded_norm(norm: float, parameters: int, beta: float) -> float:
    """Bound, with probability 1 - beta, on the L2 norm of a stochastically rounded vector of norm `norm` [P]."""
    root = math.sqrt(parameters)
    likely = norm**2 + parameters / 4 + math.sqrt(2.0 * math.log(1.0 / beta)) * (norm + root / 2)
    return math.sqrt(min(likely, (norm + root) ** 2))
