"""Which sums of a run a device lets out, and how far apart the participants of two of them must be.

Two exact sums over the same data whose participants differ by one device give that device's data by subtraction, to a
server that asks twice on purpose as well as to one that only looks at what natural drop-outs left it. So the terms
fix the sums of a run, each is let out once, and the participants of *guarded* sums follow one rule:

    a device that sends a vector to a first guarded sum joins the group of those that shared for it; each later one is
    over members of the newest sum alone, leaves out none or at least `floor`, and keeps four fifths of the group

A device holds the list of sharers against it before its vector leaves, and the list of survivors before it signs.
Each sum is opened by at least two thirds of its cohort, that is by more than half of the group (2/3 x 4/5 > 1/2). So
any two sums of a group were opened by a device that knows both, and that device, if it is honest, saw one lie within
the other with a difference of no device or of at least `floor`. All guarded sums of a group form one falling chain,
sums of different groups share no device, and every combination of sums speaks of at least `floor` devices. With less
than four fifths two sums could be opened by different devices; with fewer rules before the vector leaves, a device
could be put among strangers that know nothing of the sum it was in before.

Sums with the noise of a privacy plan need no such rule. Rounds of gradients without a plan cannot follow it: each
asks about another model, devices come and go, and a server that chooses models as it likes subtracts one round from
the next whatever their numbers are. Out of scope: the protocol of one sum (`client`).
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason

#: Part of a group that every sum keeps.
KEPT = 4 / 5
Places = tuple[int, ...]
Guarded = Literal["train", "evaluate"]


class Schedule(BaseModel):
    """The sums of a run.

    Attributes:
        tuning_rounds: training rounds of phase "tuning", at most; 0: there is no such phase.
        refit_rounds: training rounds of phase "refit", at most.
        evaluate_every: phase "tuning" is evaluated after every so many rounds and after its last; 0: never.
        refit_evaluation: phase "refit" is evaluated, once.
        guarded: kinds of sums whose participants follow the rule of the module's text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tuning_rounds: int = Field(default=0, ge=0)
    refit_rounds: int = Field(default=1, ge=0)
    evaluate_every: int = Field(default=0, ge=0)
    refit_evaluation: bool = False
    guarded: tuple[Guarded, ...] = ("evaluate", "train")

    def check(self, kind: str, phase: str, round_: int, given: Collection[str]) -> None:
        """A sum must be one of those that are scheduled.

        Args:
            kind: "train" or "evaluate".
            phase: "tuning" or "refit".
            round_: from 1.
            given: labels (`sums.label_of`) of the sums for which shares were given away.

        Raises:
            AggregationRefused: it is not, or its like was let out before.
        """
        rounds = {"tuning": self.tuning_rounds, "refit": self.refit_rounds}.get(phase, 0)
        if kind == "train":
            allowed = 1 <= round_ <= rounds
        elif kind == "evaluate" and phase == "tuning":
            every = self.evaluate_every
            allowed = every > 0 and 1 <= round_ <= rounds and (round_ % every == 0 or round_ == rounds)
        else:
            allowed = kind == "evaluate" and phase == "refit" and self.refit_evaluation
            # Under a plan the release of metrics has the number after the last round.
            allowed = allowed and 0 <= round_ <= rounds + 1
        if not allowed:
            raise AggregationRefused(
                f"sum {kind} of round {round_} of phase {phase} is not in this run's schedule: expected one of its "
                "sums; prepare nodes and coordinator from one configuration",
                Reason.SCHEDULE,
            )
        if (kind, phase) == ("evaluate", "refit") and any(g.startswith("evaluate/refit/") for g in given):
            raise AggregationRefused(
                "phase refit was evaluated before: expected one evaluation of it", Reason.SCHEDULE
            )


@dataclass(frozen=True)
class Group:
    """What a device knows of the guarded sums of a run.

    Attributes:
        joined: who shared for the first one that it sent a vector to; empty before.
        last: participants of the newest one that it helped to open; None before the first.
    """

    joined: Places = ()
    last: Places | None = None

    @property
    def members(self) -> Places:
        """Who may be in the next one."""
        return self.joined if self.last is None else self.last

    @property
    def least(self) -> int:
        """How many must be in the next one."""
        return math.ceil(KEPT * len(self.joined) - 1e-9)

    def check_sharers(self, sharers: Collection[int]) -> Group:
        """The group after a vector was sent beside these devices.

        Raises:
            AggregationRefused: strangers are among them, or too few members.
        """
        if not self.joined:
            return Group(tuple(sorted(sharers)))
        strangers = len(set(sharers) - set(self.members))
        if strangers or len(sharers) < self.least:
            raise AggregationRefused(
                f"{len(sharers)} devices are to be summed, {strangers} of them not in the last exact sum: expected "
                f"at least {self.least} of its {len(self.members)} devices and no others",
                Reason.DIFFERENCE,
            )
        return self

    def check_survivors(self, survivors: Collection[int], floor: int) -> Group:
        """The group after a sum over these devices was opened.

        Raises:
            AggregationRefused: they are too close to those of the sum before, too few, or not among them.
        """
        gone = len(set(self.members) - set(survivors))
        close = self.last is not None and 0 < gone < floor
        if not set(survivors) <= set(self.members) or close or len(survivors) < self.least:
            raise AggregationRefused(
                f"{len(survivors)} devices are to be in this sum and {len(self.members)} were in the one before: "
                f"expected the same devices, or at least {floor} fewer, no others, and at least {self.least}",
                Reason.DIFFERENCE,
            )
        return replace(self, last=tuple(sorted(survivors)))

    def choose(self, came: Collection[int], floor: int) -> tuple[Places, str]:
        """The largest part of those whose vectors came that devices agree to, or none and why, in one line."""
        chosen = sorted(set(self.members) & set(came)) if self.joined else sorted(came)
        gone = len(self.members) - len(chosen)
        if self.last is not None and 0 < gone < floor:
            # A sum without the few that are missing would give them away: others stay out beside them.
            chosen = chosen[: max(0, len(self.members) - floor)]
        least = max(floor, self.least)
        if len(chosen) < least and self.last is None:
            return (), f"{len(chosen)} devices sent a vector: expected at least {least}"
        if len(chosen) < least:
            return (), (
                f"{gone} of the {len(self.members)} devices of the last exact sum are missing: a sum without them "
                f"would tell about them, or about too few; at least {self.least} must be in it and {floor} or none "
                "out; wait until they are back"
            )
        return tuple(chosen), ""
