"""The one look at how good a private run's model is: sums of bounded values, noised under the plan, charged once.

Of a user K metrics in [0, 1] and a 1 for "was evaluated" are added up: a vector of K + 1 values whose L2 norm is at
most sqrt(K + 1). Its noise is part of the plan (`PrivacyPlan.metrics`), and it is charged after the T rounds, as
number T + 1. Everyone is asked, so nothing is gained by sampling.

Nothing else of an evaluation leaves: no counts per item or group, no lists, no losses, no replicates. Out of scope:
measuring (`fedrec.evaluation.bounded`), the mechanism, which is that of the rounds, reading (`noised_means`).
"""

from __future__ import annotations

import math
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedrec.evaluation.names import check_bounded
from fedrec.privacy.integers import Integers
from fedrec.privacy.settings import MOST_METRICS


class MetricsRelease(BaseModel):
    """What is released of metrics, and its noise.

    Attributes:
        names: of the K metrics, as `full/ndcg@10`.
        noise_multiplier: z, standard deviation of the noise on the whole sum over `bound`.
        integers: of trust "distributed"; None elsewhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...] = Field(min_length=1, max_length=MOST_METRICS)
    noise_multiplier: float = Field(ge=0, allow_inf_nan=False)
    integers: Integers | None = None

    @model_validator(mode="after")
    def _known(self) -> Self:
        check_bounded(self.names)
        return self

    @property
    def values(self) -> int:
        """K + 1."""
        return len(self.names) + 1

    @property
    def bound(self) -> float:
        """L2 norm of what one user adds, at most: sqrt(K + 1)."""
        return math.sqrt(self.values)


def contribution_name(integers: Integers | None) -> str:
    """By what name a contribution travels.

    Noised integers are summed as they are, modulo 2^bits, as an update is; real values as exact numbers, whose grid
    `fedrec.evaluation.bounded` keeps to, so that the bound of an update, which is another one, plays no part.
    """
    return "metrics" if integers is None else "update"
