"""The privacy terms of one run: the plan, and where its spending is booked; the same on nodes and coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from fedrec.privacy._headroom import fits
from fedrec.privacy.plan import PrivacyPlan


class PrivacyTerms(BaseModel):
    """What a node and the coordinator hold on to in a private run.

    Attributes:
        plan: what is released, and what bounds it.
        run: a random name; charges and retries are booked under it.
        dataset: whose interactions are learned from; runs on one data set share an account.
        limit_epsilon: the most that an account may spend, over all runs.
        ledger: folder of the ledgers; None: in the run's own folder, so that other runs are not counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: PrivacyPlan
    run: str
    dataset: str
    limit_epsilon: float
    ledger: Path | None = None

    @model_validator(mode="after")
    def _honest_sums_fit(self) -> Self:
        """Nodes and coordinator both validate: no honest sum may wrap around, whatever the data are."""
        if not fits(self.plan):
            raise ValueError(
                "sums under this plan do not fit its integers: expected scale x clip norm x users, noise included, "
                "below 2^bits; plan it again with more bits or a lower scale"
            )
        return self
