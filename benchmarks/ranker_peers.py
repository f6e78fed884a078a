"""What rankers are asked, and simple peers that answer: means, and logistic regression on the fields of DeepFM.

The regression sees what DeepFM sees: each training example has the past of its own moment, a past of ratings is
weighed by them, the mean of the own earlier ratings is a field, and a negative is something that the user does not
have. It has no learned vectors: of two fields together it knows how far profile and item agree, feature by
feature.

Letters: N questions, W items of a question, M training examples, F public features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedrec.core.interactions import FloatArray, IntArray, Interactions, UserBatch
from fedrec.evaluation._ranking_metrics import RankerSums
from fedrec.neural.context_features import ACTIVITY, DAY, FEW, HOUR, THURSDAY

Floats = NDArray[np.float64]
NEGATIVES = 4
#: From which share of the full rating on something is liked.
LIKE = 0.75
#: Weights of the squares of the coefficients, of which the validation part chooses.
RIDGES = (0.5, 2.0, 8.0)


@dataclass(frozen=True)
class Questions:
    """What rankers are asked: W items of a user at a moment, and what happened.

    Attributes:
        history: of everyone.
        rows: [N] row of the owner in the history.
        time: [N].
        items: [N, W].
        outcome: [N, W] 0 to 1.
    """

    history: UserBatch
    rows: IntArray
    time: IntArray
    items: IntArray
    outcome: Floats

    def evaluate(self, probability: Floats) -> dict[str, float]:
        """Figures of probabilities [N, W]; the areas ask for likes."""
        owner = np.repeat(self.rows, self.items.shape[1])
        p, y = np.clip(probability.reshape(-1), 0, 1), self.outcome.reshape(-1)
        exact = RankerSums.of(p, y, owner).report()
        likes = RankerSums.of(p, (y >= LIKE).astype(float), owner).report()
        return exact | {name: likes[name] for name in ("auc", "auc_within")}


@dataclass(frozen=True)
class Pasts:
    """What is known of users before each of their events, and at the end.

    Attributes:
        known: events of everyone.
        profile: [N + 1, F] running sums over all events of their features, weighed by how they were rated.
        liked: [N + 1] running sums of the ratings, -1 to 1.
        rated: whether ratings are learned.
    """

    known: Interactions
    profile: Floats
    liked: Floats
    rated: bool

    @classmethod
    def of(cls, known: Interactions, features: FloatArray, share: FloatArray | None) -> Pasts:
        """Of events and their shares [N] of the full rating; None: clicks."""
        weight = np.ones(len(known)) if share is None else 2.0 * share - 1.0
        profile = np.zeros((len(known) + 1, features.shape[1]))
        np.cumsum(weight[:, None] * features[known.item], axis=0, out=profile[1:])
        return cls(known, profile, np.append(0.0, np.cumsum(weight)), share is not None)

    def fields(self, user: IntArray, at: IntArray, time: IntArray) -> tuple[IntArray, Floats]:
        """Classes [M, 3] of activity, hour and day, and [M, F + 1] mean features and level, before event `at`."""
        first = self.known.indptr[user]
        before = at - first
        active = np.minimum(np.log2(before + 1).astype(np.int64), ACTIVITY - 1)
        mean = (self.profile[at] - self.profile[first]) / np.maximum(before, 1)[:, None]
        level = (self.liked[at] - self.liked[first]) / (before + FEW) * self.rated
        classes = np.stack([active, time // HOUR % 24, (time // DAY + THURSDAY) % 7], axis=1)
        return classes, np.column_stack([mean, level])


@dataclass(frozen=True)
class Examples:
    """Inputs of the regression: places [M, 4] of ones, and dense columns [M, 3 F + 1]."""

    places: torch.Tensor
    dense: torch.Tensor

    @classmethod
    def of(
        cls,
        pasts: Pasts,
        features: FloatArray,
        moment: tuple[IntArray, IntArray, IntArray],
        item: IntArray,
    ) -> Examples:
        """Of items [M] that users are asked about, each at a moment: owner, next event and time [M]."""
        classes, owner = pasts.fields(*moment)
        starts = pasts.known.n_items + np.cumsum([0, ACTIVITY, 24])
        own = features[item]
        dense = np.column_stack([own, own * owner[:, :-1], owner])
        return cls(
            torch.from_numpy(np.column_stack([item, classes + starts])),
            torch.from_numpy(dense.astype(np.float32)),
        )


def logistic(
    known: Interactions, features: FloatArray, share: FloatArray | None, ridge: float, asked: Questions
) -> Floats:
    """[N, W] of logistic regression.

    Args:
        known: training events.
        features: [I, F].
        share: [events] of the full rating; None: clicks.
        ridge: weight of the squares of the coefficients.
        asked: whose history is `known`.
    """
    pasts = Pasts.of(known, features, share)
    user, at, item = known.user, np.arange(len(known)), known.item
    goal = np.ones(len(known)) if share is None else share
    if share is None:
        item = np.concatenate([item, strangers(known)])
        user, at = np.tile(user, 1 + NEGATIVES), np.tile(at, 1 + NEGATIVES)
        goal = np.concatenate([goal, np.zeros(len(item) - len(goal))])
    learn = Examples.of(pasts, features, (user, at, known.timestamp[at]), item)
    weight, slope, bias = _solve(learn, goal.astype(np.float32), known.n_items + ACTIVITY + 31, ridge)
    width = asked.items.shape[1]
    owner, time = np.repeat(asked.rows, width), np.repeat(asked.time, width)
    moment = (owner, known.indptr[user + 1], time)
    ask = Examples.of(pasts, features, moment, asked.items.reshape(-1))
    found = (weight[ask.places].sum(1) + ask.dense @ slope + bias).sigmoid()
    return found.numpy().astype(float).reshape(asked.items.shape)


def strangers(known: Interactions) -> IntArray:
    """[NEGATIVES · events] items that the user of each event does not have; all events, then all again."""
    rng, user = np.random.default_rng(0), np.tile(known.user, NEGATIVES)
    own = known.user * known.n_items + known.item
    drawn = rng.integers(0, known.n_items, len(user))
    for _ in range(50):
        bad = np.flatnonzero(np.isin(user * known.n_items + drawn, own))
        drawn[bad] = rng.integers(0, known.n_items, len(bad))
    return drawn


def means(known: Interactions, share: FloatArray | None, asked: Questions) -> dict[str, Floats]:
    """Peers that need no training."""
    count = known.item_counts.astype(float)
    if share is None:
        negative = NEGATIVES * len(known) / known.n_items
        return {
            "base rate": np.full(asked.items.shape, 1 / (1 + NEGATIVES)),
            "popularity": ((count + 1) / (count + 1 + negative))[asked.items],
        }
    y = share.astype(float)
    mean = y.mean()
    item_part, user_part = np.zeros(known.n_items), np.zeros(known.n_users)
    for _ in range(20):
        rest = y - mean - user_part[known.user]
        item_part = np.bincount(known.item, rest, known.n_items) / (count + 5)
        rest = y - mean - item_part[known.item]
        user_part = np.bincount(known.user, rest, known.n_users) / (known.counts + 10)
    alone = np.bincount(known.item, y - mean, known.n_items) / (count + 5)
    both = mean + item_part[asked.items] + user_part[asked.rows][:, None]
    return {
        "mean": np.full(asked.items.shape, mean),
        "item mean": mean + alone[asked.items],
        "user and item": both,
    }


def _solve(
    learn: Examples, goal: FloatArray, size: int, ridge: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights of the places [size], slopes of the dense columns, and the bias."""
    weight = torch.zeros(size, requires_grad=True)
    slope, bias = torch.zeros(learn.dense.shape[1], requires_grad=True), torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, slope, bias], max_iter=100, line_search_fn="strong_wolfe")
    target = torch.from_numpy(goal)

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = weight[learn.places].sum(1) + learn.dense @ slope + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        loss = loss + ridge / len(target) * (weight.square().sum() + slope.square().sum())
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), slope.detach(), bias.detach()
