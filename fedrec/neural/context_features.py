"""What a user's device knows of the moments at which something is asked: what came before, how much, when.

Every moment sees its own past alone, so that no event explains itself. Nothing here leaves the device.

Letters: K users, G moments of each, L longest history.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import UserBatch

if TYPE_CHECKING:
    from torch import Tensor

#: Classes of how much a user has done: 0, 1, 2 to 3, 4 to 7 and so on.
ACTIVITY = 10
HOUR, DAY = 3600, 86_400
#: Ratings in the middle that stand beside those of a user.
FEW = 5
#: 1970 began on a Thursday.
THURSDAY = 3


@dataclass(frozen=True)
class Past:
    """What a user's device knows of moments: how much there was before each, and when it was.

    Attributes:
        before: [K, G] number of earlier events.
        time: [K, G] seconds, or None.
        liked: [K, L] -1 to 1, ratings of the history; None: it was only clicked.
    """

    before: Tensor
    time: Tensor | None
    liked: Tensor | None

    @property
    def longest(self) -> int:
        """Of the histories."""
        return max(1, int(self.before.max())) if self.liked is None else self.liked.shape[1]

    def sums(self, values: Tensor) -> Tensor:
        """[K, G, width] sums over what came before each moment of `values` [K, at least L, width]."""
        import torch

        own = values[:, : self.longest]
        running = torch.cat([torch.zeros_like(own[:, :1]), own.cumsum(1)], dim=1)
        return running.gather(1, self.before.unsqueeze(2).expand(-1, -1, own.shape[2]))

    def means(self, values: Tensor) -> Tensor:
        """[K, G, width] means, weighed by what was liked."""
        if self.liked is not None:
            values = values[:, : self.longest] * self.liked.unsqueeze(2)
        return self.sums(values) / self.before.clamp(min=1).unsqueeze(2)

    def level(self) -> Tensor | None:
        """[K, G, 1] mean of the earlier ratings, drawn towards the middle while there are few."""
        if self.liked is None:
            return None
        return self.sums(self.liked.unsqueeze(2)) / (self.before + FEW).unsqueeze(2)


def activity(before: Tensor) -> Tensor:
    """Class of a number of events."""
    return (before + 1).float().log2().floor().long().clamp(max=ACTIVITY - 1)


def hour(time: Tensor) -> Tensor:
    """Hour of the day, 0 to 23, of seconds since 1970."""
    return time // HOUR % 24


def day(time: Tensor) -> Tensor:
    """Day of the week, 0 on Monday, of seconds since 1970."""
    return (time // DAY + THURSDAY) % 7


def grid(batch: UserBatch, values: NDArray[np.generic] | None, width: int) -> NDArray[np.generic]:
    """[U, width] one value of each event, oldest first, 0 behind the end."""
    out = np.zeros((len(batch), width), dtype=np.float32 if values is None else values.dtype)
    if values is not None:
        out[np.arange(width) < batch.counts[:, None]] = values
    return out
