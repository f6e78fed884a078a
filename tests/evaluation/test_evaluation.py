"""Evaluation as sums: shards merge to the whole, intervals cover, and wrong replies are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from evaluation_helpers import batch, random_case
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedrec.core.errors import DataError, ProtocolError
from fedrec.core.interactions import UserBatch
from fedrec.core.recommender import Scores
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec.evaluation._bootstrap import replicate_weights
from fedrec.evaluation.evaluate import EvaluationSettings, evaluate, evaluate_batch
from fedrec.evaluation.report import build_report
from fedrec.evaluation.sums import MetricSums
from fedrec.recommenders.closed_form.ease import Ease, EaseConfig
from fedrec.recommenders.closed_form.popularity import Popularity, PopularityConfig

Spoil = Callable[[dict[str, Any]], dict[str, Any]]

SMALL = EvaluationSettings(ks=(3, 5), negatives=9, group_bounds=(3, 8), bootstrap=20, list_k=4)
CATEGORIES = np.random.default_rng(5).integers(0, 2, (30, 4)).astype(np.float64)


def close(a: MetricSums, b: MetricSums) -> None:
    left, right = a.to_arrays(), b.to_arrays()
    assert left.keys() == right.keys()
    for name in left:
        assert left[name] == pytest.approx(right[name]), name


def measured(seed: int = 0, n_users: int = 20) -> tuple[np.ndarray, UserBatch, UserBatch, MetricSums]:
    scores, history, target = random_case(seed, n_users, 30)
    return scores, history, target, evaluate_batch(scores, history, target, SMALL, 1, CATEGORIES)


@given(seed=st.integers(0, 2**32 - 1), cuts=st.sets(st.integers(1, 19), min_size=1, max_size=4))
@settings(max_examples=25)
def test_merged_shards_equal_the_whole_in_any_grouping(seed: int, cuts: set[int]) -> None:
    scores, history, target, whole = measured(seed)
    order = np.random.default_rng(seed).permutation(20)
    shards = [order[a:b] for a, b in pairwise([0, *sorted(cuts), 20])]
    parts = [evaluate_batch(scores[s], history.take(s), target.take(s), SMALL, 1, CATEGORIES) for s in shards]
    left, right = parts[0], parts[-1]
    for part in parts[1:]:
        left = left.merge(part)
    for part in parts[-2::-1]:
        right = part.merge(right)
    close(left, whole)
    close(right, whole)


def test_means_by_hand() -> None:
    scores = np.array([[5.0, 4, 3, 2], [5, 4, 3, 2], [5, 4, 3, 2]])
    history, target = batch([[0], [0, 1], []]), batch([[1], [3], []])
    protocol = EvaluationSettings(ks=(1,), negatives=1, group_bounds=(2, 3), bootstrap=0, list_k=1)
    report = build_report(evaluate_batch(scores, history, target, protocol, 0))
    assert report.n_users == {"all": 2, "few": 1, "middle": 1, "many": 0}
    assert report.values()["full/hr@1"] == 0.5
    assert report.metrics["few"]["full/hr@1"].value == 1
    assert report.metrics["middle"]["full/auc"].value == 0
    assert "many" not in report.metrics
    assert report.metrics["all"]["full/hr@1"].low is None
    # Evaluated users get the lists [1] and [2]; of three users two have item 0 and one has item 1.
    assert report.lists["coverage@1"] == 0.5
    assert report.lists["novelty@1"] == pytest.approx(np.log2(3))
    assert "diversity@1" not in report.lists


def test_arrays_travel_and_come_back() -> None:
    *_, sums = measured()
    empty = MetricSums.empty(SMALL, 30)
    close(MetricSums.from_arrays(sums.to_arrays(), like=empty, max_users=20), sums)
    close(empty.merge(sums), sums)


def test_no_array_has_a_user_axis() -> None:
    *_, few = measured(n_users=7)
    *_, many = measured(n_users=20)
    shapes = [{name: a.shape for name, a in sums.to_arrays().items()} for sums in (few, many)]
    assert shapes[0] == shapes[1]


def test_evaluate_chunks_give_the_same_sums(split: Split) -> None:
    recommender = Ease(EaseConfig(reg=20.0))
    shared, local = recommender.fit(split.train, 0, 1)
    assert split.validation is not None
    history, target = split.batch(split.train), split.batch(split.validation)
    want = evaluate_batch(recommender.score(shared, local, history), history, target, SMALL, 1)
    for chunk in (1, 7, 500):
        close(evaluate(recommender, shared, local, history, target, SMALL, 1, chunk_users=chunk), want)
    shards = [split.shard(k, 3) for k in range(3)]
    parts = [
        evaluate(
            recommender, shared, local, s.batch(s.train), s.batch(s.target("tuning") or s.train), SMALL, 1
        )
        for s in shards
    ]
    close(parts[0].merge(parts[1]).merge(parts[2]), want)


def test_local_state_is_sliced_with_its_users() -> None:
    class OwnTaste(Popularity):
        def score(self, shared: State, local: State, batch: UserBatch) -> Scores:
            return local["taste"].astype(np.float32)

    scores, history, target, whole = measured()
    model = OwnTaste(PopularityConfig())
    close(evaluate(model, {}, {"taste": scores}, history, target, SMALL, 1, CATEGORIES, chunk_users=3), whole)


def test_a_node_where_no_one_is_evaluated_still_answers() -> None:
    model, history = Popularity(PopularityConfig()), batch([[0, 1], [2]])
    shared = {"count": np.arange(30, dtype=np.float32)}
    sums = evaluate(model, shared, {}, history, batch([[], []]), SMALL, 1)
    assert MetricSums.from_arrays(sums.to_arrays(), like=MetricSums.empty(SMALL, 30)).population.tolist() == [
        2
    ]
    with pytest.raises(DataError, match="no user has a held-out item"):
        build_report(sums)
    *_, others = measured()
    assert build_report(sums.merge(others)).n_users["all"] == build_report(others).n_users["all"]


def test_quick_settings_measure_the_same_without_intervals_and_lists() -> None:
    scores, history, target, whole = measured()
    quick = build_report(evaluate_batch(scores, history, target, SMALL.quick(), 1))
    assert quick.lists == {}
    want = {
        name: value for name, value in build_report(whole).values().items() if not name.startswith("lists/")
    }
    assert quick.values() == pytest.approx(want)


def test_the_report_is_plain_json() -> None:
    *_, sums = measured()
    plain = json.loads(json.dumps(build_report(sums).as_dict(), allow_nan=False))
    estimate = plain["metrics"]["all"]["full/ndcg@3"]
    assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert plain["group_bounds"] == [3, 8]
    assert set(plain["lists"]) == {"coverage@4", "novelty@4", "gini@4", "diversity@4"}


def test_missing_scores_are_counted() -> None:
    scores, history, target, _ = measured()
    broken = np.flatnonzero(target.counts)[:3]
    scores[broken, 0] = np.nan
    assert build_report(evaluate_batch(scores, history, target, SMALL, 1)).unscored_users == 3


# Bootstrap -------------------------------------------------------------------------------------------------


def test_replicate_weights_are_poisson_and_belong_to_the_user() -> None:
    users = np.arange(2000)
    weights = replicate_weights(users, 50, 7)
    assert np.all(weights[:, 0] == 1)
    draws = weights[:, 1:]
    for count, probability in ((0, np.exp(-1)), (1, np.exp(-1)), (2, np.exp(-1) / 2)):
        error = np.sqrt(probability * (1 - probability) / draws.size)
        assert abs(np.mean(draws == count) - probability) < 5 * error
    assert np.array_equal(replicate_weights(users[[9, 3]], 50, 7), weights[[9, 3]])


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """300 samples of 60 users whose hit rate is .3 by construction: about 95 in 100 intervals hold it."""
    protocol = EvaluationSettings(ks=(1,), bootstrap=200, sampled=False, list_k=0)
    covered, trials, n_users = 0, 300, 60
    for trial in range(trials):
        hits = np.random.default_rng(trial).random(n_users) < 0.3
        scores = np.where(hits[:, None], [[1.0, 0.0]], [[0.0, 1.0]])
        users = np.arange(n_users) + trial * n_users
        history, target = batch([[]] * n_users, users), batch([[0]] * n_users, users)
        estimate = build_report(evaluate_batch(scores, history, target, protocol, 0)).metrics["all"][
            "full/hr@1"
        ]
        assert estimate.low is not None and estimate.high is not None
        covered += estimate.low <= 0.3 <= estimate.high
    # Percentile intervals of 60 coins cover somewhat less than they say; a wrong formula covers far less.
    assert 0.90 <= covered / trials <= 0.98


# What another machine may send -----------------------------------------------------------------------------


def _replace(name: str, values: object) -> Spoil:
    return lambda arrays: {**arrays, name: values}


def _scaled(name: str, factor: float) -> Spoil:
    return lambda arrays: {**arrays, name: arrays[name] * factor}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda a: {k: v for k, v in a.items() if k != "seen"}, "lacks"),
        (_replace("extra", np.zeros(3)), "unknown"),
        (_replace("users", np.zeros((3, 4))), "expected"),
        (_replace("diversity", np.zeros(3)), "diversity of shape"),
        (_replace("users", np.full((3, 21), np.nan)), "finite numbers"),
        (_replace("metric/full/auc", np.full((3, 21), np.inf)), "finite numbers"),
        (_replace("population", np.array(["many"])), "finite numbers"),
        (_replace("population", [3.0]), "finite numbers"),
        (_replace("metric/full/best", np.zeros((3, 21))), "different settings"),
        (_replace("protocol", np.array([3, 8, 4, 50])), "different settings"),
        (_scaled("metric/full/ndcg@3", 50), "possible range"),
        (_scaled("metric/full/ndcg@3", -1), "possible range"),
        (_scaled("users", 1000), "possible range"),
        (_scaled("population", 1000), "possible range"),
        (_scaled("recommended", 1000), "possible range"),
        (_scaled("seen", 1000), "possible range"),
    ],
)
def test_impossible_replies_are_refused(spoil: Spoil, words: str) -> None:
    *_, sums = measured()
    with pytest.raises(ProtocolError, match=words):
        MetricSums.from_arrays(spoil(sums.to_arrays()), like=MetricSums.empty(SMALL, 30), max_users=20)


@pytest.mark.parametrize(
    "change", [{"ks": (3,)}, {"bootstrap": 5}, {"group_bounds": (2, 8)}, {"negatives": 5}, {"list_k": 3}]
)
def test_sums_of_different_settings_never_merge(change: dict[str, object]) -> None:
    other = MetricSums.empty(SMALL.model_copy(update=change), 30)
    with pytest.raises(ProtocolError, match="different settings"):
        MetricSums.empty(SMALL, 30).merge(other)


@pytest.mark.parametrize(
    "wrong",
    [
        {"ks": ()},
        {"ks": (0,)},
        {"ks": (5, 5)},
        {"group_bounds": (9, 9)},
        {"full": False, "sampled": False},
        {"negatives": 0},
        {"bootsrap": 5},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        EvaluationSettings.model_validate(wrong)
