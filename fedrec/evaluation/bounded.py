"""Metrics of a private run: per user a vector of values in [0, 1], summed before it leaves this module.

What one user adds depends on that user's own data, the model and public settings alone: users are scored in chunks
whose bounds no data moves, and a value that is no number counts as zero. Values are kept to 2^-20, so that their sums
are exact in any order and one user's part of a sum is bounded by sqrt(K + 1), rounding included.

Letters: U users, I items, K metrics. Out of scope: noise (`fedrec.privacy`), other metrics (`evaluate`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import Recommender
from fedrec.core.updates import State
from fedrec.evaluation._candidates import draw_candidates, not_candidates
from fedrec.evaluation.evaluate import CHUNK_SCORES, chosen
from fedrec.evaluation.names import METRICS, parse_bounded
from fedrec.evaluation.ranks import Ranks, check_batches, full_ranks, lowest_where_missing, sampled_ranks
from fedrec.evaluation.settings import EvaluationSettings

Floats = NDArray[np.float64]

#: Values are multiples of 2^-GRID_BITS, which secure aggregation carries exactly.
GRID_BITS = 20


def bounded_sums(
    recommender: Recommender,
    shared: State,
    local: State,
    history: UserBatch,
    target: UserBatch,
    names: Sequence[str],
    settings: EvaluationSettings,
    seed: int,
    n_items: int,
    chunk_users: int = 256,
) -> Floats:
    """[K + 1] sums over the users of each metric, and how many users were evaluated.

    Args:
        recommender: the model.
        shared: its broadcast state.
        local: arrays [U, ...] of the users of the batch.
        history: what each user's device knows when it recommends.
        target: what is held out, the same users in the same order.
        names: of the metrics, as `full/ndcg@10`.
        settings: of which the number of sampled negatives and the part of users that is evaluated count.
        seed: root of the run's randomness.
        n_items: I.
        chunk_users: most users scored at once.

    Raises:
        DataError: scores, histories and held-out items do not fit together.
    """
    total = np.zeros(len(names) + 1)
    # Public: a hash of the user's key, not whether something is held out.
    rows = np.flatnonzero(chosen(target, settings, seed))
    size = max(1, min(chunk_users, CHUNK_SCORES // max(n_items, 1)))
    for start in range(0, len(rows), size):
        where = rows[start : start + size]
        before, held_out = history.take(where), target.take(where)
        scores = recommender.score(shared, {name: a[where] for name, a in local.items()}, before)
        check_batches(scores, before, held_out)
        evaluated = np.flatnonzero(held_out.counts > 0)
        if len(evaluated):
            values = _values(
                scores[evaluated],
                before.take(evaluated),
                held_out.take(evaluated),
                names,
                settings.negatives,
                seed,
            )
            total += np.append(values.sum(axis=0), float(len(evaluated)))
    return total


def _values(
    scores: NDArray[np.floating],
    history: UserBatch,
    target: UserBatch,
    names: Sequence[str],
    negatives: int,
    seed: int,
) -> Floats:
    """[U, K] in [0, 1], of evaluated users; stays inside this module."""
    scores, _ = lowest_where_missing(scores)
    forbidden = not_candidates(history, target, scores.shape[1])
    wanted = [parse_bounded(name) for name in names]
    ranks: dict[str, Ranks] = {}
    if any(protocol == "full" for protocol, _, _ in wanted):
        ranks["full"] = full_ranks(scores, forbidden, target)
    if any(protocol == "sampled" for protocol, _, _ in wanted):
        candidates = draw_candidates(history.user, forbidden, negatives, seed)
        ranks["sampled"] = sampled_ranks(scores, candidates, target)
    values = np.stack([METRICS.get(metric)(ranks[protocol], k) for protocol, metric, k in wanted], axis=1)
    bounded = np.clip(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)
    return np.asarray(np.floor(bounded * 2.0**GRID_BITS) / 2.0**GRID_BITS)
