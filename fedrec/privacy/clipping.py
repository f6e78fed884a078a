"""Clipping: every user's whole update, all blocks together, is scaled to an L2 norm of at most C.

Out of scope: noise and accounting. A sum of clipped updates is bounded in what one user can change, and that
alone is no privacy guarantee.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fedrec.core.contributions import distinct
from fedrec.core.interactions import UserBatch
from fedrec.core.stage import Bound, RoundContext, Stage, UserUpdates
from fedrec.core.updates import State, Updates, UpdateSum, finite


@dataclass(frozen=True)
class Clip(Stage):
    """Scales each update by min(1, C / norm); norms in float64.

    An update that is not finite, or loses its finite norm, counts as zero and is counted in `zeroed`: an answer must
    not end in an error that depends on one user's data.

    Attributes:
        clip_norm: C; None: updates that are finite stay as they are.
    """

    name = "clip"

    clip_norm: float | None = None

    def norm_of(self, context: RoundContext) -> float | None:
        """C of the round."""
        return self.clip_norm

    def sensitivity(self, bound: Bound, context: RoundContext) -> Bound:
        """C, where it is less than what bounds the update already."""
        clip_norm = self.norm_of(context)
        return bound if clip_norm is None else replace(bound, l2=min(bound.l2, clip_norm))

    def on_user(self, updates: UserUpdates, context: RoundContext, state: State) -> UserUpdates:
        """The same updates with their scales; [U] numbers are computed, no update is copied."""
        clip_norm = self.norm_of(context)
        with np.errstate(over="ignore", invalid="ignore"):
            norms = updates.updates.norms() * updates.scale
        good = np.isfinite(norms)
        # min(1, C / norm) without a division by zero.
        factor = np.ones_like(norms) if clip_norm is None else clip_norm / np.maximum(norms, clip_norm)
        factor[~good], norms[~good] = 0.0, 0.0
        return UserUpdates(
            updates.updates,
            updates.users,
            updates.where,
            updates.scale * factor,
            updates.factor * factor,
            norms,
            0 if clip_norm is None else int(np.count_nonzero(norms > clip_norm)),
            len(good) - int(np.count_nonzero(good)),
            updates.wire,
        )


@dataclass(frozen=True)
class PrivateClip(Clip):
    """The clip of a private run: its norm is public, and each item of a history counts once.

    Entries of one item add up in a sum, whose norm would then be more than that of its entries.
    """

    def on_history(self, batch: UserBatch) -> UserBatch:
        """Each item once per user."""
        return distinct(batch)

    def facts(self, context: RoundContext) -> Mapping[str, Any]:
        """C of the round."""
        return {"clip_norm": self.norm_of(context)}


def add_clipped(total: UpdateSum, updates: Updates, clip_norm: float | None) -> None:
    """Add each user's clipped update to `total`, with the numbers that are reported of it.

    Args:
        total: sum of the same layout; changed in place.
        updates: U users.
        clip_norm: C, or None to add the updates as they are.
    """
    users = np.arange(updates.n_users)
    Clip(clip_norm).on_user(UserUpdates.of(updates, users, users), RoundContext(1), {}).add_into(total)
    total.loss += finite(updates.loss)
    total.examples += finite(updates.examples)
