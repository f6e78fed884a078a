"""Devices of an app train together for real: SDK, service, campaign, SuperLink, secure aggregation, new model."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import foreign_app
import numpy as np
import pytest
from fedrec_client.training._run_task import run_task
from session_helpers import Sessions, own_sessions
from training_helpers import ITEM_IDS, node_parts

from fedrec.core.errors import ConfigError, RegistryError
from fedrec.core.refusals import FOREIGN, REFUSED
from fedrec.ranking.items import Items
from fedrec.ranking.popular import Popular
from fedrec.secagg.roster import Identity
from fedrec.wire.bundle import BUNDLE
from fedrec.wire.manifest import Manifest
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_client import Client, Conditions, Consent, MemoryStore, Policy
from fedrec_client.node.forward import SENT
from fedrec_client.terms.participation import Book
from fedrec_client.testing import FakePlatform, store_of
from fedrec_client.updates.grpc_transport import GrpcTransport
from fedrec_server.federation.federation import Federation
from fedrec_server.network.certificates import make_node_key
from fedrec_server.network.limits import Limits
from fedrec_server.operations.campaign_book import CampaignBook
from fedrec_server.operations.campaigns import Campaign
from fedrec_server.registry import Registry
from fedrec_server.service.server import Service
from fedrec_simulations.experiments.config import Config, parse_config

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
DEVICES, ITEMS = 5, 30
#: No test waits for so long: a device that leaves says so, and only a machine that is slower still would fail.
SECONDS = 240.0
#: Five users cannot hide among each other: a real app's policy refuses this, and so does the test below.
FOR_FIVE = Policy(min_cohort=DEVICES, dishonest=0.0, max_epsilon_period=1e4, max_epsilon_lifetime=1e4)
NOW_CONDITIONS = Conditions(min_events=3)


def config() -> Config:
    return parse_config(
        {
            "name": "campaign",
            "model": {
                "kind": "dp_ease",
                "top_items": ITEMS,
                "histogram_items": 5,
                "history_items": 20,
                "reg": 1.0,
                "cut": 0.0,
                "popularity_weight": 0.1,
            },
            "privacy": {
                "unit": "user",
                "trust": "distributed",
                "epsilon": 5000.0,
                "delta": 1e-6,
                "clip_norm": 1.0,
                "force": True,
                "survivors": 0.6,
            },
            "federation": {
                "nodes": DEVICES,
                "wait_seconds": SECONDS,
                "deadline_seconds": SECONDS,
                "stage_seconds": SECONDS,
            },
        },
        (),
        "test",
    )


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    with own_sessions() as made:
        yield made


class Place:
    """An operator's side: registry with a champion, service, campaigns."""

    def __init__(self, folder: Path) -> None:
        now = time.time()
        self.keys = OnlineKeys.generate()
        self.registry = Registry.create(folder / "models", "films", OfflineKeys.generate(), self.keys)
        self.book = CampaignBook(folder / "campaigns")
        items = Items.of([f"film-{k:02d}" for k in range(ITEMS)], [f"Film {k}" for k in range(ITEMS)])
        popular = Popular(np.linspace(1, 0, ITEMS, dtype=np.float32))
        made = self.registry.publish(pack_model(popular, items, {}), Terms(0, int(now)), self.keys)
        self.registry.promote(made.version, self.keys)
        # All devices are at one address here, and a first update takes a dozen calls.
        limits = Limits(calls_per_second=200, burst=400, enrolments_per_address=200)
        self.service = Service.start([self.registry], None, limits=limits, campaigns=self.book)

    def client(self, folder: Path, policy: Policy = FOR_FIVE) -> Client:
        made = Client.open(
            folder,
            population="films",
            trust=self.registry.pinned,
            server=GrpcTransport(f"127.0.0.1:{self.service.port}", insecure=True),
            platform=FakePlatform(time.time()),
            store=MemoryStore(),
            policy=policy,
        )
        made.check_for_update()
        made.set_consent(Consent(train=True))
        return made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("campaign"))
    yield made
    made.service.stop()


def like(client: Client, films: list[int]) -> None:
    for film in films:
        client.log_event("like", item=f"film-{film:02d}")


def first(client: Client) -> str:
    """What leads its list."""
    return next(iter(client.recommend(1))).item


