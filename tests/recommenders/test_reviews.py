"""What users write about their events: read from files, carried beside them, read by models, and never leaked."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedrec.content.encoders import load_encoder
from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import Catalog, Dataset, Interactions
from fedrec.core.recommender import RoundSeed
from fedrec.data.items_table import read_catalog
from fedrec.data.loaders import load_dataset, load_with_report
from fedrec.data.shards import load_shard, save_shard
from fedrec.data.split import Split
from fedrec.data.splits import leave_one_out, read_split, write_split
from fedrec.data.tabular import Columns, read_interactions
from fedrec.recommenders.registry import build, parse
from fedrec.testing import train
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.config import parse_config
from fedrec_simulations.experiments.prepare import prepare
from fedrec_simulations.experiments.run_folder import RunFolder

N_ITEMS, WORDS = 20, ("more like this", "never again")


def reader(texts: Sequence[str]) -> np.ndarray:
    """Vectors that say which of the two things was written; nothing is nothing."""
    return np.array([[t == WORDS[0], t == WORDS[1]] for t in texts], dtype=np.float32)


def written(n_users: int = 300, seed: int = 0) -> list[tuple[str, str, str]]:
    """Rows user, item, text. Who wants more gets the next item of the same half, who does not one of the other half.

    Items are drawn evenly and words by a coin, so that events without words tell nothing of the next half.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(n_users):
        half = int(rng.integers(2))
        for _ in range(10):
            word = int(rng.integers(2))
            item = int(rng.integers(N_ITEMS // 2)) + half * N_ITEMS // 2
            rows.append((f"u{user:03d}", f"i{item:02d}", WORDS[word]))
            half = half if word == 0 else 1 - half
    return rows


def as_file(path: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    columns = ("user", "item", "text")
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerows([columns, *rows])
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(
            pa.table(dict(zip(columns, map(list, zip(*rows, strict=True)), strict=True))), path
        )
    return path


def planted() -> Split:
    rows = written()
    interactions = Interactions.from_columns([r[0] for r in rows], [r[1] for r in rows])
    return leave_one_out(replace(interactions, review=reader([r[2] for r in rows])))


# Data --------------------------------------------------------------------------------------------------

ROWS = [("b", "x", WORDS[0]), ("a", "y", ""), ("b", "y", 'two\nlines, "quoted"'), ("a", "x", WORDS[1])]


@pytest.mark.parametrize("name", ["r.csv", "r.jsonl", "r.parquet"])
def test_words_stay_beside_their_events(tmp_path: Path, name: str) -> None:
    path = as_file(tmp_path / name, ROWS)
    seen: list[str] = []

    def listening(texts: Sequence[str]) -> np.ndarray:
        seen.extend(texts)
        return reader(texts)

    data, report = read_interactions(path, Columns("user", "item", review="text"), reader=listening)
    assert not report.bad and set(seen) == {row[2] for row in ROWS}
    # Sorted by user: a's rows, then b's.
    assert data.item_ids[data.item].tolist() == ["y", "x", "x", "y"]
    assert data.review is not None and data.review.tolist() == [[0, 0], [0, 1], [1, 0], [0, 0]]
    silent, _ = read_interactions(path, Columns("user", "item", review="text"))
    assert silent.review is None


def test_missing_words_are_no_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"user": "a", "item": "x", "text": "never again"}\n{"user": "a", "item": "y"}\n')
    data, report = read_interactions(path, Columns("user", "item", review="text"), reader=reader)
    assert not report.bad and data.review is not None and data.review.tolist() == [[0, 1], [0, 0]]


def test_every_way_of_cutting_a_split_keeps_them(tmp_path: Path) -> None:
    split = planted()
    save_shard(split, tmp_path / "shard.npz")
    write_split(split, tmp_path / "split")
    for again in (load_shard(tmp_path / "shard.npz"), read_split(tmp_path / "split")):
        for name in ("train", "validation", "test"):
            np.testing.assert_array_equal(getattr(again, name).review, getattr(split, name).review)
    final = split.learnable("refit")
    together = final.batch(np.arange(final.n_users))
    assert together.review is not None and final.review is not None
    some = split.restrict(np.array([3, 7])).train
    np.testing.assert_array_equal(some.review, split.train.review[np.isin(split.train.user, [3, 7])])
    np.testing.assert_array_equal(together.take(np.array([7])).review, final.review[final.user == 7])
    pieces = [piece.review for _, piece in together.chunks(50, 4)]
    np.testing.assert_array_equal(np.concatenate([p for p in pieces if p is not None]), together.review)
    latest = together.keep(together.age == 0)
    np.testing.assert_array_equal(latest.review, together.review[together.age == 0])
    # A second split in the same folder leaves nothing of the first behind.
    write_split(
        replace(split, train=replace(split.train, review=None), validation=None, test=None),
        tmp_path / "split",
    )
    assert read_split(tmp_path / "split").train.review is None


def test_parts_with_and_without_words_do_not_merge() -> None:
    split = planted()
    assert split.validation is not None
    with pytest.raises(DataError, match="reviews in both or in neither"):
        split.train.merge(replace(split.validation, review=None))


AMAZON = {
    "Books.jsonl": [
        {"user_id": "A", "parent_asin": "B1", "rating": 5.0, "timestamp": 2000, "text": WORDS[0]},
        {"user_id": "A", "parent_asin": "B2", "rating": 1.0, "timestamp": 1000, "text": WORDS[1]},
    ],
    "meta_Books.jsonl": [
        {
            "parent_asin": "B1",
            "title": "Soap",
            "features": ["Mild", ""],
            "description": ["Smells of", "pine."],
        },
        {"parent_asin": "B2", "title": "Tar", "description": []},
    ],
}


def test_products_are_described_and_reviews_read(tmp_path: Path) -> None:
    for name, lines in AMAZON.items():
        (tmp_path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    dataset, _ = load_with_report("amazon-2023", tmp_path, reader=reader)
    assert dataset.catalog.text == ("Mild Smells of pine.", "")
    assert dataset.interactions.review is not None and dataset.interactions.review.tolist() == [
        [0, 1],
        [1, 0],
    ]
    assert load_dataset("amazon-2023", tmp_path).interactions.review is None
    with pytest.raises(ConfigError, match=r"holds no reviews.*amazon-2018, amazon-2023"):
        load_with_report("movietweetings", reader=reader)


def test_a_table_of_items(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("item,title,categories,text\nx,Alien,Horror | Sci-Fi,\ny,,,A ship. A cat.\n")
    catalog = read_catalog(path)
    assert catalog.item_ids.tolist() == ["x", "y"] and catalog.titles.tolist() == ["Alien", ""]
    assert catalog.categories == (("Horror", "Sci-Fi"), ()) and catalog.text == ("", "A ship. A cat.")
    assert catalog.align(np.array(["y", "z"])).text == ("A ship. A cat.", "")
    path.write_text("item,title\nx,Alien\nx,Aliens\n")
    with pytest.raises(DataError, match="names item 'x' more than once"):
        read_catalog(path)
    path.write_text("item,colour\nx,red\n")
    with pytest.raises(DataError, match="none of the columns title, categories, text"):
        read_catalog(path)


# Models ------------------------------------------------------------------------------------------------

KINDS = {
    "sasrec": {},
    "gru4rec": {},
    "bert4rec": {"hidden_share": 0.2},
    "two_tower": {},
    "text_sequence": {"features": 8, "rank": 4, "loss": "full"},
}


def model(kind: str, reviews: int):
    small = {"embedding_size": 16, "max_length": 10, "dropout": 0.3, "reviews": reviews}
    server = {"name": "adam", "learning_rate": 0.02}
    return build(parse({"kind": kind, "server": server} | small | KINDS[kind]))


def item_features() -> np.ndarray:
    """Noise, and in one column which half an item is of."""
    features = np.random.default_rng(1).normal(size=(N_ITEMS, 8)).astype(np.float32)
    features[:, 0] = np.where(np.arange(N_ITEMS) < N_ITEMS // 2, -2.0, 2.0)
    return features


def right_half(recommender, shared, split: Split) -> float:
    """How often the half of the next item is told by the mean score of its items; chance is one half."""
    batch = split.batch(split.train)
    scores = recommender.score(shared, {}, batch)
    told = scores[:, N_ITEMS // 2 :].mean(1) > scores[:, : N_ITEMS // 2].mean(1)
    assert split.validation is not None
    return float((told == (split.validation.item >= N_ITEMS // 2)).mean())


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec", "two_tower", "text_sequence"])
def test_what_only_words_tell_is_found_with_them_alone(kind: str) -> None:
    split = planted()
    features = item_features() if kind == "text_sequence" else None
    rounds = 50 if kind in ("sasrec", "gru4rec") else 120
    found = {}
    for reviews in (0, 2):
        shared, _ = train(model(kind, reviews), split.train, rounds, features=features)
        found[reviews] = right_half(model(kind, reviews), shared, split)
    assert found[2] > 0.85 and found[0] < 0.6, found


@pytest.mark.parametrize("kind", ["sasrec", "bert4rec", "two_tower"])
def test_what_is_asked_for_is_not_told_by_its_own_words(kind: str) -> None:
    """The words about the last event of a window, or about a hidden one, do not reach the update."""
    split, recommender, key = planted(), model(kind, 2), RoundSeed(3, 5)
    one = split.train.batch(np.arange(1))
    shared = recommender.init_shared(N_ITEMS, 0)
    shared["review"] = np.random.default_rng(0).normal(size=(2, 16)).astype(np.float32)
    layout = recommender.layout(N_ITEMS)
    plain = recommender.compute_updates(shared, {}, one, key, N_ITEMS)[0].vector(0, layout)
    moved = np.zeros(len(one.item), dtype=bool)
    for event in range(len(one.item)):
        review = one.review.copy()
        review[event] = 7.0
        other = recommender.compute_updates(shared, {}, replace(one, review=review), key, N_ITEMS)[0].vector(
            0, layout
        )
        moved[event] = not np.array_equal(plain, other)
    if kind == "bert4rec":
        work, _ = recommender.work(one, key, N_ITEMS, {})
        hidden = work.passes[0].hidden[0].numpy()
        assert 0 < hidden.sum() < len(hidden)
        np.testing.assert_array_equal(moved, ~hidden)
    else:
        np.testing.assert_array_equal(moved, [True] * (len(moved) - 1) + [False])


def test_reviews_of_another_width_are_one_line() -> None:
    split = planted()
    with pytest.raises(ConfigError, match=r"model.reviews = 3 and the encoder.*vectors of 2"):
        train(model("sasrec", 3), split.train, 1)


def test_whoever_writes_nothing_is_served_by_the_same_model() -> None:
    split, recommender = planted(), model("sasrec", 2)
    shared, _ = train(recommender, split.train, 3)
    batch = split.batch(split.train)
    empty = recommender.score(shared, {}, replace(batch, review=np.zeros_like(batch.review)))
    np.testing.assert_allclose(recommender.score(shared, {}, replace(batch, review=None)), empty, atol=1e-6)
    assert not np.allclose(recommender.score(shared, {}, batch), empty, atol=1e-3)


# Runs --------------------------------------------------------------------------------------------------


def settings(path: Path, **data: object) -> dict:
    return {
        "data": {"name": "file", "path": str(path), "review_column": "text", "reviews": "hashed"} | data,
        "model": {"kind": "sasrec", "embedding_size": 16, "max_length": 10, "dropout": 0.0, "reviews": 512}
        | {"server": {"name": "adam", "learning_rate": 0.02}},
        "federation": {"rounds": 40, "evaluate_every": 20, "clip_norm": 5.0, "nodes": 3},
        "secagg": {"min_nodes": 3},
        "privacy": {"unit": "none"},
    }


def test_a_run_from_a_file_reads_them_under_secure_aggregation(tmp_path: Path) -> None:
    path = as_file(tmp_path / "events.csv", written())
    config = parse_config(settings(path))
    prepared = prepare(config)
    assert prepared.split.train.review is not None
    assert prepared.split.train.review.shape[1] == load_encoder("hashed").dimensions
    run = RunFolder.create(tmp_path / "run", config, prepared, 3)
    metrics = run_in_process(run.path).result["test"]["metrics"]["all"]
    # Of twenty items ten are of the right half.
    assert metrics["full/hr@10"]["value"] > 0.75
    np.testing.assert_allclose(run.split.train.review, prepared.split.train.review)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reviews": None}, "belong together: give both, or neither"),
        ({"synthetic": {"factor": 1.0}}, "make.* up users who write nothing"),
        ({"name": "movietweetings", "review_column": None, "items": "items.csv"}, "data.items describes"),
    ],
)
def test_settings_that_do_not_fit(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config(settings(tmp_path / "events.csv", **change))


def test_an_encoder_that_no_model_reads_is_refused(tmp_path: Path) -> None:
    values = settings(tmp_path / "events.csv")
    values["model"]["reviews"] = 0
    with pytest.raises(ConfigError, match="set both, or neither"):
        parse_config(values)


def test_own_items_give_titles_and_features(tmp_path: Path) -> None:
    path = as_file(tmp_path / "events.csv", written())
    (tmp_path / "items.csv").write_text(
        "item,title,text\n" + "".join(f"i{k:02d},Film {k},about {k % 7}\n" for k in range(N_ITEMS))
    )
    values = settings(path, items=str(tmp_path / "items.csv"), features={"parts": ["hashed"]})
    values["model"] |= {"kind": "text_sequence", "features": 512}
    prepared = prepare(parse_config(values))
    assert prepared.catalog.label(3) == "Film 3" and prepared.catalog.features is not None
    assert prepared.catalog.features.shape == (N_ITEMS, 512) and prepared.catalog.features.any(axis=1).all()


def test_a_catalogue_needs_equally_long_columns() -> None:
    with pytest.raises(DataError, match="category tuple, text and row of features"):
        Dataset("d", planted().train, Catalog(np.array(["a"]), np.array(["A"]), ((),), ("x", "y")))
