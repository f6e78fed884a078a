"""The graph recommender: what propagation finds that a neighbourhood cannot, and what a user sends for it."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import last_out, planted
from hypothesis import given
from hypothesis import strategies as st

from fedrec.core.interactions import Interactions, UserBatch
from fedrec.core.recommender import RoundSeed
from fedrec.core.updates import Gram
from fedrec.recommenders.closed_form.item_graph import (
    GraphConfig,
    ItemGraph,
    ItemGraphConfig,
    adjacency,
    graph_state,
    largest,
)
from fedrec.recommenders.closed_form.item_knn import ItemKnn, ItemKnnConfig
from fedrec.recommenders.private._private_gram import NearPairs
from fedrec.recommenders.private.dp_ease import DpEase, DpEaseConfig
from fedrec.recommenders.private.dp_item_graph import DpItemGraph, DpItemGraphConfig
from fedrec.testing import RecommenderContract, train
from fedrec.testing.recommenders import CHANCE_RECALL


class TestItemGraph(RecommenderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return ItemGraph(ItemGraphConfig(embedding_size=8, neighbours=10))


class TestEmbeddingsAlone(RecommenderContract):
    """What is sent to devices is one vector per item, and the taste is in it."""

    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return ItemGraph(ItemGraphConfig(embedding_size=4, layers=3, neighbours=1, edge_weight=0.0))


class TestDpItemGraph(RecommenderContract):
    @pytest.fixture(scope="class")
    @classmethod
    def recommender(cls):
        return DpItemGraph(DpItemGraphConfig(top_items=50, embedding_size=6, pair_half_life=10.0))


def chains(n_users: int = 300, chain: int = 6) -> Interactions:
    """Items in two chains; no one has more than two neighbours of one chain, and both ends of a chain stay apart."""
    rng = np.random.default_rng(2)
    start = rng.integers(0, chain - 1, n_users) + chain * rng.integers(0, 2, n_users)
    item = np.stack([start, start + 1], axis=1).reshape(-1)
    ids = np.array([f"i{k:02d}" for k in range(2 * chain)])
    return Interactions.from_columns(np.repeat(np.arange(n_users), 2), ids[item], item_ids=ids)


def user(items: list[int]) -> UserBatch:
    return UserBatch(
        np.array([999]),
        np.array([0, len(items)]),
        np.array(items, dtype=np.int64),
        np.ones(len(items), np.float32),
    )


def test_two_hop_neighbours_are_found_that_item_knn_cannot_find() -> None:
    """No one has items 0 and 2 (two steps) or 0 and 3 (three): item-kNN gives them 0, as it does the other chain."""
    data, someone = chains(), user([0])
    graph, knn = ItemGraph(ItemGraphConfig(embedding_size=6)), ItemKnn(ItemKnnConfig())
    blind = knn.score(knn.fit(data, 0, 1)[0], {}, someone)[0]
    found = graph.score(graph.fit(data, 0, 1)[0], {}, someone)[0]
    assert np.count_nonzero(blind[2:]) == 0
    others = np.abs(found[6:]).max()
    assert found[1] > found[2] > found[3] > others + 1e-3


def test_more_layers_reach_further() -> None:
    """With every eigenvector the vectors are I + A + ... + A^L: L layers reach 2 L steps and no further."""
    data = chains()
    for layers in (0, 1, 2):
        config = ItemGraphConfig(embedding_size=12, layers=layers, edge_weight=0.0)
        graph = ItemGraph(config)
        found = graph.score(graph.fit(data, 0, 1)[0], {}, user([0]))[0]
        reached = np.flatnonzero(np.abs(found) > 1e-4)
        assert reached.tolist() == list(range(min(2 * layers, 5) + 1))


def test_vectors_are_the_mean_over_the_layers_of_the_graph() -> None:
    """Against LightGCN written out: E = mean of V, A V, A A V."""
    rng = np.random.default_rng(0)
    x = rng.random((80, 30)) < 0.2
    graph = adjacency(x.T @ x.astype(np.float64))
    _, start = largest(graph, 7)
    expected = (start + graph @ start + graph @ graph @ start) / 3
    state = graph_state(graph, GraphConfig(embedding_size=7, layers=2, neighbours=4, edge_weight=3.0))
    np.testing.assert_allclose(np.abs(state["vector"]), np.abs(expected), atol=1e-6)
    for row in (0, 11):
        strongest = np.argsort(-graph[row], kind="stable")[:4]
        assert set(state["neighbour"][row]) == set(strongest)
        np.testing.assert_allclose(state["edge"][row], 3.0 * graph[row, state["neighbour"][row]], rtol=1e-6)


@given(st.integers(0, 2**31), st.integers(2, 40), st.floats(0.0, 1.0))
def test_an_adjacency_is_symmetric_has_no_loops_and_a_spectrum_within_one(
    seed: int, n: int, noise: float
) -> None:
    """Of any Gram matrix, items that no one has and noise below zero included."""
    rng = np.random.default_rng(seed)
    x = (rng.random((30, n)) < 0.3) * rng.integers(0, 2, n)
    jitter = noise * rng.standard_normal((n, n))
    graph = adjacency(x.T @ x + jitter + jitter.T)
    assert np.isfinite(graph).all() and (graph >= 0).all() and not np.diag(graph).any()
    np.testing.assert_allclose(graph, graph.T, atol=1e-12)
    assert np.abs(np.linalg.eigvalsh(graph)).max() <= 1 + 1e-9


def blocks(n: int, groups: int) -> np.ndarray:
    """A graph of `groups` parts that have nothing in common, each complete."""
    part = np.arange(n) % groups
    return adjacency((part[:, None] == part).astype(np.float64))


@pytest.mark.parametrize("graph", [np.zeros((200, 200)), blocks(200, 2), blocks(200, 20)])
def test_degenerate_graphs_have_eigenvectors_too(graph: np.ndarray) -> None:
    values, vectors = largest(graph, 5)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(5), atol=1e-8)
    np.testing.assert_allclose(graph @ vectors, vectors * values, atol=1e-8)
    again = largest(graph, 5)
    np.testing.assert_array_equal(again[1], vectors)


def test_few_eigenvectors_are_those_of_the_whole_decomposition() -> None:
    rng = np.random.default_rng(3)
    x = rng.random((300, 160)) < 0.1
    graph = adjacency(x.T @ x.astype(np.float64))
    values, vectors = largest(graph, 6)
    whole, each = np.linalg.eigh(graph)
    np.testing.assert_allclose(values, whole[::-1][:6], atol=1e-10)
    np.testing.assert_allclose(np.abs(vectors), np.abs(each[:, ::-1][:, :6]), atol=1e-6)


def test_an_update_says_which_items_go_together_and_is_only_ever_summed(split) -> None:
    """No block has an axis of users, no user-item edge is broadcast, and the federation equals its baseline."""
    graph = ItemGraph(ItemGraphConfig(embedding_size=8, neighbours=10))
    n_items, n_users = split.train.n_items, split.train.n_users
    layout = graph.layout(n_items)
    assert {name: spec.shape for name, spec in layout.blocks.items()} == {"gram": (n_items, n_items)}
    assert layout.size == n_items * (n_items + 1) // 2
    batch = split.train.batch(np.arange(n_users))
    updates, local = graph.compute_updates({}, {}, batch, RoundSeed(1, 1), 60)
    assert isinstance(updates.blocks["gram"], Gram) and local == {}
    federated, _ = train(graph, split.train, 1)
    assert {values.shape for values in federated.values()} == {(n_items, 8), (n_items, 10)}
    central, _ = graph.fit(split.train, 3, 1)
    asked = split.batch(split.train)
    np.testing.assert_allclose(graph.score(federated, {}, asked), graph.score(central, {}, asked), atol=1e-5)


def test_the_private_graph_sends_what_private_ease_sends(split) -> None:
    """Same statistic, same bound, same share of the budget for the histogram."""
    graph, ease = DpItemGraph(DpItemGraphConfig(top_items=30)), DpEase(DpEaseConfig(top_items=30))
    batch = split.train.batch(np.arange(20))
    shared = train(ease, split.train, 2)[0]
    for number in (1, 2):
        mine, _ = graph.compute_updates(shared, {}, batch, RoundSeed(0, number), 60)
        other, _ = ease.compute_updates(shared, {}, batch, RoundSeed(0, number), 60)
        layout = graph.layout(split.train.n_items, number)
        assert np.all(mine.norms() <= 1.0)
        np.testing.assert_array_equal(mine.vector(3, layout), other.vector(3, layout))
    assert isinstance(mine.blocks["gram"], NearPairs)
    assert graph.noise_schedule(2) == ease.noise_schedule(2)


def test_the_private_graph_survives_noise_that_hides_a_user() -> None:
    """Noise of half a user's contribution on every value leaves the taste; a thousand times as much leaves none."""
    split = last_out(planted(n_users=1500))
    graph = DpItemGraph(DpItemGraphConfig(top_items=60, embedding_size=8))
    batch, rng = split.batch(split.train), np.random.default_rng(5)
    found = []
    for std in (0.5, 500.0):
        clean, _ = train(graph, split.train, 2)
        gram = np.zeros((60, 60))
        updates, _ = graph.compute_updates(clean, {}, batch, RoundSeed(0, 2), 60)
        updates.add_into({"gram": gram}, np.ones(len(batch)))
        upper = np.triu(std * rng.standard_normal((60, 60)))
        noisy = gram + upper + np.triu(upper, 1).T
        scores = graph.score(clean | graph.solve(noisy, std), {}, batch)
        assert np.isfinite(scores).all()
        found.append(RecommenderContract.recall_at_9(scores, batch, split))
    assert found[0] > 2.5 * CHANCE_RECALL
    assert found[1] < 2 * CHANCE_RECALL
