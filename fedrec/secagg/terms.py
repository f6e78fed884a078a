"""The terms under which replies leave a device: fixed on every device before the run; a server has no choice.

The rules on a device follow from these terms and from the adverts of an attempt. A server may leave devices out; it
cannot lower a threshold, shrink a cohort below its minimum, or draw the graph. Where devices come and go, all but the
roster is fixed: it comes with each attempt, signed by a key that the terms name (`signed_roster`). Out of scope: the
protocol (`client`).
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg.encoding import encoding_for
from fedrec.secagg.graph import degree, threshold
from fedrec.secagg.roster import Roster
from fedrec.secagg.schedule import Schedule

PROTOCOL = "fedrec secure aggregation 1"
#: The rule for exact sums (`schedule`) rests on it.
LEAST_THRESHOLD = 2 / 3 - 1e-9
#: -log2 of the chance that a cohort with the expected drop-outs cannot be opened; it costs an attempt, no secret.
LIVENESS = 10.0


class PlainTerms(BaseModel):
    """No aggregation but adding up in the clear; only on purpose.

    Attributes:
        insecure: the server sees what every device sends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["plain"] = "plain"
    insecure: Literal[True]


class SealedTerms(BaseModel):
    """Replies are encrypted to the server, which sees every one of them.

    Attributes:
        run: a random name; a reply is bound to it.
        public: HPKE public key of the server, in hex.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sealed"] = "sealed"
    run: str
    public: str = Field(pattern=r"([0-9a-f]{2})+")


class SecaggTerms(BaseModel):
    """What every device of a run holds on to.

    Attributes:
        run: a random name; keys and signatures are bound to it.
        roster: who may take part.
        bits: sums are taken modulo 2^bits.
        rotate: values are rotated before they become integers (needed with 16 bits).
        range_users: for how many users at their bound the integers have room.
        clip_norm: L2 bound of one user's update, for the scale of the integers; None: values come as integers.
        noise_std: of the noise that devices add to the values of the whole sum themselves.
        min_nodes: fewest devices in a sum, since a sum of two tells each the other's update; also the fewest by
            which the participants of two exact sums differ (see `schedule`).
        min_users: fewest declared users of the devices in a sum; the privacy plan's noise is sized for it.
        threshold: part of a neighbourhood whose shares open a secret.
        corrupted: devices of a neighbourhood that may work with the server.
        neighbours: k; None: everyone up to 100 devices, above as many as `graph.degree` says.
        plan: digest of the privacy plan, in hex; empty without one.
        exact_sums: without a plan: sums without any noise are let out, on purpose.
        schedule: the sums of the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ignored_types=(cached_property,))

    kind: Literal["secagg"] = "secagg"
    run: str
    roster: Roster
    bits: Literal[16, 32] = 32
    rotate: bool = False
    range_users: int = Field(ge=1)
    clip_norm: float | None = Field(default=None, gt=0)
    noise_std: float = Field(default=0.0, ge=0)
    min_nodes: int = Field(default=3, ge=3)
    min_users: float = Field(default=0.0, ge=0)
    threshold: float = Field(default=2 / 3, gt=0.5, le=1)
    corrupted: int = Field(default=0, ge=0)
    neighbours: int | None = Field(default=None, ge=2)
    plan: str = ""
    exact_sums: bool = False
    schedule: Schedule = Schedule()

    @model_validator(mode="after")
    def _honest_answers_fit(self) -> Self:
        """No honest answer may overflow: its refusal would depend on data (both sides validate)."""
        if self.clip_norm is not None and (self.rotate or self.bits == 32):
            try:
                encoding_for(
                    1,
                    self.bits,
                    users=self.range_users,
                    clip_norm=self.clip_norm,
                    numbers=0,
                    rotation_seed=0 if self.rotate else None,
                    noise_std=self.noise_std,
                )
            except AggregationRefused as error:
                raise ValueError(str(error)) from error
        if self.schedule.guarded and self.threshold < LEAST_THRESHOLD:
            raise ValueError(
                f"threshold is {self.threshold:g} and exact sums are guarded: expected 2/3 or more, so that any two "
                "of them are opened by devices that know both"
            )
        if self.roster.users > self.range_users:
            raise ValueError(
                f"range_users is {self.range_users} and the roster has {self.roster.users} users: expected at least "
                "as many, or their sum does not fit"
            )
        return self

    def degree(self, nodes: int) -> int:
        """k, for a cohort of `nodes` devices."""
        if self.neighbours is None:
            return min(degree(nodes, fraction=self.threshold), nodes - 1)
        return min(self.neighbours + self.neighbours % 2, nodes - 1)

    def shares_needed(self, neighbours: int) -> int:
        """t, for k neighbours; raises AggregationRefused when there is none."""
        return threshold(neighbours, self.threshold, self.corrupted)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of all of it, and of the protocol's version."""
        return hashlib.sha256(PROTOCOL.encode() + b"\0" + self.model_dump_json().encode()).digest()


