"""Amazon Reviews 2018 and 2023: JSON lines, one file of reviews and one of products (`meta_...`) per category.

Ni, Li and McAuley (2019), "Justifying recommendations using distantly-labeled reviews and fine-grained aspects",
EMNLP; Hou et al. (2024), "Bridging language and items for retrieval and recommendation" (the 2023 edition).
In 2018 a product is its `asin`, time is in seconds; in 2023 variants of a product share a `parent_asin`, which is the
item here, and time is in milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from fedrec.core.errors import DataError
from fedrec.data.download import Remote
from fedrec.data.files import Source
from fedrec.data.loaders.common import LOADERS, DatasetInfo, Item, Loaded, catalog_of, read_member
from fedrec.data.rows import Reader, to_interactions
from fedrec.data.tabular import Columns

COLUMNS_2018 = Columns("reviewerID", "asin", "overall", "unixReviewTime", review="reviewText")
COLUMNS_2023 = Columns("user_id", "parent_asin", "rating", "timestamp", "milliseconds", review="text")
#: Where a product's seller describes it.
DESCRIPTIONS = ("feature", "features", "description")
TERMS = (
    "McAuley Lab, UC San Diego: collected for research, no licence is stated; the reviews belong to their authors "
    "and Amazon. Do not redistribute; cite the paper."
)
BASE_2018 = "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_v2"
BASE_2023 = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw"


def load_2018(source: Source, category: str, reader: Reader | None = None) -> Loaded:
    """`<Category>[_5].json.gz`, `meta_<Category>.json.gz`."""
    return _load(source, category, COLUMNS_2018, "asin", reader)


def load_2023(source: Source, category: str, reader: Reader | None = None) -> Loaded:
    """`<Category>.jsonl.gz`, `meta_<Category>.jsonl.gz`."""
    return _load(source, category, COLUMNS_2023, "parent_asin", reader)


def _load(source: Source, category: str, columns: Columns, item_key: str, reader: Reader | None) -> Loaded:
    member = _reviews(source, category)
    # Texts are most of a file: they are read for those alone who ask for them.
    table, report = read_member(source, member, columns if reader else replace(columns, review=None))
    interactions = to_interactions(table, reader)
    return Loaded(
        interactions,
        catalog_of(_products(source, member, item_key, set(interactions.item_ids.tolist()))),
        report,
    )


def _reviews(source: Source, category: str) -> str:
    stem = category or "*"
    patterns = [
        f"{stem}{five}.json{lines}{gz}" for five in ("", "_5") for lines in ("", "l") for gz in (".gz", "")
    ]
    found = [m for m in dict.fromkeys(source.find(*patterns)) if not m.rsplit("/", 1)[-1].startswith("meta_")]
    if len(found) == 1 or (found and category):
        return found[0]
    if found:
        raise DataError(
            f"{source.path} holds reviews of several categories ({', '.join(found)}): give one file's path"
        )
    return source.one(f"{stem}.json.gz", f"{stem}.jsonl.gz")


def _products(source: Source, reviews: str, item_key: str, wanted: set[str]) -> Iterator[Item]:
    """What is said of the products that were reviewed; nothing where there is no meta file."""
    stem = reviews.rsplit("/", 1)[-1].removesuffix(".gz").rsplit(".", 1)[0].removesuffix("_5")
    # A path to one review file: its neighbour belongs to it although it was not named.
    place = Source.at(source.path) if source.path.is_dir() else source
    for member in place.find(f"meta_{stem}.json*"):
        with place.open(member) as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    product = json.loads(line)
                    item = str(product[item_key])
                except (ValueError, KeyError, TypeError) as error:
                    label = place.label(member)
                    raise DataError(
                        f"{label} line {number} is no product with a {item_key}: fetch it again"
                    ) from error
                if item in wanted:
                    yield Item(
                        item,
                        str(product.get("title") or ""),
                        _texts(product.get("categories") or product.get("category")),
                        " ".join(
                            part for key in DESCRIPTIONS for part in _texts(product.get(key)) if part.strip()
                        ),
                    )


def _texts(value: object) -> tuple[str, ...]:
    return tuple(str(part) for part in value) if isinstance(value, list) else ()


def _info(year: int, reviews: str, meta: str) -> DatasetInfo:
    suffix = "json.gz" if year == 2018 else "jsonl.gz"
    remotes = (
        Remote(reviews, f"{{category}}.{suffix}"),
        Remote(meta, f"meta_{{category}}.{suffix}"),
    )
    load = load_2018 if year == 2018 else load_2023
    return DatasetInfo(f"amazon-{year}", f"Amazon Reviews {year}", TERMS, load, remotes, load_reviews=load)


# No checksums are published with these files.
INFOS = (
    _info(
        2018,
        f"{BASE_2018}/categoryFiles/{{category}}.json.gz",
        f"{BASE_2018}/metaFiles2/meta_{{category}}.json.gz",
    ),
    _info(
        2023,
        f"{BASE_2023}/review_categories/{{category}}.jsonl.gz",
        f"{BASE_2023}/meta_categories/meta_{{category}}.jsonl.gz",
    ),
)
for info in INFOS:
    LOADERS.register(info.name)(info)
