"""Which mechanism carries out a plan."""

from __future__ import annotations

from typing import assert_never

from fedrec.privacy.central import Central, OnDevice
from fedrec.privacy.distributed import Distributed
from fedrec.privacy.local_dp import Local
from fedrec.privacy.mechanism import Mechanism
from fedrec.privacy.plan import PrivacyPlan


def mechanism_of(plan: PrivacyPlan) -> Mechanism:
    """The mechanism that carries out a plan."""
    if plan.unit == "interaction":
        return OnDevice(plan)
    match plan.trust:
        case "distributed":
            return Distributed(plan)
        case "local":
            return Local(plan)
        case "central":
            return Central(plan)
        case _:
            assert_never(plan.trust)
