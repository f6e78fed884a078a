"""What a user writes about privacy: a target and who is trusted. Out of scope: what follows from it (`plan`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
    field_validator,
)

from fedrec.evaluation.names import check_bounded

Unit = Literal["user", "interaction"]
Trust = Literal["central", "distributed", "local"]
OptionValue = int | float | str | tuple[float, ...]


def _pairs(given: object) -> object:
    """A table as pairs, sorted by name, so that a plan which holds it is frozen."""
    return tuple(sorted(given.items())) if isinstance(given, Mapping) else given


#: What a mechanism is told beside the fields that all have: a table in files, pairs in a frozen object.
Options = Annotated[
    tuple[tuple[str, OptionValue], ...],
    BeforeValidator(_pairs),
    PlainSerializer(dict),
    WithJsonSchema({"type": "object"}),
]
#: Metrics that are released unless others are asked for.
RELEASED = ("full/ndcg@10", "full/hr@10")
#: More metrics need more noise on each of them.
MOST_METRICS = 8


class AdaptiveClip(BaseModel):
    """The clip norm follows a quantile of the update norms (Andrew et al. 2021, arXiv 1905.03871).

    Attributes:
        quantile: of the norms, where the clip norm settles.
        learning_rate: of its logarithm.
        count_noise_multiplier: standard deviation of the noise on the count of unclipped updates, whose sensitivity
            is 1/2; it takes its part of the budget, more so the smaller it is. A twentieth of the cohort is usual.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantile: float = Field(default=0.5, gt=0, lt=1)
    learning_rate: float = Field(default=0.2, gt=0)
    count_noise_multiplier: float = Field(gt=0)


class InteractionPlan(BaseModel):
    """Local training with DP-SGD, whose unit is one interaction.

    Attributes:
        local_steps: steps per round and user.
        batch_rate: probability of each interaction to join a step.
        max_interactions: newest interactions of a user that are used.
        expected_batch: fixed public denominator of a step.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    local_steps: int = Field(default=5, ge=1)
    batch_rate: float = Field(default=0.2, gt=0, le=1)
    max_interactions: int = Field(default=200, ge=1)
    expected_batch: float = Field(default=20.0, gt=0)


class PrivacySettings(BaseModel):
    """The target.

    Attributes:
        unit: whose contribution is hidden: a whole user, or one interaction (training on the device, trust "local").
        trust: who may see sums without noise: "central" the coordinator; "distributed" no one; "local" no one, and
            every single contribution is noised in full.
        mechanism: the name or import path of what adds the noise; None: what follows from unit and trust.
        options: of the mechanism, as its class documents them; most have none.
        epsilon: to be kept over all rounds.
        delta: None: N^-1.1.
        clip_norm: C.
        population: N, public; None: the number of users in the data.
        accountant: "pld" or "rdp"; trust "distributed" always takes "rdp".
        adaptive: let the clip norm follow a quantile; trust "central" only.
        scale, bits, survivors, corrupted: of trust "distributed", see `integers.Integers`; scale None: chosen so that
            rounding costs 1 % of noise, or up to 25 % where there is no room for that.
        rotate: of trust "distributed": sums are rotated before they become integers, which saves bits; None: up to
            20 bits.
        interaction: of unit "interaction".
        metrics: "noised": sums of a few metrics leave the nodes once, for the final model, with noise that is part of
            the plan and charged (`metrics_release`); "none": nothing of an evaluation leaves.
        metrics_share: part of the budget that they take.
        released_metrics: which; the more, the more noise on each.
        account: whose data these are, by name; runs under one name add up in a ledger (None: the data set,
            or the path of the file).
        ledger: folder of the account; limit_epsilon: what the account may spend over all runs (None: epsilon).
        noise_seed: NOT PRIVATE; for simulations on public data.
        force: go on although nothing can be learned, or epsilon protects no one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: Unit
    trust: Trust = "central"
    mechanism: str | None = None
    options: Options = ()
    epsilon: float = Field(gt=0, allow_inf_nan=False)
    delta: float | None = Field(default=None, gt=0, lt=1)
    clip_norm: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    population: int | None = Field(default=None, ge=1)
    accountant: Literal["pld", "rdp"] = "pld"
    adaptive: AdaptiveClip | None = None
    scale: float | None = Field(default=None, gt=0)
    bits: int = Field(default=32, ge=8, le=48)
    survivors: float = Field(default=0.8, gt=0, le=1)
    corrupted: float = Field(default=0.1, ge=0, lt=1)
    rotate: bool | None = None
    interaction: InteractionPlan | None = None
    metrics: Literal["noised", "none"] = "none"
    metrics_share: float = Field(default=0.05, gt=0, le=0.5)
    released_metrics: tuple[str, ...] = Field(default=RELEASED, min_length=1, max_length=MOST_METRICS)
    account: str | None = Field(default=None, min_length=1)
    ledger: Path | None = None
    limit_epsilon: float | None = Field(default=None, gt=0)
    noise_seed: int | None = None
    force: bool = False

    @field_validator("released_metrics")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_bounded(names)
        return names
