"""Masks: AES-256-CTR keystreams added to a vector of residues in place.

Key and stream are used once, so the counter starts at zero; words are little endian on every machine. All streams are
added to one block of the vector before the next block, so that block and stream stay in the cache; the buffer of the
stream is one per thread and wiped at the end, and no array is made per mask. Out of scope: where keys come from
(`keys`), which of them cancel (`client`, `server`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from fedrec.core.errors import AggregationRefused
from fedrec.core.interruption import check
from fedrec.core.refusal_reasons import Reason

KEY_BYTES = 32
_BLOCK = 1 << 17
_ZEROS = bytes(_BLOCK)
_DTYPES = (np.dtype("<u2"), np.dtype("<u4"))
_SCRATCH = threading.local()


Sign = Literal[1, -1]


def add_mask(total: NDArray[Any], key: bytes, sign: Sign) -> None:
    """Add (1) or subtract (-1) the mask of a key; see `add_masks`."""
    add_masks(total, [(key, sign)])


def add_masks(total: NDArray[Any], masks: Sequence[tuple[bytes, Sign]]) -> None:
    """Add (1) or subtract (-1) the mask of each key, modulo 2^16 or 2^32, in place.

    Args:
        total: [m] uint16 or uint32, contiguous and writeable.
        masks: keys of 32 bytes, each for this mask alone, and the sign of the mask.

    Raises:
        AggregationRefused: another type, layout or length of key; nothing was changed.
    """
    flags = total.flags
    if total.dtype not in _DTYPES or total.ndim != 1 or not (flags.c_contiguous and flags.writeable):
        raise AggregationRefused(
            f"vector is {total.dtype} of shape {total.shape}, contiguous {flags.c_contiguous}, writeable "
            f"{flags.writeable}: expected one row of uint16 or uint32, contiguous and writeable; pass a copy",
            Reason.FORMAT,
        )
    streams = [(_stream(key, sign), np.add if sign == 1 else np.subtract) for key, sign in masks]
    scratch, words = _buffer(), _BLOCK // total.dtype.itemsize
    for start in range(0, len(total), words):
        part = total[start : start + words]
        zeros, room = memoryview(_ZEROS)[: part.nbytes], scratch[: part.nbytes]
        made = np.frombuffer(scratch, dtype=total.dtype, count=len(part))
        check()
        for stream, put in streams:
            stream.update_into(zeros, room)
            put(part, made, out=part)
    used = min(total.nbytes, _BLOCK)
    scratch[:used] = _ZEROS[:used]


def mask(size: int, bits: Literal[16, 32], key: bytes) -> NDArray[Any]:
    """[size] the mask of a key alone; for tests and test vectors."""
    out = np.zeros(size, dtype=f"<u{bits // 8}")
    add_mask(out, key, 1)
    return out


def _stream(key: bytes, sign: Sign) -> CipherContext:
    if len(key) != KEY_BYTES or sign not in (1, -1):
        raise AggregationRefused(
            f"mask key of {len(key)} bytes, sign {sign}: expected {KEY_BYTES} and 1 or -1", Reason.FORMAT
        )
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()


def _buffer() -> memoryview:
    if not hasattr(_SCRATCH, "view"):
        # OpenSSL's stream ciphers may be told of a block more than they write.
        _SCRATCH.view = memoryview(bytearray(_BLOCK + 16))
    return _SCRATCH.view  # type: ignore[no-any-return]
