"""Devices of an app train together for real: SDK, service, campaign, SuperLink, secure aggregation, new model."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fedrec.errors import ConfigError, FedrecError
from fedrec.processes import MARK
from fedrec.ranking.items import Items
from fedrec.ranking.popular import Popular
from fedrec.secagg.roster import Identity
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import TASK, RootKey, RoundKey
from fedrec_client import Client, Conditions, Consent, MemoryStore, Policy
from fedrec_client.grpc_transport import GrpcTransport
from fedrec_client.participation import Book
from fedrec_client.testing import FakePlatform
from fedrec_client.training.forward import SENT
from fedrec_client.training.run_task import RAM
from fedrec_server.campaigns import CampaignBook
from fedrec_server.certificates import make_node_key
from fedrec_server.registry import Registry
from fedrec_server.service.server import Service
from fedrec_simulations.campaigns import Campaign
from fedrec_simulations.config import Config, parse_config

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
DEVICES, ITEMS = 4, 30
RUN = "FEDREC_TEST_RUN"
#: Four people cannot hide among each other: a real app's policy refuses this, and so does the test below.
FOR_FOUR = Policy(min_cohort=4, max_epsilon_period=1e4, max_epsilon_lifetime=1e4)
NOW_CONDITIONS = Conditions(min_events=3)


def config(**rounds: float) -> Config:
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
            },
            "federation": {
                "nodes": DEVICES,
                "wait_seconds": 60,
                "deadline_seconds": 60,
                "stage_seconds": 30,
                **rounds,
            },
        },
        (),
        "test",
    )


@pytest.fixture(scope="module", autouse=True)
def _named_run() -> Iterator[None]:
    """A word in the environment that every process of this module inherits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUN, secrets.token_hex(8))
        yield


class Place:
    """An operator's side: registry with a champion, service, campaigns."""

    def __init__(self, folder: Path) -> None:
        now = time.time()
        self.root = RootKey.generate()
        self.key = RoundKey.generate(
            self.root, "films", serial=1, not_before=now - 60, not_after=now + 86_400
        )
        self.registry = Registry.create(folder / "models", "films", self.root.public)
        self.book = CampaignBook(folder / "campaigns")
        items = Items.of([f"film-{k:02d}" for k in range(ITEMS)], [f"Film {k}" for k in range(ITEMS)])
        popular = Popular(np.linspace(1, 0, ITEMS, dtype=np.float32))
        made = self.registry.publish(pack_model(popular, items, {}), Terms(0, int(now)), self.key)
        self.registry.promote(made.version)
        self.service = Service.start([self.registry], None, campaigns=self.book)

    def client(self, folder: Path, policy: Policy = FOR_FOUR) -> Client:
        made = Client.open(
            folder,
            population="films",
            trust=self.root.public,
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


def test_devices_train_together_and_their_lists_change(place: Place, tmp_path: Path) -> None:
    """Everybody likes the same rare films; afterwards they lead the list of somebody who likes one of them."""
    clients = [place.client(tmp_path / str(k)) for k in range(DEVICES)]
    liked = [20, 21, 22, 23, 24]
    for k, client in enumerate(clients):
        like(client, [film for film in liked if film != 20 + k])
    before = [each.item for each in clients[0].recommend(5)]
    assert before[0] == "film-00"
    campaign = Campaign.open(place.book, place.registry, config(), place.key)
    with ThreadPoolExecutor(DEVICES + 1) as pool:
        sessions = [pool.submit(client.train_if_eligible, NOW_CONDITIONS, 150) for client in clients]
        campaign.await_devices(DEVICES, 30)
        made = pool.submit(campaign.run).result()
        reports = [session.result() for session in sessions]
    assert made.version == 2 and made.privacy["unit"] == "user" and made.privacy["epsilon"] <= 5000
    for client, report in zip(clients, reports, strict=True):
        assert report.joined and report.rounds >= 1 and report.bytes_up > 1000, report
        assert report.reason == "done"
        told = client.privacy_report()
        assert told.lifetime.epsilon == pytest.approx(report.epsilon_spent) and report.epsilon_spent <= 5000
        assert told.bytes_up == report.bytes_up and "only the sum over all devices" in told.as_text()
        assert not client._store.names("training/")
        assert client.check_for_update() is not None
    after = [each.item for each in clients[0].recommend(5)]
    assert after[0] == "film-20" and after != before
    assert place.registry.verify() == {1: "good", 2: "good"}
    assert not list(RAM.glob("fedrec-*"))


def test_a_policy_refuses_what_a_device_should_not_join(place: Place, tmp_path: Path) -> None:
    """The default policy, a task signed by the operator all the same: nothing leaves, nothing is charged."""
    careful = place.client(tmp_path / "careful", Policy())
    like(careful, [1, 2, 3, 4])
    campaign = Campaign.open(place.book, place.registry, config(), place.key)
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
        "rounds": 2,
    }
    items = "\0".join(place.registry.open(payload["model_version"]).items.ids).encode()  # type: ignore[arg-type]
    payload["items"] = hashlib.sha256(items).hexdigest()
    campaign.book.give(campaign.id, place.key.sign(TASK, payload))
    report = careful.train_if_eligible(NOW_CONDITIONS, 5)
    assert not report.joined and report.epsilon_spent == 0
    for code in ("cohort", "budget"):
        assert f"{code}:" in report.reason
    assert careful.privacy_report().lifetime.epsilon == 0
    assert careful.privacy_report().refused and "refused to train" in careful.privacy_report().as_text()


