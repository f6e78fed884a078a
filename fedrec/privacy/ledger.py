"""The privacy-budget ledger: what was released about whom, charged before it leaves, and a hard stop at the limit.

An account is a data subject and a data set, not a run: everything learned from the same interactions adds up. A run
first *reserves* its plan, a schedule fixed in advance, and then *charges* each round, and its release of metrics as
one round more. Charging a round a second time for the same bytes is free (they say nothing new); for other
bytes it is refused. How several plans add up is `composition`'s business; that entries survive a crash and show
tampering is `journal`'s.

Out of scope: keeping the bytes for a second sending (`outbox`). A new installation begins with an empty ledger: what
earlier ones spent is then forgotten, and no one can tell from here.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from fedrec.core.errors import BudgetExhausted, LedgerTampered, PrivacyRefused
from fedrec.privacy._composition import composed_epsilon
from fedrec.privacy._journal import Journal
from fedrec.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class Account:
    """Whose budget.

    Attributes:
        subject: who is protected: "user:KEY", or a text for many who are charged alike ("each user of node 3").
        dataset: whose interactions are learned from, by name; it must stay the same when they grow.
    """

    subject: str
    dataset: str

    def __str__(self) -> str:
        return f"{self.subject} on {self.dataset}"


@dataclass(frozen=True)
class Limit:
    """The most that may be spent on one account, over all its runs."""

    epsilon: float
    delta: float


@dataclass(frozen=True)
class Spent:
    """What one account has spent.

    Attributes:
        epsilon, delta: a bound on everything charged. With one plan by its own accountant, for the rounds charged;
            whoever stopped it early because of what it showed must quote the whole plan instead.
        releases: number of rounds charged.
        plans: number of plans with a round charged.
    """

    epsilon: float
    delta: float
    releases: int
    plans: int


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    account: Account
    run: str
    at: datetime


class Reservation(_Entry):
    """A run announced its plan (as JSON), under the limit that then held."""

    kind: Literal["reserve"] = "reserve"
    plan: str
    digest: str
    limit: Limit | None


class Charge(_Entry):
    """A round's payload, named by its digest, may leave."""

    kind: Literal["charge"] = "charge"
    round: int
    payload: str


Entry = Reservation | Charge
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])


