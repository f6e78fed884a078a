"""Loaders read the original layouts (small files made here), the bundle, and the real files where they are."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from real_parts import miss, need

from fedrec.core.errors import ConfigError, DataError
from fedrec.core.interactions import Dataset
from fedrec.data.bundled import read as bundle
from fedrec.data.loaders import dataset_info, dataset_names, load_dataset, load_with_report
from fedrec.data.loaders._build_bundle import build
from fedrec.data.loaders.common import LOADERS
from fedrec.data.splits import describe, from_split_column
from fedrec.testing import LoaderContract

Files = dict[str, bytes]
FLAGS = ["0"] * 19
U_ITEM = "|".join(["1", "Les Misérables (1995)", "01-Jan-1995", "", "http://x", *FLAGS[:8], "1", *FLAGS[9:]])

MOVIES = "1::Toy Story (1995)::Animation|Comedy\n2::Amélie (2001)::Comedy\n3::Unseen::Drama\n"
COLONS: Files = {
    "movies.dat": MOVIES.encode("latin-1"),
    "ratings.dat": b"1::2::5::978300760\n1::1::3.5::978300000\n2::2::1::978300001\n",
}
MODERN: Files = {
    "movies.csv": (
        'movieId,title,genres\n1,"American President, The (1995)",Comedy|Drama\n2,Æon,(no genres listed)\n'
    ).encode(),
    "ratings.csv": b"userId,movieId,rating,timestamp\n1,2,0.5,978300760\n1,1,3.5,978300000\n2,2,1.0,978300001\n",
}


def jsonl(*rows: dict[str, object]) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


AMAZON_2018: Files = {
    "All_Beauty_5.json.gz": jsonl(
        {
            "overall": 5.0,
            "reviewerID": "A",
            "asin": "B1",
            "unixReviewTime": 200,
            "vote": "2",
            "style": {"Size": "S"},
        },
        {"overall": 1.0, "reviewerID": "A", "asin": "B2", "unixReviewTime": 100},
    ),
    "meta_All_Beauty.json.gz": jsonl(
        {"asin": "B1", "title": "Soap", "category": ["Beauty", "Bath"]},
        {"asin": "B9", "title": "Not reviewed"},
    ),
}
AMAZON_2023: Files = {
    "All_Beauty.jsonl.gz": jsonl(
        {"rating": 5.0, "user_id": "A", "asin": "X", "parent_asin": "B1", "timestamp": 200_999, "images": []},
        {"rating": 1.0, "user_id": "A", "asin": "Y", "parent_asin": "B2", "timestamp": 100_000},
    ),
    "meta_All_Beauty.jsonl.gz": jsonl(
        {"parent_asin": "B1", "title": "Soap", "categories": ["Beauty", "Bath"]}
    ),
}
NETFLIX: Files = {
    "combined_data_1.txt": b"1:\n30,3,2005-09-06\n7,5,2005-05-13\n2:\n",
    "combined_data_2.txt": b"3:\n30,1,2004-01-01\n",
    "movie_titles.csv": "1,2003,Dinosaur Planet\n2,NULL,Empty\n3,1997,Adiós, Character\n".encode("latin-1"),
}
NETFLIX_OLD: Files = {
    "mv_0000001.txt": b"1:\n30,3,2005-09-06\n7,5,2005-05-13\n",
    "mv_0000003.txt": b"3:\n30,1,2004-01-01\n",
    "movie_titles.txt": NETFLIX["movie_titles.csv"],
}
LASTFM: Files = {
    "user_artists.dat": b"userID\tartistID\tweight\n2\t51\t13883\n2\t52\t11690\n3\t51\t1\n",
    "artists.dat": 'id\tname\turl\tpictureURL\n51\tDuran "D" Duran\thttp://a\thttp://b\n52\tBjörk\thttp://c\t\n'.encode(),
}
MSWEB: Files = {
    "anonymous-msweb.data": (
        b'I,4,"x","y"\nA,1,1,"Home, sweet","/home"\nA,2,1,"Maps","/maps"\nC,"10",10\nV,1,1\nV,2,1\n'
    ),
    "anonymous-msweb.test": b'A,1,1,"Home, sweet","/home"\nC,"10",10\nV,1,1\n',
}


class Contract(LoaderContract):
    """The contract that is shipped for those of others, for each of fedrec's own formats."""