class CohortTerms(BaseModel):
    """What a device of a job holds on to.

    Attributes:
        rules: the terms of every attempt, with an empty roster.
        signer: Ed25519 public key that signs rosters, in hex.
        max_nodes: devices in a cohort, at most.
        max_users: of one member of a cohort; above 1 only for sites that the operator vouches for.
        dropout: expected part of a cohort that vanishes on the way; more neighbours make up for it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["cohort"] = "cohort"
    rules: SecaggTerms
    signer: str = Field(pattern=r"[0-9a-f]{64}")
    max_nodes: int = Field(ge=3)
    max_users: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        rules = self.rules
        if len(rules.roster):
            raise ValueError(
                "the rules of a job name a roster: expected an empty one, since each cohort has its own"
            )
        if not rules.min_nodes <= self.max_nodes <= rules.range_users:
            raise ValueError(
                f"max_nodes is {self.max_nodes}: expected at least min_nodes ({rules.min_nodes}) and at most "
                f"range_users ({rules.range_users}), or the sum of a cohort does not fit"
            )
        if rules.schedule.guarded:
            raise ValueError(
                "exact sums of kind "
                + ", ".join(rules.schedule.guarded)
                + " are guarded: cohorts change from round "
                "to round, so a job needs a privacy plan"
            )
        return self

    @property
    def run(self) -> str:
        """Its random name."""
        return self.rules.run

    def degree(self, nodes: int) -> int:
        """k, for a cohort of `nodes` devices."""
        if self.rules.neighbours is not None:
            return self.rules.degree(nodes)
        return max(degree(nodes, drop=self.dropout, eta=LIVENESS, fraction=self.rules.threshold), 2)

    def of(self, roster: Roster) -> SecaggTerms:
        """The terms of an attempt among these devices.

        Raises:
            AggregationRefused: too few or too many devices, or users for whom the integers have no room.
        """
        if not self.rules.min_nodes <= len(roster) <= self.max_nodes:
            raise AggregationRefused(
                f"a roster of {len(roster)} devices: expected {self.rules.min_nodes} to {self.max_nodes}",
                Reason.COHORT,
            )
        try:
            return SecaggTerms(
                **dict(self.rules) | {"roster": roster, "neighbours": self.degree(len(roster))}
            )
        except ValidationError as error:
            text = str(error.errors()[0]["msg"]).replace("Value error, ", "")
            raise AggregationRefused(text, Reason.COHORT) from error


Terms = Annotated[PlainTerms | SealedTerms | SecaggTerms | CohortTerms, Field(discriminator="kind")]


def rules_of(terms: SecaggTerms | CohortTerms) -> SecaggTerms:
    """How updates become integers, and what bounds a sum, whatever its roster."""
    return terms.rules if isinstance(terms, CohortTerms) else terms


_ANY: TypeAdapter[Terms] = TypeAdapter(Terms)


def parse_terms(plain: object) -> Terms:
    """Terms from JSON values that `model_dump` gave."""
    return _ANY.validate_python(plain)
