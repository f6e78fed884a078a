"""What a cell pays: epsilon per user and per interaction, and how loud the noise is beside what it hides.

Out of scope: accounting itself (`fedrec.privacy`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedrec.privacy.feasibility import noise_to_clip
from fedrec.privacy.plan import PrivacyPlan
from fedrec.privacy.statement_fields import whole_user_epsilon
from fedrec_server.rounds.task import Task


def of_run(folder: Path) -> dict[str, Any]:
    """Facts of the plan that a run folder's coordinator was bound to; empty where no noise is added."""
    terms = Task.read(folder / "coordinator").privacy
    return {} if terms is None else of_plan(terms.plan)


def of_plan(plan: PrivacyPlan) -> dict[str, Any]:
    """Facts of a plan in plain types.

    A user's epsilon also bounds that of each single interaction, so where the unit is the user both are equal;
    where it is the interaction, the user's is that of all interactions together. `noise_to_signal` is
    z * sqrt(P) / m of the noisiest round; `noise_multiplier` that round's z.
    """
    spent = plan.epsilon()
    return {
        "unit": plan.unit,
        "delta": plan.delta,
        "epsilon_user": whole_user_epsilon(plan),
        "epsilon_interaction": spent,
        "noise_multiplier": max(plan.noise_multipliers),
        "noise_to_signal": noise_to_clip(plan),
    }
