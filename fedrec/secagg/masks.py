"""Masks: an AES-256-CTR keystream added to a vector of residues in place.

Key and stream are used once, so the counter starts at zero; words are little endian on every machine. The stream is
made block by block into a buffer that stays in the cache, one per thread, and is wiped after each mask; no array is
made per mask. Out of scope: where keys come from (`keys`), which of them cancel (`client`, `server`).
"""

from __future__ import annotations

import threading
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedrec.errors import AggregationRefused
from fedrec.secagg.reasons import Reason

KEY_BYTES = 32
_BLOCK = 1 << 17
_ZEROS = bytes(_BLOCK)
_DTYPES = (np.dtype("<u2"), np.dtype("<u4"))
_SCRATCH = threading.local()


def add_mask(total: NDArray[Any], key: bytes, sign: Literal[1, -1]) -> None:
    """Add (1) or subtract (-1) the mask of a key, modulo 2^16 or 2^32, in place.

    Args:
        total: [m] uint16 or uint32, contiguous and writeable.
        key: 32 bytes, for this mask alone.
        sign: of the mask.

    Raises:
        AggregationRefused: another type, layout or length of key.
    """
    flags = total.flags
    if total.dtype not in _DTYPES or total.ndim != 1 or not (flags.c_contiguous and flags.writeable):
        raise AggregationRefused(
            f"vector is {total.dtype} of shape {total.shape}, contiguous {flags.c_contiguous}, writeable "
            f"{flags.writeable}: expected one row of uint16 or uint32, contiguous and writeable; pass a copy",
            Reason.FORMAT,
        )
    if len(key) != KEY_BYTES or sign not in (1, -1):
        raise AggregationRefused(
            f"mask key of {len(key)} bytes, sign {sign}: expected {KEY_BYTES} and 1 or -1", Reason.FORMAT
        )
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    scratch, words = _buffer(), _BLOCK // total.dtype.itemsize
    put = np.add if sign == 1 else np.subtract
    for start in range(0, len(total), words):
        part = total[start : start + words]
        size = part.nbytes
        stream.update_into(memoryview(_ZEROS)[:size], scratch[:size])
        put(part, np.frombuffer(scratch, dtype=total.dtype, count=len(part)), out=part)
    used = min(total.nbytes, _BLOCK)
    scratch[:used] = _ZEROS[:used]


def mask(size: int, bits: Literal[16, 32], key: bytes) -> NDArray[Any]:
    """[size] the mask of a key alone; for tests and test vectors."""
    out = np.zeros(size, dtype=f"<u{bits // 8}")
    add_mask(out, key, 1)
    return out


def _buffer() -> memoryview:
    if not hasattr(_SCRATCH, "view"):
        # OpenSSL's stream ciphers may be told of a block more than they write.
        _SCRATCH.view = memoryview(bytearray(_BLOCK + 16))
    return _SCRATCH.view  # type: ignore[no-any-return]