class TestMovieLens100k(Contract):
    dataset = "ml-100k"
    files: ClassVar[Files] = {
        "u.data": b"196\t1\t3\t881250949\n9\t1\t4\t5\n",
        "u.item": (U_ITEM + "\n").encode("latin-1"),
    }
    sizes = (2, 1, 2)


class TestMovieLens1m(Contract):
    dataset, files, sizes = "ml-1m", COLONS, (2, 2, 3)


class TestMovieLens25m(Contract):
    dataset, files, sizes = "ml-25m", MODERN, (2, 2, 3)


class TestMovieTweetings(Contract):
    dataset, files, sizes = "movietweetings", COLONS, (2, 2, 3)


class TestNetflix(Contract):
    dataset, files, sizes = "netflix", NETFLIX, (2, 2, 3)


class TestAmazon2018(Contract):
    dataset, files, sizes = "amazon-2018", AMAZON_2018, (1, 2, 2)


class TestAmazon2023(Contract):
    dataset, files, sizes = "amazon-2023", AMAZON_2023, (1, 2, 2)


class TestLastFm(Contract):
    dataset, files, sizes = "lastfm-2k", LASTFM, (2, 2, 3)


class TestMsWeb(Contract):
    dataset, files, sizes = "msweb", MSWEB, (2, 2, 3)


def test_every_module_of_loaders_keeps_the_contract() -> None:
    tested = {dataset_info(each.dataset).load.__module__ for each in Contract.__subclasses__()}
    assert tested == {info.load.__module__ for _, info in LOADERS.builtin()}


def place(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def zipped(folder: Path, files: Files) -> Path:
    path = folder / "data.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"top/{name}", content)
            archive.writestr(f"__MACOSX/top/._{name}", b"rubbish")
    return path


@pytest.fixture(params=[place, zipped])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Files], Path]:
    return lambda files: request.param(tmp_path, files)


def rows(dataset: Dataset) -> list[tuple[str, str, float, int]]:
    data = dataset.interactions
    columns = (data.user_ids[data.user], data.item_ids[data.item], data.value, data.timestamp)
    return list(zip(*(c.tolist() for c in columns), strict=True))


def labels(dataset: Dataset) -> dict[str, tuple[str, tuple[str, ...]]]:
    catalog = dataset.catalog
    assert catalog.item_ids.tolist() == dataset.interactions.item_ids.tolist()
    return dict(
        zip(
            catalog.item_ids.tolist(),
            zip(catalog.titles.tolist(), catalog.categories, strict=True),
            strict=True,
        )
    )


def test_movielens_100k(put: Callable[[Files], Path]) -> None:
    files = {"u.data": b"196\t1\t3\t881250949\n9\t1\t4\t5\n", "u.item": (U_ITEM + "\n").encode("latin-1")}
    dataset = load_dataset("ml-100k", put(files))
    assert rows(dataset) == [("9", "1", 4.0, 5), ("196", "1", 3.0, 881250949)]
    assert labels(dataset) == {"1": ("Les Misérables (1995)", ("Drama",))}
    assert "redistribution" in dataset.terms


@pytest.mark.parametrize("name", ["ml-1m", "ml-10m", "movietweetings"])
def test_double_colons(put: Callable[[Files], Path], name: str) -> None:
    dataset = load_dataset(name, put(COLONS))
    assert rows(dataset) == [
        ("1", "1", 3.5, 978300000),
        ("1", "2", 5.0, 978300760),
        ("2", "2", 1.0, 978300001),
    ]
    assert labels(dataset) == {
        "1": ("Toy Story (1995)", ("Animation", "Comedy")),
        "2": ("Amélie (2001)", ("Comedy",)),
    }


def test_movielens_1m_of_which_only_the_order_is_known(put: Callable[[Files], Path], tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"user_id": [1, 1], "movie_id": [2, 1], "order": [1, 0]})
    pq.write_table(table, tmp_path / "o.parquet")
    order = {
        "ml1m_sequences.parquet": (tmp_path / "o.parquet").read_bytes(),
        "movies.dat": COLONS["movies.dat"],
    }
    dataset = load_dataset("ml-1m", put(order))
    assert rows(dataset) == [("1", "1", 1.0, 0), ("1", "2", 1.0, 1)] and dataset.name == "ml-1m (order only)"


