"""What a device can do alone: rank by its own history and the public catalogue, with no one else's help.

An item scores by how much of its categories lie in the user's own history, newer interactions counting more;
items that score alike stand in an order drawn per user. Which items are popular is shared knowledge and plays no
part. Without categories the whole order is drawn. Any recommender that learns together must beat this to be worth
its privacy.

Letters: U users, I items, G categories.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import UserBatch
from fedrec.core.randomness import Purpose, key, uniform, user_keys
from fedrec.evaluation.evaluate import EvaluationSettings, evaluate_batch
from fedrec.evaluation.sums import MetricSums
from fedrec.recommenders.profiles import matrix, recency

Matrix = NDArray[np.float32]

#: Interactions after which one counts half; the same for everyone, so that nothing is tuned on anyone.
HALF_LIFE = 10.0
CHUNK_USERS = 256
#: Two different scores differ by more than this, so that the drawn order only parts what is alike.
TIE = 1e-4


def local_scores(history: UserBatch, categories: Matrix, seed: int) -> Matrix:
    """[U, I] scores in [0, 1 + TIE) from each user's own history.

    Args:
        history: of U users.
        categories: [I, G] 0/1 membership; G = 0: only the drawn order.
        seed: of the order among items that score alike.
    """
    n_items = len(categories)
    scale = np.sqrt(np.maximum(categories.sum(axis=1, keepdims=True), 1.0))
    unit = (categories / scale).astype(np.float64)
    profiles = matrix(history, recency(history, HALF_LIFE), n_items) @ unit
    length = np.linalg.norm(profiles, axis=1, keepdims=True)
    cosine = (profiles / np.maximum(length, 1e-12)) @ unit.T
    # A third stream of the purpose "initial local values": this method has none of its own.
    drawn = uniform(user_keys(key(seed, Purpose.INIT_LOCAL, 3), history.user), n_items)
    return np.asarray(np.round(cosine, 3) + TIE * drawn, dtype=np.float32)


def evaluate_local_only(
    history: UserBatch, target: UserBatch, categories: Matrix, settings: EvaluationSettings, seed: int
) -> MetricSums:
    """Metric sums over all users, chunk by chunk."""
    sums = MetricSums.empty(settings, len(categories))
    for start in range(0, len(history), CHUNK_USERS):
        some = np.arange(start, min(start + CHUNK_USERS, len(history)), dtype=np.int64)
        mine = history.take(some)
        scores = local_scores(mine, categories, seed)
        sums = sums.merge(evaluate_batch(scores, mine, target.take(some), settings, seed))
    return sums
