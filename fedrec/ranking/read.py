"""Reads a serving model of any kind: importing the kinds below registers them.

Out of scope: signatures and files (`fedrec.wire.package`).
"""

from __future__ import annotations

from fedrec.ranking import _cold, factors, item_item, network, popular  # noqa: F401 - each registers its kinds
from fedrec.ranking.items import Arrays
from fedrec.ranking.model import Header, ServingModel, read_registered


def read_model(arrays: Arrays, header: Header) -> ServingModel:
    """The model of `ServingModel.to_arrays`.

    Args:
        arrays: by name.
        header: plain values with "kind".

    Raises:
        DataError: an unknown kind, or arrays that do not fit it.
    """
    return read_registered(arrays, header)
