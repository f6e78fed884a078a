"""What rules that look at single replies have in common: per-user means of nodes, and their way back to a sum.

A node hosts one user or thousands, so replies are compared as means over their users. A node states its number of
users itself: numbers above the (f+1)-th largest, f being how many nodes may be dishonest, count as that one, so no
dishonest node weighs more than an honest one could. With equal replies nothing of this changes the sum.

Letters: m replies, n_i users of reply i, f dishonest nodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import AggregationAborted
from fedrec.core.stage import Bound
from fedrec.core.updates import Floats, UpdateSum


@dataclass(frozen=True)
class NodeMeans:
    """Replies as means over their users; those of no users are left out.

    Attributes:
        blocks: [m, ...] by name.
        users: [m] how many each counts for.
        replies: as they came.
    """

    blocks: dict[str, Floats]
    users: Floats
    replies: tuple[UpdateSum, ...]

    @classmethod
    def of(cls, replies: Sequence[UpdateSum], dishonest: int) -> Self:
        """The means.

        Args:
            replies: at least one with users.
            dishonest: f.
        """
        kept = tuple(reply for reply in replies if reply.users > 0)
        stated = np.array([reply.users for reply in kept], dtype=np.float64)
        users = np.minimum(stated, np.sort(stated)[::-1][min(dishonest, len(stated) - 1)])
        blocks = {
            name: np.stack([reply.blocks[name] / reply.users for reply in kept]) for name in kept[0].blocks
        }
        return cls(blocks, users, kept)

    def squared_norms(self) -> Floats:
        """[m] of the means, over all blocks together."""
        return self.squared_distances({name: np.zeros(part.shape[1:]) for name, part in self.blocks.items()})

    def squared_distances(self, point: dict[str, Floats]) -> Floats:
        """[m] to a point of the same blocks."""
        with np.errstate(over="ignore"):
            parts = [
                np.square(values - point[name]).reshape(len(self.users), -1).sum(axis=1)
                for name, values in self.blocks.items()
            ]
        return np.asarray(sum(parts, np.zeros(len(self.users))))

    def chosen(self, keep: NDArray[np.bool_]) -> dict[str, Floats]:
        """The mean over the users of the replies to keep [m], by name."""
        users = self.users[keep]
        return {
            name: np.tensordot(users / users.sum(), values[keep], axes=1)
            for name, values in self.blocks.items()
        }

    def summed(self, mean: dict[str, Floats], keep: NDArray[np.bool_] | None = None) -> UpdateSum:
        """A mean over users as the sum over as many users as count.

        Args:
            mean: by name.
            keep: [m] the replies whose users count; None: all.
        """
        keep = np.ones(len(self.users), dtype=bool) if keep is None else keep
        count = float(self.users[keep].sum())
        kept = [reply for reply, counts in zip(self.replies, keep, strict=True) if counts]
        part = count / sum(reply.users for reply in kept)

        def number(name: str) -> float:
            return part * sum(float(getattr(reply, name)) for reply in kept)

        return UpdateSum(
            {name: np.asarray(values * count) for name, values in mean.items()},
            count,
            number("loss"),
            number("examples"),
            round(number("clipped")),
            number("norm"),
            round(number("zeroed")),
        )


def has_users(replies: Sequence[UpdateSum]) -> bool:
    """Whether there is anything to aggregate."""
    return any(reply.users > 0 for reply in replies)


def dishonest_of(share: float, replies: Sequence[UpdateSum]) -> int:
    """f: a share of the replies that have users, rounded up."""
    return math.ceil(share * sum(reply.users > 0 for reply in replies) - 1e-9)


def refuse_few(name: str, found: int, least: int) -> None:
    """Raises AggregationAborted for fewer replies than a rule needs; the round is tried again."""
    if found < least:
        raise AggregationAborted(
            f"aggregation rule {name!r} got {found} replies with users: expected at least {least}; lower the share "
            "of dishonest nodes, or raise federation.min_nodes"
        )


#: What one user moves where nothing is known of it.
UNBOUNDED = Bound(math.inf)
