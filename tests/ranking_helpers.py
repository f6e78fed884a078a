"""A small catalogue with a factor model, and lists from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from fedrec.ranking.diversity import Dpp, Mmr
from fedrec.ranking.exploration import EpsilonGreedy, LinUcb, Thompson
from fedrec.ranking.factors import Factors
from fedrec.ranking.filters import Apart, AtMost, Boost, Pin
from fedrec.ranking.folding import Ridge
from fedrec.ranking.item_index import DAY, ItemIndex
from fedrec.ranking.items import Items
from fedrec.ranking.model import History, ServingModel, User
from fedrec.ranking.pipeline import Ranked, RecommendationRequest, rank
from fedrec.ranking.tables import FloatTable

GENRES = ("action", "comedy", "drama", "family")
NOW = 1000 * DAY


def factors(values: Any) -> Factors:
    return Factors(FloatTable(np.asarray(values, dtype=np.float32)), Ridge(unobserved_weight=0.1, reg=0.01))


def catalogue(n: int, popularity: bool = True, seed: int = 0) -> Items:
    """Items i0, i1, ... of one or two genres; every second one came some days ago."""
    return Items.of(
        [f"i{k}" for k in range(n)],
        [f"Film {k}" for k in range(n)],
        [{GENRES[k % 4], GENRES[(k // 3) % 4]} for k in range(n)],
        np.random.default_rng(seed).random(n).astype(np.float32) if popularity else None,
        np.where(np.arange(n) % 2, NOW - np.arange(n) * DAY, 0.0),
    )


def item_index(n: int = 60, d: int = 6, seed: int = 0, popularity: bool = True) -> ItemIndex:
    table = np.random.default_rng(seed + 1).normal(size=(n, d))
    return ItemIndex(factors(table), catalogue(n, popularity, seed))


def user_of(where: ItemIndex, history: tuple[int, ...]) -> User:
    return where.model.fold_in(History.of(where.items, [f"i{k}" for k in history]))


def listed(
    where: ItemIndex,
    request: RecommendationRequest,
    history: tuple[int, ...] = (1, 5, 9),
    seed: int = 0,
    now: float = NOW,
) -> Ranked:
    user = user_of(where, history)
    return rank(where, user, user.history.item, request, rng=np.random.default_rng(seed), now=now)


class Fixed(ServingModel):
    """Any scores for anyone with a history: what lists do with them is all that is looked at."""

    kind = "fixed"

    def __init__(self, scores: Any) -> None:
        self._scores = np.asarray(scores, dtype=np.float32)

    @property
    def n_items(self) -> int:
        return len(self._scores)

    def fold_in(self, history: History) -> User:
        return User(history)

    def scores(self, user: User) -> np.ndarray:
        return self._scores.copy()

    def vectors(self, items: np.ndarray) -> np.ndarray:
        return np.eye(len(items), dtype=np.float32)

    def explain(self, user: User, item: int) -> Any:
        raise NotImplementedError

    similar = quantised = to_arrays = from_arrays = explain  # type: ignore[assignment]


categories = st.lists(st.sampled_from(GENRES), max_size=2, unique=True)
ids = st.lists(st.integers(0, 70).map("i{}".format), max_size=12, unique=True)
limits = st.builds(AtMost, st.sampled_from(GENRES), st.integers(0, 4)) | st.builds(
    Apart, st.sampled_from(GENRES), st.integers(1, 4)
)
boosts = st.builds(Boost, st.floats(-2, 2), st.sampled_from(GENRES)) | st.builds(
    Boost, st.floats(-2, 2), st.none(), ids.map(lambda some: (some or ["i0"])[0])
)
diversities = st.none() | st.builds(Mmr, st.floats(0, 1)) | st.builds(Dpp, st.floats(0, 1))
explorations = st.sampled_from([None, EpsilonGreedy(0.5, 1.0), Thompson(1.0, 0.5), LinUcb()])


@st.composite
def pins(draw: st.DrawFn, places: int) -> list[Pin]:
    """Contradiction-free."""
    items = draw(st.lists(st.integers(0, 65).map("i{}".format), max_size=3, unique=True))
    where = draw(st.lists(st.integers(1, places), min_size=len(items), max_size=len(items), unique=True))
    return [Pin(item, place) for item, place in zip(items, where, strict=True)]
