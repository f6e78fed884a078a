"""The book of campaigns: who may enrol, who gets a task, what survives a crash; and its commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import operate
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from wire_helpers import NOW, POPULATION, keys

from fedrec.core.errors import CampaignOver, ConfigError, RegistryError, ServiceError
from fedrec.ranking.items import Items
from fedrec.ranking.popular import Popular
from fedrec.secagg.roster import Identity
from fedrec.wire.leaving import sign_leaving
from fedrec.wire.package import Terms, pack_model
from fedrec_client.updates.grpc_transport import GrpcTransport
from fedrec_client.updates.transport import Enrolment
from fedrec_server.operations.campaign_book import DONE, ENROLMENTS, LEFT, STATE, CampaignBook
from fedrec_server.operations.campaigns import Campaign
from fedrec_server.registry import Registry
from fedrec_server.service._campaigns import Campaigns
from fedrec_server.service.server import Service
from fedrec_simulations.experiments.config import parse_config


def node_key(curve: ec.EllipticCurve | None = None) -> str:
    public = ec.generate_private_key(curve or ec.SECP384R1()).public_key()
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def identity() -> bytes:
    return Identity.create().public


@pytest.fixture
def book(tmp_path: Path) -> CampaignBook:
    return CampaignBook(tmp_path / "campaigns")


def test_a_book_is_what_the_service_asks_for(book: CampaignBook) -> None:
    served: Campaigns = book
    assert served.open_for(POPULATION) == ""
    campaign = book.open(POPULATION, 10)
    assert served.open_for(POPULATION) == campaign and served.open_for("books") == ""
    book.close(campaign)
    assert served.open_for(POPULATION) == ""


def test_enrolling_twice_changes_nothing_and_a_key_belongs_to_one_device(book: CampaignBook) -> None:
    campaign, mine, key = book.open(POPULATION, 10), identity(), node_key()
    book.enrol(campaign, mine, key, 1)
    book.enrol(campaign, mine, key, 1)
    book.enrol(campaign, mine, f"{key} a comment", 1)
    assert len(book.roster(campaign)) == 1
    for other, other_key in ((mine, node_key()), (identity(), key), (identity(), f"{key} renamed")):
        with pytest.raises(RegistryError, match="new keys"):
            book.enrol(campaign, other, other_key, 1)
    other = book.open(POPULATION, 10)
    book.enrol(other, mine, key, 1)
    assert len(book.roster(campaign)) == len(book.roster(other)) == 1


def test_a_roster_has_an_end(book: CampaignBook) -> None:
    campaign = book.open(POPULATION, 3)
    devices = [(identity(), node_key()) for _ in range(4)]
    for each, key in devices[:3]:
        book.enrol(campaign, each, key, 1)
    with pytest.raises(CampaignOver, match="full"):
        book.enrol(campaign, *devices[3], 1)
    assert [device.identity for device in book.close(campaign)] == [each.hex() for each, _ in devices[:3]]
    with pytest.raises(CampaignOver, match="closed"):
        book.enrol(campaign, *devices[3], 1)
    book.enrol(campaign, *devices[0], 1)  # it is on the roster already: its answer was lost
    for unknown in ("ab" * 16, "..", "", "../campaigns"):
        with pytest.raises(RegistryError, match="no campaign"):
            book.enrol(unknown, *devices[0], 1)


def test_the_task_is_for_the_roster_alone(book: CampaignBook) -> None:
    campaign, mine = book.open(POPULATION, 10), identity()
    book.enrol(campaign, mine, node_key(), 1)
    assert book.task(campaign, mine) is None
    book.close(campaign)
    assert book.task(campaign, mine) is None
    book.give(campaign, b'{"rounds":2}')
    assert CampaignBook(book.folder(campaign).parent).task(campaign, mine) == b'{"rounds":2}'
    with pytest.raises(RegistryError, match="not on the roster"):
        book.task(campaign, identity())


@pytest.mark.parametrize(
    "key",
    [
        f"ecdsa-sha2-nistp384 {'A' * 120}",
        "ecdsa-sha2-nistp384",
        node_key(ec.SECP256R1()),
        "",
    ],
    ids=["nonsense", "cut", "another curve", "empty"],
)
def test_a_key_that_would_stop_the_campaign_is_refused(book: CampaignBook, key: str) -> None:
    campaign = book.open(POPULATION, 10)
    with pytest.raises(RegistryError, match="P-384"):
        book.enrol(campaign, identity(), key, 1)
    assert not book.roster(campaign)


def test_nothing_but_one_key_is_kept_of_what_came(book: CampaignBook) -> None:
    campaign, key = book.open(POPULATION, 10), node_key()
    book.enrol(campaign, identity(), f"{key} someone's phone\n{node_key()}", 1)
    assert [device.node_key for device in book.roster(campaign)] == [key]


@given(st.text(max_size=300))
def test_no_text_as_a_key_is_a_surprise(text: str) -> None:
    from fedrec_server.operations.campaign_book import _one_form

    with pytest.raises(RegistryError):
        _one_form(f"ecdsa-sha2-nistp384 {text}")


def test_what_a_crash_cut_off_was_never_acknowledged(book: CampaignBook) -> None:
    campaign, first, second = book.open(POPULATION, 10), identity(), identity()
    book.enrol(campaign, first, node_key(), 1)
    path = book.folder(campaign) / ENROLMENTS
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    again = CampaignBook(book.folder(campaign).parent)
    assert [device.identity for device in again.roster(campaign)] == [first.hex()]
    again.enrol(campaign, second, node_key(), 1)
    assert [device.identity for device in again.roster(campaign)] == [first.hex(), second.hex()]


# Leaving, and the end ---------------------------------------------------------------------------------------


def test_a_device_that_leaves_an_open_roster_is_forgotten(book: CampaignBook) -> None:
    campaign, device, other = book.open(POPULATION, 2), Identity.create(), identity()
    book.enrol(campaign, device.public, node_key(), 1)
    book.enrol(campaign, other, node_key(), 1)
    for _ in range(2):  # told again, nothing changes
        book.leave(campaign, device.public, sign_leaving(device.secret, campaign))
        assert [each.identity for each in book.roster(campaign)] == [other.hex()] and not book.left(campaign)
    book.enrol(campaign, identity(), node_key(), 1)  # its place is free
    assert len(book.close(campaign)) == 2


def test_a_closed_roster_stays_and_says_who_left(book: CampaignBook) -> None:
    campaign, device = book.open(POPULATION, 10), Identity.create()
    book.enrol(campaign, device.public, node_key(), 1)
    roster = book.close(campaign)
    for _ in range(2):
        book.leave(campaign, device.public, sign_leaving(device.secret, campaign))
    assert book.left(campaign) == {device.public.hex()} and book.roster(campaign) == roster
    assert len((book.folder(campaign) / LEFT).read_text().splitlines()) == 1


def test_no_one_else_can_say_that_a_device_left(book: CampaignBook) -> None:
    """Everyone on a roster knows all public keys of it."""
    campaign, elsewhere = book.open(POPULATION, 10), book.open(POPULATION, 10)
    device, other = Identity.create(), Identity.create()
    book.enrol(campaign, device.public, node_key(), 1)
    good = sign_leaving(device.secret, campaign)
    bad = [sign_leaving(other.secret, campaign), sign_leaving(device.secret, elsewhere), bytes(64), b""]
    bad += [good[:-1] + bytes([good[-1] ^ 1]), good[:-1], good + b"x"]
    for signature in bad:
        with pytest.raises(RegistryError, match="has not signed"):
            book.leave(campaign, device.public, signature)
    assert len(book.roster(campaign)) == 1
    book.leave(campaign, other.public, sign_leaving(other.secret, campaign))  # a stranger changes nothing
    for unknown in ("ab" * 16, "../campaigns", ""):
        book.leave(unknown, device.public, sign_leaving(device.secret, unknown))
    assert len(book.roster(campaign)) == 1 and not book.left(campaign)


def test_the_end_of_a_campaign_is_told_to_its_devices(book: CampaignBook) -> None:
    campaign, device = book.open(POPULATION, 10), identity()
    book.enrol(campaign, device, node_key(), 1)
    assert book.task(campaign, device) is None and not book.is_over(campaign)
    book.end(campaign, "2 nodes came")
    book.end(campaign, DONE)
    assert book.state(campaign).ended == "2 nodes came" and book.open_for(POPULATION) == ""
    with pytest.raises(CampaignOver):
        book.task(campaign, device)
    with pytest.raises(CampaignOver):
        book.enrol(campaign, identity(), node_key(), 1)


EXPERIMENT = Path(__file__).parents[2] / "simulations" / "experiments" / "movietweetings-dp-ease.toml"
HOLD = """
import sys; sys.path[:0] = {path!r}
import test_campaigns as t
from pathlib import Path
held = t.CampaignBook(Path({folder!r})).hold({campaign!r})
print("held", flush=True)
sys.stdin.read()
"""


def test_a_campaign_whose_operator_is_killed_is_over(book: CampaignBook) -> None:
    campaign, device = book.open(POPULATION, 10), identity()
    book.enrol(campaign, device, node_key(), 1)
    script = HOLD.format(path=sys.path, folder=str(book.folder(campaign).parent), campaign=campaign)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as operator:
        assert operator.stdout is not None and operator.stdout.readline() == b"held\n"
        assert book.task(campaign, device) is None and book.open_for(POPULATION) == campaign
        operator.kill()
        operator.wait()
    assert book.is_over(campaign) and book.open_for(POPULATION) == ""
    with pytest.raises(CampaignOver):
        book.task(campaign, device)


def test_a_service_tells_that_a_campaign_is_over_and_hears_who_leaves(
    book: CampaignBook, tmp_path: Path
) -> None:
    registry = Registry.create(tmp_path / "models", POPULATION, *keys())
    campaign, device = book.open(POPULATION, 10), Identity.create()
    with Service.start([registry], None, campaigns=book) as service:
        line = GrpcTransport(f"127.0.0.1:{service.port}", insecure=True)
        line.enrol(Enrolment(campaign, device.public, node_key()))
        assert line.goes_on(campaign, device.public)
        with pytest.raises(ServiceError):
            line.leave(campaign, device.public, bytes(64))
        book.close(campaign)
        line.leave(campaign, device.public, sign_leaving(device.secret, campaign))
        assert book.left(campaign) == {device.public.hex()}
        with pytest.raises(CampaignOver):
            line.enrol(Enrolment(campaign, identity(), node_key()))
        book.end(campaign, DONE)
        assert not line.goes_on(campaign, device.public)
        with pytest.raises(CampaignOver):
            line.task(campaign, device.public)
        line.close()


ENROL = """
import sys; sys.path[:0] = {path!r}
import test_campaigns as t
from pathlib import Path
book = t.CampaignBook(Path({folder!r}))
for _ in range(12):
    book.enrol({campaign!r}, t.identity(), t.node_key(), 1)
