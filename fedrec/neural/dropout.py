"""Dropout masks that are a function of (key, user, position): the same on every engine and in every batch.

Srivastava et al. 2014 (JMLR). Positions are counted from the end of a sequence, so padding it changes nothing.

Letters: K users, M masks, L positions, d values per position.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
    from fedrec.neural._dropout_kernel import fill

    out = np.empty((masks, len(keys), length, width), dtype=np.float32)
    fill(keys, np.uint64(round(rate * 65536)), np.float32(1.0 / (1.0 - rate)), out)
    return out
