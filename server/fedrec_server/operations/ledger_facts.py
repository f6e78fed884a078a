"""What a run's own ledger says, for its privacy statement."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedrec.privacy.ledger import Ledger
from fedrec.privacy.terms import PrivacyTerms
from fedrec_server.rounds.charges import Charges


def ledger_facts(path: Path, terms: PrivacyTerms | None) -> dict[str, Any]:
    """The ledger of a run's folder, and what it knows of other runs on the same users."""
    if terms is None:
        return {"ledger": None}
    rounds = Charges(terms, path / "coordinator")
    with Ledger.open(rounds.ledger_folder, read_only=True) as ledger:
        spent = ledger.spent(rounds.account, without=terms.run)
    inside = "in the folder of this run, which other runs do not know of"
    return {
        "ledger": inside if terms.ledger is None else str(terms.ledger),
        "other_plans": spent.plans,
        "other_epsilon": spent.epsilon,
        "other_delta": spent.delta,
    }
