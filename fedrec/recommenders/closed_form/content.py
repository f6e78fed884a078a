"""Content: what an item says about itself, and a federated map from what someone liked to what that user may like.

Items are frozen public vectors f_i (an encoder's of title, genres and description; images; anything). A user's
profile is p_u = Σ_i f_i over the own history, and every item is scored as p_u M f_i. M is the ridge solution of min
Σ_u |x_u - F Mᵀ p_u|², a linear autoencoder (as EASE, Steck 2019, WWW) that sees items through their vectors alone:

    M = (P + λ I)⁻¹ P (FᵀF + μ I)⁻¹   with P = Σ_u p_u p_uᵀ

so a user sends p_u p_uᵀ once, whose size does not grow with the catalogue, and federated and centralised model are
the same. Items that no one has seen are scored like all others, and so is a user of whom no one has learned.
Before any training M is the identity: similarity of texts, which is zero-shot recommendation.

Letters: U users, I items, F width of the public vectors, N interactions of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.recommender import DataNeeds, Recommender, RoundSeed, Scores
from fedrec.core.updates import BlockSpec, Gram, Layout, State, Updates, UpdateSum
from fedrec.neural.item_features import FEATURES, required_features
from fedrec.ranking.network import Network
from fedrec.ranking.tables import FloatTable
from fedrec.recommenders.closed_form._gram import GramConfig
from fedrec.recommenders.profiles import matrix, profile, recency
from fedrec.recommenders.registry import recommender


class ContentConfig(GramConfig):
    """Configuration of the content model; see `GramConfig` for the profiles.

    Attributes:
        features: F, the width of the public vectors: what a user sends is F (F + 1) / 2 numbers.
        profile_reg: λ, per user of the training data: how far M trusts rare directions of taste.
        item_reg: μ, how far M trusts directions in which items hardly differ.
    """

    kind: str = "content"
    features: int = Field(ge=1)
    profile_reg: float = Field(default=1.0, ge=0)
    item_reg: float = Field(default=5.0, gt=0)


@recommender(ContentConfig)
class Content(Recommender):
    """A ridge map between public item vectors."""

    config: ContentConfig
    fixed_rounds: ClassVar[int | None] = 1
    chunk_users: ClassVar[int] = 64
    small: ClassVar[Mapping[str, Any]] = {"features": 5}

    def __init__(self, config: ContentConfig) -> None:
        self.config = config

    @property
    def needs(self) -> DataNeeds:  # noqa: D102
        return DataNeeds(features=self.config.features)

    def layout(self, n_items: int, round_: int = 1) -> Layout:  # noqa: D102
        width = self.config.features
        return Layout({"profiles": BlockSpec((width, width), symmetric=True)})

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:  # noqa: D102
        given = required_features(self.kind, features, n_items, self.config.features)
        return {FEATURES: given, "map": np.eye(self.config.features, dtype=np.float32)}

    def touched_rows(self, batch: UserBatch, key: RoundSeed, n_items: int) -> IntArray:  # noqa: D102
        return np.unique(batch.item)

    def compute_updates(  # noqa: D102
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        weights = profile(batch, self.config.training_half_life, self.config.activity_exponent)
        profiles = self._profiles(shared, batch, weights)
        n_users, width = profiles.shape
        everywhere = np.tile(np.arange(width), n_users)
        block = Gram(np.arange(n_users + 1) * width, everywhere, profiles.reshape(-1))
        return Updates({"profiles": block}, n_users), {}

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:  # noqa: D102
        return self._solve(shared, total.blocks["profiles"], total.users), server

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:  # noqa: D102
        profiles = self._profiles(shared, batch, recency(batch, self.config.scoring_half_life))
        return np.asarray(profiles @ shared["map"] @ shared[FEATURES].T, dtype=np.float32)

    def serving(self, shared: State) -> Network:  # noqa: D102
        settings = {"half_life": self.config.scoring_half_life, "max_length": 1 << 30}
        return Network("content", settings, {"map": shared["map"]}, FloatTable(shared[FEATURES]))

    def fit(  # noqa: D102
        self, train: Interactions, seed: int, rounds: int, features: Scores | None = None
    ) -> tuple[State, State]:
        shared, batch = self.init_shared(train.n_items, seed, features), train.batch(np.arange(train.n_users))
        weights = profile(batch, self.config.training_half_life, self.config.activity_exponent)
        profiles = self._profiles(shared, batch, weights)
        return self._solve(shared, profiles.T @ profiles, len(batch)), {}

    def _profiles(self, shared: State, batch: UserBatch, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """[U, F] weighted sums of the vectors of own items; the own rows alone are read."""
        used = np.unique(batch.item)
        own = matrix(batch, weights, len(shared[FEATURES])).tocsc()[:, used]
        return np.asarray(own @ shared[FEATURES][used].astype(np.float64))

    def _solve(self, shared: State, gram: NDArray[np.float64], users: float) -> State:
        """M of a sum of profiles' outer products."""
        vectors = shared[FEATURES].astype(np.float64)
        identity = np.eye(len(gram))
        right = np.linalg.inv(vectors.T @ vectors + self.config.item_reg * identity)
        left = np.linalg.solve(gram + self.config.profile_reg * users * identity, gram)
        return shared | {"map": (left @ right).astype(np.float32)}
