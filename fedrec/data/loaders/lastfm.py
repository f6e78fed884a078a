"""Last.fm 2K (HetRec 2011): how often 1,892 users listened to an artist.

Cantador, Brusilovsky and Kuflik (2011), "2nd workshop on information heterogeneity and fusion in recommender
systems". `user_artists.dat` (userID, artistID, weight) and `artists.dat` (id, name, url, pictureURL), tab-separated.
The weight becomes the value; listening has no time, so the order of the rows stands for it and means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedrec.data.download import Remote
from fedrec.data.files import Source
from fedrec.data.loaders.common import LOADERS, DatasetInfo, Item, Loaded, catalog_of, read_member
from fedrec.data.rows import to_interactions
from fedrec.data.tabular import Columns

TERMS = (
    "Last.fm by way of HetRec 2011: non-commercial use; acknowledge Last.fm and the workshop in publications, "
    "redistribution is not granted."
)


def load_lastfm(source: Source, _category: str) -> Loaded:
    """`user_artists.dat`, `artists.dat`."""
    columns = Columns("userID", "artistID", "weight")
    table, report = read_member(source, source.one("user_artists.dat"), columns, separator="\t", quoted=False)
    return Loaded(to_interactions(table), catalog_of(_artists(source)), report)


def _artists(source: Source) -> Iterator[Item]:
    for line in source.text(source.one("artists.dat")).split("\n")[1:]:
        fields = line.rstrip("\r").split("\t")
        if len(fields) >= 2:
            yield Item(fields[0].strip(), fields[1].strip())


INFOS = (
    DatasetInfo(
        "lastfm-2k",
        "Last.fm 2K (HetRec 2011)",
        TERMS,
        load_lastfm,
        # No checksum is published with this file.
        (
            Remote(
                "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip", "lastfm-2k.zip"
            ),
        ),
    ),
)
for info in INFOS:
    LOADERS.register(info.name)(info)
