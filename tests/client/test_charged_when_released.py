"""When a session pays, with its real processes: killed at each step, refused the charge, left alone.

The device under test is an app in a process of its own with its store on disk and a session of `run_task`; three
other devices are threads here, and a real coordinator asks all four over their sockets.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from session_helpers import Sessions, own_sessions
from test_training_session import CAMPAIGN, DAY, FOR_FOUR, READY, payload, prepared, service_with_items, until
from test_training_worker import HISTORIES, ROUNDS
from training_helpers import Device, Devices, Fate, node_parts, write_task

from fedrec.core.errors import FedrecError, StoreFull
from fedrec.core.messages import Failure, Request
from fedrec.secagg.roster import Identity
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_client import Client, Consent
from fedrec_client.node.forward import SENT, SOCKET
from fedrec_client.terms.participation import Book
from fedrec_client.terms.results import TrainingReport
from fedrec_client.testing import FakePlatform, FakeService, make_client, store_of
from fedrec_client.training import _run_task as run_task
from fedrec_client.training import enrolments, session
from fedrec_client.training._charging import DATALESS, READING, is_release
from fedrec_server.rounds.coordinator import open_coordinator

PASSPHRASE = "correct horse"
NODE = Path("node")


# What is a release -----------------------------------------------------------------------------------------


def test_what_is_charged() -> None:
    """Everything is a release that is not known to be none, new kinds of questions as well."""
    for kind in DATALESS:
        assert not is_release(kind, refused=False) and not is_release(kind, refused=True)
    for kind in READING:
        assert is_release(kind, refused=False) and is_release(kind, refused=True)
    for kind in ("share", "confirm", "unmask", "something new"):
        assert is_release(kind, refused=False) and not is_release(kind, refused=True)


def test_a_device_pays_after_its_public_keys_and_before_its_share(tmp_path: Path) -> None:
    federation = Four(tmp_path)
    federation.run()
    for device in federation.devices:
        (noted,) = device.charges
        kinds = [json.loads(line)["kind"] for line in device.sent]
        assert set(kinds[:noted]) == {"hello", "advertise"} and kinds[noted] == "share"
    federation.end()


def test_a_device_that_may_not_pay_answers_nothing_any_more(tmp_path: Path) -> None:
    federation = Four(tmp_path)
    poor = federation.devices[3]
    poor.refuses = StoreFull("no more")
    outcome = federation.run()
    assert outcome.finished and not poor.charges
    assert {json.loads(line)["kind"] for line in poor.sent} == {"hello", "advertise"}
    assert not (poor.folder / SOCKET).exists()
    assert all(json.loads(line)["secagg"]["nodes"] == 3 for line in federation.records())
    federation.end()


def test_a_question_that_reads_the_history_is_paid_for_even_when_it_is_refused(tmp_path: Path) -> None:
    """A model without a secure sum around it: the node looks before it refuses."""
    federation = Four(tmp_path)
    device = federation.devices[0]
    exchange = Devices([device])
    for kind in ("hello", "share", "confirm", "unmask", "nonsense"):
        exchange.exchange({"0": Request(kind, 1)}, 5)  # type: ignore[arg-type]
        assert not device.charges
    answer = exchange.exchange({"0": Request("train", 1, "refit", {}, {"secagg/attempt": 1})}, 5)
    assert isinstance(answer["0"], Failure) and len(device.charges) == 1
    federation.end()


class Four:
    """Four devices of this process and their coordinator."""

    def __init__(self, folder: Path) -> None:
        identities = [Identity.create() for _ in HISTORIES]
        parts = node_parts(len(identities), identities)
        self._folder = folder / "coordinator"
        self.devices = [
            Device(folder / str(k), parts, identity, HISTORIES[k]) for k, identity in enumerate(identities)
        ]
        write_task(self._folder, len(identities), identities, ROUNDS)

    def run(self) -> Any:
        return open_coordinator(self._folder, Devices(self.devices)).run()

    def records(self) -> list[str]:
        return (self._folder / "rounds.jsonl").read_text().splitlines()

    def end(self) -> None:
        for device in self.devices:
            device.end()


# The app in a process of its own ---------------------------------------------------------------------------


def app(folder: Path, ram: Path, superlink: str, point: str) -> None:
    """What the process of the app does; it says its public key, is told the others', and takes part."""
    service = service_with_items()
    save_keys(service, folder)
    client = prepared(opened(folder, service))
    client.train_if_eligible(READY, 0)
    say(service.enrolments[0].identity.hex())
    others = [Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key))) for key in heard()]
    parts = node_parts(4, [*others, _Public(service.enrolments[0].identity)])  # type: ignore[list-item]
    task = payload(service, node=parts, superlink=superlink)
    service.give_task(CAMPAIGN, task)
    run_task.RAM = ram
    threading.Thread(target=lambda: heard() and service.over.add(CAMPAIGN), daemon=True).start()
    kill_at(point)
    report = client.train_if_eligible(READY, 120)
    say([report.joined, report.rounds, report.epsilon_spent, report.reason])


