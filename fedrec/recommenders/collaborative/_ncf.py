"""What GMF, MLP and NeuMF have in common: neural collaborative filtering with user vectors that stay on the device.

He et al. 2017, "Neural collaborative filtering" (WWW). GMF scores w · (p ∘ q) + b_i; MLP a small network over [p; q];
NeuMF both, on vectors of their own, joined by one output layer. Binary cross-entropy over each interaction and n
sampled negatives. The user vectors are local; item tables and layers are shared, and every user moves copies of
them. That a tuned dot product is hard to beat is known (Rendle et al. 2020, RecSys), and our tables show it.

Letters: K users, B groups, n negatives, d embedding size, h widths of the layers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, PositiveInt

from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import RoundSeed
from fedrec.core.updates import State
from fedrec.neural.attention import linear, linear_parameters
from fedrec.neural.device_optimizer import DeviceOptimizer
from fedrec.neural.recommender import NeuralConfig, NeuralRecommender, Parameter
from fedrec.neural.server_optimizer import ServerOptimizer
from fedrec.neural.views import build_views

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params, Touched, Work

#: Scores held at once while ranking a whole catalogue: users times items times widths.
RANK_ITEMS = 4096


class NcfConfig(NeuralConfig):
    """Keys of GMF, MLP and NeuMF.

    Attributes:
        embedding_size: d, of each of the two vectors of NeuMF.
        layers: widths of the layers of MLP and NeuMF.
        negatives: n, drawn anew in every round among the items that the user does not have.
        batch_size: B, groups of one local step.
        reg: weight of |p|² / 2 per group.
        init_scale: standard deviation of the initial vectors' norms.
        device: a step is the sum over a minibatch, so that GMF bears 0.05, and the layers of MLP diverge on histories
            of hundreds from about 0.01 on.
    """

    embedding_size: int = Field(default=32, ge=1)
    layers: tuple[PositiveInt, ...] = (32, 16)
    negatives: int = Field(default=4, ge=1)
    batch_size: int = Field(default=64, ge=1)
    reg: float = Field(default=0.01, ge=0)
    init_scale: float = Field(default=0.1, gt=0)
    device: DeviceOptimizer = DeviceOptimizer(learning_rate=0.01)
    server: ServerOptimizer = ServerOptimizer(name="adam", learning_rate=0.01)
    fold_in_epochs: int = Field(default=20, ge=1)


class Ncf(NeuralRecommender):
    """A network over a private user vector and an item's row."""

    config: NcfConfig
    #: What is summed: "gmf", the weighted product of both vectors; "mlp", a network over them.
    forms: ClassVar[tuple[str, ...]]

    sorts_by_length: ClassVar[bool] = True

    def __init__(self, config: NcfConfig) -> None:
        super().__init__(config)
        self.config = config

    def parameters(self) -> dict[str, Parameter]:
        c, out = self.config, {"item_bias": Parameter((), where="table")}
        scale, last = c.init_scale / c.embedding_size**0.5, 0
        for form in self.forms:
            out[f"{form}/item"] = Parameter((c.embedding_size,), scale, where="table")
            out[f"{form}/user"] = Parameter((c.embedding_size,), scale, where="local")
        if "gmf" in self.forms:
            # A plain dot product to begin with.
            out["gmf/weight"] = Parameter((c.embedding_size,), fill=1.0)
        if "mlp" in self.forms:
            last = 2 * c.embedding_size
            for position, width in enumerate(c.layers):
                out |= linear_parameters(f"mlp/layer{position}", last, width)
                last = width
            out["mlp/weight"] = Parameter((last,), last**-0.5)
        return out

    def work(
        self, batch: UserBatch, key: RoundSeed, n_items: int, shared: State
    ) -> tuple[Work, Touched | None]:
        from fedrec.neural.example_groups import GroupWork

        c = self.config
        views = build_views(batch, key.seed, key.round, n_items, c.negatives, c.local_epochs)
        work = GroupWork(self._objective, views, c.batch_size)
        return work, work.touched

    def user_scores(self, params: Params, shared: State, batch: UserBatch) -> Tensor:
        import torch

        n_items = params["item_bias"].shape[1]
        pieces = [
            self._scores(params, torch.arange(start, min(start + RANK_ITEMS, n_items)).expand(len(batch), -1))
            for start in range(0, n_items, RANK_ITEMS)
        ]
        return torch.cat(pieces, dim=1)

    def _objective(self, params: Params, slots: Tensor, mask: Tensor) -> Tensor:
        from fedrec.neural.example_groups import group_loss

        k, b, width = slots.shape
        scores = self._scores(params, slots.view(k, b * width)).view(k, b, width)
        squares = sum(params[f"{form}/user"].square().sum(1) for form in self.forms)
        return group_loss(scores, mask, "bce") + self.config.reg / 2 * mask.sum(1) * squares

    def _scores(self, params: Params, slots: Tensor) -> Tensor:
        """[K, E] scores of rows [K, E]."""
        from fedrec.neural.gather import gather_rows

        scores = gather_rows(params["item_bias"], slots)
        if "gmf" in self.forms:
            user = params["gmf/user"] * params["gmf/weight"]
            scores = scores + (gather_rows(params["gmf/item"], slots) @ user.unsqueeze(-1)).squeeze(-1)
        if "mlp" in self.forms:
            inner = self._tower(params, gather_rows(params["mlp/item"], slots))
            scores = scores + (inner @ params["mlp/weight"].unsqueeze(-1)).squeeze(-1)
        return scores

    def _tower(self, params: Params, items: Tensor) -> Tensor:
        """[K, E, h] the last layer over [user; item]."""
        import torch

        users = params["mlp/user"].unsqueeze(1).expand(-1, items.shape[1], -1)
        x = torch.cat([users, items], dim=2)
        for position in range(len(self.config.layers)):
            x = torch.relu(linear(params, f"mlp/layer{position}", x))
        return x
