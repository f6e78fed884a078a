"""One call of `train_if_eligible`: check in, enrol, evaluate the task, take part, charge when released, report.

A campaign runs through states that lie in the store (`enrolments`). The charge is written when the session's node
asks for it, which is before its first release leaves (`charging`). However a session ends, its keys are removed and
the service is told that this device has left; a session that was not charged has released nothing and cost nothing.
Out of scope: processes (`run_task`), what is asked of a task (`policy`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrec.core.errors import (
    BadContent,
    CampaignOver,
    Expired,
    FedrecError,
    ProtocolError,
    ServiceError,
    StoreError,
    WrongPopulation,
)
from fedrec.secagg.roster import Identity
from fedrec.wire.bundle import check_named
from fedrec_client.store.base import Store
from fedrec_client.store.training_profile import Profile
from fedrec_client.store.trusted_time import CLOCK_SKEW_SECONDS, TrustedTime
from fedrec_client.terms.participation import Book
from fedrec_client.terms.platform import Platform
from fedrec_client.terms.policy import Policy
from fedrec_client.terms.results import TrainingReport
from fedrec_client.terms.task_evaluation import evaluate_task
from fedrec_client.training import enrolments
from fedrec_client.training._run_task import Outcome, run_task
from fedrec_client.training.enrolments import CHARGED, ENROLLED, MADE, STARTED
from fedrec_client.updates.model_updates import Served
from fedrec_client.updates.transport import CheckInAnswer, Enrolment, Transport

POLL_SECONDS = 1.0
#: So long a device waits for a campaign that it enrolled in.
PATIENCE_SECONDS = 7 * 86_400.0
OVER = "the campaign is over"


@dataclass(frozen=True)
class Session:
    """What one call needs; see `Client.train_if_eligible`.

    Attributes:
        lock: of the store and of what the user decides: a charge is made inside it, so that no withdrawal and no
            deletion falls between the question whether it may be made and the write.
    """

    store: Store
    transport: Transport
    platform: Platform
    policy: Policy
    population: str
    served: Served
    profile: Profile
    check_in: Callable[[], CheckInAnswer]
    verified_task: Callable[[str, bytes], dict[str, Any]]
    now: Callable[[], float]
    stopped: Callable[[], bool]
    lock: AbstractContextManager[Any]
    enrolment_token: str = field(default="", repr=False)

    def run(self, deadline_seconds: float) -> TrainingReport:
        """See `Client.train_if_eligible`."""
        ends = time.monotonic() + deadline_seconds
        with self.lock:
            enrolments.give_up_cut_off(self.store, self.platform.now())
        answer = self.check_in()
        next_check_in = self.platform.now() + answer.retry_after_seconds[0]

        def nothing_left(reason: str) -> TrainingReport:
            return TrainingReport(False, 0, 0, 0.0, next_check_in, reason)

        campaign = self._enrolled() or answer.campaign
        if not campaign:
            return nothing_left("there is no campaign now")
        keys: dict[str, Any] | None = None
        try:
            keys = self._keys(campaign)
            document = self._await_task(campaign, keys, ends)
        except CampaignOver:
            self._end(campaign, None, "ended", goodbye=False, reason=OVER, bytes=0)
            return nothing_left(OVER)
        except KeyboardInterrupt:
            self._end(campaign, keys, "ended", reason="stopped", bytes=0)
            raise
        if self.stopped():
            self._end(campaign, keys, "ended", reason="stopped", bytes=0)
            return nothing_left("stopped")
        if document is None:
            return nothing_left("enrolled; the campaign has not started yet")
        task = self._verified(document, campaign)
        against, epsilon, delta = evaluate_task(self.policy, task, Book(self.store), self.platform.now())
        if against:
            self._end(campaign, keys, "refused", reasons=against)
            return nothing_left(f"refused: {'; '.join(against)}")
        outcome, charged = self._take_part(campaign, keys, task, (epsilon, delta), ends)
        spent = epsilon if charged else 0.0
        return TrainingReport(
            outcome.rounds > 0, outcome.rounds, outcome.bytes_up, spent, next_check_in, outcome.reason
        )

    # Before the session --------------------------------------------------------------------------------

    def _enrolled(self) -> str:
        """The campaign whose roster this device stands on; one that has not begun for days is given up."""
        for campaign in enrolments.campaigns(self.store):
            keys = enrolments.read_keys(self.store, campaign) or {}
            if abs(self.platform.now() - float(keys.get("time", 0.0))) < PATIENCE_SECONDS:
                return campaign
            enrolments.leave(self.store, campaign)
        return ""

    def _keys(self, campaign: str) -> dict[str, Any]:
        """Keys for this campaign alone; made and enrolled once.

        Raises:
            CampaignOver: its roster was closed or full before this device enrolled.
        """
        known = enrolments.read_keys(self.store, campaign)
        keys = _fresh_keys(self.platform.now()) if known is None else known
        if known is None:
            enrolments.write_keys(self.store, campaign, keys)
        if keys["state"] == MADE:
            loaded = serialization.load_ssh_private_key(keys["node_key"].encode(), None)
            public = loaded.public_key().public_bytes(
                serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
            )
            self.transport.enrol(
                Enrolment(campaign, _public(keys), public.decode(), token=self.enrolment_token)
            )
            keys["state"] = ENROLLED
            enrolments.write_keys(self.store, campaign, keys)
        return keys

    def _await_task(self, campaign: str, keys: dict[str, Any], ends: float) -> bytes | None:
        while True:
            document = self.transport.task(campaign, _public(keys))
            if document is not None or self.stopped() or time.monotonic() + POLL_SECONDS >= ends:
                return document
            waited = time.monotonic() + POLL_SECONDS
            while time.monotonic() < waited and not self.stopped():
                time.sleep(0.02)

    def _verified(self, document: bytes, campaign: str) -> dict[str, Any]:
        """The task, once it is genuine, in time, of this campaign and for the items of the model in use."""
        task, now = self.verified_task(campaign, document), self.now()
        try:
            if task["population"] != self.population:
                raise WrongPopulation(f"a task of population {task['population']!r:.80}: wait for another")
            items = hashlib.sha256("\0".join(self.served.item_index.items.ids).encode()).hexdigest()
            if task["campaign"] != campaign:
                raise BadContent("a task of another campaign than was asked for: try again")
            if now > task["expires"]:
                raise Expired(f"the task of campaign {campaign[:8]} has expired: wait for another")
            if task["model_version"] != self.served.version or task["items"] != items:
                raise BadContent(
                    f"the task is for the items of model version {task['model_version']}, "
                    f"{self.served.version} is in use: check for an update first"
                )
            if now < (created := float(task.get("created", 0))) - CLOCK_SKEW_SECONDS:
                raise BadContent(f"the task of campaign {campaign[:8]} is from the future: set the clock")
            for name, kind in (("superlink", str), ("superlink_ca", str), ("rounds", int), ("node", dict)):
                if not isinstance(task[name], kind):
                    raise TypeError(name)
            check_named(task["bundle"])
        except (KeyError, TypeError) as error:
            raise BadContent(f"a task without what it needs ({error!s:.60}): update the app") from error
        except ProtocolError as error:
            raise BadContent(str(error)) from error
        if created:
            TrustedTime(self.store).accept(created)
        return task

    # The session -----------------------------------------------------------------------------------------

    def _take_part(
        self,
        campaign: str,
        keys: dict[str, Any],
        task: dict[str, Any],
        price: tuple[float, float],
        ends: float,
    ) -> tuple[Outcome, bool]:
        """How it went, and whether it was charged; whatever happens, the keys are gone afterwards."""
        charged, aggregator = False, task["node"]["aggregation"]["kind"]

        def charge() -> None:
            nonlocal charged
            self._charge(campaign, task, price)
            charged = True

        outcome = Outcome(0, 0, False, "interrupted")
        with self.lock:
            enrolments.write_keys(self.store, campaign, keys | {"state": STARTED})
        try:
            history = self.profile.history(self.served.item_index.items)
            outcome = run_task(
                task,
                item_ids=self.served.item_index.items.ids,
                history=[int(place) for place in history.item],
                identity=bytes.fromhex(keys["identity"]),
                node_key=keys["node_key"],
                deadline_seconds=max(ends - time.monotonic(), 0.0),
                stopped=self.stopped,
                charge=charge,
                goes_on=lambda: self.transport.goes_on(campaign, _public(keys)),
            )
        finally:
            told: dict[str, Any] = {"bytes": outcome.bytes_up, "reason": outcome.reason}
            if charged:
                told |= {"rounds": outcome.rounds, "aggregator": aggregator}
            what = "sent" if charged else "ended"
            self._end(campaign, keys, what, goodbye=not outcome.finished, **told)
        return outcome, charged

    def _charge(self, campaign: str, task: dict[str, Any], price: tuple[float, float]) -> None:
        """Write the whole plan into the book; on disk when this returns.

        Raises:
            ServiceError: the user has said stop, withdrawn consent or deleted everything: nothing may leave.
            StoreError: it cannot be written: nothing may leave.
        """
        plan = task["node"]["privacy"]["plan"]
        with self.lock:
            if self.stopped():
                raise ServiceError("stopped")
            try:
                keys = enrolments.read_keys(self.store, campaign)
                if keys is None or keys["state"] != STARTED:
                    raise ServiceError("stopped")
                with self.store.transaction():
                    enrolments.write_keys(self.store, campaign, keys | {"state": CHARGED})
                    self._note(
                        "charged",
                        campaign,
                        epsilon=price[0],
                        delta=price[1],
                        unit=plan["unit"],
                        trust=plan["trust"],
                        aggregator=task["node"]["aggregation"]["kind"],
                        rounds=task["rounds"],
                    )
            except StoreError as error:
                raise StoreError(f"nothing left, because the charge cannot be kept: {error}") from error

    def _end(
        self, campaign: str, keys: dict[str, Any] | None, what: str, *, goodbye: bool = True, **fields: Any
    ) -> None:
        """Remove the keys, note how it ended, and tell the service that this device has left."""
        # A store that is closed, full or deleted: what is left of the session is ended when it is opened again.
        with suppress(StoreError), self.lock, self.store.transaction():
            enrolments.leave(self.store, campaign, goodbye=goodbye)
            self._note(what, campaign, **fields)
        if goodbye and keys is not None and keys["state"] != MADE:
            with suppress(FedrecError):  # without a network it is said at the next call
                self.transport.leave(campaign, *enrolments.signed_goodbye(campaign, keys))
                enrolments.forget_goodbye(self.store, campaign)

    def _note(self, what: str, campaign: str, **fields: Any) -> None:
        Book(self.store).note(what, self.platform.now(), campaign=campaign, **fields)


def _fresh_keys(now: float) -> dict[str, Any]:
    secret = ec.generate_private_key(ec.SECP384R1())
    pem = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    identity = Identity.create().secret.hex()
    return {"state": MADE, "time": now, "identity": identity, "node_key": pem.decode()}


def _public(keys: dict[str, Any]) -> bytes:
    return Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(keys["identity"]))).public