def test_devices_train_together_though_two_of_five_leave_and_lists_change(
    place: Place, sessions: Sessions, tmp_path: Path
) -> None:
    """Everyone likes the same rare films. kill -9 for one in round 1, another's owner says stop in round 2.

    Both have dealt their shares by then: the rounds end without them, they stay charged, and nothing of them runs on.
    The rare films lead the list of everyone who stayed and does not know all of them.
    """
    clients = [place.client(tmp_path / str(k)) for k in range(DEVICES)]
    liked = range(20, 20 + DEVICES)
    for k, client in enumerate(clients):
        like(client, [film for film in liked if film != 20 + k])
        assert first(client) == "film-00"
    campaign = Campaign.open(place.book, place.registry, config(), place.keys)
    with ThreadPoolExecutor(DEVICES + 1) as pool:
        joined = [pool.submit(client.train_if_eligible, NOW_CONDITIONS, 300) for client in clients]
        campaign.await_devices(DEVICES, 30)
        run = pool.submit(campaign.run)
        killed, stopped, *stayed = range(DEVICES)
        sessions.kill(await_shares(sessions, clients[killed], campaign.id, 1, run))
        await_shares(sessions, clients[stopped], campaign.id, 2, run)
        told = time.monotonic()
        clients[stopped].set_consent(Consent())
        assert joined[stopped].result().reason == "stopped"
        assert time.monotonic() - told < SECONDS / 10
        made = run.result()
        reports = [each.result() for each in joined]
    assert not sessions.processes() and not sessions.folders()
    assert made.version == 2 and made.privacy["unit"] == "user" and made.privacy["epsilon"] <= 5000
    assert place.registry.verify() == {1: "good", 2: "good"}
    records = (campaign.folder / "run" / "coordinator" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(record)["secagg"]["nodes"] for record in records] == [DEVICES - 1, DEVICES - 2]
    assert "ended by itself" in reports[killed].reason and reports[killed].rounds == 0
    assert reports[stopped].rounds == 1
    for client, report in zip(clients, reports, strict=True):
        account = client.privacy_report()
        assert account.lifetime.epsilon == pytest.approx(report.epsilon_spent) and account.bytes_up > 0
        assert 0 < report.epsilon_spent == reports[0].epsilon_spent <= 5000
        assert not store_of(client).names("training/")
    for k in stayed:
        report, account = reports[k], clients[k].privacy_report()
        assert report.joined and report.rounds == 2 and report.reason == "done" and report.bytes_up > 1000
        assert account.bytes_up == report.bytes_up and "only the sum over all devices" in account.as_text()
        assert clients[k].check_for_update() is not None
        assert first(clients[k]) == f"film-{20 + k}"


def test_devices_that_leave_before_they_release_anything_pay_nothing_and_the_others_go_on(
    place: Place, sessions: Sessions, tmp_path: Path
) -> None:
    """kill -9 for one session as soon as it has begun, another's owner says stop: the operator hears of both."""
    clients = [place.client(tmp_path / str(k)) for k in range(DEVICES)]
    for client in clients:
        like(client, [1, 2, 3, 4])
    campaign, steps = Campaign.open(place.book, place.registry, config(), place.keys), []
    with ThreadPoolExecutor(DEVICES + 1) as pool:
        joined = [pool.submit(client.train_if_eligible, NOW_CONDITIONS, 300) for client in clients]
        campaign.await_devices(DEVICES, 30)
        run = pool.submit(campaign.run, steps.append)
        killed, stopped, *stayed = range(DEVICES)
        sessions.kill(await_session(sessions, clients[killed], campaign.id, run))
        await_session(sessions, clients[stopped], campaign.id, run)
        clients[stopped].stop_training()
        early = [joined[k].result(10) for k in (killed, stopped)]
        made = run.result()
        reports = [joined[k].result() for k in stayed]
    for k, report in zip((killed, stopped), early, strict=True):
        told = clients[k].privacy_report()
        assert (report.joined, report.epsilon_spent, told.lifetime.epsilon) == (False, 0.0, 0)
        assert not told.left and [entry["reason"] for entry in told.ended] == [report.reason]
        assert not store_of(clients[k]).names("training/")
    assert steps.index("2 of 5 devices have left") < steps.index("2 rounds summed")
    assert len(campaign.book.left(campaign.id)) == 2 and campaign.book.state(campaign.id).ended == "done"
    assert all(report.rounds == 2 and report.epsilon_spent > 0 for report in reports)
    assert place.registry.aliases.champion == made.version
    assert not sessions.processes() and not sessions.folders()


