"""Anonymous Microsoft web data (UCI, 1998): which areas of a web site a visitor saw within one week.

Breese, Heckerman and Kadie (1998), "Empirical analysis of predictive algorithms for collaborative filtering", UAI.
Lines `A` name areas, `C` begin a visitor, `V` are visits. Neither time nor order of visits is known: the order of
the rows stands for it and means nothing. The `.test` file numbers its visitors from the start again, so they are
called `test-...` here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from fedrec.data.download import Remote
from fedrec.data.files import Source
from fedrec.data.loaders.common import LOADERS, DatasetInfo, Item, Loaded, catalog_of
from fedrec.data.rows import BadValueError, Field, Piece, RowReport, piece_of_rows, to_interactions
from fedrec.data.tabular import collect

FIELDS = (Field("user", "case", "id"), Field("item", "vote", "id"))
TERMS = (
    "UCI Machine Learning Repository, donated by Microsoft Research: UCI states CC BY 4.0 for its data sets today, "
    "the files themselves state no licence; check before you redistribute. No personal data, according to the donors."
)
BASE = "https://archive.ics.uci.edu/ml/machine-learning-databases/anonymous"


def load_msweb(source: Source, _category: str) -> Loaded:
    """`anonymous-msweb.data`, and `anonymous-msweb.test` where it is there."""
    members = [source.one("anonymous-msweb.data"), *source.find("anonymous-msweb.test")]
    report = RowReport(str(source.path))
    items: list[Item] = []
    table, report = collect(FIELDS, _pieces(source, members, report, items), report)
    return Loaded(to_interactions(table), catalog_of(items), report)


def _pieces(source: Source, members: list[str], report: RowReport, items: list[Item]) -> Iterator[Piece]:
    for member in members:
        own = RowReport(source.label(member))
        prefix = "test-" if member.endswith(".test") else ""
        yield piece_of_rows(FIELDS, _votes(source.text(member), prefix, items), own)
        report.absorb(own)


def _votes(text: str, prefix: str, items: list[Item]) -> Iterator[tuple[int, list[object] | BadValueError]]:
    case = ""
    for line, row in enumerate(csv.reader(text.splitlines()), start=1):
        kind = row[0] if row else ""
        if kind == "A" and len(row) >= 5:
            items.append(Item(row[1], row[3]))
        elif kind == "C" and len(row) >= 3:
            case = prefix + row[2]
        elif kind == "V" and len(row) >= 2 and case:
            yield line, [case, row[1]]
        elif kind not in ("I", "T", "N", ""):
            yield line, BadValueError(f"a line that begins with {kind[:20]!r} is no whole A, C or V line")


INFOS = (
    DatasetInfo(
        "msweb",
        "Anonymous Microsoft web data",
        TERMS,
        load_msweb,
        # No checksums are published with these files.
        tuple(Remote(f"{BASE}/anonymous-msweb.{s}", f"anonymous-msweb.{s}") for s in ("data", "test")),
    ),
)
for info in INFOS:
    LOADERS.register(info.name)(info)
