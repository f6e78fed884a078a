"""Evaluating a model on the users' side: scores in, sums out.

Users of whom nothing is held out are not evaluated; their histories still count for novelty. Held-out items
arrive here as an argument and go nowhere else: no function of this module hands them, or anything made of a
single user's ranks, to its caller.

Letters: U users, I items, C categories.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import UserBatch
from fedrec.core.randomness import Purpose, key, uniform, user_keys
from fedrec.core.recommender import Recommender
from fedrec.core.updates import State
from fedrec.evaluation._bootstrap import replicate_weights
from fedrec.evaluation._candidates import draw_candidates, not_candidates
from fedrec.evaluation.answers import Ranker, evaluate_answers
from fedrec.evaluation.metrics import all_metrics, diversity
from fedrec.evaluation.ranks import check_batches, full_ranks, lowest_where_missing, sampled_ranks
from fedrec.evaluation.settings import EvaluationSettings
from fedrec.evaluation.sums import MetricSums
from fedrec.ranking.top_n import top_n

__all__ = ["EvaluationSettings", "evaluate", "evaluate_batch"]

Floats = NDArray[np.float64]

#: Most scores that are held at once (users of a chunk times items).
CHUNK_SCORES = 8_000_000


def evaluate(
    recommender: Recommender,
    shared: State,
    local: State,
    history: UserBatch,
    target: UserBatch,
    settings: EvaluationSettings,
    seed: int,
    categories: NDArray[np.floating] | None = None,
    chunk_users: int = 256,
) -> MetricSums:
    """Sums over all users, evaluated chunk by chunk.

    Args:
        recommender: the model.
        shared: its broadcast state.
        local: arrays [U, ...] of the users of the batch.
        history: what each user's device knows when it recommends; never recommended again.
        target: what is held out, the same users in the same order.
        settings: what is measured.
        seed: root of the run's randomness (candidates and bootstrap weights).
        categories: [I, C] non-negative, for diversity.
        chunk_users: most users scored at once; fewer where the catalogue is large.

    Raises:
        ConfigError: probabilities are to be evaluated, and the model gives none.
        DataError: scores, histories and held-out items do not fit together.
    """
    if settings.probabilities and not isinstance(recommender, Ranker):
        raise ConfigError(f"evaluation.probabilities: {recommender.kind!r} gives none; train a ranker")
    evaluated = np.flatnonzero((target.counts > 0) & chosen(target, settings, seed))
    # Someone must be scored to learn the size of the catalogue, evaluated or not.
    rows = evaluated if len(evaluated) else np.arange(min(len(history), 1), dtype=np.int64)
    sums, start, size = None, 0, 1
    while sums is None or start < len(rows):
        where = rows[start : start + size]
        mine = {name: values[where] for name, values in local.items()}
        before, held_out = history.take(where), target.take(where)
        scores = recommender.score(shared, mine, before)
        part = evaluate_batch(scores, before, held_out, settings, seed, categories)
        if settings.probabilities and isinstance(recommender, Ranker):
            answers = evaluate_answers(recommender, shared, before, held_out, scores.shape[1], seed)
            part = replace(part, answers=answers)
        sums = part if sums is None else sums.merge(part)
        start, size = start + size, max(1, min(chunk_users, CHUNK_SCORES // max(scores.shape[1], 1)))
    rest = np.setdiff1d(np.arange(len(history), dtype=np.int64), rows)
    return sums.merge(_not_evaluated(history.take(rest), settings, scores.shape[1]))


def evaluate_batch(
    scores: NDArray[np.floating],
    history: UserBatch,
    target: UserBatch,
    settings: EvaluationSettings,
    seed: int,
    categories: NDArray[np.floating] | None = None,
) -> MetricSums:
    """Sums over the users of one batch, from their scores [U, I] (higher is better; seen items need no mask).

    Raises:
        DataError: scores, histories and held-out items do not fit together.
    """
    check_batches(scores, history, target)
    n_items = scores.shape[1]
    everyone = _not_evaluated(history, settings, n_items)
    evaluated = np.flatnonzero(target.counts > 0)
    if not len(evaluated):
        return everyone
    if len(evaluated) < len(scores):
        scores, history, target = scores[evaluated], history.take(evaluated), target.take(evaluated)
    scores, unscored = lowest_where_missing(scores)
    weights = _group_weights(history, settings, seed)
    metrics = _user_metrics(scores, history, target, settings, seed)
    recommended, diversities = _list_sums(scores, history, settings, categories)
    return replace(
        everyone,
        users=weights.sum(axis=1),
        metrics={name: values @ weights for name, values in metrics.items()},
        recommended=recommended,
        diversity=diversities,
        unscored=np.array([unscored.sum()], dtype=np.float64),
    )


def chosen(target: UserBatch, settings: EvaluationSettings, seed: int) -> NDArray[np.bool_]:
    """[U] who is evaluated; the same users under every method and on every node."""
    if settings.evaluated_part == 1.0:
        return np.ones(len(target), dtype=bool)
    coins = uniform(user_keys(key(seed, Purpose.EVALUATED), target.user), 1)[:, 0]
    return np.asarray(coins < settings.evaluated_part)


def _not_evaluated(history: UserBatch, settings: EvaluationSettings, n_items: int) -> MetricSums:
    """What users add by their histories alone."""
    sums = MetricSums.empty(settings, n_items)
    population = np.array([float(len(history))])
    if not settings.list_k:
        return replace(sums, population=population)
    # Users are counted, not interactions: someone may have an item twice.
    owned = np.unique(history.row * n_items + history.item) % n_items
    return replace(sums, population=population, seen=np.bincount(owned, minlength=n_items).astype(np.float64))


def _group_weights(history: UserBatch, settings: EvaluationSettings, seed: int) -> Floats:
    """[G, U, 1 + B] weight of each user in each replicate, zero outside the user's group."""
    weights = replicate_weights(history.user, settings.bootstrap, seed)
    group = np.digitize(history.counts, settings.group_bounds)
    return np.where((group == np.arange(3)[:, None])[..., None], weights, 0.0)


def _user_metrics(
    scores: NDArray[np.floating],
    history: UserBatch,
    target: UserBatch,
    settings: EvaluationSettings,
    seed: int,
) -> dict[str, Floats]:
    """Every metric [U] under every protocol; stays inside this module."""
    forbidden = not_candidates(history, target, scores.shape[1])
    ranks = {}
    if settings.full:
        ranks["full"] = full_ranks(scores, forbidden, target)
    if settings.sampled:
        candidates = draw_candidates(history.user, forbidden, settings.negatives, seed)
        ranks["sampled"] = sampled_ranks(scores, candidates, target)
    return {
        f"{protocol}/{name}": values
        for protocol, r in ranks.items()
        for name, values in all_metrics(r, settings.ks, settings.metrics).items()
    }


def _list_sums(
    scores: NDArray[np.floating],
    history: UserBatch,
    settings: EvaluationSettings,
    categories: NDArray[np.floating] | None,
) -> tuple[Floats, Floats]:
    """[I] lists with each item ([0] if not measured), and [2] sum and number of known diversities."""
    if not settings.list_k:
        return np.zeros(0), np.zeros(2)
    items, _ = top_n(scores, settings.list_k, history)
    recommended = np.bincount(items[items >= 0], minlength=scores.shape[1]).astype(np.float64)
    if categories is None:
        return recommended, np.zeros(2)
    values = diversity(items, categories)
    known = ~np.isnan(values)
    return recommended, np.array([values[known].sum(), known.sum()], dtype=np.float64)
