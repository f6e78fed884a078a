"""Adaptive clipping: the clip norm follows a quantile of the update norms (Andrew et al. 2021, arXiv 1905.03871).

Each user adds one bit, whether its update was *not* clipped, minus 1/2, so that leaving a user out changes the sum
by 1/2 at most. The sum is noised like everything else; that noise is charged by the plan. The paper's algorithm 1,
step by step: C <- C exp(-learning_rate (unclipped fraction - quantile)), so a norm under which too many updates
stay shrinks, and one that cuts too many grows.

Out of scope: the noise on the sum (`fedrec.privacy.mechanisms`) and its cost (`plan`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedrec.core.errors import PrivacyRefused, ProtocolError
from fedrec.core.messages import Scalar
from fedrec.core.stage import Bound, RoundContext, Stage
from fedrec.core.updates import BlockSpec, Layout, State, UpdateSum
from fedrec.privacy.clipping import PrivateClip

#: The block of the count, the last one of the vector.
COUNT = "unclipped"
#: What one user moves the count by.
COUNT_SENSITIVITY = 0.5


@dataclass(frozen=True)
class QuantileClip(PrivateClip):
    """Clips to a norm that the server adapts; its state is the clip norm of the coming round.

    It stands after the stages that leave rows out, since no map may touch its count.

    Attributes:
        clip_norm: C of round 1.
        quantile: the share of updates that should stay unclipped.
        learning_rate: step of the logarithm of the norm.
        denominator: qN, fixed: the number of users who took part is not public.
    """

    name = "adaptive_clip"

    quantile: float = 0.5
    learning_rate: float = 0.2
    denominator: float = 1.0

    def init(self) -> State:
        """The first clip norm."""
        return {"clip_norm": np.array([self.clip_norm], dtype=np.float64)}

    def announce(self, context: RoundContext, state: State) -> Scalar | None:
        """The clip norm."""
        return float(state["clip_norm"][0])

    def norm_of(self, context: RoundContext) -> float:
        """The clip norm that was announced.

        Raises:
            ProtocolError: it is not a finite number above 0.
        """
        said = context.announced.get(self.name)
        if not isinstance(said, float) or not 0.0 < said < math.inf:
            raise ProtocolError(f"request has clip norm {said!r}: expected a finite number above 0")
        return said

    def layout(self, layout: Layout, context: RoundContext) -> Layout:
        """One value more."""
        return Layout({**layout.blocks, COUNT: BlockSpec(())})

    def sensitivity(self, bound: Bound, context: RoundContext) -> Bound:
        """C, and 1/2 for the count."""
        return replace(super().sensitivity(bound, context), count=COUNT_SENSITIVITY)

    def on_node(self, total: UpdateSum, context: RoundContext) -> UpdateSum:
        """The sum with its count: over the users, of (unclipped - 1/2)."""
        count = np.array(bit_sum(int(total.users), total.clipped))
        return replace(total, blocks={**total.blocks, COUNT: count})

    def on_server(self, total: UpdateSum, context: RoundContext, state: State) -> tuple[UpdateSum, State]:
        """The sum without its (noised) count, and the clip norm that follows from it.

        Raises:
            PrivacyRefused: the count is not finite, or the new norm is not a finite number above 0.
        """
        blocks = dict(total.blocks)
        count = float(blocks.pop(COUNT))
        clip_norm = next_clip_norm(
            float(state["clip_norm"][0]), count, self.denominator, self.quantile, self.learning_rate
        )
        return replace(total, blocks=blocks), {"clip_norm": np.array([clip_norm], dtype=np.float64)}

    def conflicts(self, others: Sequence[Stage]) -> list[str]:
        """What looks at every user's dense vector would have to know of the count."""
        dense = [stage.name for stage in others if stage.dense]
        return [f"adaptive clipping cannot stand beside {name}: use a fixed clip norm" for name in dense]


def bit_sum(users: int, clipped: int) -> float:
    """Sum over the users of (unclipped - 1/2): the count that a node adds to its vector."""
    return users / 2.0 - clipped


def next_clip_norm(
    clip_norm: float, noised_bit_sum: float, denominator: float, quantile: float, learning_rate: float
) -> float:
    """The clip norm of the next round.

    Args:
        clip_norm: of this round.
        noised_bit_sum: the released sum of (unclipped - 1/2).
        denominator: qN, fixed: the number of users who took part is not public.
        quantile: the share of updates that should stay unclipped.
        learning_rate: step of the logarithm of the norm.

    Raises:
        PrivacyRefused: the sum is not finite, or a norm is not a finite number above 0.
    """
    _check_norm(clip_norm)
    if not math.isfinite(noised_bit_sum):
        raise PrivacyRefused(
            f"noised count of unclipped updates is {noised_bit_sum}: expected a finite number"
        )
    # Noise can leave 0..1. Bounding a released number is free, and one wild draw then moves the norm little.
    unclipped = min(1.0, max(0.0, noised_bit_sum / denominator + 0.5))
    after = clip_norm * math.exp(-learning_rate * (unclipped - quantile))
    _check_norm(after)
    return after


def _check_norm(clip_norm: float) -> None:
    if not (math.isfinite(clip_norm) and clip_norm > 0.0):
        raise PrivacyRefused(f"clip norm is {clip_norm}: expected a finite number above 0")