@pytest.mark.parametrize("name", ["ml-20m", "ml-25m", "ml-32m", "ml-latest-small"])
def test_modern_movielens(put: Callable[[Files], Path], name: str) -> None:
    dataset = load_dataset(name, put(MODERN))
    assert rows(dataset)[0] == ("1", "1", 3.5, 978300000)
    assert labels(dataset) == {"1": ("American President, The (1995)", ("Comedy", "Drama")), "2": ("Æon", ())}


@pytest.mark.parametrize("files", [NETFLIX, NETFLIX_OLD])
def test_netflix(put: Callable[[Files], Path], files: Files) -> None:
    dataset = load_dataset("netflix", put(files))
    assert rows(dataset) == [
        ("7", "1", 5.0, 1115942400),
        ("30", "3", 1.0, 1072915200),
        ("30", "1", 3.0, 1125964800),
    ]
    assert labels(dataset) == {"1": ("Dinosaur Planet (2003)", ()), "3": ("Adiós, Character (1997)", ())}


def test_netflix_names_bad_lines(tmp_path: Path) -> None:
    files = {"combined_data_1.txt": b"1:\n30,3,2005-09-06\nx\n2:\n7,5,2005-05-13\n8,5\n9,1,2005-01-01\n"}
    dataset, report = load_with_report("netflix", place(tmp_path, files))
    assert [p.line for p in report.examples] == [3, 6] and len(dataset.interactions) == 3
    with pytest.raises(DataError, match=r"line 3.*damaged"):
        load_dataset("netflix", tmp_path)
    with pytest.raises(DataError, match="before the first"):
        load_dataset("netflix", place(tmp_path, {"combined_data_1.txt": b"30,3,2005-09-06\n"}))


@pytest.mark.parametrize(("name", "files"), [("amazon-2018", AMAZON_2018), ("amazon-2023", AMAZON_2023)])
def test_amazon(put: Callable[[Files], Path], name: str, files: Files) -> None:
    dataset = load_dataset(name, put(files))
    assert rows(dataset) == [("A", "B2", 1.0, 100), ("A", "B1", 5.0, 200)]
    assert labels(dataset) == {"B1": ("Soap", ("Beauty", "Bath")), "B2": ("", ())}


def test_amazon_categories(tmp_path: Path) -> None:
    more = {"Books.jsonl.gz": jsonl({"rating": 2.0, "user_id": "Z", "parent_asin": "B7", "timestamp": 1000})}
    folder = place(tmp_path, AMAZON_2023 | more)
    with pytest.raises(DataError, match="several categories"):
        load_dataset("amazon-2023", folder)
    assert rows(load_dataset("amazon-2023:Books", folder)) == [("Z", "B7", 2.0, 1)]
    by_file = load_dataset("amazon-2023", folder / "All_Beauty.jsonl.gz")
    assert labels(by_file)["B1"][0] == "Soap"


def test_lastfm(put: Callable[[Files], Path]) -> None:
    dataset = load_dataset("lastfm-2k", put(LASTFM))
    assert [r[:3] for r in rows(dataset)] == [("2", "51", 13883.0), ("2", "52", 11690.0), ("3", "51", 1.0)]
    assert labels(dataset) == {"51": ('Duran "D" Duran', ()), "52": ("Björk", ())}


def test_msweb(put: Callable[[Files], Path]) -> None:
    dataset = load_dataset("msweb", put(MSWEB))
    assert [r[:2] for r in rows(dataset)] == [("10", "1"), ("10", "2"), ("test-10", "1")]
    assert labels(dataset) == {"1": ("Home, sweet", ()), "2": ("Maps", ())}