"""


def test_devices_enrol_at_once_in_threads_and_processes(book: CampaignBook) -> None:
    campaign = book.open(POPULATION, 1000)
    folder = str(book.folder(campaign).parent)
    script = ENROL.format(path=sys.path, folder=folder, campaign=campaign)
    others = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(book.enrol, campaign, identity(), node_key(), 1) for _ in range(24)]
        assert all(each.result() is None for each in done)
    assert all(other.wait(60) == 0 for other in others)
    roster = book.close(campaign)
    assert len({device.identity for device in roster}) == len(roster) == 24 + 2 * 12


def test_campaigns_are_listed(book: CampaignBook, capsys: pytest.CaptureFixture[str]) -> None:
    campaign = book.open(POPULATION, 10)
    book.enrol(campaign, identity(), node_key(), 1)
    folder = str(book.folder(campaign).parent)
    assert operate(*["campaign", "list", "--campaigns", folder, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["campaigns"]
    assert (told["campaign"], told["devices"], told["closed"]) == (campaign, 1, False)
    assert operate(*["campaign", "list", "--campaigns", folder]) == 0
    assert campaign in capsys.readouterr().out
    held = book.hold(campaign)
    seen = [_listed_state(folder, capsys)]
    book.close(campaign)
    seen.append(_listed_state(folder, capsys))
    held.close()
    seen.append(_listed_state(folder, capsys))
    book.end(campaign, "2 nodes came")
    seen.append(_listed_state(folder, capsys))
    assert seen == ["open", "closed", "dead", "failed"]


def _listed_state(folder: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert operate(*["campaign", "list", "--campaigns", folder, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["campaigns"]
    return str(told["state"])


RUN = """
import sys; sys.path[:0] = {path!r}
from cli_helpers import operate
sys.exit(operate(*{arguments!r}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_operator_who_interrupts_a_campaign_ends_it(tmp_path: Path, number: signal.Signals) -> None:
    offline, online = keys()
    online.save(tmp_path / "keys" / POPULATION / "online")
    registry = Registry.create(tmp_path / "models", POPULATION, offline, online)
    made = registry.publish(
        pack_model(Popular(np.ones(3, np.float32)), Items.of(["a", "b", "c"]), {}), Terms(0, NOW), online
    )
    registry.promote(made.version, online)
    arguments = ["campaign", "run", str(EXPERIMENT), "--population", POPULATION, "--devices", "3"]
    arguments += ["--keys", str(tmp_path / "keys"), "--registry", str(tmp_path / "models")]
    arguments += ["--campaigns", str(tmp_path / "campaigns")]
    arguments += ["--set", "privacy.metrics=none", "--set", "evaluation.held_data=false"]
    code = RUN.format(path=sys.path, arguments=arguments)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as operator:
        assert operator.stderr is not None
        while "0 of 3 devices enrolled" not in operator.stderr.readline():
            assert operator.poll() is None
        operator.send_signal(number)
        _, told = operator.communicate(timeout=60)
    assert operator.returncode == 130 and "Traceback" not in told, told
    book = CampaignBook(tmp_path / "campaigns")
    (campaign,) = [path.parent.name for path in (tmp_path / "campaigns").glob(f"*/{STATE}")]
    assert book.state(campaign).ended == "stopped" and book.open_for(POPULATION) == ""


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ({"kind": "neumf"}, "'neumf' cannot serve on a device"),
        ({"kind": "sasrec", "personal": {"level": "fedper"}}, "personal part"),
        ({"kind": "content", "features": 5}, r"model\.features is 5: devices have no such vectors"),
    ],
)
def test_a_model_that_devices_could_not_use_is_refused_before_they_enrol(
    book: CampaignBook, tmp_path: Path, model: dict[str, object], reason: str
) -> None:
    values = {
        "model": model,
        "data": {"features": {"parts": ["categories"]}} if "features" in model else {},
        "federation": {"clip_norm": 1.0},
        "privacy": {"unit": "none", "aggregator": "secagg"},
    }
    offline, online = keys()
    registry = Registry.create(tmp_path / "models", POPULATION, offline, online)
    with pytest.raises(ConfigError, match=reason):
        Campaign.open(book, registry, parse_config(values), online)
    assert not [*tmp_path.rglob(ENROLMENTS)]


