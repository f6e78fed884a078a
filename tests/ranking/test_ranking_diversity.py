"""Diversity against its definitions by brute force, and a planted cluster that it must break up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ranking_helpers import catalogue, factors, listed

from fedrec.core.errors import DataError
from fedrec.ranking.diversity import Dpp, Mmr, unit
from fedrec.ranking.item_index import ItemIndex
from fedrec.ranking.pipeline import RecommendationRequest


def planted() -> tuple[np.ndarray, np.ndarray]:
    """Ten near copies with the best scores, and five different items a little below."""
    rng = np.random.default_rng(0)
    cluster = np.tile(rng.normal(size=8), (10, 1)) + 0.01 * rng.normal(size=(10, 8))
    vectors = unit(np.concatenate([cluster, rng.normal(size=(5, 8))]))
    return np.concatenate([np.linspace(1, 0.95, 10), np.linspace(0.9, 0.8, 5)]), vectors


@pytest.mark.parametrize("diversity", [Mmr(0.5), Dpp(0.5)])
def test_a_cluster_is_broken_up(diversity: Mmr | Dpp) -> None:
    scores, vectors = planted()
    assert sum(k < 10 for k in diversity.order(scores, vectors, 5)) <= 2


def test_a_cluster_is_broken_up_in_a_list() -> None:
    """Twenty copies of what the user likes, and one item each of four other kinds that they like a little."""
    table = np.zeros((26, 6))
    table[:20, 0], table[:20, 1] = 1.0, np.linspace(0, 0.02, 20)
    table[20:24] = np.eye(6)[2:] + 0.3 * np.eye(6)[0]
    where = ItemIndex(factors(table), catalogue(26, popularity=False))
    plain = listed(where, RecommendationRequest(n=5, exclude=["i24", "i25"]), history=(0,))
    assert all(item < 20 for item in plain.items)
    for diversity in (Mmr(0.6), Dpp(0.6)):
        made = listed(
            where, RecommendationRequest(n=5, exclude=["i24", "i25"], diversity=diversity), history=(0,)
        )
        assert made.items[0] == plain.items[0] and {20, 21, 22, 23} == set(made.items[1:])


@pytest.mark.parametrize("kind", [Mmr, Dpp])
@given(
    scores=st.lists(st.integers(0, 5), min_size=1, max_size=12), n=st.integers(1, 12), seed=st.integers(0, 9)
)
def test_weight_0_is_the_order_by_score(kind: Any, scores: list[int], n: int, seed: int) -> None:
    """Also among equal items, with equal scores, and where items have no vector at all."""
    vectors = unit(np.random.default_rng(seed).integers(0, 2, (len(scores), 2)))
    expected = sorted(range(len(scores)), key=lambda k: -scores[k])[:n]
    assert kind(0.0).order(np.array(scores, float), vectors, n) == expected


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_mmr_is_its_definition(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    scores, vectors = rng.random(8), unit(rng.normal(size=(8, 3)))
    scaled = (scores - scores.min()) / np.ptp(scores)
    chosen: list[int] = []
    for _ in range(5):
        value = {
            k: (1 - weight) * scaled[k]
            - weight * max([float(vectors[k] @ vectors[j]) for j in chosen], default=0)
            for k in range(8)
            if k not in chosen
        }
        chosen.append(max(value, key=lambda k: value[k]))
    assert Mmr(weight).order(scores, vectors, 5) == chosen


@given(st.integers(0, 10_000), st.floats(0.1, 1.0))
def test_dpp_takes_the_greatest_determinant_at_each_step(seed: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    scores, vectors = rng.random(7), unit(rng.normal(size=(7, 5)))
    scaled = (scores - scores.min()) / np.ptp(scores)
    quality = np.exp(3 * (1 - weight) / weight * (scaled - 1))
    kernel = quality[:, None] * (1 + vectors @ vectors.T) / 2 * quality
    chosen = Dpp(weight).order(scores, vectors, 4)
    for step in range(1, 5):
        det = {
            k: np.linalg.slogdet(kernel[np.ix_([*chosen[: step - 1], k], [*chosen[: step - 1], k])])[1]
            for k in range(7)
            if k not in chosen[: step - 1]
        }
        assert det[chosen[step - 1]] >= max(det.values()) - 1e-5


@pytest.mark.parametrize("kind", [Mmr, Dpp])
@given(m=st.integers(1, 40), d=st.integers(0, 3), weight=st.floats(0, 1), seed=st.integers(0, 99))
def test_there_is_always_an_order(kind: Any, m: int, d: int, weight: float, seed: int) -> None:
    """More places than the vectors have dimensions, equal items, zero vectors, equal scores."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.integers(-1, 2, (m, d)))
    order = kind(weight).order(rng.integers(0, 3, m).astype(float), vectors, m)
    assert sorted(order) == list(range(m))


@pytest.mark.parametrize("make", [lambda: Mmr(1.5), lambda: Dpp(-0.1), lambda: Dpp(float("nan"))])
def test_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(DataError):
        make()
