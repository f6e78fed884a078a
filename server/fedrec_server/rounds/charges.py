"""What a coordinator spends: a plan is reserved before its first round, a release charged before it is seen.

The order at the end of a round is: noise is drawn, the new model is staged on disk, its digest is charged in the
ledger, then it becomes the checkpoint and may be broadcast. A sum without noise is in memory only. A coordinator
killed in between finds a charged model and resumes with it, or finds the noised sum and makes the same model of it,
or finds neither: no noise of a charged round is drawn twice.

Out of scope: what the noise is (`fedrec.privacy.mechanisms`), and the model.
"""

from __future__ import annotations

from pathlib import Path

from fedrec.privacy.ledger import Account, Ledger, Limit
from fedrec.privacy.terms import PrivacyTerms

#: Who is charged on the server: everyone, whether or not someone took part in a round.
SUBJECT = "each of the users of the federation"


class Charges:
    """Records in the server's ledger what a run releases.

    Args:
        terms: of the run.
        folder: the coordinator's.
    """

    def __init__(self, terms: PrivacyTerms, folder: Path) -> None:
        self.terms = terms
        self.plan = terms.plan
        self.account = Account(SUBJECT, terms.dataset)
        self.ledger_folder = folder / "ledger" if terms.ledger is None else terms.ledger / "server"

    def reserve(self) -> None:
        """Book the whole plan before the first round; again is free.

        Raises:
            BudgetExhausted: it does not fit beside what other runs have spent.
        """
        with self._ledger() as ledger:
            ledger.reserve(self.account, self.terms.run, self.plan)

    def charge(self, round_: int, digest: str) -> None:
        """Book a staged model; it may be shown to others once this returns.

        Raises:
            BudgetExhausted: the account does not hold enough.
        """
        with self._ledger() as ledger:
            ledger.charge(self.account, self.terms.run, round_, digest)

    def charged(self, round_: int) -> str | None:
        """Digest of the model that was booked for a round, or None."""
        with self._ledger() as ledger:
            return ledger.charged(self.account, self.terms.run).get(round_)

    def _ledger(self) -> Ledger:
        return Ledger.open(self.ledger_folder, Limit(self.terms.limit_epsilon, self.plan.delta))
