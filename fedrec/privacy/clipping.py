"""Clipping: every user's whole update, all blocks together, is scaled to an L2 norm of at most C.

Out of scope: noise and accounting. A sum of clipped updates is bounded in what one user can change, and that
alone is no privacy guarantee.
"""

from __future__ import annotations

import numpy as np

from fedrec.core.updates import Updates, UpdateSum, finite


def add_clipped(total: UpdateSum, updates: Updates, clip_norm: float | None) -> None:
    """Add each user's update to `total`, scaled by min(1, clip_norm / norm); norms in float64.

    An update that is not finite, or loses its finite norm, counts as zero and is counted in `total.zeroed`: an answer
    must not end in an error that depends on one user's data.

    Args:
        total: sum of the same layout; changed in place.
        updates: U users.
        clip_norm: C, or None to add the updates as they are.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        norms = updates.norms()
    good = np.isfinite(norms)
    # min(1, C / norm) without a division by zero.
    scale = np.ones_like(norms) if clip_norm is None else clip_norm / np.maximum(norms, clip_norm)
    scale[~good], norms[~good] = 0.0, 0.0
    updates.add_into(total.blocks, scale)
    total.users += updates.n_users
    total.zeroed += int((~good).sum())
    total.loss += finite(updates.loss)
    total.examples += finite(updates.examples)
    total.clipped += 0 if clip_norm is None else int((norms > clip_norm).sum())
    total.norm += finite(norms)
