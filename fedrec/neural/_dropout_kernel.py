"""The compiled loop of `dropout`: masks from counter-based draws.

Letters: K users, M masks, L positions, d values per position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fedrec.core.compiled import jit
from fedrec.core.compiled_randomness import absorb
from fedrec.core.randomness import MIX_A

#: Draws of 16 bits in one hash.
_PER_HASH = 4


@jit(cache=True, nogil=True)
def fill(keys: NDArray[np.uint64], below: np.uint64, keep: np.float32, out: NDArray[np.float32]) -> None:
    """Fill `out` [M, K, L, d]: 0 where the draw is below `below` (of 2^16), else `keep`."""
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
