"""Two towers: one makes a vector of the own history, the other of an item; retrieval is their inner product.

Yi et al. 2019, "Sampling-bias-corrected neural modeling for large corpus item recommendations" (RecSys). The item
tower is an embedding plus a projection of public features, so that an item of which little is known leans on what
it is. The user tower pools the vectors of the history with learned attention, in which only age and content of an
event count, and passes them through a small network: a user is a function of the history, nothing personal is
stored, and whoever comes new is served at once.

Letters: K users, L positions, S rows, F width of the public features, d embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import DataNeeds, RoundSeed, Scores
from fedrec.core.updates import State
from fedrec.neural.attention import causal, layer_norm, linear, linear_parameters, norm_parameters
from fedrec.neural.item_features import FEATURES, required_features, row_features
from fedrec.neural.projected import Projected
from fedrec.neural.recommender import Parameter
from fedrec.neural.sequence import SequenceConfig, SequenceRecommender
from fedrec.ranking.network import Network
from fedrec.recommenders.registry import recommender
from fedrec.recommenders.serving_forms import sequence_network

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params, Touched, Work


class TwoTowerConfig(SequenceConfig):
    """Configuration of the two towers; see `SequenceConfig`.

    Attributes:
        features: F; 0: the item tower is an embedding alone.
        hidden_size: width of the user tower's hidden layer.
    """

    kind: str = "two_tower"
    features: int = Field(default=0, ge=0)
    hidden_size: int = Field(default=64, ge=1)


@recommender(TwoTowerConfig)
class TwoTower(SequenceRecommender):
    """A history tower and an item tower."""

    config: TwoTowerConfig
    small: ClassVar[Mapping[str, Any]] = {
        "embedding_size": 8,
        "max_length": 7,
        "server": {"name": "sgd", "learning_rate": 1.0},
        "features": 5,
    }

    def __init__(self, config: TwoTowerConfig) -> None:
        super().__init__(config)
        self.config = config
        self.dropout_masks = 2
        self.mask_width = max(config.embedding_size, config.hidden_size)

    @property
    def needs(self) -> DataNeeds:  # noqa: D102
        return replace(super().needs, features=self.config.features)

    def encoder_parameters(self) -> dict[str, Parameter]:  # noqa: D102
        c = self.config
        features = {"features": Parameter((c.features, c.embedding_size))} if c.features else {}
        return (
            features
            | {"age": Parameter((c.max_length,)), "ask": Parameter((c.embedding_size, 1), 0.02)}
            | norm_parameters("pooled", c.embedding_size)
            | linear_parameters("hidden", c.embedding_size, c.hidden_size)
            | linear_parameters("out", c.hidden_size, c.embedding_size)
        )

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:  # noqa: D102
        width = self.config.features
        given = required_features(self.kind, features, n_items, width) if width else None
        return super().init_shared(n_items, seed, given)

    def encode(self, params: Params, x: Tensor, real: Tensor, masks: Tensor | None) -> Tensor:  # noqa: D102
        import torch

        if masks is not None:
            x = x * masks[0][..., : x.shape[-1]]
        length = x.shape[1]
        # Row t weighs event j by what it is and by how many events ago it was.
        back = (torch.arange(length).unsqueeze(1) - torch.arange(length)).clamp(min=0)
        weight = params["age"][:, back] + torch.bmm(x, params["ask"]).transpose(1, 2)
        weight = weight.masked_fill(~causal(real), -torch.inf).softmax(-1)
        pooled = layer_norm(params, "pooled", torch.bmm(weight, x))
        hidden = torch.relu(linear(params, "hidden", pooled))
        if masks is not None:
            hidden = hidden * masks[1][..., : hidden.shape[-1]]
        return pooled + linear(params, "out", hidden)

    def work(  # noqa: D102
        self, batch: UserBatch, key: RoundSeed, n_items: int, shared: State
    ) -> tuple[Work, Touched | None]:
        work, touched = super().work(batch, key, n_items, shared)
        if not self.config.features or not shared:
            return work, touched
        vectors = row_features(shared, touched, len(batch))
        return Projected(work, lambda params: self.item_tower(params, vectors)), touched

    def user_scores(self, params: Params, shared: State, batch: UserBatch) -> Tensor:  # noqa: D102
        if self.config.features:
            params = self.item_tower(params, row_features(shared, None, len(batch)))
        return super().user_scores(params, shared, batch)

    def serving(self, shared: State) -> Network:  # noqa: D102
        items = shared["item_table"]
        if self.config.features:
            items = items + shared[FEATURES] @ shared["features"]
        return sequence_network(self, shared, "two_tower", {}, items=items, without=("features",))

    @staticmethod
    def item_tower(params: Params, vectors: Tensor) -> Params:
        """The parameters with what items are added to their embeddings."""
        import torch

        added = (
            torch.matmul(vectors[0], params["features"])
            if vectors.stride(0) == 0
            else torch.bmm(vectors, params["features"])
        )
        return params | {"item_table": params["item_table"] + added}
