"""Certificates that are renewed are believed by those who believed the old ones; a CA's key is needed for it."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509

from fedrec.core.errors import ServiceError
from fedrec_server.network.certificates import (
    Validity,
    days_left,
    make_certificates,
    make_service_certificates,
    renew_certificates,
)


def names(path: Path) -> set[str]:
    found = x509.load_pem_x509_certificate(path.read_bytes())
    held = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(name.value) for name in held}


def handshake(ca: Path, certificate: Path, key: Path, host: str) -> None:
    """A TLS handshake with a server of this certificate, whose name is verified."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    theirs.settimeout(30)

    def answer() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        ssl.create_default_context(cafile=str(ca)).wrap_socket(ours, server_hostname=host).close()
    finally:
        ours.close()
        thread.join()


def test_certificates_name_what_the_operator_says(tmp_path: Path) -> None:
    make_certificates(tmp_path, ("superlink", "gateway"), ("10.77.0.1", "fed.example.org"))
    expected = {"localhost", "127.0.0.1", "10.77.0.1", "fed.example.org"}
    for server in ("superlink", "gateway"):
        assert names(tmp_path / f"{server}.pem") == expected
        files = (tmp_path / "ca.crt", tmp_path / f"{server}.pem", tmp_path / f"{server}.key")
        handshake(*files, "10.77.0.1")
        handshake(*files, "fed.example.org")
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(*files, "10.77.0.2")
    for path in tmp_path.glob("*.key"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_renewal_needs_nothing_new_on_the_other_side(tmp_path: Path) -> None:
    old = dt.datetime.now(dt.UTC) - dt.timedelta(days=91)
    make_service_certificates(tmp_path, ["fed.example.org"], Validity(90, old))
    pinned, apps = (tmp_path / "ca.crt").read_bytes(), (tmp_path / "apps.crt").read_bytes()
    assert days_left(tmp_path / "server.pem") < 0 < 3000 < days_left(tmp_path / "ca.crt")
    files = (tmp_path / "ca.crt", tmp_path / "server.pem", tmp_path / "server.key")
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(*files, "fed.example.org")
    renewed = renew_certificates(tmp_path, ["second.example.org"], Validity(30))
    assert [path.name for path in renewed] == ["app.pem", "server.pem"]
    assert all(29 < days_left(path) <= 30 for path in renewed)
    assert (tmp_path / "ca.crt").read_bytes() == pinned and (tmp_path / "apps.crt").read_bytes() == apps
    handshake(*files, "fed.example.org")
    handshake(*files, "second.example.org")
    assert names(tmp_path / "app.pem") == {"app"}
    assert str(ipaddress.ip_address("127.0.0.1")) in names(tmp_path / "server.pem")


def test_without_its_own_key_a_ca_renews_nothing(tmp_path: Path) -> None:
    make_certificates(tmp_path / "one", ("gateway",))
    make_certificates(tmp_path / "two", ("gateway",))
    before = (tmp_path / "one" / "gateway.pem").read_bytes()
    (tmp_path / "one" / "ca.key").write_bytes((tmp_path / "two" / "ca.key").read_bytes())
    with pytest.raises(ServiceError, match="does not fit"):
        renew_certificates(tmp_path / "one")
    (tmp_path / "one" / "ca.key").unlink()
    with pytest.raises(ServiceError, match="bring the CA's key back"):
        renew_certificates(tmp_path / "one")
    assert (tmp_path / "one" / "gateway.pem").read_bytes() == before
    with pytest.raises(ServiceError, match="cannot be read"):
        renew_certificates(tmp_path / "none")
