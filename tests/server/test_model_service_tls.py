"""Certificates: real handshakes, each side with what it must not accept from the other."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from cli_helpers import operate
from service_helpers import Place, check_in

from fedrec.core.errors import ServiceError
from fedrec.wire.proto import model_service_pb2 as messages
from fedrec_client.updates.grpc_transport import GrpcTransport
from fedrec_server.network.certificates import Validity, days_left, make_service_certificates
from fedrec_server.network.grpc_server import Certificates
from fedrec_server.service.server import Service

MONTH_AGO = Validity(1.0, dt.datetime.now(dt.UTC) - dt.timedelta(days=30))
NEXT_MONTH = Validity(1.0, dt.datetime.now(dt.UTC) + dt.timedelta(days=30))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("service"))


@pytest.fixture(scope="module")
def service(place: Place) -> Iterator[Service]:
    with place.start() as running:
        yield running


def refused(transport: GrpcTransport) -> None:
    """One try, a typed error, and no word of a certificate's inside."""
    try:
        with pytest.raises(ServiceError, match="check the address, the certificates"):
            transport._line.call("CheckIn", messages.CheckInRequest(), messages.CheckInReply, tries=1)
    finally:
        transport.close()


def mixed(folder: Path, **files: Path) -> Path:
    """A folder of certificates put together from others."""
    folder.mkdir()
    for name, source in files.items():
        (folder / name.replace("_", ".")).write_bytes(source.read_bytes())
    return folder


# The service refuses a device.


def test_a_good_one_is_let_in(place: Place, service: Service) -> None:
    transport = place.connect(service)
    assert transport.check_in(check_in()).retry_after_seconds
    transport.close()


def test_without_a_certificate(place: Place, service: Service) -> None:
    refused(GrpcTransport(f"127.0.0.1:{service.port}", ca=place.certificates / "ca.crt"))


def test_with_that_of_a_foreign_app(place: Place, service: Service, tmp_path: Path) -> None:
    make_service_certificates(tmp_path)
    refused(place.connect(service, tmp_path))


def test_with_the_certificate_of_an_app_and_another_key(
    place: Place, service: Service, tmp_path: Path
) -> None:
    make_service_certificates(tmp_path / "other")
    ours = place.certificates
    try:
        refused(
            place.connect(
                service,
                mixed(tmp_path / "mixed", app_pem=ours / "app.pem", app_key=tmp_path / "other" / "app.key"),
            )
        )
    except ValueError as error:  # grpc may find out before it connects
        pytest.fail(f"an error of grpc's own: {error}")


@pytest.mark.parametrize("validity", [MONTH_AGO, NEXT_MONTH], ids=["expired", "not yet"])
def test_out_of_its_time_though_of_the_right_authority(
    place: Place, tmp_path: Path, validity: Validity
) -> None:
    """The authority of the apps is the one that the service believes; only the time is wrong."""
    make_service_certificates(tmp_path / "late", validity=validity)
    ours, late = place.certificates, tmp_path / "late"
    files = Certificates(ours / "server.pem", ours / "server.key", late / "apps.crt")
    with Service.start([place.registry], files) as running:
        refused(place.connect(running, late))


def test_with_the_servers_own_certificate(place: Place, service: Service) -> None:
    """Made for servers, by another authority."""
    ours = place.certificates
    refused(
        GrpcTransport(
            f"127.0.0.1:{service.port}",
            ca=ours / "ca.crt",
            certificate=ours / "server.pem",
            key=ours / "server.key",
        )
    )


def test_without_tls(place: Place, service: Service) -> None:
    refused(GrpcTransport(f"127.0.0.1:{service.port}", insecure=True))


# A device refuses the service.


def test_a_server_of_a_foreign_authority(place: Place, service: Service, tmp_path: Path) -> None:
    make_service_certificates(tmp_path)
    ours = place.certificates
    refused(
        GrpcTransport(
            f"127.0.0.1:{service.port}",
            ca=tmp_path / "ca.crt",
            certificate=ours / "app.pem",
            key=ours / "app.key",
        )
    )


def test_a_server_of_an_authority_that_only_the_system_would_have_to_know(
    place: Place, service: Service
) -> None:
    """Without `ca` those of the system are believed, and no private one."""
    ours = place.certificates
    refused(GrpcTransport(f"127.0.0.1:{service.port}", certificate=ours / "app.pem", key=ours / "app.key"))


def test_a_server_of_another_name(place: Place, service: Service) -> None:
    ours = place.certificates
    refused(
        GrpcTransport(
            f"127.0.0.1:{service.port}",
            ca=ours / "ca.crt",
            certificate=ours / "app.pem",
            key=ours / "app.key",
            server_name="models.example.org",
        )
    )


