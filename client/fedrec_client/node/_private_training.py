"""A node's part of a private round: who takes part, bounded updates, the contribution that the mechanism makes.

Out of scope: what the noise is (`fedrec.privacy.mechanism`), booking (`private_releases`), personal state (`node`).
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedrec.core.contributions import distinct
from fedrec.core.errors import ProtocolError
from fedrec.core.interactions import IntArray, UserBatch
from fedrec.core.messages import Reply, Request
from fedrec.core.recommender import Recommender, RoundSeed
from fedrec.core.updates import State, UpdateSum
from fedrec.privacy.adaptive import bit_sum
from fedrec.privacy.mechanism import mechanism_of
from fedrec.privacy.noise import NoiseSource
from fedrec.privacy.terms import PrivacyTerms
from fedrec.rounds.local_training import in_cohort, train_users
from fedrec.rounds.settings import NodeSettings
from fedrec.rounds.shards import round_layout
from fedrec_client.node._computed import computed, nothing
from fedrec_client.node.private_releases import Releases


class PrivateTraining:
    """Turns a train request into a contribution under the plan of the run.

    Args:
        recommender: the model.
        settings: of the node.
        terms: of the run.
        user_key: [U] of the hosted users.
        n_items: I.
        releases: the door through which contributions leave.
    """

    def __init__(
        self,
        recommender: Recommender,
        settings: NodeSettings,
        terms: PrivacyTerms,
        user_key: IntArray,
        n_items: int,
        releases: Releases,
    ) -> None:
        self._recommender = recommender
        self._settings = settings
        self._seed = settings.seed
        self._plan = terms.plan
        self._mechanism = mechanism_of(terms.plan)
        self._n_items = n_items
        self._noise = NoiseSource(terms.plan.noise_seed).derive("node", identity_of(user_key))
        self._releases = releases

    def earlier(self, request: Request) -> Reply | None:
        """See `Releases.earlier`."""
        return self._releases.earlier(request)

    def release(self, request: Request, reply: Reply) -> Reply:
        """See `Releases.release`."""
        return self._releases.release(request, reply)

    def train(self, request: Request, local: State, batch: UserBatch) -> tuple[Reply, State, IntArray]:
        """The reply, the new personal state of those who learned, and who they are (rows of the batch)."""
        if not 1 <= request.round <= self._plan.rounds:
            raise ProtocolError(f"round {request.round} was asked for: the plan has {self._plan.rounds}")
        clip_norm = self._clip_norm(request)
        # Entries of one item add up in a sum, whose norm would then be more than that of its entries.
        batch = distinct(batch)
        noise = self._noise.derive("round", request.round)
        joins = self._cohort(batch, RoundSeed(self._seed, request.round), noise.derive("cohort"))
        # Who has nothing to learn from takes part with a contribution of zero, as everyone else would.
        learners = np.flatnonzero(joins & (batch.counts > 0))
        mine = {name: values[learners] for name, values in local.items()}
        total, changed = self._updates(request, mine, batch.take(learners), clip_norm, noise)
        users = int(joins.sum())
        sent = self._mechanism.contribute(
            self._vector(total, users, request.round), users, request.round, clip_norm, noise.derive("share")
        )
        reply = Reply(request.kind, request.round, request.phase, {"update": sent}, {"users": users})
        return reply, changed, learners

    def _updates(
        self, request: Request, mine: State, batch: UserBatch, clip_norm: float, noise: NoiseSource
    ) -> tuple[UpdateSum, State]:
        """The users' sum; zero where it cannot be computed, with the noise that is made in training."""
        key = RoundSeed(self._seed, request.round)

        def zero() -> tuple[UpdateSum, State]:
            return nothing(self._recommender, self._n_items, request.round, len(batch)), mine

        if self._plan.unit == "interaction":
            from fedrec.privacy.interaction import train_interactions

            def train(histories: UserBatch) -> tuple[UpdateSum, State]:
                return train_interactions(
                    self._recommender, request.arrays, mine, histories, key, self._plan,
                    noise.derive("interactions"), self._n_items,
                )  # fmt: skip

            return computed(
                lambda: train(batch), lambda: computed(lambda: (train(batch.emptied())[0], mine), zero)
            )
        return computed(
            lambda: train_users(
                self._recommender, request.arrays, mine, batch, key, clip_norm, self._n_items
            ),
            zero,
        )

    def _cohort(self, batch: UserBatch, key: RoundSeed, noise: NoiseSource) -> NDArray[np.bool_]:
        """[U] secret coins: who could foresee the cohort, as with seeded ones, would gain from no amplification."""
        if self._plan.sampling == "everyone":
            return np.ones(len(batch), dtype=bool)
        if self._plan.noise_seed is not None:
            return in_cohort(batch.user, self._plan.sampling_rate, key)
        return np.asarray(noise.uniform(len(batch)) < self._plan.sampling_rate)

    def _clip_norm(self, request: Request) -> float:
        if self._plan.adaptive is None:
            return self._plan.clip_norm
        asked = request.meta.get("clip_norm")
        if not isinstance(asked, float) or not 0.0 < asked < float("inf"):
            raise ProtocolError(f"request has clip_norm {asked!r}: expected a positive number")
        return asked

    def _vector(self, total: UpdateSum, users: int, round_: int) -> NDArray[np.float64]:
        whole = self._recommender.layout(self._n_items, round_)
        gradient = self._recommender.gradient_rounds
        layout = round_layout(whole, self._n_items, self._settings, round_, gradient=gradient)
        flat = layout.flatten(total.blocks).astype(np.float64)
        if self._plan.adaptive is None:
            return flat
        return np.append(flat, bit_sum(users, total.clipped))


def identity_of(user_key: IntArray) -> str:
    """Tells nodes apart by whom they host, so that seeded noise differs between them."""
    return hashlib.sha256(np.ascontiguousarray(user_key).tobytes()).hexdigest()[:16]


def subject_of(user_key: IntArray, folder: Path | None) -> str:
    """Who is charged. A node charges all its users alike; one who joins must not begin a new book."""
    if len(user_key) == 1:
        return f"user:{int(user_key[0])}"
    return f"each of the users of node {folder.name if folder else 'in memory'}"