class Ledger:
    """The open ledger of one folder; a context manager. One process may write in it at a time."""

    def __init__(self, journal: Journal, limit: Limit | None) -> None:
        self._journal = journal
        self._limit = limit
        self._reserved: dict[tuple[Account, str], Reservation] = {}
        self._charged: dict[tuple[Account, str], dict[int, str]] = {}
        self._entries: list[Entry] = []
        for number, body in enumerate(journal.bodies, 1):
            self._remember(_read(number, body))

    @classmethod
    def open(cls, folder: Path, limit: Limit | None = None, *, read_only: bool = False) -> Ledger:
        """Open the ledger of a folder and verify every entry; it is begun when there is none.

        Args:
            folder: of the ledger.
            limit: checked at every reservation and charge; None: record only.
            read_only: look without holding it.

        Raises:
            LedgerTampered: it does not hold together, or has entries that this version does not know.
            PrivacyRefused: another process is writing in it, or the folder cannot be used.
        """
        journal = Journal(folder, read_only)
        try:
            return cls(journal, limit)
        except BaseException:
            journal.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let another process write."""
        self._journal.close()

    def reserve(self, account: Account, run: str, plan: PrivacyPlan) -> None:
        """Announce a run's whole schedule. The same again is free; it spends nothing by itself.

        Raises:
            BudgetExhausted: this plan in full, on top of what other runs were charged, exceeds the limit.
            PrivacyRefused: the run is known with another plan, or the plan does not add up with the account's others.
        """
        # Not `model_dump_json`, which turns an infinite target into null.
        content = json.dumps(plan.model_dump(mode="json"), sort_keys=True)
        digest = hashlib.sha256(content.encode()).hexdigest()
        known = self._reserved.get((account, run))
        if known is not None:
            if known.digest != digest:
                raise PrivacyRefused(
                    f"run {run!r} already reserved another plan for {account}: give the new plan a new run"
                )
            return
        for other in self._plans(account).values():
            _check_alike(account, plan, other)
        self._check(account, run, plan, plan.charges)
        self._write(
            Reservation(account=account, run=run, at=_now(), plan=content, digest=digest, limit=self._limit)
        )

    def charge(self, account: Account, run: str, round_: int, payload_digest: str) -> None:
        """Charge one round; its payload may leave once this returns. The same payload again is free.

        Raises:
            BudgetExhausted: the round is not in the reserved plan, or other runs used the budget up since.
            PrivacyRefused: no plan is reserved, or the round was charged for another payload: a second, different
                answer to one round would be a second release.
        """
        plan = self._plans(account).get(run)
        if plan is None:
            raise PrivacyRefused(f"run {run!r} has no plan for {account}: reserve one before charging")
        earlier = self._charged.get((account, run), {}).get(round_)
        if earlier == payload_digest:
            return
        if earlier is not None:
            raise PrivacyRefused(
                f"round {round_} of run {run!r} was charged for other bytes: send those again, or start a new run"
            )
        if not 1 <= round_ <= plan.charges:
            raise BudgetExhausted(
                f"round {round_} of run {run!r}: the reserved plan has {plan.charges} rounds; nothing was released. "
                "Plan more rounds in a new run"
            )
        self._check(account, run, plan, max(round_, self._rounds(account, run)))
        self._write(Charge(account=account, run=run, at=_now(), round=round_, payload=payload_digest))

    def charged(self, account: Account, run: str) -> dict[int, str]:
        """Digest of the payload of every round charged."""
        return dict(self._charged.get((account, run), {}))

    def spent(self, account: Account, without: str | None = None) -> Spent:
        """What an account has spent so far, but for the run `without`; all zero for one that is not known."""
        used = self._used(account, without)
        epsilon, delta = composed_epsilon(used, self._delta(used))
        runs = [run for run in self._plans(account) if run != without]
        releases = sum(len(self.charged(account, run)) for run in runs)
        return Spent(epsilon, delta, releases, len(used))

    def accounts(self) -> list[Account]:
        """Every account with an entry, in order of appearance."""
        return list(dict.fromkeys(entry.account for entry in self._entries))

    def history(self) -> tuple[Entry, ...]:
        """Every entry, oldest first."""
        return tuple(self._entries)

    # ---------------------------------------------------------------------------------------------------

    def _check(self, account: Account, run: str, plan: PrivacyPlan, rounds: int) -> None:
        """Refuse when the first rounds of a plan, on top of the account's other plans, exceed the limit."""
        if self._limit is None:
            return
        others = self._used(account, without=run)
        # Alone, a plan is a schedule fixed in advance, and held to the limit as a whole.
        plans = [*others, (plan, rounds)] if others else [(plan, plan.charges)]
        epsilon, delta = composed_epsilon(plans, self._limit.delta)
        if not (epsilon <= self._limit.epsilon and delta <= self._limit.delta):
            raise BudgetExhausted(
                f"budget of {account}: {rounds} of {plan.charges} charges of run {run!r} on top of {len(others)} "
                f"other runs make epsilon {epsilon:.4g} at delta {delta:.3g}, the limit is {self._limit.epsilon:.4g} "
                f"at {self._limit.delta:.3g}; nothing was released. Plan a smaller epsilon or fewer rounds"
            )

    def _used(self, account: Account, without: str | None = None) -> list[tuple[PrivacyPlan, int]]:
        """Plans of an account with a round charged, and how many of their first rounds that covers."""
        return [
            (plan, self._rounds(account, run))
            for run, plan in self._plans(account).items()
            if run != without and self._rounds(account, run)
        ]

    def _rounds(self, account: Account, run: str) -> int:
        """Rounds up to the last one charged: a schedule is accounted from its start, skipped rounds included."""
        return max(self._charged.get((account, run), {}), default=0)

    def _delta(self, used: list[tuple[PrivacyPlan, int]]) -> float:
        if self._limit is not None:
            return self._limit.delta
        return max((plan.delta for plan, _ in used), default=0.0)

    def _plans(self, account: Account) -> dict[str, PrivacyPlan]:
        return {run: _plan(entry) for (owner, run), entry in self._reserved.items() if owner == account}

    def _write(self, entry: Entry) -> None:
        self._journal.append(entry.model_dump(mode="json"))
        self._remember(entry)

    def _remember(self, entry: Entry) -> None:
        place = entry.account, entry.run
        if isinstance(entry, Reservation):
            self._reserved[place] = entry
        else:
            self._charged.setdefault(place, {})[entry.round] = entry.payload
        self._entries.append(entry)


def _read(number: int, body: dict[str, object]) -> Entry:
    try:
        return _ENTRY.validate_python(body)
    except ValidationError as error:
        raise LedgerTampered(
            f"ledger entry {number} of kind {body.get('kind')!r} is not one that this version of fedrec knows "
            "(reserve, charge): nothing is released; use the version that wrote it"
        ) from error


def _plan(entry: Reservation) -> PrivacyPlan:
    try:
        return PrivacyPlan.model_validate(json.loads(entry.plan))
    except ValueError as error:
        raise LedgerTampered(
            f"ledger: the plan of run {entry.run!r} is unknown to this version of fedrec: nothing is released; "
            "use the version that wrote it"
        ) from error


def _check_alike(account: Account, plan: PrivacyPlan, other: PrivacyPlan) -> None:
    if plan.unit != other.unit:
        raise PrivacyRefused(
            f"plan of unit {plan.unit!r} for {account}, which has plans of unit {other.unit!r}: their epsilons are "
            "about different things and do not add up; use another ledger folder"
        )
    if (plan.noise_seed is None) != (other.noise_seed is None):
        raise PrivacyRefused(
            f"{account} would have both private and seeded (not private) runs: no epsilon holds over both; use "
            "another ledger folder for the seeded ones"
        )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
