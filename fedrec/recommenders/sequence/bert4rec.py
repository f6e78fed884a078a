"""BERT4Rec: attention in both directions learns to tell hidden items of the own history.

Sun et al. 2019, "BERT4Rec: sequential recommendation with bidirectional encoder representations from transformer"
(CIKM). In training some events of a window are hidden and asked for (Cloze); to recommend, a hidden event is put
behind the history. Petrov and Macdonald 2022 (RecSys) show that it needs far more passes than models of the next
item, because a pass asks for few of the events.

Letters: K users, L positions, d embedding size, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from fedrec.core.interactions import UserBatch
from fedrec.core.randomness import Purpose, absorb, key, uniform, user_keys
from fedrec.core.recommender import RoundSeed
from fedrec.core.updates import State
from fedrec.neural.attention import (
    attention_block,
    block_parameters,
    everywhere,
    layer_norm,
    norm_parameters,
)
from fedrec.neural.recommender import Parameter
from fedrec.neural.sequence import AttentionConfig, SequenceRecommender
from fedrec.neural.windows import Lesson, Windows
from fedrec.ranking.network import Network
from fedrec.recommenders.registry import recommender
from fedrec.recommenders.serving_forms import sequence_network

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params


class Bert4RecConfig(AttentionConfig):
    """Configuration of BERT4Rec; see `AttentionConfig`.

    Attributes:
        blocks: of attention and feed-forward layer.
        hidden_share: probability that an event is hidden and asked for; the latest is always one of them in half of
            the rounds, since that is what recommending asks for.
    """

    kind: str = "bert4rec"
    blocks: int = Field(default=2, ge=1)
    hidden_share: float = Field(default=0.3, gt=0, lt=1)


@recommender(Bert4RecConfig)
class Bert4Rec(SequenceRecommender):
    """Bidirectional self-attention."""

    config: Bert4RecConfig
    small: ClassVar[Mapping[str, Any]] = {
        "embedding_size": 8,
        "max_length": 7,
        "server": {"name": "sgd", "learning_rate": 1.0},
    }

    def __init__(self, config: Bert4RecConfig) -> None:
        super().__init__(config)
        self.config = config
        self.dropout_masks = 1 + 2 * config.blocks

    def encoder_parameters(self) -> dict[str, Parameter]:  # noqa: D102
        c = self.config
        out = {
            "hidden_item": Parameter((c.embedding_size,), c.init_scale),
            "position": Parameter((c.max_length + 1, c.embedding_size), c.init_scale),
        }
        for block in range(c.blocks):
            out |= block_parameters(f"block{block}", c.embedding_size)
        return out | norm_parameters("last", c.embedding_size)

    def encode(self, params: Params, x: Tensor, real: Tensor, masks: Tensor | None) -> Tensor:  # noqa: D102
        x = x * self.config.embedding_size**0.5 + params["position"][:, -x.shape[1] :]
        if masks is not None:
            x = x * masks[0]
        allowed = everywhere(real)
        for block in range(self.config.blocks):
            own = None if masks is None else masks[1 + 2 * block : 3 + 2 * block]
            x = attention_block(params, f"block{block}", x, allowed, self.config.heads, own)
        return layer_norm(params, "last", x)

    def lesson(self, window: Windows, batch: UserBatch, key_: RoundSeed, epoch: int) -> Lesson:  # noqa: D102
        keys = user_keys(key(key_.seed, Purpose.MASK, key_.round), batch.user)
        draws = uniform(absorb(keys, np.full(len(keys), epoch, dtype=np.uint64)), window.length + 1)
        # Counted from the end, so that padding in front changes nothing.
        hidden = window.real & (draws[:, 1:][:, ::-1] < self.config.hidden_share)
        hidden[:, -1] |= window.real[:, -1] & (draws[:, 0] < 0.5)
        # What was written about a hidden event would tell it.
        review = None if window.review is None else window.review * ~hidden[..., None]
        return Lesson(window.item, window.item, window.real, hidden, hidden, review)

    def user_scores(self, params: Params, shared: State, batch: UserBatch) -> Tensor:  # noqa: D102
        import torch

        from fedrec.neural.gather import gather_rows

        own = self.windows(batch, self.config.max_length)
        x = gather_rows(params["item_table"], torch.from_numpy(own.item))
        x = torch.cat([x, params["hidden_item"].unsqueeze(1)], dim=1)
        real = torch.from_numpy(np.pad(own.real, ((0, 0), (0, 1)), constant_values=True).astype(np.float32))
        review = (
            None if own.review is None else torch.from_numpy(np.pad(own.review, ((0, 0), (0, 1), (0, 0))))
        )
        last = self.hidden(params, x, review, real, None)[:, -1]
        table, bias = params["item_table"].transpose(1, 2), params["item_bias"].unsqueeze(1)
        return torch.baddbmm(bias, last.unsqueeze(1), table).squeeze(1)

    def serving(self, shared: State) -> Network:  # noqa: D102
        settings = {"blocks": self.config.blocks, "heads": self.config.heads}
        return sequence_network(self, shared, "bert4rec", settings)
