"""Evaluating the probabilities of a ranker on the users' side: held-out events in, sums out.

Each held-out event is asked for at its own moment: how likely is this click, beside items that the user does not
have; how high is this rating? Out of scope: what the sums say (`fedrec.evaluation._ranking_metrics`), and where the
item stands among all others (`fedrec.evaluation.ranks`), which is evaluated as for every recommender.

Letters: E held-out events, W items asked about.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

from fedrec.core.interactions import FloatArray, IntArray, UserBatch
from fedrec.core.updates import State
from fedrec.evaluation._candidates import draw_candidates, not_candidates
from fedrec.evaluation._ranking_metrics import RankerSums


@runtime_checkable
class Ranker(Protocol):
    """A recommender that says how likely something is.

    Attributes:
        strangers: items that the user does not have that stand beside each event, as many as in training: a
            probability is right or wrong for one share of events alone. 0: nothing is asked but what happened.
    """

    @property
    def strangers(self) -> int:
        """See above."""

    def outcome(self, value: FloatArray) -> FloatArray:
        """[E] 0 to 1, what happened, of the events' values [E]."""

    def predict(
        self, shared: State, batch: UserBatch, items: IntArray, time: IntArray | None = None
    ) -> FloatArray:
        """[U, W] probabilities or expected outcomes of items [U, W] at times [U]."""


def evaluate_answers(
    ranker: Ranker, shared: State, history: UserBatch, target: UserBatch, n_items: int, seed: int
) -> RankerSums:
    """Sums over the held-out events of some users, whose histories and targets are in the same order."""
    rows = target.row
    if not len(rows):
        return RankerSums.empty()
    items = target.item[:, None]
    if ranker.strangers:
        forbidden = not_candidates(history, target, n_items)
        drawn = draw_candidates(history.user, forbidden, ranker.strangers, seed)
        items = np.hstack([items, drawn[rows]])
    there = items >= 0
    probability = ranker.predict(shared, history.take(rows), np.maximum(items, 0), target.time)
    outcome = np.zeros(items.shape, dtype=np.float32)
    outcome[:, 0] = ranker.outcome(target.value)
    user = np.broadcast_to(rows[:, None], items.shape)
    return RankerSums.of(probability[there], outcome[there], user[there])
