"""MovieLens, all sizes, in the original files of GroupLens (https://grouplens.org/datasets/movielens/).

Harper and Konstan (2015), "The MovieLens datasets: history and context", ACM TiiS 5(4). 100K is tab-separated with
`u.item`; 1M and 10M are `a::b::c`; 20M, 25M, 32M and latest-small are CSV. A 1M of which only the order is known
(`ml1m_sequences.parquet`) is understood, too. Titles are latin-1 or UTF-8, depending on the edition.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedrec.core.errors import DataError
from fedrec.core.interactions import Catalog
from fedrec.data.delimited import split_lines
from fedrec.data.download import Remote
from fedrec.data.files import Source
from fedrec.data.loaders.common import LOADERS, DatasetInfo, Item, Loaded, catalog_of, piped, read_member
from fedrec.data.rows import to_interactions
from fedrec.data.tabular import Columns

RESEARCH = (
    "GroupLens, University of Minnesota: research use; acknowledge the use in publications, no redistribution "
    "without permission, no commercial use without permission, no endorsement may be implied."
)
LATEST = (
    "GroupLens, University of Minnesota: may be redistributed under the same terms; no commercial use without "
    "permission; acknowledge the use in publications, no endorsement may be implied."
)
BASE = "https://files.grouplens.org/datasets/movielens"
# In the column order of u.item.
GENRES_100K = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


def load_100k(source: Source, _category: str) -> Loaded:
    """`u.data`, `u.item`."""
    table, report = read_member(
        source, source.one("u.data"), Columns(0, 1, 2, 3), separator="\t", quoted=False
    )
    return Loaded(to_interactions(table), catalog_of(_items_100k(source)), report)


def load_colons(source: Source, _category: str) -> Loaded:
    """`ratings.dat`, `movies.dat` of 1M and 10M, or the order-only form of 1M."""
    movies = catalog_of(dat_items(source))
    if not source.find("ratings.dat") and source.find("ml1m_sequences.parquet"):
        return _order_only(source, movies)
    table, report = read_member(source, source.one("ratings.dat"), Columns(0, 1, 2, 3), separator="::")
    return Loaded(to_interactions(table), movies, report)


def load_csv(source: Source, _category: str) -> Loaded:
    """`ratings.csv`, `movies.csv` of 20M and later."""
    columns = Columns("userId", "movieId", "rating", "timestamp")
    table, report = read_member(source, source.one("ratings.csv"), columns, separator=",")
    return Loaded(to_interactions(table), catalog_of(_csv_items(source)), report)


def dat_items(source: Source) -> Iterator[Item]:
    """Films of a `movies.dat`: `id::title::genre|genre`."""
    member = source.one("movies.dat")
    for number, line in enumerate(source.text(member).splitlines(), start=1):
        fields = line.split("::")
        if len(fields) == 3:
            yield Item(fields[0].strip(), fields[1].strip(), piped(fields[2]))
        elif line.strip():
            raise DataError(
                f"{source.label(member)} line {number} has {len(fields)} fields, expected 3: fetch it again"
            )


def _order_only(source: Source, movies: Catalog) -> Loaded:
    columns = Columns("user_id", "movie_id", timestamp="order")
    table, report = read_member(source, source.one("ml1m_sequences.parquet"), columns)
    return Loaded(to_interactions(table), movies, report, variant="order only")


def _items_100k(source: Source) -> Iterator[Item]:
    member = source.one("u.item")
    for number, line in enumerate(source.text(member).splitlines(), start=1):
        fields = line.split("|")
        flags = fields[5:]
        if len(flags) != len(GENRES_100K):
            raise DataError(
                f"{source.label(member)} line {number} has {len(fields)} fields, expected 24: fetch it again"
            )
        genres = (
            g for g, flag in zip(GENRES_100K, flags, strict=True) if flag.strip() == "1" and g != "unknown"
        )
        yield Item(fields[0].strip(), fields[1].strip(), tuple(genres))


def _csv_items(source: Source) -> Iterator[Item]:
    member = source.one("movies.csv")
    rows = split_lines(source.text(member), ",", quoted=True)
    next(rows, None)
    for line, row in rows:
        if len(row) != 3:
            raise DataError(
                f"{source.label(member)} line {line} has {len(row)} fields, expected 3: fetch it again"
            )
        yield Item(row[0].strip(), row[1].strip(), piped(row[2]))


def _info(name: str, title: str, md5: str | None, terms: str = RESEARCH, archive: str = "") -> DatasetInfo:
    load = load_100k if name == "ml-100k" else load_colons if name in ("ml-1m", "ml-10m") else load_csv
    remote = Remote(f"{BASE}/{archive or name}.zip", f"{name}.zip", md5)
    return DatasetInfo(name, f"MovieLens {title}", terms, load, (remote,))


# The MD5 sums are those that GroupLens publishes beside each archive; latest-small changes and has none.
INFOS = (
    _info("ml-100k", "100K", "0e33842e24a9c977be4e0107933c0723"),
    _info("ml-1m", "1M", "c4d9eecfca2ab87c1945afe126590906"),
    _info("ml-10m", "10M", "ce571fd55effeba0271552578f2648bd"),
    _info("ml-20m", "20M", "cd245b17a1ae2cc31bb14903e1204af3"),
    _info("ml-25m", "25M", "6b51fb2759a8657d3bfcbfc42b592ada"),
    _info("ml-32m", "32M", "d472be332d4daa821edc399621853b57"),
    _info("ml-latest-small", "latest-small", None, LATEST),
)
for info in INFOS:
    LOADERS.register(info.name)(info)
