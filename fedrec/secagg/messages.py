"""What the stages send: named arrays of fixed types and shapes, checked before anything is done with them.

advertise  up    advert      uint8  [160]    c key, s key, commitment to the seed, signature
share      down  cohort      uint32 [n]      who advertised; strictly rising places in the roster
                 digests     uint8  [n, 32]  of every advert; together they are the seed of the graph
                 adverts     uint8  [k, 160] of this device's neighbours, in their order
           up    shares      uint8  [k, 82]  for each neighbour, sealed: a share of the seed, one of the s key
mask       down  sharers     uint32 [n2]     who shared
                 shares      uint8  [k2, 82] made for this device by its neighbours among them, in their order
           up    masked      uint16 or uint32 [m]
confirm    down  survivors   uint32 [n3]     whose masked vector came
           up    signature   uint8  [64]     of attempt, cohort, sharers and survivors
unmask     down  signers     uint32 [q]      neighbours who signed the same list
                 signatures  uint8  [q, 64]
           up    opened      uint8  [j, 33]  one share per neighbour: of its seed if it survived, else of its s key
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg._keys import KEY_BYTES, TAG_BYTES
from fedrec.secagg._shamir import ELEMENT_BYTES
from fedrec.secagg.roster import SIGNATURE_BYTES

Arrays = dict[str, NDArray[Any]]
#: Shape with None for "any".
Shape = tuple[int | None, ...]

ADVERT_BYTES = 3 * KEY_BYTES + SIGNATURE_BYTES
SEALED_BYTES = 2 * ELEMENT_BYTES + TAG_BYTES


def check(arrays: Mapping[str, Any], expected: Mapping[str, tuple[str, Shape]]) -> None:
    """Names, types and shapes are as expected.

    Raises:
        AggregationRefused: they are not.
    """
    if set(arrays) != set(expected):
        raise AggregationRefused(
            f"message has parts {sorted(map(str, arrays))!r:.200}: expected {sorted(expected)}", Reason.FORMAT
        )
    for name, (dtype, shape) in expected.items():
        values = arrays[name]
        given = (values.dtype.name, values.shape) if isinstance(values, np.ndarray) else (type(values), ())
        fits = len(given[1]) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, given[1], strict=True)
        )
        if given[0] != dtype or not fits:
            raise AggregationRefused(
                f"part {name!r} is {given[0]} of shape {given[1]}: expected {dtype} of shape {shape}",
                Reason.FORMAT,
            )


def places(values: NDArray[Any], roster_size: int, what: str, reason: Reason) -> tuple[int, ...]:
    """A list of strictly rising places in a roster.

    Raises:
        AggregationRefused: it is something else.
    """
    out = tuple(int(value) for value in values)
    if any(a >= b for a, b in itertools.pairwise(out)) or (out and out[-1] >= roster_size):
        raise AggregationRefused(
            f"the list of {what} is not in order or names strangers: expected rising places below {roster_size}",
            reason,
        )
    return out


def to_places(values: Iterable[int]) -> NDArray[np.uint32]:
    """The list as it is sent."""
    return np.fromiter(sorted(values), dtype=np.uint32)


def to_bytes_row(data: bytes) -> NDArray[np.uint8]:
    """[len] bytes as an array of their own."""
    return np.frombuffer(data, dtype=np.uint8).copy()


def to_rows(rows: Iterable[bytes], width: int) -> NDArray[np.uint8]:
    """[n, width]."""
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, width).copy()


def advert_digest(place: int, advert: bytes) -> bytes:
    """[32] SHA-256 of whose advert it is and what it says."""
    return hashlib.sha256(place.to_bytes(4, "big") + advert).digest()


def list_bytes(values: Iterable[int]) -> bytes:
    """A list of places as it enters digests."""
    return b"".join(value.to_bytes(4, "big") for value in values)
