"""DeepFM, federated: a ranker over who asks, when, and what is asked about; what is known of the user stays there.

Guo et al. 2017, "DeepFM: a factorization-machine based neural network for CTR prediction" (IJCAI). Every field is a
vector of d values; the score is a bias, the inner products of all pairs of fields (Rendle 2010, "Factorization
machines", ICDM) and a small network over all of them. Fields of an item are its embedding and its public features.
Fields of a user are made on the device and never leave it: the mean of the embeddings and of the public features of
what was chosen before, how much that was, the hour and the day of the week. Where ratings are learned, these means
weigh what was rated by how it was rated, and the mean of the earlier ratings is a field of its own. Each training
example sees the past of its own moment alone, so that no event explains itself.

The target is a click (an interaction against n sampled others) or a rating, scaled to 0..1; both are learned by
binary cross-entropy, so that the score is the logit of a probability or of an expected share of the full rating.

Letters: K users, G groups, W items of a group (a positive and n negatives), S rows, F width of the public features,
d embedding size, P fields of a user, Q of an item.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from fedrec.core.contributions import distinct
from fedrec.core.interactions import FloatArray, IntArray, UserBatch
from fedrec.core.recommender import DataNeeds, RoundSeed, Scores
from fedrec.core.updates import State
from fedrec.neural.attention import linear, linear_parameters
from fedrec.neural.context_features import ACTIVITY, Past, activity, day, grid, hour
from fedrec.neural.item_features import required_features, row_features
from fedrec.neural.recommender import NeuralConfig, NeuralRecommender, Parameter
from fedrec.neural.server_optimizer import ServerOptimizer
from fedrec.neural.views import build_views
from fedrec.recommenders.registry import recommender

if TYPE_CHECKING:
    from torch import Tensor

    from fedrec.neural.batched import Params, Touched, Work

#: Items whose fields are held at once while a whole catalogue is ranked.
RANK_ITEMS = 1024


class DeepFmConfig(NeuralConfig):
    """Configuration of DeepFM.

    Attributes:
        embedding_size: d.
        layers: widths of the network; none: the factorisation machine alone.
        target: "click" learns interactions against negatives, "rating" learns their values.
        rating_range: lowest and highest rating.
        negatives: n of each click.
        features: F; 0: items have an embedding alone.
        context: hour and day of the week count; needs real time stamps.
        init_scale: standard deviation of the initial vectors' norms.
    """

    kind: str = "deepfm"
    embedding_size: int = Field(default=16, ge=1)
    layers: tuple[PositiveInt, ...] = (64, 32)
    target: Literal["click", "rating"] = "click"
    rating_range: tuple[float, float] = (1.0, 5.0)
    negatives: int = Field(default=4, ge=1)
    features: int = Field(default=0, ge=0)
    context: bool = False
    init_scale: float = Field(default=0.1, gt=0)
    server: ServerOptimizer = ServerOptimizer(name="adam", learning_rate=0.005)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        low, high = self.rating_range
        if not low < high:
            raise ValueError(f"rating_range is {low:g} to {high:g}: expected the lower one first")
        return self


@recommender(DeepFmConfig)
class DeepFm(NeuralRecommender):
    """Factorisation machine and network over fields."""

    config: DeepFmConfig
    sorts_by_length: ClassVar[bool] = True
    chunk_entries: ClassVar[int] = 600
    small: ClassVar[Mapping[str, Any]] = {
        "embedding_size": 4,
        "layers": (6,),
        "features": 5,
        "server": {"name": "sgd", "learning_rate": 1.0},
    }

    def __init__(self, config: DeepFmConfig) -> None:
        super().__init__(config)
        self.config = config

    @property
    def needs(self) -> DataNeeds:  # noqa: D102
        c = self.config
        return DataNeeds(c.rating_range if c.target == "rating" else None, c.context, c.features)

    def parameters(self) -> dict[str, Parameter]:  # noqa: D102
        c = self.config
        d, std = c.embedding_size, c.init_scale / c.embedding_size**0.5
        out = {
            "item_bias": Parameter((), where="table"),
            "item_table": Parameter((d,), std, where="table"),
            "bias": Parameter((1,)),
            "history": Parameter((d, d), d**-0.5),
            "activity": Parameter((ACTIVITY, d), std),
            "activity_bias": Parameter((ACTIVITY,)),
        }
        fields = 3
        if c.features:
            out["content"] = Parameter((c.features, d), std)
            out["content_bias"] = Parameter((c.features, 1))
            out["profile"] = Parameter((c.features, d), std)
            fields += 2
        if c.context:
            out |= {"hour": Parameter((24, d), std), "day": Parameter((7, d), std)}
            fields += 2
        if c.target == "rating":
            out |= {"level": Parameter((1, d), std), "level_bias": Parameter((1, 1))}
            fields += 1
        last = fields * d
        for position, width in enumerate(c.layers):
            out |= linear_parameters(f"deep{position}", last, width)
            last = width
        return out | {"deep_out": Parameter((last, 1), 0.1 * last**-0.5)}

    def init_shared(self, n_items: int, seed: int, features: Scores | None = None) -> State:  # noqa: D102
        width = self.config.features
        given = required_features(self.kind, features, n_items, width) if width else None
        return super().init_shared(n_items, seed, given)

    def work(  # noqa: D102
        self, batch: UserBatch, key: RoundSeed, n_items: int, shared: State
    ) -> tuple[Work, Touched | None]:
        import torch

        from fedrec.neural.example_groups import GroupWork

        c, batch = self.config, distinct(batch)
        rated = c.target == "rating"
        negatives = 0 if rated else c.negatives
        views = build_views(batch, key.seed, key.round, n_items, negatives, c.local_epochs)
        longest = max(1, int(batch.counts.max(initial=1)))
        times = grid(batch, batch.time, longest)
        shares = torch.from_numpy(grid(batch, self.share(batch.value), longest).astype(np.float32))
        vectors: list[Tensor | None] = []

        def objective(params: Params, slots: Tensor, mask: Tensor) -> Tensor:
            place = slots[..., 0]
            when = None if batch.time is None else torch.from_numpy(times).gather(1, place)
            past = Past(place, when, 2 * shares - 1 if rated else None)
            if not vectors:
                vectors.append(row_features(shared, work.touched, len(batch)) if c.features else None)
            logits = self._logits(params, vectors[0], past, slots)
            each = _cross_entropy(logits, shares.gather(1, place) if rated else None)
            # The mean over the user's examples: everyone's history counts alike.
            total: Tensor = (each * mask).sum(1) / mask.sum(1).clamp(min=1)
            return total

        # Whole passes: a step is the mean over all that the user has.
        work = GroupWork(objective, views, np.diff(views.example_ptr) // c.local_epochs)
        return work, work.touched

    @property
    def strangers(self) -> int:
        """See `fedrec.evaluation.answers.Ranker`."""
        return self.config.negatives if self.config.target == "click" else 0

    def outcome(self, value: FloatArray) -> FloatArray:
        """[E] what events with these values stand for: a click, or a part of the full rating."""
        return np.ones_like(value) if self.config.target == "click" else self.share(value)

    def share(self, value: FloatArray) -> FloatArray:
        """Ratings as parts of the full rating, 0 to 1."""
        low, high = self.config.rating_range
        share: FloatArray = np.clip((value - low) / (high - low), 0.0, 1.0).astype(np.float32)
        return share

    def user_scores(self, params: Params, shared: State, batch: UserBatch) -> Tensor:  # noqa: D102
        import torch

        n_items, users = params["item_bias"].shape[1], len(batch)
        pieces = [
            self._asked(
                params, shared, batch, torch.arange(start, min(start + RANK_ITEMS, n_items)).expand(users, -1)
            )
            for start in range(0, n_items, RANK_ITEMS)
        ]
        return torch.cat(pieces, dim=1)

    def predict(
        self, shared: State, batch: UserBatch, items: IntArray, time: IntArray | None = None
    ) -> FloatArray:
        """[U, C] probability of a click on `items` [U, C], or the expected part of the full rating.

        Args:
            shared: the model.
            batch: everyone's history.
            items: of each user.
            time: [U] seconds since 1970 when they are asked; None: when the latest event was.
        """
        import torch

        from fedrec.neural.batched import views

        tables, dense = self.split(shared)
        with torch.no_grad():
            params = views(tables, dense, {}, None, len(batch))
            scores = self._asked(params, shared, batch, torch.from_numpy(items), time)
            found: FloatArray = scores.sigmoid().numpy()
        return found

    # Parts ---------------------------------------------------------------------------------------------

    def _asked(
        self, params: Params, shared: State, batch: UserBatch, items: Tensor, time: IntArray | None = None
    ) -> Tensor:
        """[K, C] logits of items [K, C] after the whole history; parameters are views of one model."""
        import torch

        from fedrec.neural.gather import gather_rows

        users, longest = len(batch), max(1, int(batch.counts.max(initial=1)))
        own = torch.from_numpy(batch.padded(longest, 0))
        table = {name: params[name] for name in ("item_table", "item_bias")}
        # As while training: the own history first, what is asked about behind it.
        rows = torch.cat([own, items], dim=1)
        near = params | {name: gather_rows(values, rows) for name, values in table.items()}
        vectors = None
        if self.config.features:
            vectors = gather_rows(row_features(shared, None, users), rows)
        if time is None and batch.time is not None:
            time = np.append(batch.time, 0)[np.where(batch.counts > 0, batch.indptr[1:] - 1, -1)]
        now = None if time is None else torch.from_numpy(time).unsqueeze(1)
        liked = None
        if self.config.target == "rating":
            liked = torch.from_numpy(grid(batch, 2 * self.share(batch.value) - 1, longest))
        past = Past(torch.from_numpy(batch.counts).unsqueeze(1), now, liked)
        slots = torch.arange(longest, longest + items.shape[1]).expand(users, 1, -1)
        return self._logits(near, vectors, past, slots).squeeze(1)

    def _logits(self, params: Params, vectors: Tensor | None, past: Past, slots: Tensor) -> Tensor:
        """[K, G, W] of slots [K, G, W] among the user's rows, which begin with its history.

        vectors [K, S, F] are the public features of the rows.
        """
        import torch

        user = torch.stack(self._user(params, vectors, past), dim=2)
        item, bias = self._items(params, vectors, slots)
        users, groups, width = slots.shape
        # [K, G, W, P + Q, d]
        both = torch.cat([user.unsqueeze(2).expand(-1, -1, width, -1, -1), item], dim=3)
        pairs = (both.sum(3).square() - both.square().sum(3)).sum(-1) / 2
        x = both.reshape(users, groups * width, -1)
        for position in range(len(self.config.layers)):
            x = torch.relu(linear(params, f"deep{position}", x))
        deep = torch.bmm(x, params["deep_out"]).view(users, groups, width)
        level = params["bias"] + params["activity_bias"].gather(1, activity(past.before))
        rating = past.level()
        if rating is not None:
            level = level + torch.bmm(rating, params["level_bias"]).squeeze(2)
        return pairs + deep + bias + level.unsqueeze(2)

    def _user(self, params: Params, vectors: Tensor | None, past: Past) -> list[Tensor]:
        """P fields [K, G, d] of the moments."""
        import torch

        from fedrec.neural.gather import gather_rows

        fields = [
            torch.bmm(past.means(params["item_table"]), params["history"]),
            gather_rows(params["activity"], activity(past.before)),
        ]
        if vectors is not None:
            fields.append(torch.bmm(past.means(vectors), params["profile"]))
        rating = past.level()
        if rating is not None:
            fields.append(torch.bmm(rating, params["level"]))
        if self.config.context:
            if past.time is None:
                return [*fields, *[torch.zeros_like(fields[0])] * 2]
            fields.append(gather_rows(params["hour"], hour(past.time)))
            fields.append(gather_rows(params["day"], day(past.time)))
        return fields

    def _items(self, params: Params, vectors: Tensor | None, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Q fields [K, G, W, Q, d] and biases [K, G, W]."""
        import torch

        from fedrec.neural.gather import gather_rows

        fields, bias = [gather_rows(params["item_table"], slots)], gather_rows(params["item_bias"], slots)
        if vectors is not None:
            fields.append(gather_rows(torch.bmm(vectors, params["content"]), slots))
            level = torch.bmm(vectors, params["content_bias"]).squeeze(2)
            bias = bias + gather_rows(level, slots)
        return torch.stack(fields, dim=3), bias


def _cross_entropy(logits: Tensor, share: Tensor | None) -> Tensor:
    """[K, G] mean over a click and its negatives, or against the share [K, G] of the full rating."""
    from torch.nn.functional import softplus

    if share is None:
        each = softplus(-logits[..., 0]) + softplus(logits[..., 1:]).sum(-1)
        return each / logits.shape[2]
    return softplus(logits[..., 0]) - share * logits[..., 0]
