"""What comes next, from texts alone: frozen public vectors of the items, a small trained reader of the own history.

Item i is v_i = f_i W with f_i an encoder's vector of its text (or any other public vector) and W = P + A B: P, the
leading directions of all f, is public and fixed, A B is a low-rank adapter (Hu et al. 2022, "LoRA", ICLR) that is
trained federatedly. Attention (Kang and McAuley 2018) or an LSTM over the history's vectors gives h, and h · v_i the
score. There is no parameter of any single item: an update has the same few thousand numbers for any catalogue, and an
item that no one has seen yet is scored like all others.

Letters: K users, L positions, S rows, F width of the public vectors, d embedding size, r rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import DataNeeds, RoundSeed, Scores
from fedrec.core.updates import State
from fedrec.neural.attention import (
    attention_block,
    block_parameters,
    causal,
    layer_norm,
    norm_parameters,
)
from fedrec.neural.item_features import FEATURES, required_features, row_features
from fedrec.neural.lstm import lstm, lstm_parameters
from fedrec.neural.projected import Projected
from fedrec.neural.recommender import Parameter
from fedrec.neural.sequence import AttentionConfig, SequenceRecommender
from fedrec.ranking.network import Network
from fedrec.recommenders.registry import recommender
from fedrec.recommenders.serving_forms import sequence_network

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params, Touched, Work

PROJECTION = "projection"


class TextSequenceConfig(AttentionConfig):
    """Configuration of the text sequence model; see `AttentionConfig`.

    Attributes:
        features: F.
        rank: r of the adapter.
        head: what reads the history's vectors.
    """

    kind: str = "text_sequence"
    features: int = Field(ge=1)
    rank: int = Field(default=16, ge=1)
    head: Literal["attention", "lstm"] = "attention"
    loss: Literal["full", "sampled"] = "sampled"


@recommender(TextSequenceConfig)
class TextSequence(SequenceRecommender):
    """Attention or an LSTM over text vectors."""

    config: TextSequenceConfig
    small: ClassVar[Mapping[str, Any]] = {
        "embedding_size": 8,
        "max_length": 7,
        "server": {"name": "sgd", "learning_rate": 1.0},
        "features": 5,
        "rank": 2,
    }

    def __init__(self, config: TextSequenceConfig) -> None:
        super().__init__(config)
        self.config = config
        self.dropout_masks = 3

    @property
    def needs(self) -> DataNeeds:  # noqa: D102
        return replace(super().needs, features=self.config.features)

    def item_parameters(self) -> dict[str, Parameter]:  # noqa: D102
        c = self.config
        return {
            # B begins at zero, so that the first round starts from the encoder's own geometry.
            "adapter/a": Parameter((c.features, c.rank), c.features**-0.5),
            "adapter/b": Parameter((c.rank, c.embedding_size)),
            "temperature": Parameter((1,)),
        }

    def encoder_parameters(self) -> dict[str, Parameter]:  # noqa: D102
        d = self.config.embedding_size
        if self.config.head == "lstm":
            return lstm_parameters("lstm", d) | norm_parameters("last", d)
        position = {"position": Parameter((self.config.max_length, d), self.config.init_scale)}
        return position | block_parameters("block0", d) | norm_parameters("last", d)

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:  # noqa: D102
        c = self.config
        given = required_features(self.kind, features, n_items, c.features)
        shared = super().init_shared(n_items, seed, given)
        return shared | {PROJECTION: _leading(given, c.embedding_size)}

    def encode(self, params: Params, x: Tensor, real: Tensor, masks: Tensor | None) -> Tensor:  # noqa: D102
        if masks is not None:
            x = x * masks[0]
        if self.config.head == "lstm":
            return layer_norm(params, "last", lstm(params, "lstm", x, real))
        x = x + params["position"][:, -x.shape[1] :]
        own = None if masks is None else masks[1:]
        x = attention_block(params, "block0", x, causal(real), self.config.heads, own)
        return layer_norm(params, "last", x)

    def work(  # noqa: D102
        self, batch: UserBatch, key: RoundSeed, n_items: int, shared: State
    ) -> tuple[Work, Touched | None]:
        work, touched = super().work(batch, key, n_items, shared)
        if not shared:
            return work, touched
        vectors, projection = row_features(shared, touched, len(batch)), shared[PROJECTION]
        return Projected(work, lambda params: self.project(params, vectors, projection)), touched

    def user_scores(self, params: Params, shared: State, batch: UserBatch) -> Tensor:  # noqa: D102
        vectors = row_features(shared, None, len(batch))
        return super().user_scores(self.project(params, vectors, shared[PROJECTION]), shared, batch)

    def serving(self, shared: State) -> Network:  # noqa: D102
        adapted = shared[PROJECTION] + shared["adapter/a"] @ shared["adapter/b"]
        items = shared[FEATURES] @ adapted * np.exp(shared["temperature"])
        settings = {"heads": self.config.heads}
        return sequence_network(self, shared, f"text_{self.config.head}", settings, items=items)

    def project(self, params: Params, vectors: Tensor, projection: NDArray[np.float32]) -> Params:
        """The parameters with `item_table` [K, S, d] made of the rows' vectors [K, S, F], and no biases."""
        import torch

        fixed = torch.from_numpy(projection)
        if vectors.stride(0) == 0:  # everyone has all rows
            own = fixed + torch.bmm(params["adapter/a"], params["adapter/b"])
            table = torch.matmul(vectors[0], own)
        else:
            adapted = torch.bmm(torch.bmm(vectors, params["adapter/a"]), params["adapter/b"])
            table = vectors @ fixed + adapted
        table = table * params["temperature"].exp().unsqueeze(1)
        return params | {"item_table": table, "item_bias": table.new_zeros(()).expand(table.shape[:2])}


def _leading(features: Scores, size: int) -> NDArray[np.float32]:
    """[F, d] the directions in which the items' vectors spread most, scaled so that v has entries of about 1."""
    _, spread, directions = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    known = min(size, len(directions))
    out = np.zeros((features.shape[1], size), dtype=np.float32)
    out[:, :known] = directions[:known].T * (np.sqrt(len(features)) / max(float(spread[:known].mean()), 1e-9))
    return out
