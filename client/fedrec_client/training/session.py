"""One call of `train_if_eligible`: check in, enrol, judge the task, charge, take part, report.

A campaign runs through states that lie in the store: "made" (its keys are), "enrolled" (the service has them),
"started" (charged; the session runs). A device that finds "started" was cut off there: the session is over, the
charge stays.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedrec.errors import BadContent, Expired, WrongPopulation
from fedrec.secagg.roster import Identity
from fedrec_client.model_updates import Served
from fedrec_client.participation import Book
from fedrec_client.platform import Platform
from fedrec_client.policy import Policy
from fedrec_client.profile import Profile
from fedrec_client.results import TrainingReport
from fedrec_client.store.base import Store
from fedrec_client.training.run_task import Outcome, run_task
from fedrec_client.transport import CheckInAnswer, Enrolment, Transport

PREFIX = "training/"
POLL_SECONDS = 1.0
#: So long a device waits for a campaign that it enrolled in.
PATIENCE_SECONDS = 7 * 86_400.0


@dataclass(frozen=True)
class Session:
    """What one call needs; see `Client.train_if_eligible`."""

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

    def run(self, deadline_seconds: float) -> TrainingReport:
        """See `Client.train_if_eligible`."""
        ends = time.monotonic() + deadline_seconds
        self._give_up_cut_off()
        answer = self.check_in()
        next_check_in = self.platform.now() + answer.retry_after_seconds[0]
        campaign = self._enrolled() or answer.campaign
        if not campaign:
            return TrainingReport(False, 0, 0, 0.0, next_check_in, "there is no campaign now")
        keys = self._keys(campaign)
        document = self._await_task(campaign, keys, ends)
        if document is None:
            why = "stopped" if self.stopped() else "enrolled; the campaign has not started yet"
            return TrainingReport(False, 0, 0, 0.0, next_check_in, why)
        task = self._verified(document, campaign)
        against, epsilon, delta = self.policy.judge(task, Book(self.store), self.platform.now())
        if against:
            self._refuse(campaign, against)
            return TrainingReport(False, 0, 0, 0.0, next_check_in, f"refused: {'; '.join(against)}")
        if self.stopped():
            return TrainingReport(False, 0, 0, 0.0, next_check_in, "stopped")
        self._charge(campaign, keys, task, epsilon, delta)
        outcome = self._take_part(task, keys, ends)
        self._close(campaign, task, outcome)
        joined = outcome.rounds > 0
        return TrainingReport(
            joined, outcome.rounds, outcome.bytes_up, epsilon, next_check_in, outcome.reason
        )

    def _give_up_cut_off(self) -> None:
        """Sessions that were cut off: their keys go, their charges stay."""
        for name in self.store.names(PREFIX):
            if json.loads(self.store.get(name) or b"{}").get("state") == "started":
                with self.store.transaction():
                    self.store.remove(name)
                    self._note("cut off", name.removeprefix(PREFIX))

    def _enrolled(self) -> str:
        """The campaign whose roster this device stands on; one that has not begun for days is given up."""
        for name in self.store.names(PREFIX):
            made = float(json.loads(self.store.get(name) or b"{}").get("time", 0.0))
            if abs(self.platform.now() - made) < PATIENCE_SECONDS:
                return name.removeprefix(PREFIX)
            self.store.remove(name)
        return ""

    def _keys(self, campaign: str) -> dict[str, Any]:
        """Keys for this campaign alone; made and enrolled once."""
        known = self.store.get(PREFIX + campaign)
        keys: dict[str, Any] = json.loads(known) if known is not None else _fresh_keys(self.platform.now())
        if known is None:
            self.store.put(PREFIX + campaign, json.dumps(keys).encode())
        if keys["state"] == "made":
            loaded = serialization.load_ssh_private_key(keys["node_key"].encode(), None)
            public = loaded.public_key().public_bytes(
                serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
            )
            self.transport.enrol(Enrolment(campaign, _public(keys), public.decode()))
            keys["state"] = "enrolled"
            self.store.put(PREFIX + campaign, json.dumps(keys).encode())
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
            items = hashlib.sha256("\0".join(self.served.shelf.items.ids).encode()).hexdigest()
            if task["campaign"] != campaign:
                raise BadContent("a task of another campaign than was asked for: try again")
            if now > task["expires"]:
                raise Expired(f"the task of campaign {campaign[:8]} has expired: wait for another")
            if task["model_version"] != self.served.version or task["items"] != items:
                raise BadContent(
                    f"the task is for the items of model version {task['model_version']}, "
                    f"{self.served.version} is in use: check for an update first"
                )
            for name, kind in (("superlink", str), ("superlink_ca", str), ("rounds", int), ("node", dict)):
                if not isinstance(task[name], kind):
                    raise TypeError(name)
        except (KeyError, TypeError) as error:
            raise BadContent(f"a task without what it needs ({error!s:.60}): update the app") from error
        return task

    def _refuse(self, campaign: str, reasons: list[str]) -> None:
        with self.store.transaction():
            self.store.remove(PREFIX + campaign)
            self._note("refused", campaign, reasons=reasons)

    def _charge(
        self, campaign: str, keys: dict[str, Any], task: dict[str, Any], epsilon: float, delta: float
    ) -> None:
        """Written before anything leaves."""
        privacy = task["node"]["privacy"]
        with self.store.transaction():
            self.store.put(PREFIX + campaign, json.dumps(keys | {"state": "started"}).encode())
            self._note(
                "charged",
                campaign,
                epsilon=epsilon,
                delta=delta,
                unit=privacy["plan"]["unit"],
                trust=privacy["plan"]["trust"],
                aggregator=task["node"]["aggregation"]["kind"],
                rounds=task["rounds"],
            )

    def _take_part(self, task: dict[str, Any], keys: dict[str, Any], ends: float) -> Outcome:
        history = self.profile.history(self.served.shelf.items)
        return run_task(
            task,
            item_ids=self.served.shelf.items.ids,
            history=[int(place) for place in history.item],
            identity=bytes.fromhex(keys["identity"]),
            node_key=keys["node_key"],
            deadline_seconds=max(ends - time.monotonic(), 0.0),
            stopped=self.stopped,
        )

    def _close(self, campaign: str, task: dict[str, Any], outcome: Outcome) -> None:
        with self.store.transaction():
            self.store.remove(PREFIX + campaign)
            self._note(
                "sent",
                campaign,
                bytes=outcome.bytes_up,
                rounds=outcome.rounds,
                aggregator=task["node"]["aggregation"]["kind"],
                reason=outcome.reason,
            )

    def _note(self, what: str, campaign: str, **fields: Any) -> None:
        Book(self.store).note(what, self.platform.now(), campaign=campaign, **fields)


def _fresh_keys(now: float) -> dict[str, Any]:
    secret = ec.generate_private_key(ec.SECP384R1())
    pem = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    identity = Identity.create().secret.hex()
    return {"state": "made", "time": now, "identity": identity, "node_key": pem.decode()}


def _public(keys: dict[str, Any]) -> bytes:
    return Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(keys["identity"]))).public
