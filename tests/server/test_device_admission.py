"""Who may join a cohort: versions, proofs, tokens, attestations, quotas, and the distance between two rounds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from device_helpers import JOB, Device, add_job, channel, front_end, limits, wanted
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres import new_database

from fedrec.core.errors import ConfigError, ServiceError
from fedrec.wire.device_messages import PROTOCOL, join_statement
from fedrec.wire.proto import device_service_pb2 as messages
from fedrec_server.devices.admission.attested import AttestedAdmission, attest
from fedrec_server.devices.admission.token import TokenAdmission, issue, read_key
from fedrec_server.devices.admission.verifier import AdmissionSettings
from fedrec_server.devices.exchange import DeviceExchange
from fedrec_server.devices.limits import NETWORK
from fedrec_server.devices.options import limit_names, parse_admissions, parse_limits
from fedrec_server.devices.server import FrontEnd
from fedrec_server.devices.state import admissions
from fedrec_server.devices.state.admissions import Quota
from fedrec_server.devices.state.database import State, open_state

KEY = bytes(range(32))
CODES = grpc.StatusCode


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql"))])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[State]:
    if request.param == "sqlite":
        with open_state(f"sqlite:///{tmp_path}/devices.db") as made:
            add_job(made)
            yield made
    else:
        with new_database() as url, open_state(url) as made:
            add_job(made)
            yield made


@pytest.fixture
def small(tmp_path: Path) -> Iterator[State]:
    with open_state(f"sqlite:///{tmp_path}/small.db") as made:
        add_job(made, cycle=3)
        yield made


@pytest.fixture
def running(small: State) -> Iterator[FrontEnd]:
    DeviceExchange(small, JOB).prepare(wanted(50, round=5))
    with front_end(small) as made:
        yield made


def shared_key(folder: Path) -> Path:
    path = folder / "shared.key"
    path.write_text(KEY.hex())
    path.chmod(0o600)
    return path


def refused(code: grpc.StatusCode, call: Any, *args: Any, **fields: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **fields)
    assert caught.value.code() == code, caught.value
    return str(caught.value.details())


# Versions.

#: Calls of version 1 as they were recorded; it had no last round.
FIRST_CHECK_IN = bytes.fromhex("0801120566696c6d731a05302e312e30")
FIRST_JOIN = bytes.fromhex(
    "0801122061626162616261626162616261626162616261626162616261626162616261621a2003a107bff3ce10be1d70"
    "dd18e74bc09967e4d6309ba50d5f1ddc8664125531b82240766366a81bf14dc1c9351bb0745d30eccdf82df9cd13e284"
    "631023e58ed5b0a0adf480439ff7d7b138303ee8e48fc48e070054dd4dc9f71850165ebcd177df0d"
)


def test_recorded_calls_of_the_version_before_are_answered(running: FrontEnd) -> None:
    with channel(running.port) as line:
        call = "/fedrec.devices.v1.DeviceService/"
        check_in = line.unary_unary(call + "CheckIn", None, messages.CheckInReply.FromString)
        join = line.unary_unary(call + "Join", None, messages.JoinReply.FromString)
        assert check_in(FIRST_CHECK_IN, timeout=20).job == JOB
        assert len(join(FIRST_JOIN, timeout=20).session) == 32


def test_this_version_and_the_one_before_are_answered_and_no_other(running: FrontEnd) -> None:
    device = Device(channel(running.port))
    for version in (PROTOCOL, PROTOCOL - 1):
        assert device.check_in(protocol=version).job == JOB
    for version in (0, PROTOCOL + 1, 2**32 - 1):
        for call in (device.check_in, device.join):
            assert refused(CODES.FAILED_PRECONDITION, call, protocol=version) == "update the app"


# Joining.


def test_a_key_cannot_be_claimed_by_another(running: FrontEnd) -> None:
    device, other = Device(channel(running.port)), Ed25519PrivateKey.generate()
    for proof in (
        b"",
        bytes(64),
        other.sign(join_statement(JOB)),
        device.key.sign(join_statement("cd" * 16)),
    ):
        assert "proof" in refused(CODES.INVALID_ARGUMENT, device.join, proof=proof)
    assert "identity" in refused(CODES.INVALID_ARGUMENT, device.join, identity=bytes(31))
    refused(CODES.INVALID_ARGUMENT, device.join, job="../x")
    refused(CODES.NOT_FOUND, device.join, job="cd" * 16)
    assert device.join().session


def test_a_device_that_would_refuse_the_round_is_sent_away(running: FrontEnd) -> None:
    device = Device(channel(running.port))
    for last in (3, 4, 5, 9):
        reply = device.join(last_round=last)
        assert not reply.session and reply.retry_after_seconds > 0
    assert device.join(last_round=2).session


def test_a_device_takes_no_place_in_a_round_that_is_made_again_and_that_it_took_part_in(
    tmp_path: Path,
) -> None:
    """Else those of a lost cohort would fill the next one, and refuse it."""
    with open_state(f"sqlite:///{tmp_path}/devices.db") as state:
        add_job(state)
        DeviceExchange(state, JOB).prepare(wanted(50, round=5))
        with front_end(state) as running:
            device = Device(channel(running.port))
            for last in (5, 6):
                assert not device.join(last_round=last).session
            assert device.join(last_round=4).session


def test_late_devices_come_soon_as_long_as_they_fill_the_next_cohort(small: State) -> None:
    exchange = DeviceExchange(small, JOB)
    with front_end(small, given=limits(soon_seconds=3.0)) as running:
        exchange.prepare(wanted(1))
        device = Device(channel(running.port))
        device.joined()
        exchange.form(wanted(1), lambda: False)
        until, late = time.monotonic() + 20, Device(channel(running.port))
        while late.check_in().joinable and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.2)
        waits = [late.join().retry_after_seconds for _ in range(9)]
    assert sum(3 <= each <= 6 for each in waits) in (4, 5) and sum(100 <= each <= 200 for each in waits) >= 4


# Tokens.


def test_a_token_is_good_for_one_identity_at_any_front_end(state: State, tmp_path: Path) -> None:
    verifiers = [TokenAdmission(AdmissionSettings(state, shared_key(tmp_path))) for _ in range(2)]
    token = issue(KEY, bytes(16), int(time.time()) + 60).encode()
    for verifier in verifiers * 2:
        assert verifier.verify(JOB, b"a" * 32, token, "1.2.3.4") is None
        assert verifier.verify(JOB, b"b" * 32, token, "1.2.3.4") is not None


@settings(max_examples=60)
@given(st.data())
def test_a_changed_token_is_refused(data: st.DataObject) -> None:
    verifier = TokenAdmission.__new__(TokenAdmission)
    verifier._key = KEY
    token = bytearray(issue(KEY, bytes(16), int(time.time()) + 60).encode())
    token[data.draw(st.integers(0, len(token) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert verifier.verify(JOB, b"a" * 32, bytes(token), "") is not None
    assert verifier.verify(JOB, b"a" * 32, data.draw(st.binary(max_size=200)), "") is not None


def test_a_token_out_of_its_time_or_of_another_key_is_refused(state: State, tmp_path: Path) -> None:
    verifier = TokenAdmission(AdmissionSettings(state, shared_key(tmp_path)))
    now = int(time.time())
    for token in (
        issue(KEY, bytes(16), now - 5),
        issue(KEY, bytes(16), now + 90_000),
        issue(bytes(32), bytes(16), now + 60),
    ):
        assert verifier.verify(JOB, b"a" * 32, token.encode(), "") is not None


def test_joins_need_a_token_where_the_operator_asks_for_one(small: State, tmp_path: Path) -> None:
    DeviceExchange(small, JOB).prepare(wanted(50))
    given = parse_admissions([f"token={shared_key(tmp_path)}"], small)
    with front_end(small, admissions=given) as running:
        device, other = Device(channel(running.port)), Device(channel(running.port))
        assert refused(CODES.PERMISSION_DENIED, device.join) == "admission: expected token"
        assert "token" in refused(CODES.PERMISSION_DENIED, device.join, admission="token", evidence=b"x")
        token = issue(KEY, b"n" * 16, int(time.time()) + 60).encode()
        assert device.join(admission="token", evidence=token).session
        assert device.join(admission="token", evidence=token).session
        refused(CODES.PERMISSION_DENIED, other.join, admission="token", evidence=token)


def test_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    path = shared_key(tmp_path)
    assert read_key(path) == KEY
    path.chmod(0o644)
    with pytest.raises(ServiceError, match="chmod 600"):
        read_key(path)
    path.chmod(0o600)
    for text in ("", "zz", "ab" * 31):
        path.write_text(text)
        with pytest.raises(ServiceError, match="expected"):
            read_key(path)


# Attestations.


@pytest.fixture
def authority(tmp_path: Path) -> tuple[Ed25519PrivateKey, Path]:
    """A fake authority, and what an operator pins of it."""
    key = Ed25519PrivateKey.generate()
    pinned = {"authority": "fake", "app": "films", "key": key.public_key().public_bytes_raw().hex()}
    path = tmp_path / "authority.json"
    path.write_text(json.dumps(pinned))
    return key, path


def test_statements_of_the_pinned_authority_alone_are_good(
    small: State, authority: tuple[Ed25519PrivateKey, Path]
) -> None:
    key, path = authority
    verifier = AttestedAdmission(AdmissionSettings(small, path))
    identity, soon = b"i" * 32, time.time() + 60
    good = attest(key, "fake", "films", identity, soon)
    assert verifier.verify(JOB, identity, good, "") is None
    for bad in (
        attest(Ed25519PrivateKey.generate(), "fake", "films", identity, soon),
        attest(key, "other", "films", identity, soon),
        attest(key, "fake", "other", identity, soon),
        attest(key, "fake", "films", b"j" * 32, soon),
        attest(key, "fake", "films", identity, time.time() - 1),
        attest(key, "fake", "films", identity, time.time() + 90_000),
        good[:-1],
        good[:-64],
        b"",
        bytes(5000),
        b"{}" + key.sign(b"fedrec attestation v1|{}"),
        b"[" * 100 + key.sign(b"fedrec attestation v1|" + b"[" * 100),
    ):
        assert verifier.verify(JOB, identity, bad, "") is not None


def test_a_device_joins_with_an_attestation(small: State, authority: tuple[Ed25519PrivateKey, Path]) -> None:
    key, path = authority
    DeviceExchange(small, JOB).prepare(wanted(50))
    with front_end(small, admissions=parse_admissions([f"attested={path}"], small)) as running:
        device, other = Device(channel(running.port)), Device(channel(running.port))
        evidence = attest(key, "fake", "films", device.identity, time.time() + 60)
        assert device.join(admission="attested", evidence=evidence).session
        refused(CODES.PERMISSION_DENIED, other.join, admission="attested", evidence=evidence)


def test_files_that_pin_nothing_are_refused(small: State, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    for text in ("", "[]", "{}", '{"authority": "a", "app": "b", "key": "zz"}'):
        path.write_text(text)
        with pytest.raises(ServiceError, match="expected JSON"):
            AttestedAdmission(AdmissionSettings(small, path))
    for kind in (AttestedAdmission, TokenAdmission):
        with pytest.raises(ServiceError, match="without a key"):
            kind(AdmissionSettings(small))


# Quotas.


def test_quotas_hold_for_a_day_over_all_front_ends_and_forget_addresses(state: State) -> None:
    def take(*quotas: Quota, day: float = 0.0) -> bool:
        with state.write() as connection:
            return admissions.take_quotas(connection, [quotas], 86_400.0 * (20_000 + day))[0]

    a, b, total = Quota("a", 2), Quota("b", 2), Quota("", 3)
    assert [take(a, total), take(a, total), take(a, total), take(b, total), take(b, total)] == [
        True, True, False, True, False,
    ]  # fmt: skip
    assert take(a, total, day=1)
    with state.read() as connection:
        assert len(connection.execute(admissions.DAY_KEYS.select()).all()) == 1
        stored = connection.execute(admissions.QUOTAS.select()).all()
    assert len(stored) == 2 and not any(bytes(row.key) == b"a" for row in stored)


def test_joins_of_a_day_are_limited_and_the_same_device_is_not_counted_twice(small: State) -> None:
    DeviceExchange(small, JOB).prepare(wanted(50))
    with front_end(small, given=limits(joins_per_address=2)) as running:
        first, second, third = (Device(channel(running.port)) for _ in range(3))
        for device in (first, first, second, first):
            assert device.join().session
        assert refused(CODES.RESOURCE_EXHAUSTED, third.join) == "joins of a day: enough"


def test_a_call_with_a_session_does_not_count_against_the_address(small: State) -> None:
    exchange = DeviceExchange(small, JOB)
    exchange.prepare(wanted(50))
    few = replace(NETWORK, calls_per_second=1e-9, burst=6)
    with front_end(small, given=limits(network=few, hold_seconds=0.0)) as running:
        device = Device(channel(running.port))
        assert device.join().session
        for _ in range(30):
            assert device.stage().state == messages.WAIT
        stranger = Device(channel(running.port))
        codes = []
        for _ in range(8):
            try:
                stranger.check_in()
            except grpc.RpcError as error:
                codes.append(error.code())
        assert codes.count(CODES.RESOURCE_EXHAUSTED) >= 3
        assert device.stage().state == messages.WAIT


# Options.


def test_every_limit_is_an_option() -> None:
    changed = parse_limits(["hold_seconds=0", "held_calls=7", "calls_per_second=3.5", "held_calls=8"])
    assert (changed.hold_seconds, changed.held_calls, changed.network.calls_per_second) == (0.0, 8, 3.5)
    text = (Path(__file__).parents[2] / "docs" / "reference" / "device-service.md").read_text()
    assert all(f"| `{name}` |" in text for name in limit_names())


@pytest.mark.parametrize(
    "entry", ["held_call=3", "held_calls=x", "held_calls=0", "retry_seconds=inf", "", "group=-1"]
)
def test_a_wrong_limit_is_one_line(entry: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_limits([entry])
    assert "\n" not in str(caught.value)


def test_wrong_admissions_are_one_line(small: State, tmp_path: Path) -> None:
    for entries in (["tokn"], ["none", "none"], ["none", "x.y:Z"]):
        with pytest.raises(ConfigError):
            parse_admissions(entries, small)
    assert list(parse_admissions(["none"], small)) == ["none"]