class _Public:
    def __init__(self, public: bytes) -> None:
        self.public = public


def kill_at(point: str) -> None:
    """Die at a moment inside the app that nothing outside can see."""

    def die(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    charge = session.Session._charge
    if point == "before the charge is written":
        session.Session._charge = die  # type: ignore[method-assign]
    elif point == "before the charge is told":
        session.Session._charge = lambda *given: (charge(*given), die())[0]  # type: ignore[method-assign]
    elif point == "before the end is noted":
        session.Session._end = die  # type: ignore[method-assign]


def save_keys(service: FakeService, folder: Path) -> None:
    service.offline_keys.save(folder / "keys", PASSPHRASE)
    service.online_keys.save(folder / "keys")


def load_keys(folder: Path) -> tuple[OfflineKeys, OnlineKeys]:
    return OfflineKeys.load(folder / "keys", PASSPHRASE), OnlineKeys.load(folder / "keys")


def say(value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def heard() -> Any:
    return json.loads(sys.stdin.readline() or "null")


def opened(folder: Path, service: FakeService, platform: FakePlatform | None = None) -> Client:
    return Client.open(
        folder,
        population="films",
        trust=service.trust,
        server=service,
        platform=platform or FakePlatform(),
        policy=FOR_FOUR,
        passphrase=PASSPHRASE,
    )


class AppDevice:
    """The app's device as the coordinator sees it; ends with `kill`.

    Attributes:
        folder: where its node listens.
        gone: it answers no more.
        identity: its public key.
    """

    def __init__(self, folder: Path, sessions: Sessions, superlink: str, point: str = "") -> None:
        code = f"import sys; sys.path[:0] = {sys.path!r}; from pathlib import Path; "
        code += "import test_charged_when_released as t; "
        code += f"t.app(Path({str(folder)!r}), Path({str(sessions.ram)!r}), {superlink!r}, {point!r})"
        self.gone, self.sent, self._sessions = False, [], sessions
        self._app = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.identity = bytes.fromhex(self.hears())

    def begin(self, others: list[Identity]) -> None:
        assert self._app.stdin is not None
        self._app.stdin.write(json.dumps([each.secret.hex() for each in others]) + "\n")
        self._app.stdin.flush()

    def hears(self) -> Any:
        assert self._app.stdout is not None
        return json.loads(self._app.stdout.readline())

    @property
    def folder(self) -> Path:
        until(lambda: any((each / NODE / SOCKET).exists() for each in self._sessions.folders()), 60)
        (only,) = self._sessions.folders()
        return only / NODE

    def end_campaign(self) -> None:
        assert self._app.stdin is not None
        self._app.stdin.write("true\n")
        self._app.stdin.flush()

    def kinds(self) -> list[str]:
        return [json.loads(line)["kind"] for line in (self.folder / SENT).read_text().splitlines()]

    def vanish(self) -> None:
        self.gone = True
        self.kill()

    def kill(self) -> None:
        """SIGKILL for the app; its session dies with it."""
        self._app.kill()
        self.ended()
        until(lambda: not self._sessions.processes() and not self._sessions.folders(), 10)

    def ended(self) -> int:
        code = self._app.wait(60)
        for stream in (self._app.stdin, self._app.stdout):
            assert stream is not None
            stream.close()
        return code


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    with own_sessions() as made:
        yield made


@pytest.fixture
def superlink() -> Iterator[str]:
    """Something that can be reached and says nothing, as long as a test needs it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


class EnoughSeen(Exception):  # noqa: N818 - no error
    """The campaign need not go on for this test."""


def campaign(folder: Path, device: AppDevice, fate: Fate) -> Any:
    """Three devices of this process and the app's, asked by a coordinator until it or a fate ends it."""
    others = [Identity.create() for _ in range(3)]
    members = [*others, _Public(device.identity)]
    parts = node_parts(4, members)  # type: ignore[arg-type]
    three = [Device(folder / f"d{k}", parts, each, HISTORIES[k]) for k, each in enumerate(others)]
    write_task(folder / "coordinator", 4, members, ROUNDS)  # type: ignore[arg-type]
    device.begin(others)
    try:
        exchange = Devices([*three, device], fate)  # type: ignore[list-item]
        return open_coordinator(folder / "coordinator", exchange).run()
    except EnoughSeen:
        return None
    finally:
        for each in three:
            each.end()


KILLS = [
    ("hello", 0, "before", False),
    ("advertise", 1, "before", False),
    ("advertise", 1, "after", False),
    ("share", 1, "before", False),
    ("share", 1, "after", True),
    ("train", 1, "after", True),
    ("unmask", 2, "after", True),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "round_", "when", "charged"), KILLS)
def test_killed_at_a_step_a_device_has_paid_for_what_it_released(
    tmp_path: Path, sessions: Sessions, superlink: str, kind: str, round_: int, when: str, charged: bool
) -> None:
    device = AppDevice(tmp_path, sessions, superlink)

    def fate(place: int, asked: str, number: int, at: str) -> bool:
        if (place, asked, number, at) == (3, kind, round_, when):
            assert device.folder  # its session has begun
            device.kill()
            raise EnoughSeen
        return False

    assert campaign(tmp_path, device, fate) is None
    reopened(tmp_path, device.identity, charged=charged)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "charged"), [("before the charge is written", False), ("before the charge is told", True)]
)
def test_killed_while_it_pays_a_device_has_released_nothing(
    tmp_path: Path, sessions: Sessions, superlink: str, point: str, charged: bool
) -> None:
    """Its share was made and waits: without the answer it never reaches the processes that have the connection."""
    device = AppDevice(tmp_path, sessions, superlink, point)
    seen: list[str] = []

    def fate(place: int, asked: str, number: int, at: str) -> bool:
        if place == 3 and at == "after":
            seen.append(asked)
        if place == 3 and device._app.poll() is not None:
            device.gone = True
        if asked == "train":
            raise EnoughSeen
        return False

    assert campaign(tmp_path, device, fate) is None
    assert set(seen) == {"hello", "advertise"}
    assert device.ended() == -signal.SIGKILL
    until(lambda: not sessions.processes() and not sessions.folders(), 10)
    reopened(tmp_path, device.identity, charged=charged)


