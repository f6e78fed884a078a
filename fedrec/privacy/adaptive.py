"""Adaptive clipping: the clip norm follows a quantile of the update norms (Andrew et al. 2021, arXiv 1905.03871).

Each user adds one bit, whether its update was *not* clipped, minus 1/2, so that leaving a user out changes the sum
by 1/2 at most. The sum is noised like everything else; that noise is charged by the plan. The paper's algorithm 1,
step by step: C <- C exp(-learning_rate (unclipped fraction - quantile)), so a norm under which too many updates
stay shrinks, and one that cuts too many grows.

Out of scope: the noise on the sum (`mechanism`) and its cost (`plan`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedrec.core.errors import PrivacyRefused


def bit_sum(users: int, clipped: int) -> float:
    """Sum over the users of (unclipped - 1/2): what a node appends to its vector."""
    return users / 2.0 - clipped


@dataclass(frozen=True)
class AdaptiveClipState:
    """The clip norm of the coming round."""

    clip_norm: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.clip_norm) and self.clip_norm > 0.0):
            raise PrivacyRefused(f"clip norm is {self.clip_norm}: expected a finite number above 0")

    def update(
        self, noised_bit_sum: float, denominator: float, quantile: float, learning_rate: float
    ) -> AdaptiveClipState:
        """The state of the next round; this one stays as it is.

        Args:
            noised_bit_sum: the released sum of (unclipped - 1/2).
            denominator: qN, fixed: the number of users who took part is not public.
            quantile: the share of updates that should stay unclipped.
            learning_rate: step of the logarithm of the norm.

        Raises:
            PrivacyRefused: the sum is not finite, or the new norm is not a finite number above 0.
        """
        if not math.isfinite(noised_bit_sum):
            raise PrivacyRefused(
                f"noised count of unclipped updates is {noised_bit_sum}: expected a finite number"
            )
        # Noise can leave 0..1. Bounding a released number is free, and one wild draw then moves the norm little.
        unclipped = min(1.0, max(0.0, noised_bit_sum / denominator + 0.5))
        return AdaptiveClipState(self.clip_norm * math.exp(-learning_rate * (unclipped - quantile)))
