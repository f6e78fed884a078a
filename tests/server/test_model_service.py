"""The model service over real sockets: what it serves, what it refuses, what it keeps."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from service_helpers import NOW, REPORT, Place, check_in, limits
from wire_helpers import POPULATION, factors, items, keys

from fedrec.core.errors import NotPublished, RegistryError, ServerBusy, ServiceError
from fedrec.wire.counters import GREATEST
from fedrec.wire.manifest import MODEL_FILE
from fedrec.wire.proto import model_service_pb2 as messages
from fedrec.wire.signing import OnlineKeys
from fedrec_client import Client, Consent, MemoryStore
from fedrec_client.testing import FakePlatform
from fedrec_client.updates.grpc_channel import BUSY_SECONDS
from fedrec_client.updates.grpc_transport import GrpcTransport
from fedrec_server.registry import Registry
from fedrec_server.service._handlers import ModelService
from fedrec_server.service._metric_sums import DAY, DAYS_KEPT, MetricSums
from fedrec_server.service.renewal import Renewal
from fedrec_server.service.server import Service

Trailing = tuple[tuple[str, str], ...]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("service"), versions=2)


@pytest.fixture(scope="module")
def service(place: Place) -> Iterator[Service]:
    with place.start() as running:
        yield running


@pytest.fixture
def transport(place: Place, service: Service) -> Iterator[GrpcTransport]:
    made = place.connect(service)
    yield made
    made.close()


def test_a_client_lives_on_it(place: Place, service: Service, tmp_path: Path) -> None:
    client = Client.open(
        tmp_path,
        population=POPULATION,
        trust=place.registry.pinned,
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
    service._answers.write()
    (of_day,) = json.loads((place.registry.folder / "metrics.json").read_text()).values()
    assert set(of_day["2"]) == {"impressions", "clicks", "hides"}


def test_files_come_whole_and_from_any_offset(place: Place, transport: GrpcTransport) -> None:
    metadata = place.registry.repository.folder
    for name in ("timestamp.json", "1.root.json", f"{place.registry.state().snapshot.version}.snapshot.json"):
        assert b"".join(transport.fetch(POPULATION, f"metadata/{name}")) == (metadata / name).read_bytes()
    content = (place.registry.path(2) / MODEL_FILE).read_bytes()
    for offset in (0, 1, len(content) - 1, len(content)):
        fetched = transport.fetch(POPULATION, place.fetched_as(2, MODEL_FILE), offset)
        assert b"".join(fetched) == content[offset:]


def test_a_delta_is_a_file_as_any(place: Place, transport: GrpcTransport) -> None:
    manifest = place.registry.manifest(2)
    (base,) = manifest.deltas
    name = f"delta-{base}.bin"
    fetched = b"".join(transport.fetch(POPULATION, place.fetched_as(2, name)))
    assert fetched == (place.registry.path(2) / name).read_bytes()


def test_large_files_come_in_pieces_and_go_on_where_they_were_cut(tmp_path: Path, place: Place) -> None:
    large = Place.make(tmp_path, place.certificates, versions=0)
    version = large.publish(factors(20_000, 32), items(20_000))
    content = (large.registry.path(version) / MODEL_FILE).read_bytes()
    with large.start() as running:
        transport = large.connect(running)
        path = large.fetched_as(version, MODEL_FILE)
        pieces = list(transport.fetch(POPULATION, path))
        assert len(pieces) > 8 and max(map(len, pieces)) <= 256 << 10
        assert b"".join(pieces) == content
        stream = transport.fetch(POPULATION, path)
        had = next(stream) + next(stream)
        transport.close()  # in the middle
        with pytest.raises(ServiceError):
            list(stream)
        again = large.connect(running)
        assert had + b"".join(again.fetch(POPULATION, path, len(had))) == content
        again.close()


def test_check_ins_are_paced(place: Place) -> None:
    with place.start(limits(expected_devices=6000)) as running:
        transport = place.connect(running)
        answers = [transport.check_in(check_in()) for _ in range(20)]
        assert {each.retry_after_seconds for each in answers} == {(600.0, 1200.0)}
        transport.close()


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.check_in(check_in("../../etc")),
        lambda t: t.check_in(check_in("no one")),
        lambda t: t.check_in(check_in(version="; rm")),
        lambda t: list(t.fetch(POPULATION, "metadata/999.models.json")),
        lambda t: list(t.fetch("../models", "metadata/timestamp.json")),
        lambda t: list(t.fetch(POPULATION, "../history.jsonl")),
        lambda t: list(t.fetch(POPULATION, "metadata/../../root.json")),
        lambda t: list(t.fetch(POPULATION, "metadata/.timestamp.json.1.tmp")),
        lambda t: list(t.fetch(POPULATION, "targets/../../../../etc/passwd")),
        lambda t: list(t.fetch(POPULATION, "metadata/timestamp.json\0")),
        lambda t: list(t.fetch(POPULATION, "metadata/timestamp.json", 2**63)),
        lambda t: list(t.fetch(POPULATION, f"targets/{POPULATION}/models/2/model.safetensors")),
        lambda t: t.send_metrics(POPULATION, 1, {"films watched": 3.0}, REPORT),
        lambda t: t.send_metrics(POPULATION, 1, {"clicks": float("nan")}, REPORT),
        lambda t: t.send_metrics(POPULATION, 1, {"clicks": 1.0}, "not hex"),
        lambda t: t.send_metrics(POPULATION, 1, {}, REPORT),
        lambda t: t.send_metrics(POPULATION, 77, {"clicks": 1.0}, REPORT),
        lambda t: t.send_metrics(POPULATION, 1, {"clicks" * 9000: 1.0}, REPORT),
        lambda t: t.send_metrics(POPULATION, 1, {"clicks" * 90_000: 1.0}, REPORT),
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
    assert transport.check_in(check_in()).retry_after_seconds


def test_a_mishap_inside_is_told_to_no_one(
    place: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ModelService, request: object) -> None:
        raise ZeroDivisionError("secret words at /srv/secret")

    monkeypatch.setattr(ModelService, "check_in", broken)
    with place.start() as running:
        transport = place.connect(running)
        with pytest.raises(ServiceError, match="internal error") as caught:
            transport.check_in(check_in())
        assert "secret" not in str(caught.value)
        transport.close()
    assert "ZeroDivisionError" in caplog.text


def test_a_damaged_repository_is_no_answer_and_no_crash(place: Place, tmp_path: Path) -> None:
    other = Place.make(tmp_path, place.certificates)
    path = other.fetched_as(1, MODEL_FILE)
    other.publish(factors(seed=3))
    (other.registry.repository.folder / "timestamp.json").write_text("garbage")
    with other.start() as running:
        transport = other.connect(running)
        with pytest.raises(ServiceError, match="not possible now"):
            list(transport.fetch(POPULATION, path))
        assert b"".join(transport.fetch(POPULATION, "metadata/timestamp.json")) == b"garbage"
        assert transport.check_in(check_in()).retry_after_seconds
        transport.close()


def test_what_is_promoted_is_handed_out_without_a_restart_and_what_is_not_signed_never(
    place: Place, tmp_path: Path
) -> None:
    other = Place.make(tmp_path, place.certificates)
    with other.start() as running:
        transport = other.connect(running)
        version = other.add(factors(seed=4))
        with pytest.raises(NotPublished):
            list(transport.fetch(POPULATION, other.fetched_as(version, MODEL_FILE)))
        other.registry.promote(version, other.keys)
        assert list(transport.fetch(POPULATION, other.fetched_as(version, MODEL_FILE)))
        (other.registry.path(version) / "extra.json").write_text("{}")
        with pytest.raises(NotPublished):
            list(transport.fetch(POPULATION, f"targets/{POPULATION}/models/{version}/extra.json"))
        transport.close()


def test_a_service_with_keys_signs_anew_before_devices_would_refuse(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    offline, online = keys()
    old = Registry.create(tmp_path, POPULATION, offline, online, now=time.time() - 5 * 86_400)
    before = old.state()
    served = OnlineKeys({role: online.of(role) for role in ("snapshot", "timestamp")})
    with Renewal([(old, served)], look_seconds=0.01):
        deadline = time.monotonic() + 60
        while old.state().timestamp.version == before.timestamp.version and time.monotonic() < deadline:
            time.sleep(0.01)
    assert old.state().expires("timestamp") > before.expires("timestamp")
    Renewal([(old, keys()[1])]).renew()  # nothing is due
    late = Registry.create(tmp_path / "late", POPULATION, offline, online, now=time.time() - 5 * 86_400)
    Renewal([(late, keys()[1])]).renew()
    assert "could not be renewed" in caplog.text and late.renew(online) == ["timestamp"]


# What is kept of reports.


def test_sums_are_all_that_is_kept(tmp_path: Path) -> None:
    sums = MetricSums(tmp_path)
    assert sums.add(3, {"clicks": 2.0, "hides": -7.5})
    assert sums.add(3, {"clicks": 1e9})
    assert not sums.add(3, {}) and not sums.add(3, {"who": 1.0}) and not sums.add(3, {"clicks": float("inf")})
    sums.write()
    (day,) = json.loads((tmp_path / "metrics.json").read_text()).values()
    assert day == {"3": {"clicks": [GREATEST + 2, 2], "hides": [-7.5, 1]}}
    again = MetricSums(tmp_path)
    again.add(3, {"clicks": 1.0})
    again.write()
    (day,) = json.loads((tmp_path / "metrics.json").read_text()).values()
    assert day["3"]["clicks"] == [GREATEST + 3, 3]


@pytest.mark.parametrize("content", ["broken", "[]", '{"1": 2}', '{"x": {}}', '{"1": {"2": {"clicks": 3}}}'])
def test_broken_sums_are_never_written_over(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(RegistryError, match="restore it, or move it away"):
        MetricSums(tmp_path)
    assert (tmp_path / "metrics.json").read_text() == content


def test_sums_wait_for_a_disk_that_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sums = MetricSums(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fedrec_server.service._metric_sums.write_json", full)
        assert sums.add(1, {"clicks": 4.0})
        sums.write()
    assert "No space left" in caplog.text
    sums.write()
    assert '"clicks"' in (tmp_path / "metrics.json").read_text()


def test_old_days_go(tmp_path: Path) -> None:
    import time

    today = int(time.time() // DAY)
    days = {str(today - k): {"1": {"clicks": [1.0, 1]}} for k in range(1, DAYS_KEPT + 50)}
    (tmp_path / "metrics.json").write_text(json.dumps(days))
    sums = MetricSums(tmp_path)
    sums.add(1, {"clicks": 1.0})
    sums.write()
    kept = sorted(map(int, json.loads((tmp_path / "metrics.json").read_text())))
    assert kept == list(range(today - DAYS_KEPT + 1, today + 1))


# Around it.


def test_health_is_told_and_the_rest_is_not(place: Place, service: Service) -> None:
    with place.channel(service) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "fedrec.v1.ModelService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="other"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        for method in (
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            "/grpc.health.v1.Health/Watch",
            "/fedrec.v1.ModelService/None",
        ):
            call = channel.stream_stream(method, lambda b: b, lambda b: b)
            with pytest.raises(grpc.RpcError) as caught:
                list(call(iter([b""]), timeout=5))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


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


class Moody(grpc.GenericRpcHandler):
    """Answers every call with a status, and counts."""

    def __init__(
        self, code: grpc.StatusCode, text: str, trailing: Trailing = (), good_from: int = 99
    ) -> None:
        self.calls: list[str] = []
        self._code, self._text, self._trailing, self._good_from = code, text, trailing, good_from

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            self.calls.append(details.method.rpartition("/")[2])
            if len(self.calls) < self._good_from:
                context.set_trailing_metadata(self._trailing)
                context.abort(self._code, self._text)
            return messages.CheckInReply(retry_min_seconds=7.0, retry_max_seconds=9.0).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


@contextmanager
def moody(service: Moody) -> Iterator[GrpcTransport]:
    server = grpc.server(ThreadPoolExecutor(2), handlers=(service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    transport = GrpcTransport(f"127.0.0.1:{port}", insecure=True)
    try:
        yield transport
    finally:
        transport.close()
        server.stop(0).wait()


def test_what_can_be_asked_twice_is_asked_again() -> None:
    """A report too: the service counts it once, by its token."""
    flaky = Moody(grpc.StatusCode.UNAVAILABLE, "cut", good_from=3)
    with moody(flaky) as transport:
        assert transport.check_in(check_in()).retry_after_seconds == (7.0, 9.0)
    assert flaky.calls == ["CheckIn"] * 3
    gone = Moody(grpc.StatusCode.UNAVAILABLE, "cut")
    with moody(gone) as transport:
        with pytest.raises(ServiceError, match="try again"):
            transport.send_metrics(POPULATION, 1, {"clicks": 1.0}, REPORT)
        with pytest.raises(ServiceError, match="try again"):
            transport.check_in(check_in())
    assert gone.calls == ["SendMetrics"] * 3 + ["CheckIn"] * 3


def test_what_a_foreign_service_says_fits_into_one_line() -> None:
    foreign = Moody(grpc.StatusCode.NOT_FOUND, "\x1b[31m\n" + "x" * 1000)
    with moody(foreign) as transport, pytest.raises(ServiceError) as caught:
        transport.check_in(check_in())
    text = str(caught.value)
    assert text.isprintable() and len(text) < 400


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ((), BUSY_SECONDS),
        ((("retry-min-seconds", "5"),), BUSY_SECONDS),
        ((("retry-min-seconds", "9"), ("retry-max-seconds", "3")), BUSY_SECONDS),
        ((("retry-min-seconds", "1"), ("retry-max-seconds", "9e9")), BUSY_SECONDS),
        ((("retry-min-seconds", "nan"), ("retry-max-seconds", "nan")), BUSY_SECONDS),
        ((("retry-min-seconds", "3"), ("retry-max-seconds", "9")), (3.0, 9.0)),
    ],
)
def test_a_time_to_come_back_is_believed_within_reason(told: Trailing, expected: tuple[float, float]) -> None:
    busy = Moody(grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", told)
    with moody(busy) as transport, pytest.raises(ServerBusy) as caught:
        transport.check_in(check_in())
    assert caught.value.retry_after_seconds == expected


def test_stopping_ends_everything(place: Place) -> None:
    before = threading.active_count()
    running = place.start()
    transport = place.connect(running)
    transport.check_in(check_in())
    running.stop()
    running.stop()
    running.wait()
    with pytest.raises(ServiceError):
        transport.check_in(check_in())
    transport.close()
    path = place.fetched_as(1, MODEL_FILE)
    for call in (transport.check_in, lambda _: list(transport.fetch(POPULATION, path))):
        with pytest.raises(ServiceError, match="was closed"):
            call(check_in())
    assert threading.active_count() <= before + 2


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_and_stops_with_its_sums_written(
    place: Place, tmp_path: Path, how: signal.Signals
) -> None:
    other = Place.make(tmp_path, place.certificates)
    command = [sys.executable, "-m", "fedrec_server.cli.main", "service", "start"]
    command += ["--population", POPULATION, "--registry", str(other.registry.folder.parent)]
    command += ["--certs", str(place.certificates), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
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
            assert transport.check_in(check_in()).retry_after_seconds
            transport.send_metrics(POPULATION, 1, {"clicks": 3.0}, REPORT)
            transport.close()
            child.send_signal(how)
            out, err = child.communicate(timeout=60)
            assert child.returncode == 0 and "stopped" in out and "Traceback" not in err
        finally:
            child.kill()
    (of_day,) = json.loads((other.registry.folder / "metrics.json").read_text()).values()
    assert of_day == {"1": {"clicks": [3.0, 1]}}


def test_a_taken_port_is_said(place: Place, service: Service) -> None:
    with pytest.raises(ServiceError, match="use a free port"):
        Service.start([place.registry], None, port=service.port)


def test_busy_is_an_error_of_its_own(place: Place) -> None:
    with place.start(limits(calls_per_second=0.01, burst=3, expected_devices=2000)) as running:
        transport = place.connect(running)
        for _ in range(3):
            transport.check_in(check_in())
        with pytest.raises(ServerBusy) as caught:
            transport.check_in(check_in())
        assert caught.value.retry_after_seconds == (200.0, 400.0)
        transport.close()