def test_a_campaign_with_too_few_devices_left_ends_at_once_for_everyone(
    place: Place, sessions: Sessions, tmp_path: Path
) -> None:
    clients = [place.client(tmp_path / str(k)) for k in range(DEVICES)]
    for client in clients:
        like(client, [1, 2, 3, 4])
    champion = place.registry.aliases.champion
    campaign = Campaign.open(place.book, place.registry, config(), place.keys)
    with ThreadPoolExecutor(DEVICES + 1) as pool:
        joined = [pool.submit(client.train_if_eligible, NOW_CONDITIONS, 300) for client in clients]
        campaign.await_devices(DEVICES, 30)
        run = pool.submit(campaign.run)
        await_session(sessions, clients[-1], campaign.id, run)
        told = time.monotonic()
        for client in clients[:3]:
            client.stop_training()
        with pytest.raises(RegistryError, match="3 of 5 devices have left"):
            run.result()
        reports = [each.result(60) for each in joined]
        assert time.monotonic() - told < SECONDS
    assert [report.reason for report in reports[:3]] == ["stopped"] * 3
    assert {report.reason for report in reports[3:]} == {"the campaign is over"}
    for client, report in zip(clients, reports, strict=True):
        assert (report.epsilon_spent, client.privacy_report().lifetime.epsilon) == (0.0, 0)
    assert place.registry.aliases.champion == champion
    assert not sessions.processes() and not sessions.folders()


def test_a_campaign_that_is_stopped_ends_within_seconds(place: Place, tmp_path: Path) -> None:
    asked: list[bool] = []
    campaign = Campaign.open(place.book, place.registry, config(), place.keys, stop=lambda: bool(asked))
    client = place.client(tmp_path)
    like(client, [1, 2, 3, 4])
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(campaign.await_devices, DEVICES, 60)
        joined = pool.submit(client.train_if_eligible, NOW_CONDITIONS, 60)
        while not campaign.book.roster(campaign.id):
            time.sleep(0.05)
        asked.append(True)
        with pytest.raises(RegistryError, match="was stopped"):
            waiting.result(10)
        assert joined.result(20).reason == "the campaign is over"


def await_session(sessions: Sessions, client: Client, campaign: str, run: Future[Manifest]) -> Path:
    """The folder of a device's session, once it has one and before it has released anything."""
    key = ""
    while not run.done():
        kept = store_of(client).get(f"training/{campaign}")
        key = key or (json.loads(kept)["node_key"] if kept else "")
        for folder in sessions.folders():
            if key and _text(folder / "key") == key:
                return folder
        time.sleep(0.05)
    raise AssertionError(f"over before the session began: {run.result()}")


def test_a_policy_refuses_what_a_device_should_not_join(place: Place, tmp_path: Path) -> None:
    """The default policy, a task signed by the operator all the same: nothing leaves, nothing is charged."""
    careful = place.client(tmp_path / "careful", Policy())
    like(careful, [1, 2, 3, 4])
    campaign = Campaign.open(place.book, place.registry, config(), place.keys)
    first = careful.train_if_eligible(NOW_CONDITIONS, 0)
    assert not first.joined and "not started yet" in first.reason
    for k in range(2):
        key = make_node_key(tmp_path / f"key-{k}").read_text()
        campaign.book.enrol(campaign.id, Identity.create().public, key, 1)
    devices = campaign.book.close(campaign.id)
    task, _ = campaign._task(devices)
    assert task.privacy is not None
    payload = {
        "campaign": campaign.id,
        "expires": int(time.time()) + 100,
        "model_version": place.registry.aliases.champion,
        "node": {
            "model": task.model.model_dump(mode="json"),
            "settings": task.settings.model_dump(mode="json"),
            "evaluation": task.evaluation.model_dump(mode="json"),
            "privacy": task.privacy.model_dump(mode="json"),
            "aggregation": task.aggregation.model_dump(mode="json"),
        },
        "superlink": "127.0.0.1:1",
        "superlink_ca": "",
        "bundle": BUNDLE,
        "rounds": 2,
    }
    items = "\0".join(place.registry.open(payload["model_version"]).items.ids).encode()  # type: ignore[arg-type]
    payload["items"] = hashlib.sha256(items).hexdigest()
    campaign.book.give(campaign.id, place.registry.sign_task(campaign.id, payload, place.keys))
    report = careful.train_if_eligible(NOW_CONDITIONS, 5)
    assert not report.joined and report.epsilon_spent == 0
    for code in ("cohort", "budget"):
        assert f"{code}:" in report.reason
    assert careful.privacy_report().lifetime.epsilon == 0
    assert careful.privacy_report().refused and "refused to train" in careful.privacy_report().as_text()
    assert len(campaign.book.left(campaign.id)) == 1  # the operator knows that it does not come
    campaign.end("tried out")