def reopened(folder: Path, identity: bytes, *, charged: bool) -> None:
    """The device after it was killed: what it paid, that its keys are gone, and what both sides know."""
    service = service_with_items(load_keys(folder))
    platform = FakePlatform()
    with opened(folder, service, platform) as client:
        told, book = client.privacy_report(), Book(store_of(client))
        assert not store_of(client).names(enrolments.KEYS)  # from the opening on
        epsilon = [entry["epsilon"] for entry in told.charged]
        assert (told.lifetime.epsilon, told.lifetime.campaigns) == (sum(epsilon), int(charged))
        assert [entry["what"] for entry in told.left] == ["cut off"] * charged
        assert [entry["reason"] for entry in told.ended] == [enrolments.CUT_OFF] * (not charged)
        assert ("Nothing has left this device." in told.as_text()) == (not charged)
        platform.pass_time(2 * DAY)
        assert "not started yet" in client.train_if_eligible(READY, 0).reason
        assert service.left == [(CAMPAIGN, identity)]
        assert service.enrolments[-1].identity != identity
        assert book.spent().campaigns == int(charged)


@pytest.mark.slow
def test_a_device_that_does_its_part_pays_once_and_says_so(
    tmp_path: Path, sessions: Sessions, superlink: str
) -> None:
    device = AppDevice(tmp_path, sessions, superlink)
    outcome = campaign(tmp_path, device, lambda *_: False)
    assert outcome.finished
    device.end_campaign()
    joined, rounds, epsilon, reason = device.hears()
    assert (joined, rounds, reason) == (True, 2, "done") and epsilon > 0
    assert device.ended() == 0


