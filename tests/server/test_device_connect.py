"""The device service over Connect: the same calls as JSON or protobuf over HTTP, from pages of named origins."""

from __future__ import annotations

import base64
import http.client
import http.server
import json
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import browser
from device_helpers import JOB, POPULATION, Device, add_job, channel, front_end, limits, wanted
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.service_fuzz_calls import INSIDE, garbage
from fedrec.wire.device_messages import PROTOCOL
from fedrec.wire.proto import device_service_pb2 as messages
from fedrec_server.devices.exchange import DeviceExchange
from fedrec_server.devices.limits import NETWORK
from fedrec_server.devices.server import FrontEnd
from fedrec_server.devices.state.database import State, open_state

PATH = "/fedrec.devices.v1.DeviceService/"
APP = "https://app.example.com"
CHECK_IN = {"protocol": PROTOCOL, "population": POPULATION, "clientVersion": "0.1.0"}
METHODS = ("CheckIn", "GetTask", "Join", "Stage", "Upload", "Content", "Leave")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    with open_state(f"sqlite:///{tmp_path_factory.mktemp('state')}/devices.db") as made:
        add_job(made)
        yield made


@pytest.fixture(scope="module")
def running(state: State) -> Iterator[FrontEnd]:
    listening = {"connect_port": 0, "origins": (APP,)}
    with front_end(state, listening=listening) as made:
        yield made


