"""Secure k-means and one model per cluster: planted clusters are found from sums, noised and masked ones too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import last_out, planted
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.errors import ConfigError
from fedrec.core.interactions import Catalog, Interactions, UserBatch
from fedrec.core.recommender import RoundSeed
from fedrec.core.updates import UpdateSum
from fedrec.data.split import Split
from fedrec.neural import user_clusters as clusters
from fedrec.neural.user_clusters import Clusters
from fedrec.recommenders.closed_form.ease import Ease, EaseConfig
from fedrec.recommenders.collaborative.clustered import Clustered, ClusteredConfig
from fedrec.recommenders.collaborative.mf import MfConfig
from fedrec.recommenders.registry import build
from fedrec.rounds.chain import train_users
from fedrec.testing import RecommenderContract, train
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.baseline import fit_baseline
from fedrec_simulations.experiments.config import Config, parse_config
from fedrec_simulations.experiments.prepare import Prepared
from fedrec_simulations.experiments.run_folder import RunFolder

GROUPS, WIDTH, N_ITEMS = 4, 6, 60


def group_features(n_items: int = N_ITEMS, seed: int = 1) -> np.ndarray:
    """Public vectors that tell an item's planted group, with noise and two columns that say nothing."""
    rng = np.random.default_rng(seed)
    out = 0.3 * rng.standard_normal((n_items, WIDTH))
    out[np.arange(n_items), np.arange(n_items) % GROUPS] += 1.0
    return out.astype(np.float32)


def clustered(base: Any, **fields: Any) -> Clustered:
    config = ClusteredConfig(base=base, **({"features": WIDTH, "clusters": GROUPS} | fields))
    recommender = build(config)
    assert isinstance(recommender, Clustered)
    return recommender


class TestClusteredEase(RecommenderContract):
    features: ClassVar[np.ndarray] = group_features()

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return clustered(EaseConfig(reg=5.0), pooling=0.3)


class TestClusteredMf(RecommenderContract):
    features: ClassVar[np.ndarray] = group_features()
    rounds = 30

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        base = MfConfig(embedding_size=8, learning_rate=0.1, server={"name": "adam", "learning_rate": 0.02})
        return clustered(base, clusters=2, cluster_rounds=3, pooling=0.5)


def purity(own: np.ndarray, group: np.ndarray) -> float:
    """Share of users in the group that is most frequent in their cluster."""
    return sum(np.bincount(group[own == c]).max() for c in np.unique(own)) / len(own)


def k_means(batch: UserBatch, rounds: int, std: float = 0.0, clip_norm: float | None = 1.0) -> Clusters:
    """All steps over sums of clipped updates, noised by `std`."""
    rng, recommender = np.random.default_rng(7), clustered(EaseConfig(), cluster_rounds=rounds)
    shared = recommender.init_shared(N_ITEMS, 3, group_features())
    for number in range(1, rounds + 1):
        total, _ = train_users(recommender, shared, {}, batch, RoundSeed(3, number), clip_norm, N_ITEMS)
        assert total.clipped == 0, "what a user sends has norm 1 at most, so nothing is lost by clipping to 1"
        layout = recommender.layout(N_ITEMS, number)
        flat = layout.flatten(total.blocks)
        total.blocks = layout.unflatten(flat + std * rng.standard_normal(flat.shape))
        total.noise_std = std
        shared, _ = recommender.apply(shared, {}, total)
    return Clusters.of(shared)


@pytest.mark.parametrize("std", [0.0, 2.0])
def test_planted_clusters_are_found_from_sums(std: float) -> None:
    """Noise of twice what a user can add, in every step and on every value, included."""
    data = planted(n_users=600)
    batch = data.batch(np.arange(data.n_users))
    found = k_means(batch, 6, std)
    own = clusters.assigned(found, clusters.tastes(clusters.unit(group_features()), batch))
    assert purity(own, np.arange(600) % GROUPS) > 0.95
    assert len(np.unique(own)) == GROUPS
    np.testing.assert_allclose(found.size, 150, atol=30)