def await_shares(
    sessions: Sessions, client: Client, campaign: str, number: int, run: Future[Manifest]
) -> Path:
    """The folder of a device's session, once it has dealt its shares of a round."""
    key = ""
    while not run.done():
        kept = store_of(client).get(f"training/{campaign}")
        key = key or (json.loads(kept)["node_key"] if kept else "")
        for folder in sessions.folders():
            if key and _text(folder / "key") == key and _dealt(_text(folder / "node" / SENT), number):
                return folder
        time.sleep(0.05)
    raise AssertionError(
        f"over before round {number}: {run.result().version}, {client.privacy_report().as_text()}"
    )


def _dealt(sent: str, number: int) -> bool:
    answers = [json.loads(line) for line in sent.splitlines(keepends=True) if line.endswith("\n")]
    return any((answer["kind"], answer["round"]) == ("share", number) for answer in answers)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # not yet, or no longer
        return ""


def test_a_device_that_was_cut_off_does_not_come_back(place: Place, tmp_path: Path) -> None:
    """Killed between charge and end: the keys are gone, the charge stays, the next call says so in the book."""
    client = place.client(tmp_path)
    store_of(client).put("training/" + "ab" * 16, b'{"state": "charged", "identity": "00", "node_key": ""}')
    Book(store_of(client)).note("charged", time.time() - 1e6, campaign="ab" * 16, epsilon=3.0, delta=1e-6)
    # It is dated no earlier than the newest signature, which came just now.
    cast(FakePlatform, client._state.setup.platform).pass_time(2 * 86_400)
    like(client, [1, 2, 3, 4])
    assert client.train_if_eligible(NOW_CONDITIONS, 0).reason == "there is no campaign now"
    assert "training/" + "ab" * 16 not in store_of(client).names()
    assert [entry["what"] for entry in Book(store_of(client)).entries()][:2] == ["charged", "cut off"]
    assert client.privacy_report().lifetime.epsilon == 3.0


def test_a_campaign_without_secure_aggregation_is_refused(place: Place) -> None:
    plain = config().model_copy(
        update={"privacy": config().privacy.model_copy(update={"aggregator": "plain", "insecure": True})}
    )
    with pytest.raises(ConfigError, match="no one should see"):
        Campaign.open(place.book, place.registry, plain, place.keys)


def test_a_device_runs_no_app_of_the_operators(sessions: Sessions, tmp_path: Path) -> None:
    """SuperLink has another bundle than the signed task names: nothing of it runs beside the user's store."""
    store = tmp_path / "store"
    store.mkdir()
    (store / "store.key").write_bytes(b"the user's")
    public = make_node_key(tmp_path / "key").read_text()
    identities = [Identity.create() for _ in range(4)]
    federation = Federation.admit(tmp_path / "federation", [public])
    task = {
        "node": node_parts(4, identities),
        "superlink": f"127.0.0.1:{federation.record.gateway_port}",
        "superlink_ca": federation.parts.ca.read_text(),
        "bundle": BUNDLE,
        "rounds": 2,
    }
    try:
        with ThreadPoolExecutor(1) as pool:
            app = foreign_app.write(tmp_path / "app", look=store)
            asked = pool.submit(foreign_app.ask, federation, app, tmp_path, look=store)
            outcome = run_task(
                task,
                item_ids=ITEM_IDS,
                history=[1, 2, 3],
                identity=identities[0].secret,
                node_key=(tmp_path / "key").read_text(),
                deadline_seconds=150,
                stopped=asked.done,
            )
            assert asked.result() == [{"code": REFUSED, "reason": FOREIGN}]
    finally:
        federation.down()
        federation.forget()
    assert outcome.bytes_up == 0 and outcome.rounds == 0
    assert outcome.log.count("refused a message") == 1 and "nothing of it was run" in outcome.log
    assert [path.name for path in store.iterdir()] == ["store.key"]
    assert not sessions.processes() and not sessions.folders()