def test_a_session_that_is_stopped_is_gone_at_once_and_stays_charged(place: Place, tmp_path: Path) -> None:
    client = place.client(tmp_path)
    like(client, [1, 2, 3, 4])
    impatient = config(wait_seconds=10, deadline_seconds=8, stage_seconds=8, max_abandoned=1)
    campaign = Campaign.open(place.book, place.registry, impatient, place.key)
    others = [place.client(tmp_path / str(k)) for k in range(3)]
    for other in others:
        like(other, [5, 6, 7, 8])
    with ThreadPoolExecutor(5) as pool:
        session = pool.submit(client.train_if_eligible, NOW_CONDITIONS, 120)
        rest = [pool.submit(other.train_if_eligible, NOW_CONDITIONS, 120) for other in others]
        campaign.await_devices(4, 30)
        run = pool.submit(campaign.run)
        while not Book(client._store).entries("charged"):
            assert not session.done(), session.result()
            time.sleep(0.05)
        time.sleep(3)
        told = time.monotonic()
        client.set_consent(Consent())
        report = session.result()
        assert time.monotonic() - told < 1.0
        assert report.reason == "stopped" and report.epsilon_spent > 0
        for other in others:
            other.stop_training()
        for each in rest:
            each.result()
        with pytest.raises(FedrecError):
            run.result()
    assert client.privacy_report().lifetime.epsilon == report.epsilon_spent
    assert place.registry.verify()[1] == "good"
    assert not _left()


def test_a_device_killed_in_mid_round_costs_its_update_and_no_more(place: Place, tmp_path: Path) -> None:
    """kill -9 for one of four after it dealt its shares: three finish, the dead one stays charged."""
    clients = [place.client(tmp_path / str(k)) for k in range(DEVICES)]
    for client in clients:
        like(client, [10, 11, 12, 13])
    version = place.registry.aliases.champion
    hasty = config(deadline_seconds=20, stage_seconds=10)
    three_are_enough = hasty.model_copy(
        update={"privacy": hasty.privacy.model_copy(update={"survivors": 0.75})}
    )
    campaign = Campaign.open(place.book, place.registry, three_are_enough, place.key)
    with ThreadPoolExecutor(DEVICES + 1) as pool:
        sessions = [pool.submit(client.train_if_eligible, NOW_CONDITIONS, 150) for client in clients]
        campaign.await_devices(DEVICES, 30)
        run = pool.submit(campaign.run)
        while not (dealt := [p for p in RAM.glob(f"fedrec-*/node/{SENT}") if '"share"' in p.read_text()]):
            assert not run.done(), run.result()
            time.sleep(0.05)
        for process in _processes(str(dealt[0].parent.parent)):
            os.kill(process, signal.SIGKILL)
        made = run.result()
        reports = [session.result() for session in sessions]
    assert made.version > version and place.registry.verify()[made.version] == "good"
    finished = [report for report in reports if report.reason == "done"]
    (dead,) = [report for report in reports if report.reason != "done"]
    assert len(finished) == DEVICES - 1 and all(report.rounds == 2 for report in finished)
    assert "ended by itself" in dead.reason and dead.rounds <= 1
    assert dead.epsilon_spent == finished[0].epsilon_spent > 0
    records = (campaign.folder / "run" / "coordinator" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(record)["secagg"]["nodes"] for record in records] == [3, 3]
    assert not _left()


def _processes(folder: str) -> list[int]:
    """Of a session, by its folder, which stands in their command lines."""
    lines = {path.parent.name: _read(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [int(pid) for pid, line in lines.items() if folder.encode() in line]


def _left() -> list[Path]:
    """Processes of sessions that this test run started, and nobody else's on this machine."""
    mark, ours = f"{MARK}=session-".encode(), f"{RUN}={os.environ[RUN]}".encode()
    found = [(path, _read(path)) for path in Path("/proc").glob("[0-9]*/environ")]
    return [path for path, told in found if mark in told and ours in told]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_a_device_that_was_cut_off_does_not_come_back(place: Place, tmp_path: Path) -> None:
    """Killed between charge and end: the keys are gone, the charge stays, the next call says so in the book."""
    client = place.client(tmp_path)
    client._store.put("training/" + "ab" * 16, b'{"state": "started", "identity": "00", "node_key": ""}')
    Book(client._store).note("charged", time.time() - 1e6, campaign="ab" * 16, epsilon=3.0, delta=1e-6)
    like(client, [1, 2, 3, 4])
    assert client.train_if_eligible(NOW_CONDITIONS, 0).reason == "there is no campaign now"
    assert "training/" + "ab" * 16 not in client._store.names()
    assert [entry["what"] for entry in Book(client._store).entries()][:2] == ["charged", "cut off"]
    assert client.privacy_report().lifetime.epsilon == 3.0


def test_a_campaign_without_secure_aggregation_is_refused(place: Place) -> None:
    plain = config().model_copy(
        update={"privacy": config().privacy.model_copy(update={"aggregator": "plain", "insecure": True})}
    )
    with pytest.raises(ConfigError, match="nobody should see"):
        Campaign.open(place.book, place.registry, plain, place.key)
