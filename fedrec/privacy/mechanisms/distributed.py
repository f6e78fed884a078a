"""Noise shares on the devices: integers whose sum carries the planned noise, so that no clean sum exists anywhere.

The Skellam mechanism (Agarwal, Kairouz and Liu 2021, arXiv 2110.04995). A node multiplies its users' clipped sum by
the plan's scale, rounds it at random to integers, and adds Skellam noise, a share for each of its users; sums are
taken modulo 2^bits. Skellam is closed under sums: the shares of m users are exactly the noise of m shares.

Rounding uses one dither u in [0, 1) per value: floor(x + u). For any fixed u, leaving a user out changes the sum by
an integer vector that is a stochastic rounding of that user's own scaled update (his dither is the fractional part
of the others' sum plus u, again uniform). So the integer sensitivity is that of one rounded update, however many
users a node has: l2^2 <= C'^2 + P/4 + sqrt(2 ln(1/beta)) (C' + sqrt(P)/2) with probability 1 - beta, and always
(C' + sqrt(P))^2, C' = scale C (Kairouz, Liu and Steinke 2021, arXiv 2102.06387, proposition 26).

With few bits the sum is rotated first, by public signs, and back after the release (`integers`): P is then the padded
size n. A rotation keeps norms, so neither the sensitivity of a real vector nor the noise on a value changes.

Shares are sized for the floor: when exactly the planned part of the cohort answers, the noise is exactly as
planned; when more answer there is more noise than planned; when fewer do, nothing is released.

Out of scope: hiding the single contributions from the server (secure aggregation carries them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedrec.core.errors import PrivacyRefused
from fedrec.core.stage import VECTOR, Bound, Noise, RoundContext
from fedrec.core.updates import Floats, State, UpdateSum
from fedrec.privacy._releases import Release, SkellamRelease
from fedrec.privacy.accounting import Accountant, epsilon
from fedrec.privacy.integers import Integers, rounded_norm
from fedrec.privacy.mechanism import Contribution, Mechanism, contribution, noise_of, replaced
from fedrec.privacy.noise_models import MECHANISMS
from fedrec.privacy.settings import Trust

#: Largest scaled value that still has exact integers around it in float64.
_EXACT = 2.0**52


@MECHANISMS.register("distributed")
@dataclass(frozen=True)
class Distributed(Mechanism):
    """The mechanism of trust "distributed"."""

    trust: ClassVar[Trust] = "distributed"
    takes = frozenset({"distributed", "separation"})
    needs = frozenset({"distributed"})
    accountants: ClassVar[tuple[Accountant, ...]] = ("rdp",)
    noise_per_user = True
    needs_secure_aggregation = True
    trusted = "against those who see only the sums"
    noise_kind = "Skellam (integers)"
    noise_place = "in shares by the nodes, one for each user"

    @property
    def integers(self) -> Integers:
        """The plan's scale, bits and floor."""
        if self.plan.distributed is None:
            raise PrivacyRefused("integers belong to trust 'distributed': this plan has none")
        return self.plan.distributed

    @property
    def floor(self) -> float:
        """Least number of users whose shares make up the planned noise."""
        return self.integers.survivors * self.plan.denominator

    @property
    def least_users(self) -> int:
        """The floor, as a whole number."""
        return math.ceil(self.floor - 1e-9)

    def audited_users(self, users: int) -> int:
        """The floor, at which the noise is least."""
        return self.least_users

    def noise_std(self, round_: int, l2: float) -> float:
        """Of all shares of the planned cohort, in units of the update."""
        return math.sqrt(self.plan.share_variance(round_) * self.plan.denominator) / self.integers.scale

    def releases(self, rounds: int) -> list[Release]:
        """One Skellam release of integers per round that a user can be in."""
        l2, l1 = self.plan.integer_sensitivity
        return [SkellamRelease(l2, l1, (z * l2) ** 2) for z in self.plan.charged_multipliers(rounds)]

    def lost_delta(self, rounds: int) -> float:
        """Rounding may move a user's integers further than the sensitivity says."""
        return self.integers.beta * len(self.plan.charged_multipliers(rounds))

    def adversary(self, outside: str) -> list[str]:
        """All who see sums."""
        return [
            f"Protects against {outside}; and against the server as far as it sees sums over the cohort only."
        ]

    def uncovered(self, *, plain: bool) -> list[str]:
        """A server that sees single nodes, and nodes that leave their shares out."""
        integers = self.integers
        seen = ["The server: it sees what each node sends, which has only that node's noise in it."]
        return [
            *(seen if plain else []),
            "Cheating nodes: nodes that leave their noise share out and work with the server take that share away "
            f"from all users; the plan allows for {1 - integers.survivors:.0%} of the cohort not answering and for "
            f"{integers.corrupted:.0%} of it cheating; {self._beyond()}.",
        ]

    def _beyond(self) -> str:
        """What is left of the guarantee when twice as many nodes cheat as the plan allows for."""
        twice = max(2.0 * self.integers.corrupted, 0.1)
        left = max(self.integers.survivors - twice, 0.0) * self.plan.denominator
        found = math.inf if left <= 0 else self.epsilon_of_nodes(left)
        shown = "no bound is left" if math.isinf(found) else f"epsilon would be {found:.3g}"
        return f"with {twice:.0%} of it cheating {shown}"

    def epsilon_of_nodes(self, users: float) -> float:
        """What is left are the users' shares: users / (honest users that shares were sized for) of the variance."""
        plan, honest = self.plan, self.integers.honest
        charged = len(plan.charged_multipliers(plan.rounds))
        parts = [min(1.0, users / (honest * plan.denominator))] * charged
        if plan.metrics is not None:
            # All users are asked for them, whatever the cohort of a round is.
            parts.append(min(1.0, users / (honest * plan.population)))
        shares = [
            replace(each, variance=each.variance * part) if isinstance(each, SkellamRelease) else each
            for each, part in zip(plan.releases(), parts, strict=True)
        ]
        return epsilon(shares, plan.delta - plan.lost_delta(plan.charges), plan.accountant)

    def sensitivity(self, bound: Bound, context: RoundContext) -> Bound:
        """That of one rounded update, with probability 1 - beta, on the grid of the scale.

        Raises:
            PrivacyRefused: the clip norm is above that for which noise was planned.
        """
        if bound.l2 > self.plan.clip_norm * (1.0 + 1e-12):
            raise PrivacyRefused(f"clip norm {bound.l2}: expected the plan's {self.plan.clip_norm} or less")
        integers, size = self.integers, context.layout.size or self.plan.parameters
        l2 = rounded_norm(bound.l2 * integers.scale, integers.coordinates(size), integers.beta)
        return replace(bound, l2=l2 / integers.scale, steps=integers.scale)

    def on_node(self, total: UpdateSum, context: RoundContext) -> UpdateSum:
        """[n] int64 residues: the rounded sum plus one share of noise per user, modulo 2^bits."""
        vector, users, noise = total.blocks[VECTOR], int(total.users), noise_of(context)
        if len(vector) > self.plan.parameters:
            raise PrivacyRefused(
                f"sum of {len(vector)} values: expected at most the plan's {self.plan.parameters}, "
                "for which rounding was charged"
            )
        values, rotation = contribution(vector, users), self.integers.rotation(len(vector), context.round)
        if rotation is not None:
            values = np.asarray(rotation.apply(values))
        rounded = dithered(values * self.integers.scale, noise)
        shares = noise.skellam(len(rounded), users * self.plan.share_variance(context.round))
        return replaced(total, self._residues(rounded + shares))

    def zero(self, size: int) -> Contribution:
        """[n] int64 zeros: as many as a vector of `size` values takes."""
        return np.zeros(self.integers.coordinates(size), dtype=np.int64)

    def add(self, total: Contribution, contribution: Contribution) -> Contribution:
        """[n] int64 sum modulo 2^bits."""
        return self._residues(np.add(total, contribution))

    def noised(
        self, vector: Contribution, users: int, context: RoundContext, state: State
    ) -> tuple[Floats, State]:
        """[n] what the residues say, the first P of which are the sum; refused below the floor."""
        if users < self.floor * (1.0 - 1e-12):
            raise PrivacyRefused(
                f"round {context.round}: {users} users answered, expected at least {self.floor:g} for the planned "
                "noise; nothing was released"
            )
        return self.readable(vector, context.round), state

    def readable(self, residues: Contribution, round_: int) -> Floats:
        """[n] the integers nearest to zero with these residues, over the scale, rotated back.

        Beyond the values that were carried there is nothing but noise.
        """
        half = 1 << (self.integers.bits - 1)
        centred = self._residues(np.asarray(residues, dtype=np.int64) + half) - half
        values = np.asarray(centred / self.integers.scale)
        rotation = self.integers.rotation(len(values), round_)
        return values if rotation is None else np.asarray(rotation.undo(values))

    def _residues(self, values: Contribution) -> Contribution:
        return np.bitwise_and(values, (1 << self.integers.bits) - 1)


def dithered(values: Floats, noise: Noise) -> Contribution:
    """[P] int64 floor(values + u), u uniform in [0, 1): unbiased rounding; too large values count as the largest.

    `PrivacyTerms` are valid only if sums of clipped updates stay far below that bound, so no honest one meets it.
    """
    values = np.clip(values, -_EXACT, _EXACT)
    base = np.floor(values)
    # floor(values + u) without the rounding error of that sum, which grows with the values.
    up = noise.uniform(len(values)) >= 1.0 - (values - base)
    return np.asarray(base.astype(np.int64) + up)
