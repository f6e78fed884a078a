"""Dropout masks that are a function of (key, user, position): the same on every engine and in every batch.

Srivastava et al. 2014 (JMLR). Positions are counted from the end of a sequence, so padding it changes nothing.

Letters: K users, M masks, L positions, d values per position.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from fedrec.core.compiled_randomness import absorb
from fedrec.core.randomness import MIX_A

#: Draws of 16 bits in one hash.
_PER_HASH = 4


def dropout_masks(
    keys: NDArray[np.uint64], masks: int, length: int, width: int, rate: float
) -> NDArray[np.float32]:
    """[M, K, L, d] 0 with probability `rate` (to 2^-16), else 1 / (1 - rate).

    Args:
        keys: [K] one per user, of this purpose and round.
        masks: M.
        length: L.
        width: d.
        rate: in [0, 1).
    """
    out = np.empty((masks, len(keys), length, width), dtype=np.float32)
    _fill(keys, np.uint64(round(rate * 65536)), np.float32(1.0 / (1.0 - rate)), out)
    return out


@numba.njit(cache=True, nogil=True)
def _fill(keys: NDArray[np.uint64], below: np.uint64, keep: np.float32, out: NDArray[np.float32]) -> None:
    n_masks, n_users, length, width = out.shape
    blocks = (width + _PER_HASH - 1) // _PER_HASH
    for m in range(n_masks):
        for u in range(n_users):
            base = keys[u] + np.uint64(m) * MIX_A
            for back in range(length):
                row = out[m, u, length - 1 - back]
                for block in range(blocks):
                    x = absorb(base, np.uint64(back * blocks + block))
                    for part in range(_PER_HASH):
                        at = block * _PER_HASH + part
                        if at < width:
                            draw = (x >> np.uint64(16 * part)) & np.uint64(0xFFFF)
                            row[at] = np.float32(0.0) if draw < below else keep
