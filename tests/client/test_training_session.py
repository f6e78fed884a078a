"""A training session as the store sees it: charged before a release leaves, over when it ends, refused in time."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from training_helpers import ITEM_IDS, PLANNED_ROUNDS, node_parts

from fedrec.core.errors import (
    BadContent,
    BadSignature,
    Expired,
    FedrecError,
    RegistryError,
    Rollback,
    ServiceError,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    UpdateRejected,
    WrongPopulation,
)
from fedrec.ranking.items import Items
from fedrec.secagg.roster import Identity
from fedrec.wire.bundle import BUNDLE
from fedrec.wire.layout import task_target
from fedrec.wire.repository import target_of
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec.wire.strict_json import canonical
from fedrec_client import Client, Conditions, Consent, Policy
from fedrec_client.store.in_memory import MemoryStore
from fedrec_client.terms.participation import Book
from fedrec_client.terms.policy import Policy as EvaluatedBy
from fedrec_client.terms.results import TrainingReport
from fedrec_client.terms.task_evaluation import evaluate_task
from fedrec_client.testing import NOW, FakeService, make_client, small_model, store_of
from fedrec_client.training import session

#: Four users cannot hide among each other: an app's own policy refuses this.
FOR_FOUR = Policy(min_cohort=4, dishonest=0.0, max_epsilon_period=1e7, max_epsilon_lifetime=1e7)
CAMPAIGN, DAY = "ab" * 16, 86_400.0
READY = Conditions(min_events=2)


def service_with_items(keys: tuple[OfflineKeys, OnlineKeys] | None = None) -> FakeService:
    made = FakeService("films", keys=keys)
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
        "bundle": BUNDLE,
        "rounds": PLANNED_ROUNDS,
    }
    return plain | changed


def give(service: FakeService, task: dict[str, Any]) -> None:
    service.give_task(CAMPAIGN, task)


def enrolled(service: FakeService, folder: Path, policy: Policy = FOR_FOUR) -> Client:
    client = prepared(make_client(folder, service, policy=policy))
    report = client.train_if_eligible(READY, 0)
    assert not report.joined and "not started yet" in report.reason
    assert len(service.enrolments) == 1
    return client


# The charge ------------------------------------------------------------------------------------------------


def payload_plan() -> Any:
    from fedrec.privacy.plan import PrivacyPlan

    parts = node_parts(4, [Identity.create() for _ in range(4)])
    return PrivacyPlan.model_validate(parts["privacy"]["plan"])


Run = Callable[..., session.Outcome]


def takes_part(
    client: Client, service: FakeService, run: Run, monkeypatch: pytest.MonkeyPatch
) -> TrainingReport:
    """A session whose processes are replaced by a function that gets what `run_task` gets."""
    give(service, payload(service))
    monkeypatch.setattr(session, "run_task", run)
    return client.train_if_eligible(READY, 60)


def test_the_charge_is_in_the_book_when_it_was_asked_for_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)
    seen: list[Any] = []

    def run(task: Any, **given: Any) -> session.Outcome:
        seen.append(Book(store_of(client)).spent().epsilon)
        given["charge"]()
        seen.append(Book(store_of(client)).spent().epsilon)
        (under_way,) = client.privacy_report().left
        assert under_way["what"] == "under way" and "may have left" in client.privacy_report().as_text()
        assert given["history"] == [0, 1, 2] and given["item_ids"] == tuple(ITEM_IDS)
        return session.Outcome(1, 999, False, "the deadline has passed")

    report = takes_part(client, service, run, monkeypatch)
    assert seen == [0, report.epsilon_spent] and seen[1] == pytest.approx(payload_plan().epsilon())
    assert (report.joined, report.rounds, report.bytes_up) == (True, 1, 999)
    (left,) = client.privacy_report().left
    assert (left["what"], left["bytes"], client.privacy_report().ended) == ("sent", 999, ())
    assert not store_of(client).names("training/")
    assert service.left == [(CAMPAIGN, service.enrolments[0].identity)]


def test_a_session_is_charged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)

    def run(task: Any, **given: Any) -> session.Outcome:
        given["charge"]()
        with pytest.raises(ServiceError):
            given["charge"]()
        return session.Outcome(2, 999, True, "done")

    report = takes_part(client, service, run, monkeypatch)
    spent = client.privacy_report().lifetime
    assert (spent.epsilon, spent.campaigns) == (report.epsilon_spent, 1)
    assert not service.left  # it has done all it was asked for: the campaign does not lack it


def test_a_session_that_released_nothing_costs_nothing_and_both_sides_know_that_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)
    outcome = session.Outcome(0, 70, False, "the deadline has passed")
    report = takes_part(client, service, lambda task, **given: outcome, monkeypatch)
    assert (report.joined, report.epsilon_spent, report.reason) == (False, 0.0, outcome.reason)
    assert not store_of(client).names("training/") and not store_of(client).names("leaving/")
    assert service.left == [(CAMPAIGN, service.enrolments[0].identity)]
    told = client.privacy_report()
    assert told.lifetime.epsilon == 0 and not told.left and not told.charged
    assert [entry["reason"] for entry in told.ended] == [outcome.reason]
    assert "Nothing has left this device." in told.as_text() and "nothing was charged" in told.as_text()


def test_a_session_that_breaks_is_over_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)

    def run(task: Any, **given: Any) -> session.Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        takes_part(client, service, run, monkeypatch)
    assert not store_of(client).names("training/") and service.left
    assert client.privacy_report().lifetime.epsilon == 0
    assert [entry["reason"] for entry in client.privacy_report().ended] == ["interrupted"]


def withdraw(client: Client) -> None:
    client.set_consent(Consent())


@pytest.mark.parametrize(
    "act", [withdraw, Client.delete_data, Client.stop_training], ids=lambda act: act.__name__
)
def test_what_the_user_decides_comes_before_a_charge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[Client], Any]
) -> None:
    """The node asks for the charge, and at that moment the user says no: nothing is charged, nothing may leave."""
    service = service_with_items()
    client = enrolled(service, tmp_path)

    def run(task: Any, **given: Any) -> session.Outcome:
        act(client)
        with pytest.raises(FedrecError):
            given["charge"]()
        return session.Outcome(0, 70, False, "stopped")

    report = takes_part(client, service, run, monkeypatch)
    assert (report.joined, report.epsilon_spent, report.reason) == (False, 0.0, "stopped")
    assert client.privacy_report().lifetime.epsilon == 0 and not store_of(client).names("training/")
    assert service.left == [(CAMPAIGN, service.enrolments[0].identity)]


@pytest.mark.parametrize("error", [StoreFull, StoreLocked, StoreCorrupt])
def test_a_charge_that_cannot_be_written_lets_nothing_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[StoreError]
) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)

    def fails(*_: Any) -> int:
        raise error("no more")

    def run(task: Any, **given: Any) -> session.Outcome:
        with monkeypatch.context() as patch:
            patch.setattr(store_of(client), "append", fails)
            with pytest.raises(
                StoreError, match="nothing left, because the charge cannot be kept: no more"
            ) as no:
                given["charge"]()
        assert json.loads(store_of(client).get(f"training/{CAMPAIGN}") or b"{}")["state"] == "started"
        return session.Outcome(0, 70, False, str(no.value))

    report = takes_part(client, service, run, monkeypatch)
    assert report.epsilon_spent == 0 and "cannot be kept" in report.reason
    assert client.privacy_report().lifetime.epsilon == 0 and not store_of(client).names("training/")


def test_a_store_that_is_full_to_the_end_does_not_hide_how_a_session_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)

    def fails(*_: Any) -> int:
        raise StoreFull("no more")

    def run(task: Any, **given: Any) -> session.Outcome:
        monkeypatch.setattr(store_of(client), "append", fails)
        return session.Outcome(0, 70, False, "stopped")

    report = takes_part(client, service, run, monkeypatch)
    assert (report.epsilon_spent, report.reason) == (0.0, "stopped") and service.left


def test_a_device_that_says_stop_while_it_waits_has_left(tmp_path: Path) -> None:
    service = service_with_items()
    client = prepared(make_client(tmp_path, service, policy=FOR_FOUR))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.train_if_eligible, READY, 60)
        until(lambda: bool(service.enrolments))
        client.stop_training()
        report = waiting.result(10)
    assert (report.joined, report.epsilon_spent, report.reason) == (False, 0.0, "stopped")
    assert service.left == [(CAMPAIGN, service.enrolments[0].identity)]
    assert not store_of(client).names("training/")


def test_a_device_that_waits_learns_that_the_campaign_is_over(tmp_path: Path) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)
    service.over.add(CAMPAIGN)
    report = client.train_if_eligible(READY, 60)
    assert (report.joined, report.epsilon_spent, report.reason) == (False, 0.0, "the campaign is over")
    assert not store_of(client).names("training/") and not service.left
    service.campaign = "cd" * 16  # and is not bound to it any more
    assert "not started yet" in client.train_if_eligible(READY, 0).reason
    assert service.enrolments[-1].campaign == "cd" * 16


def test_a_good_bye_that_no_one_heard_is_said_again(tmp_path: Path) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)
    service.offline = True
    client.set_consent(Consent())
    assert not store_of(client).names("training/") and store_of(client).names("leaving/")
    with pytest.raises(ServiceError):
        client.check_for_update()
    service.offline = False
    client.check_for_update()
    assert service.left == [(CAMPAIGN, service.enrolments[0].identity)]
    assert not store_of(client).names("leaving/")


def test_closing_waits_for_a_session_to_note_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = service_with_items()
    client = enrolled(service, tmp_path)
    store, started = store_of(client), threading.Event()

    def run(task: Any, **given: Any) -> session.Outcome:
        given["charge"]()
        started.set()
        until(given["stopped"])
        return session.Outcome(1, 999, False, "stopped")

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(takes_part, client, service, run, monkeypatch)
        assert started.wait(10)
        client.close()
        assert running.result(10).reason == "stopped"
    assert [entry["what"] for entry in Book(store).entries()] == ["charged", "sent"]


def until(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


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
        ({"bundle": "00" * 32}, BadContent),
        ({"bundle": None}, BadContent),
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
    assert client.privacy_report().lifetime.epsilon == 0 and not Book(store_of(client)).entries("sent")


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


def evaluated(change: Any, policy: EvaluatedBy = FOR_FOUR) -> list[str]:
    parts = node_parts(4, [Identity.create() for _ in range(4)])
    change(parts)
    against, _, _ = evaluate_task(policy, {"node": parts}, Book(MemoryStore()), NOW)
    return against


def test_a_device_lets_no_one_evaluate_it() -> None:
    """Nothing is held out on it: a release of metrics, and exact ones of a simulation, have no place in its task."""

    def releasing(parts: Any) -> None:
        integers = parts["privacy"]["plan"]["distributed"] | {"rotation_seed": None}
        release = {"names": ["full/hr@10"], "noise_multiplier": 9.0, "integers": integers}
        parts["privacy"]["plan"]["metrics"] = release

    def measuring(parts: Any) -> None:
        parts["evaluation"]["held_data"] = True

    assert any("holds nothing out" in why for why in evaluated(releasing))
    assert any("belongs to simulations" in why for why in evaluated(measuring))


def test_noise_that_would_not_add_up_is_refused() -> None:
    """The operator plans for a thousand and lets four be summed: each device's share would be far too small."""
    assert not evaluated(lambda parts: None)

    def for_a_thousand(parts: Any) -> None:
        parts["privacy"]["plan"]["population"] = 1000

    def for_two(parts: Any) -> None:
        parts["aggregation"]["min_users"] = 2.0

    def sealed(parts: Any) -> None:
        parts["aggregation"] = {"kind": "sealed", "run": "x", "public": "00"}

    assert any("noise: sized for 750 users" in reason for reason in evaluated(for_a_thousand))
    assert any("another privacy plan" in reason for reason in evaluated(for_a_thousand))
    assert evaluated(for_two) == ["noise: sized for 3 users together, a sum of 2 may be opened"]
    allows = EvaluatedBy(
        min_cohort=1, aggregators=("sealed",), max_epsilon_period=1e7, max_epsilon_lifetime=1e7
    )
    assert any("hides no one" in reason for reason in evaluated(sealed, allows))


def test_evaluating_and_preparing_import_no_torch() -> None:
    script = f"""
import sys; sys.path[:0] = {sys.path!r}
import fedrec_client.training.session, fedrec_client.training._run_task
import test_training_session
assert not test_training_session.evaluated(lambda parts: None)
bad = {{"torch", "flwr", "opacus"}} & set(sys.modules)
assert not bad, bad
"""
    subprocess.run([sys.executable, "-c", script], check=True)
