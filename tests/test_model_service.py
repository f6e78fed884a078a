"""The model service over real sockets: what it serves, whom it refuses, what it survives."""

from __future__ import annotations

import datetime as dt
import json
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from wire_helpers import DAY, POPULATION, PRIVACY, items, keys

from fedrec.errors import RegistryError, ServerBusy, ServiceError
from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Ridge
from fedrec.ranking.items import Items
from fedrec.ranking.tables import FloatTable
from fedrec.wire.manifest import MODEL_FILE
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.proto import model_service_pb2 as messages
from fedrec_client import Client, Consent, MemoryStore
from fedrec_client.grpc_transport import GrpcTransport
from fedrec_client.testing import FakePlatform
from fedrec_client.transport import CheckIn, Enrolment
from fedrec_server.certificates import Validity, make_service_certificates
from fedrec_server.registry import Registry
from fedrec_server.service.limits import Buckets, Limits
from fedrec_server.service.metric_sums import MetricSums
from fedrec_server.service.server import Certificates, Service
from fedrec_simulations.service_fuzz import fuzz_calls, fuzz_sockets

NOW = dt.datetime.now().timestamp()
ROOT, KEY = keys(POPULATION)
TOKEN = "0123456789abcdef"
QUICK = Limits(calls_per_second=10_000, burst=10_000)


def fresh_keys() -> Any:
    from fedrec.wire.signing import RootKey, RoundKey

    root = RootKey.generate()
    return root, RoundKey.generate(root, POPULATION, serial=1, not_before=NOW - DAY, not_after=NOW + 90 * DAY)


def model(n: int = 40, d: int = 8, seed: int = 0) -> Factors:
    table = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return Factors(FloatTable(table), Ridge(unobserved_weight=0.1, reg=0.01))


@dataclass
class Place:
    """A registry with a champion, certificates, and what apps pin."""

    registry: Registry
    key: Any
    certificates: Path

    def publish(self, made: Factors, known: Items) -> int:
        version = self.registry.publish(
            pack_model(made, known, PRIVACY), Terms(0, int(NOW)), self.key
        ).version
        self.registry.promote(version)
        return version

    def start(self, limits: Limits = QUICK, campaigns: Any = None) -> Service:
        files = (self.certificates / name for name in ("server.pem", "server.key", "apps.crt"))
        return Service.start([self.registry], Certificates(*files), limits=limits, campaigns=campaigns)

    def connect(self, service: Service, app: Path | None = None) -> GrpcTransport:
        folder = app or self.certificates
        return GrpcTransport(
            f"127.0.0.1:{service.port}",
            ca=self.certificates / "ca.crt",
            certificate=folder / "app.pem",
            key=folder / "app.key",
        )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("service")
    root, key = fresh_keys()
    made = Place(Registry.create(folder / "models", POPULATION, root.public), key, folder / "tls")
    make_service_certificates(made.certificates)
    made.publish(model(), items())
    made.publish(model(seed=1), items())
    return made


@pytest.fixture(scope="module")
def service(place: Place) -> Iterator[Service]:
    with place.start() as running:
        yield running


@pytest.fixture
def transport(place: Place, service: Service) -> Iterator[GrpcTransport]:
    made = place.connect(service)
    yield made
    made.close()


def checkin(population: str = POPULATION, token: str = TOKEN, version: str = "0.1.0") -> CheckIn:
    return CheckIn(population, token, version, 0)


def test_a_client_lives_on_it(place: Place, service: Service, tmp_path: Path) -> None:
    client = Client.open(
        tmp_path,
        population=POPULATION,
        trust=place.registry.public_root,
        server=f"127.0.0.1:{service.port}",
        platform=FakePlatform(NOW),
        store=MemoryStore(),
        ca=place.certificates / "ca.crt",
        certificate=place.certificates / "app.pem",
        key=place.certificates / "app.key",
    )
    with client:
        info = client.check_for_update()
        assert info is not None and info.version == 2
        assert len(client.recommend(5)) == 5
        client.set_consent(Consent(metrics=True))
        assert client.check_for_update() is None
    service._service.close()
    sums = json.loads((place.registry.folder / "metrics.json").read_text())
    (of_day,) = sums.values()
    assert set(of_day["2"]) == {"impressions", "clicks", "hides"}


