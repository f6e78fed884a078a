"""Named arrays as one string of bytes, for carriers to which each array of a small message costs more than its bytes.

The format is that of safetensors: nothing in it can run, and what does not parse is refused. What the arrays may be
is checked where messages are decoded (`messages`). Out of scope: large arrays, which carriers cut themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedrec.core.errors import ProtocolError

#: Up to here one string is cheaper to carry than arrays apart.
MAX_PACKED_BYTES = 100_000


def pack(arrays: Mapping[str, NDArray[np.generic]]) -> bytes | None:
    """Contiguous arrays, as `messages.encode` makes them, as bytes; None when they are too large for it to pay."""
    if sum(values.nbytes for values in arrays.values()) > MAX_PACKED_BYTES:
        return None
    return bytes(save(dict(arrays)))


def unpack(data: bytes) -> dict[str, NDArray[np.generic]]:
    """The arrays of bytes made by `pack`.

    Raises:
        ProtocolError: the bytes are not such.
    """
    try:
        return dict(load(data))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ProtocolError(
            f"{len(data)} bytes are no packed arrays ({type(error).__name__}): expected those made by pack"
        ) from error