@pytest.mark.parametrize(
    ("section", "key", "value", "reason"),
    [
        (
            "evaluation",
            "held_data",
            True,
            r"evaluation\.held_data is true: a campaign's data is on users' devices",
        ),
        ("privacy", "metrics", "noised", "devices hold nothing out"),
    ],
)
def test_a_campaign_evaluates_no_one(
    book: CampaignBook, tmp_path: Path, section: str, key: str, value: object, reason: str
) -> None:
    values: dict[str, dict[str, object]] = {
        "model": {"kind": "dp_ease"},
        "privacy": {"unit": "user", "epsilon": 3.0, "trust": "distributed"},
        "evaluation": {},
    }
    values[section][key] = value
    offline, online = keys()
    registry = Registry.create(tmp_path / "models", POPULATION, offline, online)
    with pytest.raises(ConfigError, match=reason):
        Campaign.open(book, registry, parse_config(values), online)
    assert not [*tmp_path.rglob(ENROLMENTS)]


def test_a_campaign_without_a_champion_or_devices_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys()[1].save(tmp_path / "keys" / POPULATION / "online")
    arguments = ["campaign", "run", str(EXPERIMENT), "--population", POPULATION]
    arguments += ["--keys", str(tmp_path / "keys"), "--registry", str(tmp_path / "models")]
    arguments += ["--set", "privacy.metrics=none", "--set", "evaluation.held_data=false"]
    assert operate(*[*arguments, "--campaigns", str(tmp_path / "campaigns")]) == 20
    assert "registry" in capsys.readouterr().err
    assert operate(*[*arguments, "--devices", "2"]) == 2
