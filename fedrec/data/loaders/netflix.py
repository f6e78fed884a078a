"""The Netflix Prize data, in both layouts that are around.

Bennett and Lanning (2007), "The Netflix Prize". `combined_data_*.txt` holds blocks `movie:` followed by lines
`user,rating,YYYY-MM-DD`; the older `mv_*.txt` holds one such block per file. `movie_titles.csv` (or `.txt`) is
`movie,year,title` in latin-1, where titles may contain commas. There are no genres.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator

import numpy as np

from fedrec.core.errors import DataError
from fedrec.data.delimited import Layout, blocks, read_block
from fedrec.data.files import Source
from fedrec.data.loaders.common import LOADERS, DatasetInfo, Item, Loaded, catalog_of
from fedrec.data.rows import Coded, Field, Piece, RowReport, to_interactions
from fedrec.data.rows import join as join_pieces
from fedrec.data.tabular import collect

FIELDS = (Field("user", 0, "id"), Field("rating", 1, "number"), Field("timestamp", 2, "date"))
ALL_FIELDS = (*FIELDS, Field("item", "movie", "id"))
LAYOUT = Layout(",", quoted=False, width=3)
HEADER = re.compile(rb"^(\d+):\s*$", re.MULTILINE)
TERMS = (
    "Netflix: was given for the Netflix Prize under terms of research use; withdrawn by Netflix, no redistribution. "
    "Its users were partly re-identified (Narayanan and Shmatikov, 2008): handle it as personal data."
)


def load_netflix(source: Source, _category: str) -> Loaded:
    """All rating files, and the titles where they are there."""
    members = source.find("combined_data_*.txt") or source.find("mv_*.txt")
    if not members:
        source.one("combined_data_*.txt", "mv_*.txt")
    report = RowReport(str(source.path))
    table, report = collect(ALL_FIELDS, _pieces(source, members, report), report)
    titles = source.find("movie_titles.csv", "movie_titles.txt")
    return Loaded(to_interactions(table), catalog_of(_titles(source, titles[0]) if titles else ()), report)


def _pieces(source: Source, members: list[str], report: RowReport) -> Iterator[Piece]:
    for member in members:
        own = RowReport(source.label(member))
        with source.open(member) as stream:
            movie: bytes | None = None
            for first_line, block in blocks(stream, quoted=False, first_line=1):
                movie = yield from _movies(block, first_line, movie, own)
        report.absorb(own)


def _movies(
    block: bytes, line: int, movie: bytes | None, report: RowReport
) -> Generator[Piece, None, bytes | None]:
    """The ratings in a block, movie by movie; returns the movie it ends in."""
    cut = 0
    pieces: list[Piece] = []
    for header in [*HEADER.finditer(block), None]:
        ratings = block[cut : header.start() if header else len(block)]
        if ratings.strip():
            if movie is None:
                raise DataError(
                    f"{report.source} line {line}: ratings before the first 'movie:' line; fetch it again"
                )
            pieces.append(_of_movie(ratings, line, movie, report))
        line += ratings.count(b"\n")
        if header:
            # The line break of the header stays with the ratings behind it and is skipped there as a blank line.
            movie, cut = header[1], header.start() + len(header[0].rstrip())
    yield join_pieces(ALL_FIELDS, pieces)
    return movie


def _of_movie(ratings: bytes, line: int, movie: bytes, report: RowReport) -> Piece:
    piece = dict(read_block(ratings, line, LAYOUT, FIELDS, (0, 1, 2), report))
    user = piece["user"]
    assert isinstance(user, Coded)
    piece["item"] = Coded([movie.decode()], np.zeros(len(user.index), dtype=np.int64))
    return piece


def _titles(source: Source, member: str) -> Iterator[Item]:
    for line in source.text(member).splitlines():
        fields = line.split(",", 2)
        if len(fields) == 3:
            year = f" ({fields[1]})" if fields[1].strip().isdigit() else ""
            yield Item(fields[0].strip(), fields[2].strip() + year)


INFOS = (
    DatasetInfo(
        "netflix",
        "Netflix Prize",
        TERMS,
        load_netflix,
        by_hand="it is not published any more; give a folder with combined_data_*.txt (or mv_*.txt) and movie_titles",
    ),
)
for info in INFOS:
    LOADERS.register(info.name)(info)
