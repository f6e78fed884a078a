"""From a model and a person to a list: score, filter, order, explore.

    scores -> newness and boosts -> what must not appear -> short list -> diversity -> rules, pins, exploration

A person without a history gets what is popular and new. Everything is pure given the random generator, nothing
touches a network, and no step walks over all items in Python. Letters: I items, n wanted, m of the short list.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedrec.errors import DataError
from fedrec.ranking.best import best
from fedrec.ranking.diversity import Diversity, unit
from fedrec.ranking.exploration import Exploration, Explorer, Uncertainty
from fedrec.ranking.filters import Limits, Rule, boosts, pins
from fedrec.ranking.serving import Person
from fedrec.ranking.shelf import Shelf

SHORT_LIST = 10
MIN_SHORT_LIST = 100
#: Of the history, so many of the last entries count for exploration: its cost stays bounded.
RECENT = 100


@dataclass(frozen=True)
class Wanted:
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
        freshness: weight of newness, in standard deviations of the scores for an item that came just now.
        half_life_days: newness is halved after so many days.
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
        if not 1 <= self.n <= 100_000:
            raise DataError(f"a list of {self.n!r:.40} items: expected 1 to 100000")
        if not (np.isfinite(self.freshness) and self.half_life_days > 0):
            raise DataError(
                f"freshness {self.freshness} with a half-life of {self.half_life_days} days: expected finite, above 0"
            )
        for name in ("exclude", "allow", "deny", "candidates"):
            if isinstance(getattr(self, name), str):
                raise DataError(f"{name}={getattr(self, name)!r:.60}: expected a list of texts, not one text")


@dataclass(frozen=True)
class Ranked:
    """A list.

    Attributes:
        items: places in the model's items, best first.
        scores: as ordered by: with newness and boosts.
        propensities: of each item at its place, given those above; see `exploration`.
        sources: of each item: "model", "popular" (nothing known of the person), "fresh" (it is here for its newness),
            "similar content" (came after the training), "exploration" or "pinned".
        unknown: candidates that the model does not know.
    """

    items: tuple[int, ...]
    scores: tuple[float, ...]
    propensities: tuple[float, ...]
    sources: tuple[str, ...]
    unknown: tuple[str, ...] = field(default=())


def rank(
    shelf: Shelf,
    person: Person,
    seen: NDArray[np.int64],
    wanted: Wanted,
    *,
    rng: np.random.Generator,
    now: float = 0.0,
) -> Ranked:
    """The list for a person.

    Args:
        shelf: model and items.
        person: folded in by that model.
        seen: places of the items that the person knows already.
        wanted: what is asked for.
        rng: for exploration; not used without.
        now: seconds since 1970, for newness.

    Raises:
        DataError: a category that no item has; contradicting pins.
    """
    rules = tuple(wanted.rules)
    known = len(person.history) > 0
    plain = _scores(shelf, person)
    unknown = _shut(shelf, plain, seen, wanted)
    scores = _moved(shelf, plain, wanted, rules, now)
    pinned = {place: item for place, item in pins(shelf, rules).items() if plain[item] > -np.inf}
    threshold = _threshold(plain, scores, wanted.n)

    size = max(wanted.n * SHORT_LIST, MIN_SHORT_LIST) if _chooses(wanted, rules) else wanted.n
    while True:
        pool = best(scores, size)
        order, vectors = _ordered(shelf, person, scores, pool, wanted)
        chosen = _fill(shelf, pool, order, pinned, wanted.n, rules, None)
        if len(chosen) >= wanted.n or len(pool) < size:
            break
        size *= 8  # rules left places empty: look further
    if wanted.exploration is not None and len(pool):
        # The short list is settled before any coin is thrown, else the coins would have chosen it.
        short = Uncertainty.of(scores[pool].astype(np.float64), vectors[: len(pool)], vectors[len(pool) :])
        explorer = Explorer(wanted.exploration, short, wanted.n, rng)
        chosen = _fill(shelf, pool, order, pinned, wanted.n, rules, explorer)

    def source(item: int, how: str) -> str:
        if how != "model":
            return how
        if item >= shelf.trained:
            return "similar content"
        if plain[item] < threshold:
            return "fresh"
        return "model" if known else "popular"

    return Ranked(
        tuple(item for item, _, _ in chosen),
        tuple(float(scores[item]) for item, _, _ in chosen),
        tuple(chance for _, chance, _ in chosen),
        tuple(source(item, how) for item, _, how in chosen),
        unknown,
    )


def _scores(shelf: Shelf, person: Person) -> NDArray[np.float32]:
    """[I] of the model; popularity where nothing is known of the person and something of the items."""
    if not len(person.history) and shelf.items.popularity.any():
        return shelf.items.popularity.astype(np.float32)
    return shelf.model.scores(person)


def _shut(
    shelf: Shelf, scores: NDArray[np.float32], seen: NDArray[np.int64], wanted: Wanted
) -> tuple[str, ...]:
    """Put -inf where an item must not appear; the candidates that are unknown."""
    unknown: tuple[str, ...] = ()
    if wanted.candidates is not None:
        places = [shelf.items.index(item) for item in wanted.candidates]
        unknown = tuple(item for item, place in zip(wanted.candidates, places, strict=True) if place is None)
        outside = np.ones(len(scores), bool)
        outside[[place for place in places if place is not None]] = False
        scores[outside] = -np.inf
    if wanted.allow:
        scores[~shelf.any_of(wanted.allow)] = -np.inf
    for name in wanted.deny:
        scores[shelf.members(name)] = -np.inf
    scores[[place for item in wanted.exclude if (place := shelf.items.index(item)) is not None]] = -np.inf
    if wanted.exclude_seen:
        scores[seen] = -np.inf
    return unknown


def _moved(
    shelf: Shelf, plain: NDArray[np.float32], wanted: Wanted, rules: tuple[Rule, ...], now: float
) -> NDArray[np.float32]:
    """Scores with newness and boosts; the same array when there are none."""
    moves = boosts(shelf, rules)
    if not moves and not wanted.freshness:
        return plain
    open_scores = plain[plain > -np.inf]
    deviation = float(open_scores.std()) if len(open_scores) else 0.0
    deviation = deviation or 1.0
    scores = plain.copy()
    for places, by in moves:
        scores[places] += np.float32(by * deviation)
    if wanted.freshness:
        scores += np.float32(wanted.freshness * deviation) * shelf.newness(now, wanted.half_life_days)
    return scores


def _threshold(plain: NDArray[np.float32], scores: NDArray[np.float32], n: int) -> float:
    """What an item needs to be among the n best without newness and boosts."""
    if scores is plain:
        return -np.inf
    top = best(plain, n)
    return float(plain[top[-1]]) if len(top) == n else -np.inf


def _chooses(wanted: Wanted, rules: tuple[Rule, ...]) -> bool:
    return bool(rules) or wanted.diversity is not None or wanted.exploration is not None


def _fill(
    shelf: Shelf,
    pool: NDArray[np.int64],
    order: NDArray[np.int64],
    pinned: dict[int, int],
    n: int,
    rules: tuple[Rule, ...],
    explorer: Explorer | None,
) -> list[tuple[int, float, str]]:
    """Item, propensity and how it came, for each place of the list."""
    limits = Limits(shelf, rules, pool)
    left = ~np.isin(pool, list(pinned.values()))
    chosen: list[tuple[int, float, str]] = []
    while len(chosen) < n:
        place = len(chosen)
        if place in pinned:
            item, chance, how = pinned[place], 1.0, "pinned"
        else:
            free = order[(left & limits.allowed(place))[order]]
            if not len(free):
                break
            pick, chance, explored = (
                explorer.choose(free, int(free[0])) if explorer else (int(free[0]), 1.0, False)
            )
            left[pick] = False
            item, how = int(pool[pick]), "exploration" if explored else "model"
        limits.put(item, place)
        chosen.append((item, chance, how))
    return chosen


def _ordered(
    shelf: Shelf, person: Person, scores: NDArray[np.float32], pool: NDArray[np.int64], wanted: Wanted
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The short list in the order in which places are filled; unit vectors of it and of the history's end."""
    order = np.arange(len(pool))
    if not len(pool) or (wanted.diversity is None and wanted.exploration is None):
        return order, np.zeros((len(pool), 0))
    vectors = unit(shelf.model.vectors(np.concatenate([pool, person.history.item[-RECENT:]])))
    if wanted.diversity is not None:
        values = scores[pool].astype(np.float64)
        first = np.array(wanted.diversity.order(values, vectors[: len(pool)], wanted.n), dtype=np.int64)
        order = np.concatenate([first, order[~np.isin(order, first)]])
    return order, vectors
