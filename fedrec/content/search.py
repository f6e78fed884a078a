"""Search: the items whose texts mean what a query says, in any language the encoder knows.

A query is encoded where it was typed: with public features and a public encoder it never leaves the device.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fedrec.content.encoders import Encoder
from fedrec.core.errors import DataError
from fedrec.core.interactions import FloatArray


class Found(NamedTuple):
    """An item that fits a query.

    Attributes:
        item: its index.
        likeness: cosine of query and item; comparable within one search only.
    """

    item: int
    likeness: float


def search(query: str, features: FloatArray, encoder: Encoder, n: int = 10) -> list[Found]:
    """The n items most like a query, best first; none for a blank query, and never an item without a text.

    Args:
        query: words or a sentence.
        features: [I, F] of `encode_catalog` without reduction, by the same encoder.
        encoder: for the query.
        n: how many.

    Raises:
        DataError: the features are of another width than the encoder's.
    """
    if features.ndim != 2 or features.shape[1] != encoder.dimensions:
        raise DataError(
            f"features of shape {features.shape}: expected {encoder.dimensions} columns, as encoder "
            f"{encoder.name!r} makes them"
        )
    known = np.flatnonzero(features.any(axis=1))
    asked = encoder.encode_queries([query])[0]
    if not asked.any() or not len(known):
        return []
    cosine = features[known] @ asked
    best = np.argsort(-cosine, kind="stable")[:n]
    return [Found(int(known[k]), float(cosine[k])) for k in best]
