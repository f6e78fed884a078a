"""Plans for tests of what is built on plans: small, valid, and without calibration."""

from __future__ import annotations

from typing import Any

from fedrec.privacy.plan import PrivacyPlan

CENTRAL: dict[str, Any] = {
    "unit": "user",
    "trust": "central",
    "adjacency": "zero-out",
    "target_epsilon": 3.0,
    "delta": 1e-5,
    "population": 1000,
    "sampling": "everyone",
    "sampling_rate": 1.0,
    "rounds": 4,
    "clip_norm": 1.0,
    "accountant": "pld",
    "parameters": 50,
    "adaptive": None,
    "distributed": None,
    "interaction": None,
}


def plan(noise: float = 4.0, **changes: Any) -> PrivacyPlan:
    """A plan with the same noise multiplier in every round; four rounds at 4.0 cost epsilon 1.9."""
    fields = CENTRAL | changes
    fields.setdefault("noise_multipliers", (noise,) * fields["rounds"])
    return PrivacyPlan(**fields)
