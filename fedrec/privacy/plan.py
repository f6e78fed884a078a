"""The privacy plan: one frozen object that binds everything a guarantee depends on, so that it cannot disagree.

A user asks for epsilon; the plan holds what follows: sampling as implemented, clip norm, noise of every round,
the fixed denominator, delta, accountant. Nodes and coordinator take all of it from here, and epsilon can be computed
again from the plan alone.

Letters: N population, q sampling rate, T rounds, C clip norm, z noise multiplier, P parameters, m = qN cohort.
Out of scope: whether anything can be learned under it (`feasibility`), and carrying it out (`mechanism`).
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedrec.core.errors import ConfigError, PrivacyRefused
from fedrec.privacy._releases import Release
from fedrec.privacy.accounting import Accountant
from fedrec.privacy.accounting import epsilon as epsilon_of
from fedrec.privacy.integers import Carried, Integers
from fedrec.privacy.metrics_release import MetricsRelease
from fedrec.privacy.noise_models import DETAILS, MECHANISMS, NoiseModel, default_mechanism, detail_problems
from fedrec.privacy.settings import AdaptiveClip, InteractionPlan, Options, Trust, Unit


class PrivacyPlan(BaseModel):
    """What a run releases and what bounds it; see the module's text.

    Attributes:
        unit: whose contribution is hidden.
        trust: "central": the coordinator sees clean sums and adds the noise; "distributed": devices add shares of
            it; "local": every device adds all of it (always so for unit "interaction").
        mechanism: the name of what carries it out; None: what follows from unit and trust.
        adjacency: one unit's contribution is zeroed out; the population is public.
        target_epsilon, delta: what was asked for.
        population: N, public.
        sampling: as implemented: "everyone"; "poisson", an independent secret draw per user and round; "cyclic":
            users are spread over groups that take turns, and may be drawn, as by "poisson", in their turn alone; or
            "min_separation": devices take part when they are here, and keep themselves to one of `cycle` rounds in
            a row (min-sep participation of Choquette-Choo et al. 2023, arXiv 2306.08153); the server may pick them.
        sampling_rate: q, over all rounds.
        cycle: the number of groups that take turns; a user takes part in at most one of so many rounds in a row.
        rounds: T.
        clip_norm: C, L2 bound of one user's whole update (unit "interaction": of one example's gradient).
        noise_multipliers: z of each round (unit "interaction": of every local step of that round).
        accountant: by which the target is kept.
        parameters: P, length of the longest vector sent.
        adaptive, distributed, interaction: details of the modes that need them.
        carried: trust "central" where sums travel as integers; None: as real numbers.
        options: what the mechanism needs beside all of this.
        metrics: what is released of metrics once the rounds are over, charged as number T + 1; None: nothing.
        noise_seed: not None: noise can be foreseen, so NOTHING is private; for simulations on public data.

    Example:
        >>> import fedrec
        >>> plan = fedrec.plan_privacy(3.0, population=10_000, rounds=1, parameters=50, gradient=False).plan
        >>> isinstance(plan, fedrec.PrivacyPlan), plan.sampling, round(plan.epsilon(), 1)
        (True, 'everyone', 3.0)
    """

    # A target may be infinite (no privacy asked for), which JSON has no number for.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    unit: Unit
    trust: Trust
    mechanism: str | None = None
    adjacency: Literal["zero-out"] = "zero-out"
    target_epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=1)
    population: int = Field(ge=1)
    sampling: Literal["everyone", "poisson", "cyclic", "min_separation"]
    sampling_rate: float = Field(gt=0, le=1)
    cycle: int | None = Field(default=None, ge=1)
    rounds: int = Field(ge=1)
    clip_norm: float = Field(gt=0, allow_inf_nan=False)
    noise_multipliers: tuple[float, ...]
    accountant: Accountant = "pld"
    parameters: int = Field(ge=1)
    adaptive: AdaptiveClip | None = None
    distributed: Integers | None = None
    interaction: InteractionPlan | None = None
    carried: Carried | None = None
    options: Options = ()
    metrics: MetricsRelease | None = None
    noise_seed: int | None = None

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        try:
            problems = [text for text, wrong in self._problems() if wrong]
        except ConfigError as error:  # a mechanism that is not known here
            raise ValueError(str(error)) from error
        if problems:
            raise ValueError("; ".join(problems))
        check_delta(self.delta, self.population)
        return self

    def _problems(self) -> list[tuple[str, bool]]:
        z, name, model = self.noise_multipliers, self.mechanism_name, self.noise_model
        given = frozenset(each for each in DETAILS if self._detail(each) is not None)
        return [
            (f"{len(z)} noise multipliers for {self.rounds} rounds", len(z) != self.rounds),
            (
                "noise multipliers must be finite numbers of at least 0",
                not all(0 <= value < math.inf for value in z),
            ),
            (
                f"sampling is {self.sampling!r} at rate {self.sampling_rate:g}: 'everyone' means rate 1",
                self.sampling != "min_separation"
                and (self.sampling == "everyone") != (self.sampling_rate == 1.0),
            ),
            (
                f"mechanism {name!r} has unit {model.unit!r} and trust {model.trust!r}: the plan has "
                f"{self.unit!r} and {self.trust!r}",
                (model.unit, model.trust) != (self.unit, self.trust),
            ),
            (
                f"noise of mechanism {name!r} is accounted by {' or '.join(model.accountants)}",
                self.accountant not in model.accountants,
            ),
            (
                "sums carried by integers need a fixed clip norm: drop adaptive clipping",
                self.carried is not None and self.adaptive is not None,
            ),
            *((text, True) for text in detail_problems(model, name, given)),
            *((text, True) for text in model.problems()),
            *self._cycle_problems(),
            *self._metrics_problems(),
        ]

    def _detail(self, name: str) -> object:
        if name in ("cycle", "separation"):
            return self.cycle if (name == "separation") == (self.sampling == "min_separation") else None
        return getattr(self, name)

    def _cycle_problems(self) -> list[tuple[str, bool]]:
        return [
            (
                f"sampling is {self.sampling!r} with a cycle of {self.cycle}: 'cyclic' and 'min_separation' have one",
                (self.sampling in ("cyclic", "min_separation")) != (self.cycle is not None),
            ),
            ("groups of users that take turns with a cycle of 1: expected 2 groups or more", self._one_group),
            (
                f"sampling rate {self.sampling_rate:g} with a cycle of {self.cycle}: expected at most 1/cycle, since "
                "a user may be drawn in one of so many rounds",
                self.turn_rate > 1.0,
            ),
        ]

    def _metrics_problems(self) -> list[tuple[str, bool]]:
        if self.metrics is None:
            return []
        own, rounds = self.metrics.integers, self.distributed
        return [
            (
                "metrics of a user are about all of his interactions: unit 'interaction' cannot bound them; set "
                "privacy.metrics to 'none'",
                self.unit == "interaction",
            ),
            (
                "metrics ask all users of the population at once: devices come and go here, so set privacy.metrics "
                "to 'none'",
                self.sampling == "min_separation",
            ),
            (
                "metrics have integers under trust 'distributed', and nowhere else",
                (own is None) != (rounds is None),
            ),
            (
                "metrics are summed with the bits of the rounds",
                own is not None and rounds is not None and own.bits != rounds.bits,
            ),
        ]

    @property
    def _one_group(self) -> bool:
        return self.sampling == "cyclic" and self.cycle == 1

    @property
    def mechanism_name(self) -> str:
        """Under which the mechanism that carries out the plan is registered.

        Raises:
            PrivacyRefused: nothing implements the unit and the trust model.
        """
        return self.mechanism or default_mechanism(self.unit, self.trust)

    @property
    def noise_model(self) -> NoiseModel:
        """The mechanism, as far as a plan is concerned; never from an import path, since plans come over networks."""
        return MECHANISMS.get(self.mechanism_name, paths=False)(self)

    @property
    def denominator(self) -> float:
        """qN: fixed, whoever came."""
        return self.sampling_rate * self.population

    @property
    def charges(self) -> int:
        """How often the plan is charged: T rounds, and the metrics if there are any."""
        return self.rounds + (self.metrics is not None)

    def metrics_plan(self) -> PrivacyPlan:
        """What releases the metrics, as a plan of one round with everyone; its mechanism is that of any round.

        Raises:
            PrivacyRefused: the plan releases none.
        """
        if self.metrics is None:
            raise PrivacyRefused("the privacy plan releases no metrics: set privacy.metrics = 'noised'")
        changes: dict[str, Any] = {
            "sampling": "everyone",
            "sampling_rate": 1.0,
            "rounds": 1,
            "clip_norm": self.metrics.bound,
            "noise_multipliers": (self.metrics.noise_multiplier,),
            "parameters": self.metrics.values,
            "distributed": self.metrics.integers,
        }
        alone: dict[str, Any] = {"mechanism": None, "adaptive": None, "carried": None, "metrics": None}
        alone |= {"cycle": None, "options": ()}
        return PrivacyPlan.model_validate(dict(self) | changes | alone)

    @property
    def turn_rate(self) -> float:
        """Probability with which a user is drawn in a round in which it is the user's turn."""
        rate = self.sampling_rate * (self.cycle or 1)
        # A cycle of 1/q rounds means every user in every turn, whatever the rounding of q is.
        return 1.0 if math.isclose(rate, 1.0, rel_tol=1e-9) else rate

    @property
    def amplification(self) -> float:
        """Sampling rate that may be claimed: only of secret draws, and against those who do not see who replied."""
        secret = self.noise_model.claims_sampling and self.sampling != "min_separation"
        return self.turn_rate if secret else 1.0

    def of_participations(self, count: int) -> PrivacyPlan:
        """What a user is charged for `count` rounds: a plan of those with the least noise, with the same cohort."""
        z = tuple(sorted(self.noise_multipliers)[:count])
        return self.model_copy(update={"rounds": len(z), "noise_multipliers": z, "cycle": self.cycle and 1})

    def charged_multipliers(self, rounds: int) -> tuple[float, ...]:
        """z of the rounds that one user can be in, of the first `rounds`: those with the least noise."""
        z = self.noise_multipliers[:rounds]
        if self.sampling != "min_separation" or self.cycle is None:
            return z
        return tuple(sorted(z)[: math.ceil(rounds / self.cycle)])

    @property
    def separation(self) -> int:
        """A device that took part in round r takes part again from round r plus this; 1 where nothing is asked."""
        return self.cycle or 1 if self.sampling == "min_separation" else 1

    @property
    def participations(self) -> int:
        """In how many rounds one user can be, at most."""
        return math.ceil(self.rounds / (self.cycle or 1))

    def epsilon_of_participations(self, times: int) -> float:
        """Epsilon at `delta` of a user who was in so many rounds, whichever they were; 0 for none.

        Raises:
            PrivacyRefused: it is more often than the plan allows.
        """
        if not 0 <= times <= self.participations:
            raise PrivacyRefused(
                f"{times} rounds of one user: the plan allows {self.participations} of {self.rounds}; nothing was "
                "released"
            )
        if self.sampling != "min_separation":
            return self.epsilon(times)
        # Those with the least noise come first.
        releases = self.noise_model.releases(self.rounds)[:times]
        return epsilon_of(releases, self.kept_delta, self.accountant)

    def noise_std(self, round_: int, clip_norm: float | None = None) -> float:
        """Standard deviation of the noise on each value of the released sum of round `round_` (from 1).

        Raises:
            PrivacyRefused: unit "interaction", whose noise depends on the model's step.
        """
        clip = self.clip_norm if clip_norm is None else clip_norm
        return self.noise_model.noise_std(round_, clip + self.rounding)

    @property
    def rounding(self) -> float:
        """By how much integers that carry clean sums let one user's part of the sum exceed C."""
        return 0.0 if self.carried is None else self.carried.rounding(self.parameters)

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
        """(L2, L1) sensitivity of the rounded update, in integer units; see `Integers.sensitivity`."""
        if self.distributed is None:
            raise PrivacyRefused("integers belong to trust 'distributed': this plan has none")
        return self.distributed.sensitivity(self.clip_norm, self.parameters)

    def share_variance(self, round_: int) -> float:
        """Variance, in integer units, of the noise that one user's device adds."""
        if self.distributed is None:
            raise PrivacyRefused("noise shares belong to trust 'distributed': this plan has none")
        l2, _ = self.integer_sensitivity
        floor = self.distributed.honest * self.denominator
        return (self.noise_multipliers[round_ - 1] * l2) ** 2 / floor

    def releases(self, charges: int | None = None) -> list[Release]:
        """Everything that the first `charges` charges (None: all) release about one unit: rounds, then metrics."""
        count = self.charges if charges is None else charges
        last = self.metrics_plan().releases() if self.metrics is not None and count > self.rounds else []
        return [*self.noise_model.releases(min(count, self.rounds)), *last]

    def epsilon(self, charges: int | None = None, accountant: Accountant | None = None) -> float:
        """Epsilon at `delta` of the first `charges` charges; what integers may break is taken off delta first."""
        return epsilon_of(self.releases(charges), self.kept_delta, accountant or self.accountant)

    def lost_delta(self, charges: int) -> float:
        """Part of delta that goes to integers in so many charges: rounding too far, or wrapping around."""
        last = (
            self.metrics_plan().lost_delta(1) if self.metrics is not None and charges > self.rounds else 0.0
        )
        return self.noise_model.lost_delta(min(charges, self.rounds)) + last

    @property
    def kept_delta(self) -> float:
        """What the whole plan's integers leave of delta.

        Raises:
            PrivacyRefused: nothing.
        """
        lost = self.lost_delta(self.charges)
        if lost >= self.delta:
            raise PrivacyRefused(
                f"integers may fail with probability {lost:.2g}, by rounding or wrapping around: expected far less "
                f"than delta {self.delta:.2g}; lower distributed.beta or carried.wrap"
            )
        return self.delta - lost

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


def check_delta(delta: float, population: int) -> None:
    """Raises PrivacyRefused for a delta that allows to publish one user outright."""
    if delta >= 1.0 / population:
        raise PrivacyRefused(
            f"privacy.delta is {delta:.3g} for {population} users: expected less than 1/N = {1 / population:.3g}, "
            "since 1/N allows to publish one user outright; leave it out for N^-1.1"
        )