def test_files_come_whole_and_from_any_offset(place: Place, transport: GrpcTransport) -> None:
    path = place.registry.path(2)
    assert transport.manifest(POPULATION, 2) == (path / "manifest.signed").read_bytes()
    content = (path / MODEL_FILE).read_bytes()
    for offset in (0, 1, len(content) - 1, len(content)):
        assert b"".join(transport.download(POPULATION, 2, MODEL_FILE, offset)) == content[offset:]


def test_large_files_come_in_pieces(place: Place, transport: GrpcTransport) -> None:
    known = Items.of([f"i{k}" for k in range(20_000)])
    version = place.publish(model(20_000, 32), known)
    pieces = list(transport.download(POPULATION, version, MODEL_FILE))
    assert len(pieces) > 8 and max(map(len, pieces)) <= 256 << 10
    assert b"".join(pieces) == (place.registry.path(version) / MODEL_FILE).read_bytes()
    place.publish(model(seed=2), items())


def test_check_ins_are_paced_and_canaries_get_their_share(place: Place, tmp_path: Path) -> None:
    root, key = fresh_keys()
    other = Place(Registry.create(tmp_path, POPULATION, root.public), key, place.certificates)
    other.publish(model(), items())
    other.registry.publish(pack_model(model(seed=1), items(), PRIVACY), Terms(0, int(NOW)), key)
    other.registry.promote(2, "canary", 300)
    with other.start(Limits(calls_per_second=1e6, burst=10**6, expected_devices=6000)) as running:
        transport = other.connect(running)
        answers = [transport.check_in(checkin(token=f"{k:016x}")) for k in range(400)]
        assert {each.retry_after_seconds for each in answers} == {(600.0, 1200.0)}
        assert sum(each.model_version == 2 for each in answers) / 400 == pytest.approx(0.3, abs=0.08)
        assert transport.check_in(checkin()).campaign == ""
        transport.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.check_in(checkin("../../etc")),
        lambda t: t.check_in(checkin("nobody")),
        lambda t: t.check_in(checkin(token="someone@example.org")),
        lambda t: t.check_in(checkin(version="; rm")),
        lambda t: t.manifest(POPULATION, 999),
        lambda t: t.manifest("../models", 1),
        lambda t: list(t.download(POPULATION, 1, "../root.pub")),
        lambda t: list(t.download(POPULATION, 1, "../../../../etc/passwd")),
        lambda t: list(t.download(POPULATION, 1, "manifest.signed\0")),
        lambda t: list(t.download(POPULATION, 1, MODEL_FILE, 2**63)),
        lambda t: list(t.download(POPULATION, 2**60, MODEL_FILE)),
        lambda t: t.enrol(Enrolment("not hex", bytes(32), "key")),
        lambda t: t.enrol(Enrolment("ab" * 8, bytes(32), "ecdsa-sha2-nistp384 " + "A" * 120)),
        lambda t: t.task("ab" * 8, bytes(32)),
        lambda t: t.task("ab" * 8, b"short"),
        lambda t: t.send_metrics(POPULATION, 1, {"films watched": 3.0}),
        lambda t: t.send_metrics(POPULATION, 1, {"clicks": float("nan")}),
        lambda t: t.send_metrics(POPULATION, 77, {"clicks": 1.0}),
        lambda t: t.send_metrics(POPULATION, 1, {"clicks" * 9000: 1.0}),
    ],
)
def test_what_cannot_be_is_refused_in_one_line_without_inside_words(
    transport: GrpcTransport, call: Any
) -> None:
    with pytest.raises(ServiceError) as caught:
        call(transport)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    for inside in ("Traceback", "/tmp", ".py", "Error(", "/etc"):
        assert inside not in text
    assert transport.check_in(checkin()).model_version


