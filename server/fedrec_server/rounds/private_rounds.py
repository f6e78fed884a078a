"""The coordinator's part of a private round: contributions are checked, summed, noised by the mechanism, and charged.

The order at the end of a round is: noise is drawn, the new model is staged on disk, its digest is charged in the
ledger, then it becomes the checkpoint and may be broadcast. A sum without noise is in memory only. A coordinator
killed in between finds a charged model and goes on with it, or finds the noised sum and makes the same model of it,
or finds neither: no noise of a charged round is drawn twice.

Out of scope: what the noise is, and the model.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ProtocolError
from fedrec.core.messages import Reply
from fedrec.core.updates import Layout, UpdateSum
from fedrec.privacy.adaptive import next_clip_norm
from fedrec.privacy.ledger import Account, Ledger, Limit
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.terms import PrivacyTerms

#: Who is charged on the server: everyone, whether or not someone took part in a round.
SUBJECT = "each of the users of the federation"
#: Room for rounding in a sum whose norm is at the bound.
NORM_SLACK = 1.0 + 1e-9

Contribution = tuple[NDArray[np.generic], int]


class PrivateRounds:
    """Reads contributions, releases noised sums and books them.

    Args:
        terms: of the run.
        folder: the coordinator's.
    """

    def __init__(self, terms: PrivacyTerms, folder: Path) -> None:
        self.terms = terms
        self.plan = terms.plan
        self._mechanism = mechanism_of(terms.plan)
        self._noise = NoiseSource(terms.plan.noise_seed).derive("server")
        self.account = Account(SUBJECT, terms.dataset)
        self.ledger_folder = folder / "ledger" if terms.ledger is None else terms.ledger / "server"

    def example(self, layout: Layout) -> NDArray[np.generic]:
        """What a node's contribution looks like."""
        return self._mechanism.zero(self._size(layout))

    def read(
        self, reply: Reply, layout: Layout, hosted_users: int, clip_norm: float, *, summed: bool = False
    ) -> Contribution:
        """The vector and the number of users of a train reply, or of the sum that secure aggregation gave.

        Raises:
            ProtocolError: keys, shape, type, finiteness, the number of users or the norm are not as declared.
        """
        if set(reply.arrays) != {"update"} or set(reply.meta) != {"users"}:
            raise ProtocolError(
                f"reply has {sorted(reply.arrays)} and {sorted(reply.meta)}: expected 'update' and 'users'"
            )
        users, sent = reply.meta["users"], reply.arrays["update"]
        if not isinstance(users, int) or not 0 <= users <= hosted_users:
            raise ProtocolError(f"reply speaks for {users!r} users: the node hosts {hosted_users}")
        like = self.example(layout)
        if sent.dtype != like.dtype or sent.shape != like.shape:
            raise ProtocolError(f"update is {sent.dtype}{sent.shape}: expected {like.dtype}{like.shape}")
        if sent.dtype.kind == "f" and not np.isfinite(sent).all():
            raise ProtocolError("update is not finite: expected finite numbers")
        if self.plan.trust == "central" and self.plan.unit == "user" and not summed:
            self._check_norm(sent, layout.size, users, clip_norm)
        return sent, users

    def release(
        self, contributions: list[Contribution], layout: Layout, round_: int, clip_norm: float
    ) -> tuple[UpdateSum, float]:
        """The noised sum, and the clip norm of the next round.

        Raises:
            PrivacyRefused: too few users came for the noise that their shares add up to.
        """
        return self.released(self.noised(contributions, layout, round_, clip_norm), layout, round_, clip_norm)

    def noised(
        self, contributions: list[Contribution], layout: Layout, round_: int, clip_norm: float
    ) -> NDArray[np.float64]:
        """What the mechanism makes of the contributions: all that may be kept of their sum.

        Raises:
            PrivacyRefused: too few users came for the noise that their shares add up to.
        """
        total = self._mechanism.zero(self._size(layout))
        for sent, _ in contributions:
            total = self._mechanism.add(total, sent)
        users = sum(count for _, count in contributions)
        return self._mechanism.release(total, users, round_, clip_norm, self._noise.derive("round", round_))

    def released(
        self, flat: NDArray[np.float64], layout: Layout, round_: int, clip_norm: float
    ) -> tuple[UpdateSum, float]:
        """What `noised` returned, as a sum, and the clip norm of the next round."""
        blocks = {
            name: values.astype(np.float64) for name, values in layout.unflatten(flat[: layout.size]).items()
        }
        # Noise of unit "interaction" was added step by step on the devices and is not known here.
        std = self.plan.noise_std(round_, clip_norm) if self.plan.unit == "user" else 0.0
        total = UpdateSum(blocks, self.plan.denominator, noise_std=std)
        return total, self._next_clip_norm(clip_norm, flat)

    def reserve(self) -> None:
        """Book the whole plan before the first round; again is free.

        Raises:
            BudgetExhausted: it does not fit beside what other runs have spent.
        """
        with self._ledger() as ledger:
            ledger.reserve(self.account, self.terms.run, self.plan)

    def charge(self, round_: int, digest: str) -> None:
        """Book a staged model; it may be shown to others once this returns.

        Raises:
            BudgetExhausted: the account does not hold enough.
        """
        with self._ledger() as ledger:
            ledger.charge(self.account, self.terms.run, round_, digest)

    def charged(self, round_: int) -> str | None:
        """Digest of the model that was booked for a round, or None."""
        with self._ledger() as ledger:
            return ledger.charged(self.account, self.terms.run).get(round_)

    def signal_to_noise(self, released: UpdateSum, layout: Layout) -> float | None:
        """Estimated |sum| / |noise| from the noised sum alone: E|S + Z|² = |S|² + P σ²; 0 where noise prevails.

        None where the noise is not known here, or there is none.
        """
        noise = layout.size * released.noise_std**2
        if noise == 0.0:
            return None
        flat = layout.flatten(released.blocks).astype(np.float64)
        return math.sqrt(max(float(flat @ flat) - noise, 0.0) / noise)

    def _check_norm(self, sent: NDArray[np.generic], size: int, users: int, clip_norm: float) -> None:
        vector = sent.astype(np.float64)
        norm, bound = float(np.linalg.norm(vector[:size])), users * clip_norm * NORM_SLACK
        if norm > bound:
            # Without its norm: the reason goes into the records, which hold no number that has no noise.
            raise ProtocolError(f"the norm of an update of {users} users: expected at most {bound:.4g}")
        if self.plan.adaptive is not None and abs(float(vector[-1])) > users / 2:
            raise ProtocolError("the count of unclipped updates is impossible: expected at most all users")

    def _size(self, layout: Layout) -> int:
        return layout.size + (self.plan.adaptive is not None)

    def _next_clip_norm(self, clip_norm: float, flat: NDArray[np.float64]) -> float:
        rule = self.plan.adaptive
        if rule is None:
            return clip_norm
        count = float(flat[-1])
        return next_clip_norm(clip_norm, count, self.plan.denominator, rule.quantile, rule.learning_rate)

    def _ledger(self) -> Ledger:
        return Ledger.open(self.ledger_folder, Limit(self.terms.limit_epsilon, self.plan.delta))
