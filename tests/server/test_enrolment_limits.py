"""Enrolment: one user per device, few devices of one address, single-use tokens of the app's login."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cli_helpers import operate
from hypothesis import given
from hypothesis import strategies as st
from service_helpers import Place, limits
from test_campaigns import identity, node_key
from wire_helpers import POPULATION

from fedrec.core.errors import CampaignOver, ServerBusy, ServiceError
from fedrec_client.updates.transport import Enrolment
from fedrec_server.network.refusals import Refused
from fedrec_server.operations.campaign_book import CampaignBook
from fedrec_server.service._quotas import DailyQuota
from fedrec_server.service.enrolments import (
    MAX_TOKEN_SECONDS,
    REMEMBERED_SECONDS,
    USED,
    EnrolmentGate,
    EnrolmentTokens,
    issue,
    read_key,
)

KEY = bytes(range(32))
NOW = 1_800_000_000.0


def fresh(seconds: float = 600, key: bytes = KEY, now: float | None = None) -> str:
    return issue(key, os.urandom(16), int((time.time() if now is None else now) + seconds))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("service"))


def device(campaign: str, **fields: object) -> Enrolment:
    return Enrolment(campaign, identity(), node_key(), **fields)  # type: ignore[arg-type]


def test_a_device_that_declares_many_users_is_refused(place: Place, tmp_path: Path) -> None:
    book = CampaignBook(tmp_path)
    campaign = book.open(POPULATION, 10)
    with place.start(campaigns=book) as running:
        transport = place.connect(running)
        for users in (0, 2, 1000, 2**31):
            with pytest.raises(ServiceError, match="users: expected 1"):
                transport.enrol(device(campaign, users=users))
        transport.enrol(device(campaign))
        transport.close()
    assert [each.users for each in book.roster(campaign)] == [1]


def test_one_address_enrols_a_few_devices_a_day_and_one_on_the_roster_costs_nothing(
    place: Place, tmp_path: Path
) -> None:
    book = CampaignBook(tmp_path)
    campaign, other = book.open(POPULATION, 100), book.open(POPULATION, 100)
    with place.start(limits(enrolments_per_address=3), campaigns=book) as running:
        transport = place.connect(running)
        devices = [device(campaign), device(campaign), device(other)]
        for each in (*devices, *devices, *devices):
            transport.enrol(each)
        for each in (device(campaign), device(other)):
            with pytest.raises(ServerBusy, match="too many enrolments"):
                transport.enrol(each)
        transport.enrol(devices[0])
        transport.close()
    assert len(book.roster(campaign)) == 2 and len(book.roster(other)) == 1


def test_all_addresses_together_have_a_day_as_well(place: Place, tmp_path: Path) -> None:
    book = CampaignBook(tmp_path)
    campaign = book.open(POPULATION, 100)
    gate = EnrolmentGate(book, DailyQuota(2, 5, 5))
    enrolled = 0
    for k in range(20):
        try:
            gate.enrol(campaign, identity(), node_key(), "", f"10.0.0.{k // 2}")
            enrolled += 1
        except Refused as refused:
            assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED and refused.retry
    assert enrolled == 5 == len(book.roster(campaign))


def test_without_a_token_of_the_login_no_device_enrols(place: Place, tmp_path: Path) -> None:
    book = CampaignBook(tmp_path)
    campaign = book.open(POPULATION, 100)
    good = fresh()
    nonce, end, code = good.split(".")
    with place.start(campaigns=book, tokens=EnrolmentTokens(KEY, tmp_path)) as running:
        transport = place.connect(running)
        bad = [
            "",
            "x",
            good[:-1],
            f"{nonce}.{end}.{code[::-1]}",
            f"{nonce}.{int(end) + 1}.{code}",
            f"{good} ",
        ]
        bad += [fresh(-5), fresh(MAX_TOKEN_SECONDS + 60), fresh(key=bytes(32)), good.upper(), f"{good}\n"]
        for token in bad:
            with pytest.raises(ServiceError, match="app's login"):
                transport.enrol(device(campaign, token=token))
        first = device(campaign, token=good)
        transport.enrol(first)
        transport.enrol(first)  # its answer was lost
        with pytest.raises(ServiceError, match="app's login"):
            transport.enrol(device(campaign, token=good))
        transport.enrol(device(campaign, token=fresh()))
        assert good not in repr(first)
        transport.close()
    assert len(book.roster(campaign)) == 2


def test_a_used_token_stays_used_after_a_restart_a_crash_and_for_other_processes(tmp_path: Path) -> None:
    token = fresh()
    tokens = EnrolmentTokens(KEY, tmp_path)
    known = tokens.nonce(token)
    assert known is not None and tokens.use(*known, "first") and tokens.use(*known, "first")
    assert not tokens.use(*known, "second")
    path = tmp_path / USED
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(path.read_bytes() + b'{"nonce": "cut o')
    for again in (EnrolmentTokens(KEY, tmp_path), tokens):
        assert not again.use(*known, "second") and again.use(*known, "first")
    other = tokens.nonce(fresh())
    assert other is not None and tokens.use(*other, "second")
    assert len(path.read_text().splitlines()) == 2


USE = """
import sys
from pathlib import Path
from fedrec_server.service.enrolments import EnrolmentTokens
tokens = EnrolmentTokens(bytes(range(32)), Path({folder!r}))
print(sum(tokens.use(f"{{k:032x}}", {end}, {name!r}) for k in range(20)))
"""


def test_a_token_is_good_for_one_of_many_devices_at_once(tmp_path: Path) -> None:
    end = int(time.time()) + 600
    scripts = [USE.format(folder=str(tmp_path), end=end, name=name) for name in ("a", "b")]
    others = [subprocess.Popen([sys.executable, "-c", s], stdout=subprocess.PIPE, text=True) for s in scripts]
    tokens = EnrolmentTokens(KEY, tmp_path)
    with ThreadPoolExecutor(8) as pool:
        here = sum(pool.map(lambda k: tokens.use(f"{k % 20:032x}", end, f"{k}"), range(80)))
    there = [int(other.communicate(timeout=60)[0]) for other in others]
    assert here + sum(there) == 20 == len((tmp_path / USED).read_text().splitlines())


def test_a_clock_that_is_put_back_revives_no_token(tmp_path: Path) -> None:
    now = [NOW]
    tokens = EnrolmentTokens(KEY, tmp_path, lambda: now[0])
    token = fresh(now=NOW)
    known = tokens.nonce(token)
    assert known is not None and tokens.use(*known, "first")
    now[0] = NOW + REMEMBERED_SECONDS - 3600
    EnrolmentTokens(KEY, tmp_path, lambda: now[0])
    now[0] = NOW
    assert not EnrolmentTokens(KEY, tmp_path, lambda: now[0]).use(*known, "second")
    now[0] = NOW + REMEMBERED_SECONDS + 3600
    EnrolmentTokens(KEY, tmp_path, lambda: now[0])
    assert (tmp_path / USED).read_bytes() == b""
    assert tokens.nonce(token) is None


@given(st.text(max_size=120) | st.from_regex(r"[0-9a-f]{32}\.[0-9]{1,12}\.[0-9a-f]{64}", fullmatch=True))
def test_no_text_is_a_token_unless_it_was_issued(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    assert EnrolmentTokens(KEY, tmp_path_factory.getbasetemp() / "tokens").nonce(text) is None


@given(st.binary(min_size=16, max_size=16), st.integers(-10, MAX_TOKEN_SECONDS + 10))
def test_an_issued_token_is_good_until_its_end_and_a_day_at_most(
    tmp_path_factory: pytest.TempPathFactory, nonce: bytes, seconds: int
) -> None:
    tokens = EnrolmentTokens(KEY, tmp_path_factory.getbasetemp() / "tokens", lambda: NOW)
    token = issue(KEY, nonce, int(NOW) + seconds)
    assert (tokens.nonce(token) is not None) == (0 <= seconds <= MAX_TOKEN_SECONDS)


def test_a_roster_that_is_closed_says_so_with_a_token_as_well(tmp_path: Path) -> None:
    book = CampaignBook(tmp_path)
    campaign = book.open(POPULATION, 100)
    book.close(campaign)
    gate = EnrolmentGate(book, DailyQuota(2, 5, 5), EnrolmentTokens(KEY, tmp_path))
    with pytest.raises(CampaignOver, match="closed"):
        gate.enrol(campaign, identity(), node_key(), fresh(), "10.0.0.1")


def test_the_shared_key_must_be_one_and_private(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "key"
    for content, mode, reason in (
        (KEY.hex(), 0o644, "chmod 600"),
        ("abc", 0o600, "64 hexadecimal digits"),
        (KEY.hex()[:32], 0o600, "expected 32"),
        ("ä", 0o600, "64 hexadecimal digits"),
    ):
        path.write_text(content)
        path.chmod(mode)
        with pytest.raises(ServiceError, match=reason):
            read_key(path)
    path.write_text(KEY.hex() + "\n")
    assert read_key(path) == KEY
    with pytest.raises(ServiceError, match="cannot be used"):
        read_key(tmp_path / "none")
    arguments = ["service", "start", "--population", "p", "--insecure", "--enrolment-key", str(path)]
    assert operate(*arguments) == 3
    assert "--campaigns" in capsys.readouterr().err


def test_a_client_hands_its_token_over(place: Place, tmp_path: Path) -> None:
    """From `train_if_eligible` to the roster."""
    from fedrec_client import Consent
    from fedrec_client.testing import FakeService, make_client

    service = FakeService()
    service.publish()
    service.campaign = "ab" * 16
    with make_client(tmp_path, service) as client:
        client.set_consent(Consent(train=True))
        client.check_for_update()
        for k in range(30):
            client.log_event("like", item=f"film-{k}")
        client.train_if_eligible(deadline_seconds=0.1, enrolment_token="of-the-login")
    assert [each.token for each in service.enrolments] == ["of-the-login"]
    service.end()


def test_what_is_used_says_nothing_of_an_account(tmp_path: Path) -> None:
    tokens = EnrolmentTokens(KEY, tmp_path)
    known = tokens.nonce(fresh())
    assert known is not None and tokens.use(*known, "device")
    (line,) = (tmp_path / USED).read_text().splitlines()
    assert set(json.loads(line)) == {"nonce", "device", "expires"}