def test_messages_for_wrong_names_places_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match="did you mean 'ml-100k'"):
        load_dataset("ml-100")
    with pytest.raises(DataError, match="does not exist"):
        load_dataset("ml-1m", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no u.data \(found movies.dat, ratings.dat\)"):
        load_dataset("ml-100k", place(tmp_path / "wrong", COLONS))
    with pytest.raises(DataError, match=r"place the file at .*home/data/ml-1m/ml-1m.zip"):
        load_dataset("ml-1m")
    with pytest.raises(DataError, match="cannot be downloaded"):
        load_dataset("netflix")
    with pytest.raises(ConfigError, match="come in categories"):
        load_dataset("amazon-2018")
    (tmp_path / "bad.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="damaged"):
        load_dataset("ml-1m", tmp_path / "bad.zip")
    cut = dict(COLONS) | {"ratings.dat": COLONS["ratings.dat"][:-14]}
    with pytest.raises(DataError, match=r"line 3: 2 fields where 4 are expected.*damaged"):
        load_dataset("ml-1m", place(tmp_path / "cut", cut))


def test_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREC_HOME", str(tmp_path))
    (tmp_path / "data" / "ml-1m").mkdir(parents=True)
    zipped(tmp_path, COLONS).replace(tmp_path / "data" / "ml-1m" / "ml-1m.zip")
    assert len(load_dataset("ml-1m", download=True).interactions) == 3


def test_every_data_set_states_its_terms() -> None:
    assert {"movietweetings", "ml-100k", "ml-32m", "netflix", "amazon-2023", "lastfm-2k"} <= set(
        dataset_names()
    )
    for name in dataset_names():
        info = dataset_info(name)
        assert len(info.terms) > 40 and (info.remotes or info.by_hand)


def test_the_bundle_loads_with_titles_and_its_licence() -> None:
    dataset = load_dataset("movietweetings")
    data = dataset.interactions
    assert (data.n_users, data.n_items, len(data)) == (16554, 10506, 100_000)
    assert data.user_ids[:3].tolist() == ["1", "2", "3"]
    first = data.timestamp[data.indptr[:-1]]
    assert np.all(np.diff(first) >= 0), (
        "users are numbered by their first rating, not by their number at the source"
    )
    assert all(
        np.all(np.diff(data.timestamp[a:b]) >= 0) for a, b in zip(data.indptr, data.indptr[1:], strict=False)
    )
    assert set(data.value.tolist()) <= set(range(11))
    assert dataset.catalog.label(data.item_ids.tolist().index("0133093")) == "The Matrix (1999)"
    assert "Sci-Fi" in dataset.catalog.categories[data.item_ids.tolist().index("0133093")]
    folder = bundle.BUNDLE.parent
    assert bundle.BUNDLE.stat().st_size < 1_000_000
    assert "Simon Dooms" in (folder / "movietweetings.LICENSE").read_text()


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.npz").write_bytes(bundle.BUNDLE.read_bytes()[:5000])
    with pytest.raises(DataError, match="install fedrec again"):
        bundle.load_bundle(tmp_path / "b.npz")


def test_building_a_bundle_renumbers_users_and_loses_nothing_else(tmp_path: Path) -> None:
    build(place(tmp_path, COLONS), tmp_path / "b.npz")
    data, catalog = bundle.load_bundle(tmp_path / "b.npz")
    assert data.user.tolist() == [0, 0, 1] and data.timestamp.tolist() == [978300000, 978300760, 978300001]
    assert data.item.tolist() == [0, 1, 1] and catalog.titles.tolist() == [
        "Toy Story (1995)",
        "Amélie (2001)",
    ]
    assert catalog.categories == (("Animation", "Comedy"), ("Comedy",))


def real(name: str) -> Path:
    need("original data")
    if not (folder := Path(os.environ["FEDREC_DATA"]) / name).is_dir():
        miss("original data")
    return folder


@pytest.mark.parametrize(
    ("name", "sizes", "first"),
    [
        ("ml-100k", (943, 1682, 100_000), "Toy Story (1995)"),
        ("ml-1m", (6040, 3416, 999_611), "Toy Story (1995)"),
        ("msweb", (37_711, 286, 113_845), "regwiz"),
        ("movietweetings", (16_554, 10_506, 100_000), "Fantômas - À l'ombre de la guillotine (1913)"),
    ],
)
def test_real_files(name: str, sizes: tuple[int, int, int], first: str) -> None:
    dataset = load_dataset(name, real(name))
    data = dataset.interactions
    assert (data.n_users, data.n_items, len(data)) == sizes and dataset.catalog.label(0) == first
    assert np.all(dataset.catalog.titles != "")


def test_real_bundle_is_rebuilt_byte_for_byte(tmp_path: Path) -> None:
    build(real("movietweetings"), tmp_path / "b.npz")
    assert (tmp_path / "b.npz").read_bytes() == bundle.BUNDLE.read_bytes()


def test_real_split_column() -> None:
    facts = describe(from_split_column(real("ml-100k") / "leave_one_out.csv"))
    assert [facts[n]["interactions"] for n in ("train", "validation", "test")] == [98_114, 943, 943]
