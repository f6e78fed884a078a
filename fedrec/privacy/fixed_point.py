"""Clean sums that travel as integers: what rounding adds to the sensitivity of a sum that is noised afterwards.

The rounding itself, on devices, and its reversal belong to secure aggregation (`fedrec.secagg.encoding`), which is
the only place where clean sums become integers. Noise added after the sum has to cover it: a node's sum is rounded
with one dither per value, so leaving a user out moves each integer by less than 1 beyond the user's scaled update.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from fedrec.core.stage import Bound, RoundContext, Stage
from fedrec.privacy.integers import Carried


@dataclass(frozen=True)
class FixedPoint(Stage):
    """The integers that carry clean sums.

    Attributes:
        carried: their scale.
        parameters: P, of the longest vector.
    """

    name = "fixed_point"

    carried: Carried
    parameters: int

    def sensitivity(self, bound: Bound, context: RoundContext) -> Bound:
        """The bound, and the root of the number of integers in steps of the scale."""
        return replace(bound, l2=bound.l2 + self.carried.rounding(self.parameters), steps=self.carried.scale)