def ask(
    port: int, method: str, body: bytes, kind: str = "application/json", verb: str = "POST", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(verb, PATH + method, body, {"content-type": kind} | named)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    finally:
        connection.close()


def say(port: int, method: str, fields: dict[str, Any]) -> dict[str, Any]:
    status, _, body = ask(port, method, json.dumps(fields).encode(), connect_protocol_version="1")
    assert status == 200, body
    return dict(json.loads(body))


def test_both_forms_of_a_message_give_the_same_answer(running: FrontEnd) -> None:
    said = say(running.connect_port, "CheckIn", CHECK_IN)
    request = messages.CheckInRequest(protocol=PROTOCOL, population=POPULATION, client_version="0.1.0")
    status, headers, body = ask(
        running.connect_port, "CheckIn", request.SerializeToString(), "application/proto"
    )
    assert (status, headers["content-type"]) == (200, "application/proto")
    reply = messages.CheckInReply.FromString(body)
    assert said["job"] == reply.job == JOB and said["retryMinSeconds"] == reply.retry_min_seconds > 0


def test_a_device_takes_part_over_json_in_a_cohort_of_another_over_grpc(state: State) -> None:
    exchange = DeviceExchange(state, JOB)
    with front_end(state, listening={"connect_port": 0}) as running:
        other, mine = Device(channel(running.port)), Device(channel(running.port))
        exchange.prepare(wanted(2))
        until = time.monotonic() + 20
        while not other.check_in().joinable and time.monotonic() < until:
            time.sleep(0.05)
        other.join()
        request = mine.join_request()
        joined = say(
            running.connect_port,
            "Join",
            {
                "protocol": PROTOCOL,
                "job": JOB,
                "identity": base64.b64encode(request.identity).decode(),
                "proof": base64.b64encode(request.proof).decode(),
            },
        )
        cohort = exchange.form(wanted(2), lambda: False)
        exchange.close(cohort, "done")
        over = say(running.connect_port, "Stage", {"session": joined["session"]})
        assert (over["state"], over["reason"]) == ("OVER", "done")
        assert other.next().reason == "done"


@pytest.mark.parametrize(
    ("method", "body", "kind", "status", "code"),
    [
        ("CheckIn", b"{", "application/json", 400, "invalid_argument"),
        ("CheckIn", b'{"population": 3}', "application/json", 400, "invalid_argument"),
        ("CheckIn", b'{"other": 3}', "application/json", 400, "invalid_argument"),
        ("CheckIn", b"[" * 2000, "application/json", 400, "invalid_argument"),
        ("CheckIn", b"\xff\xfe", "application/json", 400, "invalid_argument"),
        ("CheckIn", b"\xff\xfe", "application/proto", 400, "invalid_argument"),
        ("CheckIn", b"{}", "application/json", 400, "failed_precondition"),
        ("GetTask", b'{"job": "%s"}' % (b"0" * 32), "application/json", 404, "not_found"),
    ],
)
def test_errors_are_a_code_and_a_fixed_text(
    running: FrontEnd, method: str, body: bytes, kind: str, status: int, code: str
) -> None:
    got, headers, answer = ask(running.connect_port, method, body, kind)
    assert (got, headers["content-type"]) == (status, "application/json")
    assert json.loads(answer)["code"] == code and not any(each in answer.decode() for each in INSIDE)


def test_what_is_not_a_call_is_refused_without_its_body(running: FrontEnd) -> None:
    port = running.connect_port
    assert ask(port, "None", b"{}")[0] == 404 and ask(port, "CheckIn/../Join", b"{}")[0] == 404
    assert ask(port, "CheckIn", b"", verb="GET")[0] == 405
    assert ask(port, "CheckIn", b"{}", "text/plain")[0] == 415
    assert ask(port, "CheckIn", b"{}", content_encoding="gzip")[0] == 501
    assert ask(port, "CheckIn", b"{}", connect_protocol_version="2")[0] == 400
    assert ask(port, "CheckIn", bytes(1 << 20))[0] == 413


def test_pages_of_named_origins_alone_may_call(running: FrontEnd) -> None:
    asked = {"access_control_request_method": "POST", "access_control_request_headers": "content-type"}
    status, headers, _ = ask(running.connect_port, "Join", b"", verb="OPTIONS", origin=APP, **asked)
    assert status == 204 and headers["access-control-allow-origin"] == APP
    assert headers["access-control-allow-methods"] == "POST"
    assert "connect-protocol-version" in headers["access-control-allow-headers"]
    for other in ("https://evil.example.com", "null", APP + ".evil.com"):
        for verb in ("OPTIONS", "POST"):
            _, headers, _ = ask(running.connect_port, "Join", b"{}", verb=verb, origin=other)
            assert "access-control-allow-origin" not in headers
    _, headers, _ = ask(running.connect_port, "Join", b"{}", origin=APP)
    assert headers["access-control-allow-origin"] == APP and headers["vary"] == "origin"


def test_garbage_in_every_call_is_refused_by_a_code(running: FrontEnd) -> None:
    rng = random.Random(1)
    good = messages.StageRequest(session=bytes(32), answered=1, answer=b"x" * 50).SerializeToString()
    connection = http.client.HTTPConnection("127.0.0.1", running.connect_port, timeout=20)
    for _ in range(400):
        kind = rng.choice(["application/json", "application/proto"])
        connection.request(
            "POST", PATH + rng.choice(METHODS), garbage(rng, good)[:60_000], {"content-type": kind}
        )
        answer = connection.getresponse()
        body = answer.read().decode("latin-1")
        assert answer.status in (200, 400, 404, 409, 429), (answer.status, body)
        assert not any(each in body for each in INSIDE), body
    connection.close()
    assert say(running.connect_port, "CheckIn", CHECK_IN)["job"] == JOB


FIELDS = st.dictionaries(
    st.sampled_from(["session", "identity", "protocol", "job", "offset", "number", "sha256", "answer", "x"]),
    st.one_of(
        st.none(), st.integers(), st.floats(), st.text(max_size=40), st.booleans(), st.lists(st.integers())
    ),
    max_size=5,
)


@settings(max_examples=60)
@given(st.sampled_from(METHODS), FIELDS)
def test_any_json_is_answered_or_refused_by_a_code(
    running: FrontEnd, method: str, fields: dict[str, Any]
) -> None:
    status, _, body = ask(running.connect_port, method, json.dumps(fields).encode())
    assert status in (200, 400, 404) and isinstance(json.loads(body), dict)


def test_connections_that_say_nothing_keep_no_one_out(state: State) -> None:
    few = replace(NETWORK, connections=20, connections_per_address=20, unauthenticated_per_address=8)
    with front_end(state, given=limits(network=few), listening={"connect_port": 0}) as running:
        silent = [socket.create_connection(("127.0.0.1", running.connect_port)) for _ in range(60)]
        assert say(running.connect_port, "CheckIn", CHECK_IN)["job"] == JOB
        for each in silent:
            each.close()


def test_tls_without_a_certificate_of_an_app(state: State, tmp_path: Path) -> None:
    with front_end(state, tmp_path / "tls", listening={"connect_port": 0}) as running:
        context = ssl.create_default_context(cafile=str(tmp_path / "tls" / "ca.crt"))
        connection = http.client.HTTPSConnection(
            "127.0.0.1", running.connect_port, timeout=20, context=context
        )
        connection.request(
            "POST", PATH + "CheckIn", json.dumps(CHECK_IN), {"content-type": "application/json"}
        )
        assert json.loads(connection.getresponse().read())["job"] == JOB
        connection.close()


class Page(http.server.BaseHTTPRequestHandler):
    """A page of an app."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>app</title><p>app")

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@contextmanager
def app() -> Iterator[str]:
    """The origin of an app's page."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


FETCH = """fetch("http://127.0.0.1:%d%sCheckIn", {method: "POST", body: JSON.stringify(%s),
  headers: {"content-type": "application/json", "connect-protocol-version": "1"}})
  .then(answer => answer.json()).catch(error => ({refused: String(error)}))"""


@pytest.mark.slow
@pytest.mark.needs("chromium")
def test_a_page_in_a_real_browser_checks_in(state: State, tmp_path: Path) -> None:
    """From another origin: the browser asks first, and keeps the answer from pages that were not named."""
    with browser(tmp_path) as tab, app() as origin:
        page = tab()
        page.goto(origin + "/")
        with front_end(state, listening={"connect_port": 0, "origins": (origin,)}) as running:
            answer = page.js(FETCH % (running.connect_port, PATH, json.dumps(CHECK_IN)))
            assert answer["job"] == JOB and answer["retryMinSeconds"] > 0
        with front_end(state, listening={"connect_port": 0, "origins": (APP,)}) as other:
            assert "refused" in page.js(FETCH % (other.connect_port, PATH, json.dumps(CHECK_IN)))
