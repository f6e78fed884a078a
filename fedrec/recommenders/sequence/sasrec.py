"""SASRec: self-attention over the own history predicts the next item.

Kang and McAuley 2018, "Self-attentive sequential recommendation" (ICDM): item vectors plus positions, blocks of
causal self-attention and a feed-forward layer, layer normalisation before each (Xiong et al. 2020, ICML),
residuals. Every dense layer is a small part of the model; the item table is the large one, and both travel as one
update.

Letters: K users, L positions, d embedding size, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedrec.core.updates import State
from fedrec.neural.recommender import Parameter
from fedrec.neural.sequence import AttentionConfig, SequenceRecommender
from fedrec.ranking.network import Network
from fedrec.recommenders.registry import recommender
from fedrec.recommenders.serving_forms import sequence_network

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params


class SasRecConfig(AttentionConfig):
    """Configuration of SASRec; see `AttentionConfig`.

    Attributes:
        blocks: of attention and feed-forward layer.
    """

    kind: str = "sasrec"
    blocks: int = Field(default=2, ge=1)


@recommender(SasRecConfig)
class SasRec(SequenceRecommender):
    """Causal self-attention."""

    config: SasRecConfig
    small: ClassVar[Mapping[str, Any]] = {
        "embedding_size": 8,
        "max_length": 7,
        "server": {"name": "sgd", "learning_rate": 1.0},
    }

    def __init__(self, config: SasRecConfig) -> None:
        super().__init__(config)
        self.config = config
        self.dropout_masks = 1 + 2 * config.blocks

    def encoder_parameters(self) -> dict[str, Parameter]:  # noqa: D102
        from fedrec.neural.attention import block_parameters, norm_parameters

        c = self.config
        out = {"position": Parameter((c.max_length, c.embedding_size), c.init_scale)}
        for block in range(c.blocks):
            out |= block_parameters(f"block{block}", c.embedding_size)
        return out | norm_parameters("last", c.embedding_size)

    def encode(self, params: Params, x: Tensor, real: Tensor, masks: Tensor | None) -> Tensor:  # noqa: D102
        from fedrec.neural.attention import attention_block, causal, layer_norm

        length = x.shape[1]
        x = x * self.config.embedding_size**0.5 + params["position"][:, -length:]
        if masks is not None:
            x = x * masks[0]
        allowed = causal(real)
        for block in range(self.config.blocks):
            own = None if masks is None else masks[1 + 2 * block : 3 + 2 * block]
            x = attention_block(params, f"block{block}", x, allowed, self.config.heads, own)
        return layer_norm(params, "last", x)

    def serving(self, shared: State) -> Network:  # noqa: D102
        settings = {"blocks": self.config.blocks, "heads": self.config.heads}
        return sequence_network(self, shared, "sasrec", settings)
