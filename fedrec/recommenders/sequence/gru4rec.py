"""GRU4Rec: a gated recurrent unit over the own history predicts the next item.

Hidasi et al. 2016, "Session-based recommendations with recurrent neural networks" (ICLR); gates of Cho et al. 2014
(EMNLP). The item table is tied: what goes in is what is scored. Petrov and Macdonald 2022 and Hidasi and Czapp 2023
(RecSys) found that most published comparisons train it worse than it deserves; here it has the losses of the others.

Letters: K users, L positions, d embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from fedrec.core.updates import State
from fedrec.neural.attention import linear, linear_parameters
from fedrec.neural.recommender import Parameter
from fedrec.neural.sequence import SequenceConfig, SequenceRecommender
from fedrec.ranking.network import Network
from fedrec.recommenders.registry import recommender
from fedrec.recommenders.serving_forms import sequence_network

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params


class Gru4RecConfig(SequenceConfig):
    """Configuration of GRU4Rec; see `SequenceConfig`.

    Attributes:
        layers: recurrent layers.
    """

    kind: str = "gru4rec"
    layers: int = Field(default=1, ge=1)
    init_scale: float = Field(default=0.1, gt=0)


@recommender(Gru4RecConfig)
class Gru4Rec(SequenceRecommender):
    """Gated recurrent units."""

    config: Gru4RecConfig
    small: ClassVar[Mapping[str, Any]] = {
        "embedding_size": 8,
        "max_length": 7,
        "server": {"name": "sgd", "learning_rate": 1.0},
    }

    def __init__(self, config: Gru4RecConfig) -> None:
        super().__init__(config)
        self.config = config
        self.dropout_masks = 1 + config.layers

    def encoder_parameters(self) -> dict[str, Parameter]:  # noqa: D102
        d = self.config.embedding_size
        out: dict[str, Parameter] = {}
        for layer in range(self.config.layers):
            out |= linear_parameters(f"gru{layer}/read", d, 3 * d)
            out[f"gru{layer}/remember"] = Parameter((d, 3 * d), d**-0.5)
        return out | linear_parameters("out", d, d)

    def encode(self, params: Params, x: Tensor, real: Tensor, masks: Tensor | None) -> Tensor:  # noqa: D102
        for layer in range(self.config.layers):
            if masks is not None:
                x = x * masks[layer]
            x = _gru(params, f"gru{layer}", x, real)
        return linear(params, "out", x if masks is None else x * masks[-1])

    def serving(self, shared: State) -> Network:  # noqa: D102
        return sequence_network(self, shared, "gru4rec", {"layers": self.config.layers})


def _gru(params: Params, name: str, x: Tensor, real: Tensor) -> Tensor:
    """[K, L, d] states; where `real` [K, L] is 0 the state stays as it is."""
    import torch

    read = linear(params, f"{name}/read", x)
    state, states = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        kept = torch.bmm(state.unsqueeze(1), params[f"{name}/remember"]).squeeze(1)
        (read_r, read_z, read_n), (kept_r, kept_z, kept_n) = read[:, t].chunk(3, 1), kept.chunk(3, 1)
        fresh = torch.tanh(read_n + torch.sigmoid(read_r + kept_r) * kept_n)
        update = torch.sigmoid(read_z + kept_z) * real[:, t : t + 1]
        state = (1.0 - update) * state + update * fresh
        states.append(state)
    return torch.stack(states, dim=1)
