"""The code under audit, as the games see it: updates are clipped, summed, contributed, released and applied.

Nothing is written a second time here: clipping is `fedrec.privacy.clipping`, contribution and release are the plan's
`Mechanism`, and the learner behind `Learner` runs the real model. What this module adds is the worst case that a
plan allows: a cohort exactly at the survivors' floor, and messages of nodes that host one user.

Letters: P values of the flat vector, C clip norm.
Out of scope: transport and the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import PrivacyRefused
from fedrec.core.updates import Layout, State, Updates, UpdateSum
from fedrec.privacy import clipping
from fedrec.privacy.adaptive import bit_sum
from fedrec.privacy.mechanism import Mechanism, mechanism_of
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.plan import PrivacyPlan

Floats = NDArray[np.float64]


class Learner(Protocol):
    """A model in training on real users, beside whom the canaries are planted."""

    @property
    def planted(self) -> int:
        """Number of realistic canaries: planted users with rare items."""

    def restart(self) -> None:
        """Back to before the first round."""

    def layout(self, round_: int) -> Layout:
        """What is sent in a round."""

    def clean_sum(self, round_: int) -> UpdateSum:
        """The clipped sum over the real users of this round's cohort, at the model as it is now."""

    def planted_sum(self, round_: int, joins: NDArray[np.bool_]) -> UpdateSum:
        """The clipped sum over the planted users [planted] who join."""

    def planted_updates(self, round_: int) -> Updates:
        """What each of the planted users would send, not clipped."""

    def apply(self, total: UpdateSum) -> None:
        """One step of the model on a released sum."""

    def change(self) -> Mapping[str, NDArray[Any]]:
        """Shared state now minus before the first round, by name."""


@dataclass(frozen=True)
class Pipeline:
    """Carries sums through a mechanism.

    Attributes:
        plan: what is claimed.
        source: of all noise; secret unless seeded.
        states: what the mechanism remembers, by run.
    """

    plan: PrivacyPlan
    source: NoiseSource
    states: dict[int, State] = field(default_factory=dict)

    @property
    def mechanism(self) -> Mechanism:
        """Of the plan."""
        return mechanism_of(self.plan)

    @property
    def least_users(self) -> int:
        """The fewest users with whom something is released."""
        return self.mechanism.least_users

    def planned_std(self, round_: int) -> float:
        """z C: the noise that the accounting of a round stands on."""
        return self.plan.noise_multipliers[round_ - 1] * self.plan.clip_norm

    def clip(self, total: UpdateSum, updates: Updates) -> None:
        """Clip and add, as a node does it."""
        clipping.add_clipped(total, updates, self.plan.clip_norm)

    def vector(self, total: UpdateSum, layout: Layout) -> Floats:
        """What a node hands to the mechanism."""
        flat = layout.flatten(total.blocks).astype(np.float64)
        if self.plan.adaptive is None:
            return flat
        return np.append(flat, bit_sum(int(total.users), total.clipped))

    def message(self, total: UpdateSum, layout: Layout, round_: int, *node: str | int) -> Floats:
        """[P] what one user's device sends under trust "local"."""
        noise = self.source.derive("node", *node).derive("round", round_, "share")
        sent = self.mechanism.contribute(self.vector(total, layout), 1, round_, self.plan.clip_norm, noise)
        return np.asarray(sent[: layout.size], dtype=np.float64)

    def release(self, total: UpdateSum, layout: Layout, round_: int, run: int = 1) -> Floats:
        """[P] what becomes public of a sum; the rounds of a run in their order.

        Where no sum without noise is released, users are the fewest with whom the plan releases something.

        Raises:
            PrivacyRefused: the mechanism would not release it.
        """
        users = self.mechanism.audited_users(int(total.users))
        mechanism, clip_norm, source = self.mechanism, self.plan.clip_norm, self.source.derive("run", run)
        node = source.derive("node", 0).derive("round", round_, "share")
        flat = self.vector(total, layout)
        sent = mechanism.contribute(flat, users, round_, clip_norm, node)
        summed = mechanism.add(mechanism.zero(len(flat)), sent)
        server = source.derive("server").derive("round", round_)
        before = mechanism.init() if round_ == 1 else self.states.get(run, mechanism.init())
        context = mechanism.context(round_, clip_norm, server)
        noised, self.states[run] = mechanism.noised(summed, users, context, before)
        return noised[: layout.size]

    def released(self, total: UpdateSum, layout: Layout, round_: int, run: int = 1) -> Floats | None:
        """As `release`; None where the mechanism refuses."""
        try:
            return self.release(total, layout, round_, run)
        except PrivacyRefused:
            return None

    def applied(self, flat: Floats, layout: Layout, round_: int) -> UpdateSum:
        """A released vector as the model gets it: over the fixed denominator."""
        blocks = {name: values.astype(np.float64) for name, values in layout.unflatten(flat).items()}
        std = self.plan.noise_std(round_, self.plan.clip_norm)
        return UpdateSum(blocks, self.plan.denominator, noise_std=std)
