"""Held-out items cannot reach training: the memoriser must not beat chance.

The memoriser is a recommender without a model. It remembers which items the library's own sampler gave it as
negatives and puts those first that it was given least often. Where the sampler avoids what is held out, that
alone finds the held-out item: this is the leak in published federated recommenders. Where it does not, the
held-out item is drawn like any other and the memoriser hits one time in ten among 100 candidates, exactly.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
from scipy.stats import binom

from fedrec.core.interactions import IntArray, Interactions, UserBatch
from fedrec.core.messages import Phase
from fedrec.core.randomness import Purpose, bits, key, user_keys
from fedrec.core.recommender import Recommender, RecommenderConfig, RoundSeed, Scores
from fedrec.core.updates import BlockSpec, Dense, Layout, State, Updates, UpdateSum
from fedrec.data.split import Split
from fedrec.evaluation.evaluate import EvaluationSettings, evaluate
from fedrec.evaluation.report import EvaluationReport, build_report
from fedrec.neural.views import build_views
from fedrec.rounds.chain import train_users

USERS, ITEMS, ROUNDS, SEED = 400, 250, 30, 5
PROTOCOL = EvaluationSettings(bootstrap=0, list_k=0)


class Memoriser(Recommender):
    """Score = -(how often the item was drawn as a negative), equal counts in a random order."""

    kind: ClassVar[str] = "memoriser"

    def layout(self, n_items: int, round_: int = 1) -> Layout:
        return Layout({"nothing": BlockSpec((1,))})

    def init_shared(self, n_items: int, seed: int) -> State:
        return {}

    def init_local(self, users: IntArray, seed: int) -> State:
        return {"drawn": np.zeros((len(users), ITEMS), dtype=np.float32)}

    def touched_rows(self, batch: UserBatch, key: RoundSeed, n_items: int) -> IntArray:
        return np.zeros(0, dtype=np.int64)

    def compute_updates(
        self, shared: State, local: State, batch: UserBatch, key: RoundSeed, n_items: int
    ) -> tuple[Updates, State]:
        views = build_views(batch, key.seed, key.round, ITEMS, negatives=4, epochs=1)
        drawn = local["drawn"].copy()
        for u in range(len(batch)):
            rows = views.row[views.row_ptr[u] : views.row_ptr[u + 1]]
            slots = views.slot[views.example_ptr[u] : views.example_ptr[u + 1], 1:]
            np.add.at(drawn[u], rows[slots.ravel()], 1.0)
        return Updates({"nothing": Dense(np.zeros((len(batch), 1)))}, len(batch)), {"drawn": drawn}

    def apply(self, shared: State, server: State, total: UpdateSum) -> tuple[State, State]:
        return shared, server

    def fold_in(self, shared: State, batch: UserBatch) -> State:
        return self.init_local(batch.user, 0)

    def score(self, shared: State, local: State, batch: UserBatch) -> Scores:
        order = bits(user_keys(key(SEED, Purpose.INIT_LOCAL), batch.user), ITEMS) >> np.uint64(40)
        return np.asarray(order * 2.0**-24 - local["drawn"], dtype=np.float32)

    def fit(self, train: Interactions, seed: int, rounds: int) -> tuple[State, State]:
        raise NotImplementedError("the memoriser exists for federated training only")


def planted_split() -> Split:
    """Popular items are more likely everywhere; the last two of 12 to 30 interactions are held out."""
    rng = np.random.default_rng(SEED)
    appeal = 1 / np.arange(1, ITEMS + 1) ** 0.7
    histories = [
        rng.choice(ITEMS, int(rng.integers(12, 31)), replace=False, p=appeal / appeal.sum())
        for _ in range(USERS)
    ]
    ids = np.array([f"i{k:03d}" for k in range(ITEMS)])
    users = np.repeat(np.arange(USERS), [len(h) for h in histories])
    everything = Interactions.from_columns(users, ids[np.concatenate(histories)], item_ids=ids)
    age = everything.batch(np.arange(USERS)).age
    return Split(everything.select(age > 1), everything.select(age == 1), everything.select(age == 0))


@pytest.fixture(scope="module")
def planted_data() -> Split:
    return planted_split()


def quality_of(split: Split, phase: Phase, pool: Interactions) -> EvaluationReport:
    """Train on `pool` through the one path that every engine takes, then evaluate as every node does."""
    model, batch = Memoriser(RecommenderConfig()), split.batch(pool)
    shared, local = model.init_shared(ITEMS, SEED), model.init_local(batch.user, SEED)
    for round_ in range(1, ROUNDS + 1):
        _, local = train_users(model, shared, local, batch, RoundSeed(SEED, round_), None, ITEMS)
    target = split.target(phase)
    assert target is not None
    history = split.batch(split.history(phase))
    return build_report(evaluate(model, shared, local, history, split.batch(target), PROTOCOL, SEED))


@pytest.mark.parametrize("phase", ["tuning", "refit"])
def test_the_memoriser_is_at_chance(planted_data: Split, phase: Phase) -> None:
    values = quality_of(planted_data, phase, planted_data.learnable(phase)).values()
    low, high = binom.interval(0.999, USERS, 10 / 100)
    assert low <= values["sampled/hr@10"] * USERS <= high
    # The rank of one item among equals is uniform: its AUC has mean 1/2 and variance 1/12 per user.
    assert abs(values["full/auc"] - 0.5) < 3.3 * np.sqrt(1 / 12 / USERS)


@pytest.mark.parametrize("phase", ["tuning", "refit"])
def test_the_detector_finds_a_leak(planted_data: Split, phase: Phase) -> None:
    """A pool that knows the held-out items keeps them from being drawn, as the published code does."""
    target = planted_data.target(phase)
    assert target is not None
    values = quality_of(planted_data, phase, planted_data.learnable(phase).merge(target)).values()
    assert values["sampled/hr@10"] > 0.9
    assert values["full/hr@10"] > 0.9


def test_what_a_phase_learns_from_holds_nothing_that_it_is_evaluated_on(planted_data: Split) -> None:
    for phase in ("tuning", "refit"):
        target = planted_data.target(phase)
        assert target is not None
        for part in (planted_data.learnable(phase), planted_data.history(phase)):
            pairs = [set((p.user * ITEMS + p.item).tolist()) for p in (part, target)]
            assert not pairs[0] & pairs[1]
            assert len(pairs[1]) == USERS


def test_validation_knows_nothing_of_the_test_part(planted_data: Split) -> None:
    """Another test part changes no number on which rounds and hyper-parameters are chosen."""
    assert planted_data.test is not None
    shifted = Split(
        planted_data.train,
        planted_data.validation,
        Interactions.from_columns(
            planted_data.test.user_ids[planted_data.test.user],
            planted_data.test.item_ids[(planted_data.test.item + 1) % ITEMS],
            user_ids=planted_data.test.user_ids,
            item_ids=planted_data.test.item_ids,
        ),
    )
    reports = [quality_of(s, "tuning", s.learnable("tuning")).as_dict() for s in (planted_data, shifted)]
    assert reports[0] == reports[1]