def test_a_mishap_inside_is_told_to_nobody(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def open_for(self, population: str) -> str:
            raise ZeroDivisionError("secret words")

        def enrol(self, *_: Any) -> None:
            raise RegistryError("roster of somebody at /srv/secret")

        def task(self, *_: Any) -> bytes | None:
            return None

    with place.start(campaigns=Broken()) as running:
        transport = place.connect(running)
        with pytest.raises(ServiceError, match="internal") as caught:
            transport.check_in(CheckIn(POPULATION, TOKEN, "0.1.0", 0, trains=True))
        assert "secret" not in str(caught.value)
        with pytest.raises(ServiceError, match="not possible now") as caught:
            transport.enrol(Enrolment("ab" * 8, bytes(32), "ecdsa-sha2-nistp384 " + "A" * 120))
        assert "secret" not in str(caught.value)
        assert transport.task("ab" * 8, bytes(32)) is None
        transport.close()
    assert "ZeroDivisionError" in caplog.text


def test_a_busy_service_says_when_to_come_back(place: Place) -> None:
    with place.start(Limits(calls_per_second=0.01, burst=3, expected_devices=2000)) as running:
        transport = place.connect(running)
        for _ in range(3):
            transport.check_in(checkin())
        with pytest.raises(ServerBusy) as caught:
            transport.check_in(checkin())
        assert caught.value.retry_after_seconds == (200.0, 400.0)
        transport.close()


def test_buckets_refill_and_stay_small() -> None:
    now = [0.0]
    buckets = Buckets(Limits(calls_per_second=2, burst=3, addresses=2), lambda: now[0])
    assert [buckets.take("a") for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert [buckets.take("a") for _ in range(2)] == [True, False]
    for name in "bcd":
        assert buckets.take(name)
    assert len(buckets._left) == 2


def test_sums_are_all_that_is_kept(tmp_path: Path) -> None:
    sums = MetricSums(tmp_path)
    assert sums.add(3, {"clicks": 2.0, "hides": -7.5})
    assert sums.add(3, {"clicks": 1e9})
    assert not sums.add(3, {}) and not sums.add(3, {"who": 1.0}) and not sums.add(3, {"clicks": float("inf")})
    sums.close()
    (day,) = json.loads((tmp_path / "metrics.json").read_text()).values()
    assert day == {"3": {"clicks": [10_002.0, 2], "hides": [-7.5, 1]}}
    MetricSums(tmp_path).add(3, {"clicks": 1.0})
    (tmp_path / "metrics.json").write_text("broken")
    with pytest.raises(RegistryError, match="cannot be read"):
        MetricSums(tmp_path)


# Certificates: real handshakes, each side against each side.


def test_without_or_with_a_wrong_certificate_nobody_is_served(
    place: Place, service: Service, tmp_path: Path
) -> None:
    make_service_certificates(tmp_path / "foreign")
    long_ago = Validity(1.0, dt.datetime.now(dt.UTC) - dt.timedelta(days=30))
    make_service_certificates(tmp_path / "expired", validity=long_ago)
    ours = place.certificates
    target = f"127.0.0.1:{service.port}"
    wrong = [
        GrpcTransport(target, ca=ours / "ca.crt"),
        place.connect(service, tmp_path / "foreign"),
        place.connect(service, tmp_path / "expired"),
        GrpcTransport(
            target, ca=tmp_path / "foreign" / "ca.crt", certificate=ours / "app.pem", key=ours / "app.key"
        ),
        GrpcTransport(
            target,
            ca=ours / "ca.crt",
            certificate=ours / "server.pem",
            key=ours / "server.key",
            server_name="other",
        ),
        GrpcTransport(target, insecure=True),
    ]
    for transport in wrong:
        with pytest.raises(ServiceError, match="check the address, the certificates"):
            transport._call("CheckIn", messages.CheckInRequest(), messages.CheckInReply, tries=1)
        transport.close()


def test_a_certificate_signed_by_our_own_authority_may_still_be_expired(place: Place, tmp_path: Path) -> None:
    """The server's own certificate has run out: a device does not talk to it."""
    long_ago = Validity(1.0, dt.datetime.now(dt.UTC) - dt.timedelta(days=30))
    make_service_certificates(tmp_path / "expired", validity=long_ago)
    old = Place(place.registry, place.key, tmp_path / "expired")
    with old.start() as running:
        transport = old.connect(running)
        with pytest.raises(ServiceError):
            transport._call("CheckIn", messages.CheckInRequest(), messages.CheckInReply, tries=1)
        transport.close()


def test_no_tls_is_for_loopback_alone(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with Service.start([place.registry], None) as running:
        assert "NO TLS" in caplog.text
        transport = GrpcTransport(f"127.0.0.1:{running.port}", insecure=True)
        assert transport.check_in(checkin()).model_version
        transport.close()
    with pytest.raises(ServiceError, match="fedrec certs init"):
        Service.start([place.registry], None, host="0.0.0.0")
    with pytest.raises(ServiceError, match="only on loopback"):
        GrpcTransport("models.example.org:443", insecure=True)
    with pytest.raises(ServiceError, match="cannot be read"):
        GrpcTransport("localhost:1", ca="no-such.pem")


def test_a_taken_port_is_said(place: Place, service: Service) -> None:
    with pytest.raises(ServiceError, match="give a free port"):
        Service.start([place.registry], None, port=service.port)


def test_certificates_are_never_written_over(tmp_path: Path) -> None:
    made = make_service_certificates(tmp_path, ["models.example.org", "10.0.0.7"])
    assert all(path.stat().st_mode & 0o077 == 0 for name, path in made.items() if name.endswith(".key"))
    with pytest.raises(ServiceError, match="already"):
        make_service_certificates(tmp_path)


def channel(place: Place, service: Service) -> grpc.Channel:
    read = [(place.certificates / name).read_bytes() for name in ("ca.crt", "app.key", "app.pem")]
    return grpc.secure_channel(f"127.0.0.1:{service.port}", grpc.ssl_channel_credentials(*read))


def test_health_is_told_and_the_rest_is_not(place: Place, service: Service) -> None:
    with channel(place, service) as open_channel:
        stub = health_pb2_grpc.HealthStub(open_channel)
        for name in ("", "fedrec.v1.ModelService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        for method in (
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "/fedrec.v1.ModelService/None",
        ):
            call = open_channel.stream_stream(method, lambda b: b, lambda b: b)
            with pytest.raises(grpc.RpcError) as caught:
                list(call(iter([b""]), timeout=5))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_malformed_messages_change_nothing(place: Place, service: Service, transport: GrpcTransport) -> None:
    """A few hundred of the inputs of `benchmarks.service_fuzz`, which sends more than 100,000."""
    rng = random.Random(1)
    with channel(place, service) as open_channel:
        outcomes = fuzz_calls(open_channel, 300, rng, POPULATION)
    outcomes += fuzz_sockets(("127.0.0.1", service.port), 30, rng)
    assert sum(outcomes.values()) == 330
    assert not any(word.startswith("BAD") for word in outcomes), outcomes
    assert transport.check_in(checkin()).model_version


def test_messages_are_those_of_the_proto_file(tmp_path: Path) -> None:
    """The generated modules are what the .proto file says; `make proto` writes them again."""
    folder = Path(messages.__file__).parent
    root = folder.parent.parent.parent
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", f"--python_out={tmp_path}"]
    name = Path("fedrec/wire/proto/model_service.proto")
    subprocess.run([*command, f"--pyi_out={tmp_path}", str(name)], check=True, cwd=root)
    for suffix in ("_pb2.py", "_pb2.pyi"):
        made = (tmp_path / name.parent / f"model_service{suffix}").read_text()
        assert made == (folder / f"model_service{suffix}").read_text()


def test_stopping_ends_everything(place: Place) -> None:
    before = threading.active_count()
    running = place.start()
    transport = place.connect(running)
    transport.check_in(checkin())
    port = running.port
    running.stop()
    running.stop()
    with pytest.raises(ServiceError):
        transport._call("CheckIn", messages.CheckInRequest(), messages.CheckInReply, tries=1)
    transport.close()
    with pytest.raises(ServiceError, match="was closed"):
        transport.check_in(checkin())
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    assert threading.active_count() <= before + 2


def test_the_command_serves_and_stops(place: Place, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "fedrec_simulations.cli.main",
        "service",
        "start",
        "--population",
        POPULATION,
    ]
    command += [
        "--registry",
        str(place.registry.folder.parent),
        "--certs",
        str(place.certificates),
        "--port",
        "0",
    ]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stderr is not None
        line = child.stderr.readline()
        port = int(line.split("127.0.0.1:")[1].split(";")[0])
        transport = GrpcTransport(
            f"127.0.0.1:{port}",
            ca=place.certificates / "ca.crt",
            certificate=place.certificates / "app.pem",
            key=place.certificates / "app.key",
        )
        assert transport.check_in(checkin()).model_version
        transport.close()
        child.send_signal(2)
        out, err = child.communicate(timeout=20)
        assert child.returncode == 0 and "stopped" in out and "Traceback" not in err
    finally:
        child.kill()
        child.wait()
