"""A training session as the store sees it: charged before anything leaves, over when cut off, refused in time."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from training_helpers import ITEM_IDS, PLANNED_ROUNDS, node_parts

from fedrec.errors import (
    BadContent,
    BadSignature,
    Expired,
    RegistryError,
    Rollback,
    UpdateRejected,
    WrongPopulation,
)
from fedrec.ranking.items import Items
from fedrec.secagg.roster import Identity
from fedrec.wire.layout import task_target
from fedrec.wire.repository import target_of
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec.wire.strict_json import canonical
from fedrec_client import Client, Conditions, Consent, Policy
from fedrec_client.participation import Book
from fedrec_client.policy import Policy as JudgedBy
from fedrec_client.store.in_memory import MemoryStore
from fedrec_client.testing import NOW, FakePlatform, FakeService, make_client, small_model
from fedrec_client.training import session

#: Four people cannot hide among each other: an app's own policy refuses this.
FOR_FOUR = Policy(min_cohort=4, max_epsilon_period=1e7, max_epsilon_lifetime=1e7)
CAMPAIGN, DAY = "ab" * 16, 86_400.0
READY = Conditions(min_events=2)
PASSPHRASE = "correct horse"


def service_with_items() -> FakeService:
    made = FakeService("films")
    made.publish(small_model(len(ITEM_IDS)), Items.of(ITEM_IDS))
    made.campaign = CAMPAIGN
    return made


def prepared(client: Client) -> Client:
    client.check_for_update()
    client.set_consent(Consent(train=True))
    for item in ITEM_IDS[:3]:
        client.log_event("like", item=item)
    return client


def payload(service: FakeService, **changed: Any) -> dict[str, Any]:
    """The task for the device that enrolled last and three that are not there."""
    own = service.enrolments[-1].identity

    class Public:
        public = own

    others = [Identity.create() for _ in range(3)]
    plain: dict[str, Any] = {
        "campaign": CAMPAIGN,
        "expires": NOW + 10 * int(DAY),
        "model_version": 1,
        "items": hashlib.sha256("\0".join(ITEM_IDS).encode()).hexdigest(),
        "node": node_parts(4, [Public(), *others]),  # type: ignore[list-item]
        "superlink": "127.0.0.1:9",
        "superlink_ca": "",
        "rounds": PLANNED_ROUNDS,
    }
    return plain | changed


def give(service: FakeService, task: dict[str, Any]) -> None:
    service.give_task(CAMPAIGN, task)


def save_keys(service: FakeService, folder: Path) -> None:
    service.offline_keys.save(folder / "keys", PASSPHRASE)
    service.online_keys.save(folder / "keys")


def load_keys(folder: Path) -> tuple[OfflineKeys, OnlineKeys]:
    return OfflineKeys.load(folder / "keys", PASSPHRASE), OnlineKeys.load(folder / "keys")


def enrolled(service: FakeService, folder: Path, policy: Policy = FOR_FOUR) -> Client:
    client = prepared(make_client(folder, service, policy=policy))
    report = client.train_if_eligible(READY, 0)
    assert not report.joined and "not started yet" in report.reason
    assert len(service.enrolments) == 1
    return client


# Killed in the middle --------------------------------------------------------------------------------------


def die_at(point: str, folder: Path) -> None:
    """Run in a process of its own: a device that is killed at a point of its session."""
    import os

    service = service_with_items()
    save_keys(service, folder)
    client = prepared(
        Client.open(
            folder,
            population="films",
            trust=service.trust,
            server=service,
            platform=FakePlatform(),
            policy=FOR_FOUR,
            passphrase=PASSPHRASE,
        )
    )
    client.train_if_eligible(READY, 0)
    give(service, payload(service))
    (folder / "identity").write_bytes(service.enrolments[0].identity)

    def die(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    if point == "before charge":
        session.Session._charge = die  # type: ignore[method-assign]
    else:
        done = session.Outcome(PLANNED_ROUNDS, 12_345, True, "done")
        session.run_task = die if point == "after charge" else lambda *_, **__: done
        if point == "after sending":
            session.Session._close = die  # type: ignore[method-assign]
    client.train_if_eligible(READY, 60)


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before charge", "after charge", "after sending"])
def test_a_device_killed_in_a_session_has_charged_what_it_may_have_sent(tmp_path: Path, point: str) -> None:
    script = f"import sys; sys.path[:0] = {sys.path!r}; from pathlib import Path; import test_training_session as t; "
    script += f"t.die_at({point!r}, Path({str(tmp_path)!r}))"
    died = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    charged = point != "before charge"

    service = FakeService("films", keys=load_keys(tmp_path))
    service.campaign = CAMPAIGN
    platform = FakePlatform()
    with Client.open(
        tmp_path,
        population="films",
        trust=service.trust,
        server=service,
        platform=platform,
        policy=FOR_FOUR,
        passphrase=PASSPHRASE,
    ) as client:
        book = Book(client._store)
        plan = payload_plan()
        assert book.spent().epsilon == pytest.approx(plan.epsilon() if charged else 0.0)
        assert book.spent().campaigns == int(charged)
        platform.pass_time(2 * DAY)
        client.train_if_eligible(READY, 0)
        # Whoever was charged never comes back under the same identity; who was not simply goes on.
        keys = json.loads(client._store.get(f"training/{CAMPAIGN}") or b"{}")
        again = Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(keys["identity"]))).public
        assert (again == (tmp_path / "identity").read_bytes()) == (not charged)
        assert bool(book.entries("cut off")) == charged
        assert book.spent().campaigns == int(charged)
        report = client.privacy_report()
        assert report.lifetime.epsilon == book.spent().epsilon


def payload_plan() -> Any:
    from fedrec.privacy.plan import PrivacyPlan

    parts = node_parts(4, [Identity.create() for _ in range(4)])
    return PrivacyPlan.model_validate(parts["privacy"]["plan"])


def test_the_charge_is_in_the_book_before_the_session_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)
    give(service, payload(service))
    seen: list[Any] = []

    def run_task(task: Any, **given: Any) -> session.Outcome:
        seen.append((Book(client._store).spent().epsilon, given))
        return session.Outcome(1, 999, False, "the deadline has passed")

    monkeypatch.setattr(session, "run_task", run_task)
    report = client.train_if_eligible(READY, 60)
    ((epsilon, given),) = seen
    assert epsilon == report.epsilon_spent == pytest.approx(payload_plan().epsilon())
    assert given["history"] == [0, 1, 2] and given["item_ids"] == tuple(ITEM_IDS)
    assert (report.joined, report.rounds, report.bytes_up) == (True, 1, 999)
    assert not client._store.names("training/")


# What is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"campaign": "cd" * 16}, BadContent),
        ({"expires": NOW - 1}, Expired),
        ({"model_version": 2}, BadContent),
        ({"items": "00" * 32}, BadContent),
        ({"superlink": 7}, BadContent),
        ({"rounds": "2"}, BadContent),
        ({"node": []}, BadContent),
        ({"node": {"model": {}}}, BadContent),
    ],
    ids=str,
)
def test_a_task_that_does_not_fit_is_refused_and_costs_nothing(
    tmp_path: Path, changed: dict[str, Any], error: type[UpdateRejected]
) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)
    give(service, payload(service, **changed))
    with pytest.raises(error):
        client.train_if_eligible(READY, 5)
    assert client.privacy_report().lifetime.epsilon == 0 and not Book(client._store).entries("sent")


def test_a_task_that_is_not_genuine_is_refused(tmp_path: Path) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)
    task = payload(service)
    service.tasks[CAMPAIGN] = canonical(task | {"population": "films"})
    with pytest.raises(BadSignature, match="no task of campaign"):  # right, and signed by no key
        client.train_if_eligible(READY, 5)
    give(service, task)
    genuine = service.tasks[CAMPAIGN]
    for content in (b"garbage", genuine.replace(b'"rounds":2', b'"rounds":1'), genuine + b" "):
        service.tasks[CAMPAIGN] = content
        with pytest.raises(BadContent, match="not the signed one"):
            client.train_if_eligible(READY, 5)
    kept, thief = service.keep(), service.online_keys
    service.rotate()
    client.check_for_update()
    before = service.online_keys
    service.online_keys = OnlineKeys({**before.signers, "tasks": thief.of("tasks")})
    with pytest.raises(RegistryError, match="devices would refuse"):
        give(service, task)
    service.online_keys = before
    give(service, task | {"expires": NOW - 1})
    with pytest.raises(Expired):
        client.train_if_eligible(READY, 5)
    service.replay(kept)
    with pytest.raises((BadSignature, Rollback)):  # a task that was genuine under keys that were replaced
        client.train_if_eligible(READY, 5)
    assert client.privacy_report().lifetime.epsilon == 0


def test_a_task_of_another_population_is_refused(tmp_path: Path) -> None:
    """Even one that stands under the path of this population's campaign."""
    service = service_with_items()
    client = enrolled(service, tmp_path)
    give(service, payload(service))
    content = service.tasks[CAMPAIGN].replace(b'"population":"films"', b'"population":"books"')
    books = target_of(task_target("films", CAMPAIGN), content)
    service.repository.change(service.trust, service.online_keys, NOW, tasks=[books])
    service.tasks[CAMPAIGN] = content
    with pytest.raises(WrongPopulation):
        client.train_if_eligible(READY, 5)