def test_steps_are_those_of_lloyd() -> None:
    """Each step's sum gives the centroids that a look at all users gives."""
    data = planted(n_users=200)
    batch = data.batch(np.arange(200))
    taste = clusters.tastes(clusters.unit(group_features()), batch)
    two, three = k_means(batch, 2), k_means(batch, 3)
    np.testing.assert_allclose(two.centre, taste.mean(axis=0), atol=1e-6)
    own, direction = clusters.assigned(two, taste), clusters.unit(taste - two.centre)
    for c in np.unique(own):
        mean = direction[own == c].sum(axis=0)
        np.testing.assert_allclose(three.centroid[c], mean / np.linalg.norm(mean), atol=1e-6)
    cost = [(direction * each.centroid[clusters.assigned(each, taste)]).sum() for each in (two, three)]
    assert cost[1] >= cost[0] - 1e-9


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(0, 3))
def test_no_user_sends_more_than_norm_one_and_only_sums_matter(seed: int, k: int, steps: int) -> None:
    """Whatever the vectors, centre and centroids are; users without a history send nothing."""
    rng = np.random.default_rng(seed)
    items = clusters.unit(rng.normal(size=(10, 3)) * rng.choice([0.0, 1.0, 1e6], size=(10, 1)))
    counts = rng.integers(0, 6, 7)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    item = rng.integers(0, 10, indptr[-1])
    batch = UserBatch(np.arange(7), indptr, item, np.ones(len(item), np.float32))
    begun = clusters.start(items, k, seed % 100)
    state = Clusters(rng.normal(size=3), clusters.unit(begun.centroid), begun.size, steps)
    updates = clusters.contributions(state, clusters.tastes(items, batch))
    assert np.all(updates.norms() <= 1.0)
    layout = clusters.layout(k, 3)
    sent = np.stack([updates.vector(user, layout) for user in range(7)])
    np.testing.assert_allclose(np.linalg.norm(sent, axis=1), updates.norms(), atol=1e-9)
    assert not sent[counts == 0].any()
    blocks = layout.zeros()
    updates.add_into(blocks, np.ones(7))
    after = clusters.moved(state, UpdateSum(blocks, 7, noise_std=float(rng.random())))
    assert all(np.isfinite(values).all() for values in after.state().values())
    assert np.all(np.linalg.norm(after.centroid, axis=1) <= 1 + 1e-9)


def test_a_start_is_public_and_spreads_over_the_items() -> None:
    """Among four groups of items it is one of each, and no user is looked at."""
    items = clusters.unit(group_features())
    begun = clusters.start(items, GROUPS, 5)
    assert purity(np.argmax(items @ begun.centroid.T, axis=1), np.arange(N_ITEMS) % GROUPS) > 0.9
    np.testing.assert_array_equal(begun.centroid, clusters.start(items, GROUPS, 5).centroid)
    assert len(np.unique(begun.centroid, axis=0)) == GROUPS
    same = clusters.start(np.ones((5, 1)), 3, 0)
    np.testing.assert_array_equal(same.centroid, np.ones((3, 1)))
    np.testing.assert_array_equal(clusters.start(np.zeros((5, 2)), 3, 0).centroid, np.zeros((3, 2)))


def test_a_cluster_that_no_one_surely_has_takes_half_of_the_largest() -> None:
    """A count that noise alone could make is no cluster: a direction of pure noise would catch users at random."""
    begun = Clusters(np.zeros(2), np.eye(2), np.full(2, 0.5), steps=1)
    total = UpdateSum({"count": np.array([30.0, 2.0]), "total": np.array([[20.0, 20.0], [1.0, -1.0]])}, 40)
    total.noise_std = 1.0
    after = clusters.moved(begun, total)
    assert after.size[0] == after.size[1] > 15
    np.testing.assert_allclose(clusters.unit(after.centroid.sum(axis=0)), [np.sqrt(0.5)] * 2, atol=0.2)
    assert after.centroid[0] @ after.centroid[1] < 0.95


