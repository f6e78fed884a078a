"""The films of the app, and the model that it starts with: both from the data that come with fedrec.

MovieTweetings (MIT licence): public ratings of 2013 by people who are not on these pages. The start model is EASE,
trained where the public data lie; what the people of the app add to it is learned on their devices (`federation`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from fedrec.ranking.items import Items
from fedrec.ranking.model import ServingModel
from fedrec.recommenders.registry import build
from fedrec_server.operations.publishing import served
from fedrec_simulations.experiments.config import Config, parse_config
from fedrec_simulations.experiments.prepare import prepare

#: Genres with a colour of their own; a film takes one of those of its genres.
TONES = (
    "Horror",
    "Sci-Fi",
    "Animation",
    "Fantasy",
    "Romance",
    "Comedy",
    "Crime",
    "Action",
    "Thriller",
    "Documentary",
    "Drama",
)
POSTERS = 12
#: What a new person can begin with: two films that many like whatever their taste, then films of a genre.
TASTES = ("Comedy", "Crime", "Romance", "Sci-Fi", "Horror", "Animation")
SHARED = ("1853728", "0454876")  # Django Unchained, Life of Pi
TASTE_FILMS = 5
#: So many of the most popular films say little of a taste.
EVERYBODYS = 15
#: How far the popular films of the data's one year are held back: weights are divided by popularity to this power.
HELD_BACK = 0.4
#: How fast an older rating counts less, in ratings.
HISTORY_HALF_LIFE = 8.0
_YEAR = re.compile(r"^(?P<name>.*?)\s*\((?P<year>\d{4})\)$")


@dataclass(frozen=True)
class Film:
    """What is shown of a film.

    Attributes:
        id: of the catalogue.
        name, year: of the title.
        genres: as the catalogue has them.
        tone, poster: colours and shapes of its picture, which says the genre and tells films apart.
    """

    id: str
    name: str
    year: str
    genres: tuple[str, ...]
    tone: int
    poster: int

    @classmethod
    def of(cls, item: str, title: str, genres: Sequence[str]) -> Film:
        """From a line of the catalogue."""
        match = _YEAR.match(title)
        drawn = crc32(item.encode())
        tones = [k for k, genre in enumerate(TONES) if genre in genres] or [len(TONES)]
        name, year = (match["name"], match["year"]) if match else (title, "")
        return cls(item, name, year, tuple(genres), tones[drawn % len(tones)], drawn // 16 % POSTERS)


class Catalogue:
    """All films, by id and by the words of their titles; part of the app, the same on every device."""

    def __init__(self, items: Items) -> None:
        self.films = {
            item: Film.of(item, title, genres)
            for item, title, genres in zip(items.ids, items.titles, items.categories, strict=True)
        }
        order = np.argsort(-items.popularity, kind="stable")
        self._by_popularity = [items.ids[int(k)] for k in order]
        self.genres = items.category_names

    def __getitem__(self, item: str) -> Film:
        return self.films[item]

    def __contains__(self, item: object) -> bool:
        return item in self.films

    def __len__(self) -> int:
        return len(self.films)

    def search(self, text: str, n: int = 12) -> list[Film]:
        """Films whose titles have words that begin with all of these; the more popular first."""
        wanted = _words([text])
        found = (self.films[item] for item in self._by_popularity if _matches(self._words[item], wanted))
        return [film for film, _ in zip(found, range(n), strict=False)] if wanted else []

    def taste(self, genre: str) -> list[Film]:
        """Films to begin with: some of everybody's, then popular ones of a genre: the latest count most."""
        known = {*self._by_popularity[:EVERYBODYS], *SHARED}
        own = (item for item in self._by_popularity if genre in self.films[item].genres and item not in known)
        return [self.films[item] for item in (*SHARED, *islice(own, TASTE_FILMS)) if item in self.films]

    @cached_property
    def _words(self) -> dict[str, list[str]]:
        return {item: _words([film.name, film.year]) for item, film in self.films.items()}


def start_config() -> Config:
    """How the start model is trained."""
    return parse_config(
        {
            "name": "matinee",
            "data": {"name": "movietweetings", "core": 5},
            "split": {"method": "leave_one_out", "validation": False},
            "model": {
                "kind": "ease",
                "reg": 50.0,
                "activity_exponent": 0.4,
                "scoring_half_life": HISTORY_HALF_LIFE,
            },
            "privacy": {"unit": "none", "aggregator": "plain", "insecure": True},
        },
        (),
        "the example app",
    )


def start_model() -> tuple[ServingModel, Items]:
    """Trained on all of the bundled data, in 8 bits; a few seconds."""
    config = start_config()
    prepared = prepare(config)
    everything = prepared.split.learnable("refit")
    shared, _ = build(config.model).fit(everything, config.federation.seed, 1)
    counts = np.bincount(everything.item, minlength=everything.n_items).astype(np.float32)
    shared = shared | {"weights": held_back(shared["weights"], counts)}
    catalog = prepared.catalog
    items = Items.of(catalog.item_ids.tolist(), catalog.titles.tolist(), catalog.categories, counts)
    return served(config, shared), items


def held_back(weights: NDArray[Any], counts: NDArray[np.float32]) -> NDArray[np.float32]:
    """[I, I] weights that raise what few have seen: [h, j] is divided by (count_j / largest count) ** HELD_BACK."""
    rarity = (np.maximum(counts, 1) / counts.max()) ** -HELD_BACK
    return np.asarray(weights * rarity[None, :], dtype=np.float32)


def _words(texts: Iterable[str]) -> list[str]:
    return re.findall(r"\w+", " ".join(texts).casefold())


def _matches(words: Sequence[str], wanted: Sequence[str]) -> bool:
    return all(any(word.startswith(start) for word in words) for start in wanted)
