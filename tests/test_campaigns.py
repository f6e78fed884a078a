"""The book of campaigns: who may enrol, who gets a task, what survives a crash; and its commands."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from wire_helpers import POPULATION, keys

from fedrec.errors import ConfigError, RegistryError
from fedrec.secagg.roster import Identity
from fedrec_server.campaigns import ENROLMENTS, CampaignBook
from fedrec_server.registry import Registry
from fedrec_server.service.campaigns import Campaigns
from fedrec_simulations.campaigns import Campaign
from fedrec_simulations.cli.app import run as cli
from fedrec_simulations.config import parse_config


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
    with pytest.raises(RegistryError, match="full"):
        book.enrol(campaign, *devices[3], 1)
    assert [device.identity for device in book.close(campaign)] == [each.hex() for each, _ in devices[:3]]
    with pytest.raises(RegistryError, match="closed"):
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
    book.enrol(campaign, identity(), f"{key} somebody's phone\n{node_key()}", 1)
    assert [device.node_key for device in book.roster(campaign)] == [key]


@given(st.text(max_size=300))
def test_no_text_as_a_key_is_a_surprise(text: str) -> None:
    from fedrec_server.campaigns import _one_form

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
    assert cli(["campaign", "list", "--campaigns", folder, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["campaigns"]
    assert (told["campaign"], told["devices"], told["closed"]) == (campaign, 1, False)
    assert cli(["campaign", "list", "--campaigns", folder]) == 0
    assert campaign in capsys.readouterr().out


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


def test_a_campaign_without_a_champion_or_devices_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys()[1].save(tmp_path / "keys" / POPULATION / "online")
    arguments = ["campaign", "run", "movietweetings-dp-ease", "--population", POPULATION]
    arguments += ["--keys", str(tmp_path / "keys"), "--registry", str(tmp_path / "models")]
    assert cli([*arguments, "--campaigns", str(tmp_path / "campaigns")]) == 20
    assert "registry" in capsys.readouterr().err
    assert cli([*arguments, "--devices", "2"]) == 2
