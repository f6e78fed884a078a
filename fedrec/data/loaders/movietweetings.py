"""MovieTweetings: ratings of films that users tweeted, 0 to 10, with real time stamps; one snapshot is bundled.

Dooms, De Pessemier and Martens (2013), "MovieTweetings: a movie rating dataset collected from Twitter", CrowdRec.
`ratings.dat` (user::film::rating::time) and `movies.dat` (film::title::genres), UTF-8; films are IMDb numbers.
`users.dat`, which leads to Twitter accounts, is never read. The bundled snapshot has 100,000 ratings, its users are
renumbered (`fedrec.data.bundled`).
"""

from __future__ import annotations

from fedrec.data.bundled.read import load_bundle
from fedrec.data.download import Remote
from fedrec.data.files import Source
from fedrec.data.loaders.common import LOADERS, DatasetInfo, Loaded, catalog_of, read_member
from fedrec.data.loaders.movielens import dat_items
from fedrec.data.rows import RowReport, to_interactions
from fedrec.data.tabular import Columns

TERMS = "MIT licence, copyright (c) 2013 Simon Dooms: may be used and redistributed with its notice."
SNAPSHOT = "https://raw.githubusercontent.com/sidooms/MovieTweetings/master/snapshots/100K"


def load_movietweetings(source: Source, _category: str) -> Loaded:
    """`ratings.dat`, `movies.dat`."""
    table, report = read_member(source, source.one("ratings.dat"), Columns(0, 1, 2, 3), separator="::")
    return Loaded(to_interactions(table), catalog_of(dat_items(source)), report)


def load_bundled() -> Loaded:
    """The snapshot that comes with fedrec."""
    interactions, catalog = load_bundle()
    return Loaded(interactions, catalog, RowReport("bundled MovieTweetings", rows=len(interactions)))


INFOS = (
    DatasetInfo(
        "movietweetings",
        "MovieTweetings, 100,000 ratings",
        TERMS,
        load_movietweetings,
        # No checksums are published with these files.
        tuple(Remote(f"{SNAPSHOT}/{name}", name) for name in ("ratings.dat", "movies.dat")),
        bundled=load_bundled,
    ),
)
for info in INFOS:
    LOADERS.register(info.name)(info)