@pytest.mark.parametrize("validity", [MONTH_AGO, NEXT_MONTH], ids=["expired", "not yet"])
def test_a_server_out_of_its_time(place: Place, tmp_path: Path, validity: Validity) -> None:
    """The authority is the one that the device believes, the app's certificate is good; only the time is wrong."""
    make_service_certificates(tmp_path / "late", validity=validity)
    late, ours = tmp_path / "late", place.certificates
    files = Certificates(late / "server.pem", late / "server.key", ours / "apps.crt")
    with Service.start([place.registry], files) as running:
        refused(
            GrpcTransport(
                f"127.0.0.1:{running.port}",
                ca=late / "ca.crt",
                certificate=ours / "app.pem",
                key=ours / "app.key",
            )
        )


# Around it.


def only(version: str, context: ssl.SSLContext) -> ssl.SSLContext:
    """A context that speaks one version of TLS alone, with whatever ciphers that takes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_tls_of_today(place: Place, service: Service, version: str) -> None:
    context = only(version, place.context())
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        assert connection.version() == version.replace("_", ".")


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_nothing_older_than_tls_1_2(place: Place, service: Service, version: str) -> None:
    """The same client gets on well with a server that does speak the old version: it is ours that refuses."""
    context = only(version, place.context())
    theirs = only(version, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    theirs.load_cert_chain(place.certificates / "server.pem", place.certificates / "server.key")
    assert shaken(context, theirs) == version.replace("_", ".")
    with (
        socket.create_connection(("127.0.0.1", service.port), timeout=5) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def shaken(client: ssl.SSLContext, server: ssl.SSLContext) -> str | None:
    """The version that the two agree on, without a network."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    asked = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (asking, asked):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    return asking.version()


def test_no_tls_is_for_loopback_alone(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    with Service.start([place.registry], None) as running:
        assert "NO TLS" in caplog.text
        transport = GrpcTransport(f"127.0.0.1:{running.port}", insecure=True)
        assert transport.check_in(check_in()).retry_after_seconds
        transport.close()
    for host in ("0.0.0.0", "::", "192.0.2.1", "models.example.org", ""):
        with pytest.raises(ServiceError, match="fedrec-server certs init"):
            Service.start([place.registry], None, host=host)
    for target in ("models.example.org:443", "127.0.0.1.example.org:443", "localhost", "127.0.0.1@evil:1"):
        with pytest.raises(ServiceError, match="only on loopback"):
            GrpcTransport(target, insecure=True)


def test_files_that_are_missing_or_none(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="cannot be read"):
        GrpcTransport("localhost:1", ca="no-such.pem")
    ours = place.certificates
    with pytest.raises(ServiceError, match=r"cannot be read.*fedrec-server certs init"):
        Service.start([place.registry], Certificates(tmp_path / "no", ours / "server.key", None))
    (tmp_path / "bad.pem").write_text("-----BEGIN CERTIFICATE-----\nnothing\n-----END CERTIFICATE-----\n")
    for bad in (
        Certificates(tmp_path / "bad.pem", ours / "server.key", ours / "apps.crt"),
        Certificates(ours / "server.pem", tmp_path / "bad.pem", ours / "apps.crt"),
        Certificates(ours / "server.pem", ours / "server.key", tmp_path / "bad.pem"),
    ):
        with pytest.raises(ServiceError):
            Service.start([place.registry], bad)


def test_the_operator_hears_in_time_that_a_certificate_ends(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_service_certificates(tmp_path, validity=Validity(3.0))
    files = Certificates(tmp_path / "server.pem", tmp_path / "server.key", place.certificates / "apps.crt")
    Service.start([place.registry], files).stop()
    assert "holds for 3 more days" in caplog.text and "apps.crt" not in caplog.text
    assert days_left(tmp_path / "server.pem") == pytest.approx(3, abs=0.1)


def test_a_service_without_app_certificates_says_so(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    ours = place.certificates
    with Service.start(
        [place.registry], Certificates(ours / "server.pem", ours / "server.key", None)
    ) as running:
        assert "NO CLIENT CERTIFICATES" in caplog.text
        transport = GrpcTransport(f"127.0.0.1:{running.port}", ca=ours / "ca.crt")
        assert transport.check_in(check_in()).retry_after_seconds
        transport.close()


def test_certificates_are_never_written_over_and_keys_are_their_owners(tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    assert operate("certs", "init", folder, "--host", "models.example.org", "--days", "5") == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.glob("*.key"))
    assert days_left(folder / "app.pem") < 5
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ServiceError, match="already"):
        make_service_certificates(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