# Left alone ------------------------------------------------------------------------------------------------


class Alone:
    """A device of this process whose session no one asks anything."""

    def __init__(self, folder: Path, superlink: str) -> None:
        self.service = service_with_items()
        self.client = prepared(make_client(folder, self.service, policy=FOR_FOUR))
        self.client.train_if_eligible(READY, 0)
        task = payload(self.service, superlink=superlink)
        self.service.give_task(CAMPAIGN, task)

    def ends(self, sessions: Sessions, act: Callable[[], Any] = lambda: None) -> TrainingReport:
        """The report of a session, during which something happens as soon as its node listens."""
        with ThreadPoolExecutor(1) as pool:
            joined: Future[TrainingReport] = pool.submit(self.client.train_if_eligible, READY, 120)
            until(lambda: any((each / NODE / SOCKET).exists() for each in sessions.folders()), 60)
            act()
            report = joined.result(60)
        assert not sessions.processes() and not sessions.folders()
        assert (report.joined, report.rounds, report.epsilon_spent) == (False, 0, 0.0)
        assert not store_of(self.client).names(enrolments.KEYS)
        told = self.client.privacy_report()
        assert told.lifetime.epsilon == 0 and not told.left
        assert [entry["reason"] for entry in told.ended] == [report.reason]
        assert self.service.left == [(CAMPAIGN, self.service.enrolments[0].identity)]
        return report


@pytest.mark.slow
def test_a_superlink_that_cannot_be_reached_ends_a_session(tmp_path: Path, sessions: Sessions) -> None:
    assert "cannot be reached" in Alone(tmp_path, "127.0.0.1:9").ends(sessions).reason


@pytest.mark.slow
def test_a_coordinator_that_never_comes_ends_a_session(
    tmp_path: Path, sessions: Sessions, superlink: str
) -> None:
    """The service knows that the campaign has ended, or that its operator's process is gone, and is asked."""
    device = Alone(tmp_path, superlink)
    report = device.ends(sessions, lambda: device.service.over.add(CAMPAIGN))
    assert report.reason == "the campaign is over"


@pytest.mark.slow
def test_a_service_that_does_not_answer_ends_no_session(
    tmp_path: Path, sessions: Sessions, superlink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, asked = Alone(tmp_path, superlink), threading.Event()

    def offline(*_: Any) -> bool:
        asked.set()
        raise FedrecError("no network")

    monkeypatch.setattr(device.service, "goes_on", offline)

    def act() -> None:
        assert asked.wait(30)
        device.client.stop_training()

    assert device.ends(sessions, act).reason == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stop", "withdraw", "kill"])
def test_a_session_that_ends_before_the_rendezvous_costs_nothing(
    tmp_path: Path, sessions: Sessions, superlink: str, way: str
) -> None:
    device = Alone(tmp_path, superlink)
    acts: dict[str, Callable[[], Any]] = {
        "stop": device.client.stop_training,
        "withdraw": lambda: device.client.set_consent(Consent()),
        "kill": lambda: [sessions.kill(folder) for folder in sessions.folders()],
    }
    report = device.ends(sessions, acts[way])
    assert ("ended by itself" in report.reason) if way == "kill" else report.reason == "stopped"
