"""From a model and a user to a list: score, filter, move, shorten, order, fill.

    scores -> what must not appear -> boosts and recency -> short list -> diversity -> rules, pins, exploration

A user of whom nothing is known gets what is popular; recency, diversity and exploration work for them as for
everyone. Among equal scores the more popular item goes first. Everything is pure given the random generator, nothing
touches a network, and no step walks over all items in Python.

Diversity and exploration look at a short list of some times the length of the list, and work on the first places of
very long lists: what follows there goes by score. Letters: I items, n requested, m of the short list.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError
from fedrec.ranking._backfill import Backfill, Placed
from fedrec.ranking.diversity import Diversity, unit
from fedrec.ranking.exploration import Exploration, Explorer, Uncertainty
from fedrec.ranking.filters import LONGEST, Limits, Rule, boosts, named, pins
from fedrec.ranking.item_index import ItemIndex
from fedrec.ranking.model import Scorer, User
from fedrec.ranking.top_scores import top_k

#: The short list is so many times as long as the part of the list that diversity and exploration work on.
SHORT_LIST, MIN_SHORT_LIST = 10, 100
#: So many places, from the top, are that part.
HEAD = 100
#: Of the history, so many of the last entries count for exploration: its cost stays bounded.
RECENT = 50

Scores = NDArray[np.float32]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class RecommendationRequest:
    """What a caller asks for.

    Attributes:
        n: list length.
        candidates: only these items; None: all.
        exclude: not these items.
        exclude_seen: not those of the history.
        allow: only items with one of these categories; empty: all.
        deny: no items with one of these categories.
        rules: see `filters`.
        diversity: see `diversity`; None: by score alone.
        exploration: see `exploration`; None: none.
        freshness: weight of recency (freshness), in standard deviations of the scores for an item that came just now.
        half_life_days: recency is halved after so many days.
    """

    n: int = 20
    candidates: Collection[str] | None = None
    exclude: Collection[str] = ()
    exclude_seen: bool = True
    allow: Collection[str] = ()
    deny: Collection[str] = ()
    rules: Sequence[Rule] = ()
    diversity: Diversity | None = None
    exploration: Exploration | None = None
    freshness: float = 0.0
    half_life_days: float = 30.0

    def __post_init__(self) -> None:
        if not 1 <= _whole(self.n) <= LONGEST:
            raise DataError(f"a list of {self.n!r:.40} items: expected 1 to {LONGEST}")
        if not (np.isfinite(self.freshness) and 0 < self.half_life_days < np.inf):
            raise DataError(
                f"freshness {self.freshness} with a half-life of {self.half_life_days} days: expected finite, above 0"
            )
        for name in ("exclude", "allow", "deny", "candidates"):
            if isinstance(getattr(self, name), str):
                raise DataError(f"{name}={getattr(self, name)!r:.60}: expected a list of texts, not one text")
        for name, kind in (("diversity", Diversity), ("exploration", Exploration)):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), kind):
                raise DataError(f"{name}={getattr(self, name)!r:.60}: expected {kind}")
        for rule in self.rules:
            if not isinstance(rule, Rule):
                raise DataError(f"rule {rule!r:.60}: expected {Rule}")


@dataclass(frozen=True)
class Ranked:
    """A list.

    Attributes:
        items: indices in the model's items, best first.
        scores: as ordered by: with recency and boosts.
        propensities: probability of each item at its place, given those above; see `exploration`.
        sources: of each item: "model", "popular" (nothing known of the user), "fresh" (without its recency it would
            not be among the n best), "similar content" (came after the training), "exploration" or "pinned".
        unknown: candidates, and items of rules, that the model does not know.
    """

    items: tuple[int, ...]
    scores: tuple[float, ...]
    propensities: tuple[float, ...]
    sources: tuple[str, ...]
    unknown: tuple[str, ...] = ()


def rank(
    item_index: ItemIndex[Scorer],
    user: User,
    seen: Places,
    request: RecommendationRequest,
    *,
    rng: np.random.Generator,
    now: float = 0.0,
) -> Ranked:
    """The list for a user.

    Args:
        item_index: model and items.
        user: folded in by that model.
        seen: indices of the items that the user knows already.
        request: what is asked for.
        rng: for exploration; not used without.
        now: seconds since 1970, for recency.

    Raises:
        DataError: a category that no item has; contradicting pins.
    """
    rules = tuple(request.rules)
    open_scores = _opened(item_index, _scores(item_index, user), seen, request)
    without = _boosted(item_index, open_scores, rules)
    scores = _freshened(item_index, without, request, now)
    pinned = {
        place: item
        for place, item in pins(item_index, rules).items()
        if place < request.n and scores[item] > -np.inf
    }
    pool, explorer = _shortened(item_index, user, scores, pinned, request, rng)
    backfill = Backfill(item_index, scores, pool, pinned, Limits(item_index, rules, pinned), explorer)
    placed = backfill.placed(request.n)
    fresh = _fresh(item_index, without, scores, request) if request.freshness > 0 else frozenset()
    return Ranked(
        tuple(each.item for each in placed),
        tuple(scores[[each.item for each in placed]].tolist()),
        tuple(each.chance for each in placed),
        tuple(_source(item_index, each, fresh, user.known) for each in placed),
        _unknown(item_index, (*(request.candidates or ()), *named(rules))),
    )


def _scores(item_index: ItemIndex[Scorer], user: User) -> Scores:
    """[I] of the model; popularity where nothing is known of the user and something of the items."""
    if not user.known and item_index.items.popularity.any():
        return item_index.items.popularity.astype(np.float32)
    return item_index.model.scores(user)


def _opened(
    item_index: ItemIndex[Scorer], scores: Scores, seen: Places, request: RecommendationRequest
) -> Scores:
    """The scores with -inf where an item must not appear; writes into what it is given."""
    if request.candidates is not None:
        scores = _only(scores, [_known(item_index, request.candidates)])
    if request.allow:
        scores = _only(scores, [item_index.members(name) for name in request.allow])
    for name in request.deny:
        scores[item_index.members(name)] = -np.inf
    scores[_known(item_index, request.exclude)] = -np.inf
    if request.exclude_seen:
        scores[seen] = -np.inf
    return scores


def _only(scores: Scores, kept: Sequence[Places]) -> Scores:
    out = np.full_like(scores, -np.inf)
    for places in kept:
        out[places] = scores[places]
    return out


def _known(item_index: ItemIndex[Scorer], ids: Collection[str]) -> Places:
    places = (item_index.items.index(item) for item in ids)
    return np.array([place for place in places if place is not None], dtype=np.int64)


def _unknown(item_index: ItemIndex[Scorer], ids: Collection[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for item in ids if item_index.items.index(item) is None))


def _boosted(item_index: ItemIndex[Scorer], scores: Scores, rules: tuple[Rule, ...]) -> Scores:
    """Scores with boosts; the same array when there are none."""
    moves = boosts(item_index, rules)
    if not moves:
        return scores
    deviation, out = _deviation(scores), scores.copy()
    for places, by in moves:
        out[places] += np.float32(by * deviation)
    return out


def _freshened(
    item_index: ItemIndex[Scorer], scores: Scores, request: RecommendationRequest, now: float
) -> Scores:
    """Scores with recency; the same array when it weighs nothing."""
    if not request.freshness:
        return scores
    lift = item_index.recency(now, request.half_life_days)
    lift *= np.float32(request.freshness * _deviation(scores))
    lift += scores
    return lift


def _deviation(scores: Scores) -> float:
    """Of what may appear; 1 where it does not differ."""
    usable = scores[scores > -np.inf]
    return (float(usable.std()) if len(usable) else 0.0) or 1.0


def _shortened(
    item_index: ItemIndex[Scorer],
    user: User,
    scores: Scores,
    pinned: dict[int, int],
    request: RecommendationRequest,
    rng: np.random.Generator,
) -> tuple[Places, Explorer | None]:
    """The short list without pins, in the order in which it fills places, and who explores it."""
    head = min(request.n, HEAD)
    short = max(head * SHORT_LIST, MIN_SHORT_LIST)
    alone = request.diversity is None and request.exploration is None and not request.rules
    pool = top_k(scores, request.n if alone else max(request.n, short), item_index.items.popularity)
    if pinned:
        pool = pool[~np.isin(pool, list(pinned.values()))]
    values = scores[pool[:short]].astype(np.float64)
    looks = request.exploration is not None and request.exploration.looks
    vectors, history = _vectors(item_index, user, pool[:short], request.diversity is not None or looks, looks)
    if request.diversity is not None and len(pool):
        first = np.array(request.diversity.order(values, vectors, head), dtype=np.int64)
        order = np.concatenate([first, np.setdiff1d(np.arange(len(values)), first)])
        pool = np.concatenate([pool[order], pool[short:]])
        values, vectors = values[order], vectors[order]
    if request.exploration is None or not len(pool):
        return pool, None
    known = Uncertainty.of(values, vectors, history)
    return pool, Explorer(request.exploration, known, request.n, head, rng)


def _vectors(
    item_index: ItemIndex[Scorer], user: User, pool: Places, needed: bool, with_history: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors of the short list and of the end of the history; empty ones where no one looks at them."""
    if not needed or not len(pool):
        return np.zeros((len(pool), 0)), np.zeros((0, 0))
    history = user.history.item[-RECENT:] if with_history else pool[:0]
    distinct, at = np.unique(np.concatenate([pool, history]), return_inverse=True)
    vectors = unit(item_index.model.vectors(distinct))
    return vectors[at[: len(pool)]], vectors[at[len(pool) :]]


def _fresh(
    item_index: ItemIndex[Scorer], without: Scores, scores: Scores, request: RecommendationRequest
) -> frozenset[int]:
    """Items that are among the n best with recency and not without it."""
    by = item_index.items.popularity
    before = top_k(without, request.n, by)
    return frozenset(top_k(scores, request.n, by).tolist()) - frozenset(before.tolist())


def _source(item_index: ItemIndex[Scorer], placed: Placed, fresh: frozenset[int], known: bool) -> str:
    if placed.by != "score":
        return "pinned" if placed.by == "pin" else "exploration"
    if placed.item >= item_index.trained:
        return "similar content"
    if placed.item in fresh:
        return "fresh"
    return "model" if known else "popular"


def _whole(n: object) -> int:
    try:
        return operator.index(n)  # type: ignore[arg-type]
    except TypeError:
        return 0
