"""Mult-VAE: a variational autoencoder with a multinomial likelihood over the own history, which it never leaves.

Liang et al. 2018, "Variational autoencoders for collaborative filtering" (WWW). A user's items, normalised and
thinned by dropout, go through tanh layers to the mean and variance of a latent vector; a sample of it goes back to
a softmax over the catalogue. The weight of the Kullback-Leibler term rises over the first rounds to `kl_weight`.
Nothing is personal: a user's latent vector is computed from the history on the device.

Letters: K users, L items of the longest history, I items, h width of the hidden layers, d latent size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from fedrec.core.interactions import UserBatch
from fedrec.core.randomness import Purpose, absorb, key, normal, user_keys
from fedrec.core.recommender import RoundSeed
from fedrec.core.updates import State
from fedrec.neural.attention import linear, linear_parameters
from fedrec.neural.dropout import dropout_masks
from fedrec.neural.recommender import NeuralConfig, NeuralRecommender, Parameter
from fedrec.neural.windows import Windows, windows_of
from fedrec.ranking.network import Network
from fedrec.ranking.tables import FloatTable
from fedrec.recommenders.registry import recommender

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fedrec.neural.batched import Params, Touched, Work


class MultVaeConfig(NeuralConfig):
    """Configuration of Mult-VAE.

    Attributes:
        hidden_size: h.
        embedding_size: d, of the latent vector.
        dropout: rate, of the items that go in.
        kl_weight: β, the final weight of the Kullback-Leibler term beside the log-likelihood over √n, for a history
            of n items; it is β √n beside the log-likelihood itself.
        anneal_rounds: rounds over which the weight rises from 0.
        init_scale: standard deviation of the initial entries of both item tables.
        max_history: the latest items that are read and learned from.
    """

    kind: str = "mult_vae"
    hidden_size: int = Field(default=100, ge=1)
    embedding_size: int = Field(default=64, ge=1)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    kl_weight: float = Field(default=0.1, ge=0)
    anneal_rounds: int = Field(default=500, ge=1)
    init_scale: float = Field(default=0.05, gt=0)
    max_history: int = Field(default=1000, ge=1)


@recommender(MultVaeConfig)
class MultVae(NeuralRecommender):
    """Encoder and decoder over the catalogue."""

    config: MultVaeConfig
    sorts_by_length: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {
        "embedding_size": 4,
        "hidden_size": 8,
        "server": {"name": "sgd", "learning_rate": 1.0},
    }

    def __init__(self, config: MultVaeConfig) -> None:
        super().__init__(config)
        self.config = config

    def parameters(self) -> dict[str, Parameter]:  # noqa: D102
        c = self.config
        return (
            {
                "read": Parameter((c.hidden_size,), c.init_scale, where="table"),
                "write": Parameter((c.hidden_size,), c.init_scale, where="table"),
                "item_bias": Parameter((), where="table"),
                "read_bias": Parameter((c.hidden_size,)),
            }
            | linear_parameters("latent", c.hidden_size, 2 * c.embedding_size)
            | linear_parameters("back", c.embedding_size, c.hidden_size)
        )

    def work(  # noqa: D102
        self, batch: UserBatch, key: RoundSeed, n_items: int, shared: State
    ) -> tuple[Work, Touched | None]:
        return _Reconstruct.prepare(self, batch, key), None

    def user_scores(self, params: Params, shared: State, batch: UserBatch) -> Tensor:  # noqa: D102
        import torch

        own = windows_of(batch, self.config.max_history)
        mean, _ = self.latent(
            params, torch.from_numpy(own.item), torch.from_numpy(own.real.astype(np.float32))
        )
        return self.scores(params, mean)

    def serving(self, shared: State) -> Network:  # noqa: D102
        weights = {
            name: values
            for name, values in shared.items()
            if name.split("/")[0] in ("read_bias", "latent", "back")
        }
        read, write = FloatTable(shared["read"]), FloatTable(shared["write"])
        settings = {"max_length": self.config.max_history}
        return Network("mult_vae", settings, weights, write, shared["item_bias"], read)

    def latent(self, params: Params, item: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """[K, d] mean and log variance of histories [K, L] whose items count `weight` [K, L]."""
        import torch

        from fedrec.neural.gather import gather_rows

        rows = gather_rows(params["read"], item)
        length = weight.square().sum(1, keepdim=True).clamp(min=1e-12).sqrt()
        summed = torch.bmm((weight / length).unsqueeze(1), rows).squeeze(1)
        hidden = torch.tanh(summed + params["read_bias"])
        mean, log_variance = linear(params, "latent", hidden.unsqueeze(1)).squeeze(1).chunk(2, dim=1)
        return mean, log_variance.clamp(-10.0, 10.0)

    def scores(self, params: Params, latent: Tensor) -> Tensor:
        """[K, I] of latent vectors [K, d]."""
        import torch

        hidden = torch.tanh(linear(params, "back", latent.unsqueeze(1)))
        # The table comes first, so that its gradient lies as the table does and is not copied.
        return torch.bmm(params["write"], hidden.transpose(1, 2)).squeeze(2) + params["item_bias"]


@dataclass(frozen=True)
class _Reconstruct:
    """One step per pass: how unlikely the history is, over the root of its length, and β times the divergence."""

    model: MultVae
    own: Windows
    weights: list[NDArray[np.float32]]
    noise: list[NDArray[np.float32]]
    kl_weight: float

    @property
    def steps(self) -> int:
        return len(self.weights)

    @property
    def examples(self) -> NDArray[np.float64]:
        return np.asarray(self.own.real.sum(axis=1) * self.steps, dtype=np.float64)

    @classmethod
    def prepare(cls, model: MultVae, batch: UserBatch, key_: RoundSeed) -> _Reconstruct:
        c = model.config
        own = windows_of(batch, c.max_history)
        weights, noise = [], []
        for epoch in range(c.local_epochs):
            keys = user_keys(key(key_.seed, Purpose.DROPOUT, key_.round), batch.user)
            keys = absorb(keys, np.full(len(keys), epoch, dtype=np.uint64))
            kept = dropout_masks(keys, 1, own.length, 1, c.dropout)[0, :, :, 0] if c.dropout else 1.0
            weights.append((own.real * kept).astype(np.float32))
            noise.append(normal(absorb(keys, keys), c.embedding_size).astype(np.float32))
        return cls(model, own, weights, noise, c.kl_weight * min(1.0, key_.round / c.anneal_rounds))

    def active(self, step: int) -> Tensor | None:
        return None

    def loss(self, params: Params, step: int) -> Tensor:
        import torch

        item = torch.from_numpy(self.own.item)
        mean, log_variance = self.model.latent(params, item, torch.from_numpy(self.weights[step]))
        sample = mean + torch.exp(0.5 * log_variance) * torch.from_numpy(self.noise[step])
        log_likely = torch.log_softmax(self.model.scores(params, sample), dim=1).gather(1, item)
        real = torch.from_numpy(self.own.real.astype(np.float32))
        count = real.sum(1).clamp(min=1.0)
        fit = -(log_likely * real).sum(1) / count.sqrt()
        divergence = 0.5 * (log_variance.exp() + mean.square() - 1.0 - log_variance).sum(1)
        return (fit + self.kl_weight * divergence) * (real.sum(1) > 0)