def judged(change: Any, policy: JudgedBy = FOR_FOUR) -> list[str]:
    parts = node_parts(4, [Identity.create() for _ in range(4)])
    change(parts)
    against, _, _ = policy.judge({"node": parts}, Book(MemoryStore()), NOW)
    return against


def test_noise_that_would_not_add_up_is_refused() -> None:
    """The operator plans for a thousand and lets four be summed: each device's share would be far too small."""
    assert not judged(lambda parts: None)

    def for_a_thousand(parts: Any) -> None:
        parts["privacy"]["plan"]["population"] = 1000

    def for_two(parts: Any) -> None:
        parts["aggregation"]["min_users"] = 2.0

    def sealed(parts: Any) -> None:
        parts["aggregation"] = {"kind": "sealed", "run": "x", "public": "00"}

    assert any("noise: sized for 750 people" in reason for reason in judged(for_a_thousand))
    assert any("another privacy plan" in reason for reason in judged(for_a_thousand))
    assert judged(for_two) == ["noise: sized for 3 people together, a sum of 2 may be opened"]
    allows = JudgedBy(min_cohort=1, aggregators=("sealed",), max_epsilon_period=1e7, max_epsilon_lifetime=1e7)
    assert any("hides nobody" in reason for reason in judged(sealed, allows))


def test_judging_and_preparing_import_no_torch() -> None:
    script = f"""
import sys; sys.path[:0] = {sys.path!r}
import fedrec_client.training.session, fedrec_client.training.run_task
import test_training_session
assert not test_training_session.judged(lambda parts: None)
bad = {{"torch", "flwr", "opacus"}} & set(sys.modules)
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", script], check=True)