def contrary(n_users: int = 400, seed: int = 0) -> tuple[Interactions, Interactions, np.ndarray]:
    """Two populations for whom the same item goes with different ones.

    Items 0-19 and 20-39 are those of one population each, 40-59 everyone's. With item 40 + j the first population
    has the item beside it, the second the one ten further. Returns the histories without the last item, the last
    items, and public vectors in which the populations' own items differ.
    """
    rng, users, items = np.random.default_rng(seed), [], []
    for user in range(n_users):
        kind = user % 2
        own = rng.choice(20, 5, replace=False) + 20 * kind
        pairs = rng.permutation(10)[:3]
        first, second = (2 * pairs, 2 * pairs + 1) if kind == 0 else (pairs, pairs + 10)
        history = [*own, *np.stack([first, second], axis=1).reshape(-1) + 40]
        users += [user] * len(history)
        items += history
    ids = np.array([f"i{k:02d}" for k in range(60)])
    data = Interactions.from_columns(np.array(users), ids[np.array(items)], item_ids=ids)
    features = np.zeros((60, 3), dtype=np.float32)
    features[np.arange(60), np.arange(60) // 20] = 1.0
    last = data.batch(np.arange(n_users)).age == 0
    return data.select(~last), data.select(last), features


def hits(scores: np.ndarray, batch: UserBatch, target: np.ndarray) -> float:
    """Share of users whose last item is the first of those that everyone may have."""
    scores = scores.copy()
    scores[batch.row, batch.item] = -np.inf
    scores[:, :40] = -np.inf
    return float((scores.argmax(axis=1) == target).mean())


def test_clusters_know_what_one_model_cannot() -> None:
    """A linear model must guess between the two partners of an item; within a population there is one."""
    seen, last, features = contrary()
    batch, target = seen.batch(np.arange(seen.n_users)), last.item
    one = Ease(EaseConfig(reg=5.0))
    several = clustered(EaseConfig(reg=5.0), features=3, clusters=2, pooling=0.0)
    pooled = clustered(EaseConfig(reg=5.0), features=3, clusters=2, pooling=1.0)
    shared, _ = train(several, seen, 1, features=features)
    alone = hits(one.score(one.fit(seen, 0, 1)[0], {}, batch), batch, target)
    assert hits(several.score(shared, {}, batch), batch, target) > 0.95 > alone + 0.1
    everything, _ = train(pooled, seen, 1, features=features)
    np.testing.assert_allclose(
        pooled.score(everything, {}, batch), one.score(one.fit(seen, 0, 1)[0], {}, batch), atol=1e-4
    )


def test_an_update_is_zero_outside_the_own_cluster(split: Split) -> None:
    recommender = clustered(EaseConfig(reg=5.0))
    shared, _ = train(recommender, split.train, 1, features=group_features())
    batch = split.train.batch(np.arange(20))
    number = recommender.config.cluster_rounds + 1
    layout = recommender.layout(N_ITEMS, number)
    assert layout.blocks["gram"].shape == (GROUPS, N_ITEMS, N_ITEMS)
    updates, _ = recommender.compute_updates(shared, {}, batch, RoundSeed(3, number), N_ITEMS)
    own = clusters.assigned(Clusters.of(shared), clusters.tastes(shared["item_features"], batch))
    plain, _ = Ease(EaseConfig(reg=5.0)).compute_updates({}, {}, batch, RoundSeed(3, 1), N_ITEMS)
    for user in range(20):
        slices = updates.vector(user, layout).reshape(GROUPS, -1)
        assert np.flatnonzero(slices.any(axis=1)).tolist() == [own[user]]
        alone = plain.vector(user, Ease(EaseConfig(reg=5.0)).layout(N_ITEMS))
        np.testing.assert_array_equal(slices[own[user]], alone)


def run(folder: Path, model: dict[str, Any], aggregator: str, rounds: int) -> tuple[Any, Config, Prepared]:
    """A run of four nodes by the real coordinator."""
    split = last_out(planted())
    split = replace(split, train=split.train.merge(split.validation), validation=None)
    catalog = replace(Catalog.bare(split.train.item_ids), features=group_features())
    privacy = {"unit": "none", "aggregator": aggregator} | (
        {"insecure": True} if aggregator == "plain" else {}
    )
    config = Config.model_validate(
        {
            "model": model,
            "federation": {"rounds": rounds, "nodes": 4, "clip_norm": 40.0},
            "evaluation": {"bootstrap": 20},
            "privacy": privacy,
        }
    )
    prepared = Prepared(split, catalog, {"name": "planted"})
    outcome = run_in_process(RunFolder.create(folder, config, prepared, 4).path)
    return outcome, config, prepared


@pytest.mark.parametrize("base", [{"kind": "ease", "reg": 5.0}, {"kind": "mf", "embedding_size": 4}])
def test_the_coordinator_runs_it_under_secure_aggregation(tmp_path: Path, base: dict[str, Any]) -> None:
    """All rounds over masked sums, without a change to coordinator or nodes; the model is that of clear sums."""
    model = {"kind": "clustered", "base": base, "features": WIDTH, "clusters": GROUPS, "cluster_rounds": 4}
    clear, config, prepared = run(tmp_path / "clear", model, "plain", 8)
    masked, _, _ = run(tmp_path / "masked", model, "secagg", 8)
    assert masked.rounds == (5 if base["kind"] == "ease" else 8)
    for name in ("centre", "centroid", "size"):
        np.testing.assert_allclose(masked.shared[name], clear.shared[name], atol=1e-4)
    batch = prepared.split.train.batch(np.arange(120))
    own = clusters.assigned(
        Clusters.of(masked.shared), clusters.tastes(masked.shared["item_features"], batch)
    )
    assert purity(own, np.arange(120) % GROUPS) > 0.95
    metric = [each.result["test"]["metrics"]["all"]["full/ndcg@10"]["value"] for each in (clear, masked)]
    assert metric[1] == pytest.approx(metric[0], abs=0.02)
    if base["kind"] == "ease":
        baseline = fit_baseline(config, prepared.split, features=prepared.catalog.features)
        value = baseline.report.as_dict()["metrics"]["all"]["full/ndcg@10"]["value"]
        assert value == pytest.approx(metric[0], abs=1e-3)


def test_a_clustering_round_in_which_no_one_took_part_is_made_up_for(split: Split) -> None:
    """Rounds say what is summed, the state says how far it came: a lost one costs a step, not the run."""
    recommender = clustered(MfConfig(embedding_size=4), cluster_rounds=3)
    batch, local = split.train.batch(np.arange(120)), recommender.init_local(np.arange(120), 0)
    shared = recommender.init_shared(N_ITEMS, 0, group_features())
    server = recommender.init_server(shared)
    for number in (1, 3, 4, 5):
        total, local = train_users(recommender, shared, local, batch, RoundSeed(0, number), None, N_ITEMS)
        before = shared
        shared, server = recommender.apply(shared, server, total)
        changed = {name for name in shared if not np.array_equal(shared[name], before[name])}
        assert ("steps" in changed) == (number <= 3) and ("each/item_table" in changed) == (number > 3)
    assert Clusters.of(shared).steps == 2


def test_updates_of_clusters_are_not_made_smaller() -> None:
    with pytest.raises(ConfigError, match="tables of every cluster"):
        parse_config(
            {
                "model": {"kind": "clustered", "base": {"kind": "mf"}, "features": WIDTH},
                "data": {"features": {"parts": ["categories"]}},
                "federation": {"compression": {"rank": 2}},
                "privacy": {"unit": "none", "aggregator": "plain", "insecure": True},
            }
        )


def test_features_that_do_not_fit_are_refused_in_one_line() -> None:
    for features in (None, np.ones((N_ITEMS, 2), np.float32)):
        with pytest.raises(ConfigError, match=r"expected 60 x 6; set data\.features"):
            clustered(EaseConfig()).init_shared(N_ITEMS, 0, features)
