"""Keys and certificates: a private CA, server certificates, one key per node; for the model service also for apps.

P-384 for nodes, the strongest curve that Flower's node authentication takes; P-256 for services and apps, whose
handshakes cost a server a tenth of the time. Private files are readable by
their owner only. A CA's own key is forgotten at once: no one can make another certificate that would be believed;
rotating means making new ones. Out of scope: revocation.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedrec.core.errors import ServiceError

VALID_DAYS = 90
LOOPBACK = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


@dataclass(frozen=True)
class Validity:
    """How long certificates hold, and from when on (None: an hour ago)."""

    days: float = VALID_DAYS
    start: dt.datetime | None = None

    @property
    def times(self) -> tuple[dt.datetime, dt.datetime]:
        """First and last moment."""
        first = self.start or dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
        return first, first + dt.timedelta(days=self.days)


def make_certificates(folder: Path, servers: tuple[str, ...]) -> Path:
    """Write `ca.crt` and for each server `<name>.pem` and `<name>.key` for localhost; returns the CA's path."""
    folder.mkdir(parents=True, exist_ok=True)
    ca = _Authority("fedrec private CA", Validity())
    (folder / "ca.crt").write_bytes(ca.pem)
    for server in servers:
        ca.issue(folder, server, ExtendedKeyUsageOID.SERVER_AUTH, LOOPBACK)
    return folder / "ca.crt"


def make_service_certificates(
    folder: Path, hosts: Sequence[str] = (), validity: Validity | None = None
) -> dict[str, Path]:
    """Certificates for a model service and for the app whose devices may ask it.

    Args:
        folder: for `ca.crt`, `server.pem`, `server.key` (of the server), `apps.crt` (whom the server believes),
            `app.pem`, `app.key` (that go into the app: they tell apps apart, not users).
        hosts: names or addresses of the server, beside localhost.
        validity: None: 90 days from now.

    Raises:
        ServiceError: there are some already, or they cannot be written.
    """
    if (folder / "ca.crt").exists():
        raise ServiceError(
            f"{folder} has certificates already: give another folder, and move apps over to it"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        validity = validity or Validity()
        curve = ec.SECP256R1()
        servers = _Authority("fedrec service CA", validity, curve)
        apps = _Authority("fedrec apps CA", validity, curve)
        (folder / "ca.crt").write_bytes(servers.pem)
        (folder / "apps.crt").write_bytes(apps.pem)
        servers.issue(folder, "server", ExtendedKeyUsageOID.SERVER_AUTH, (*LOOPBACK, *map(_host, hosts)))
        apps.issue(folder, "app", ExtendedKeyUsageOID.CLIENT_AUTH, (x509.DNSName("app"),))
    except OSError as error:
        raise ServiceError(f"{folder} cannot be written ({error.strerror}): give another folder") from error
    names = ("ca.crt", "server.pem", "server.key", "apps.crt", "app.pem", "app.key")
    return {name: folder / name for name in names}


def days_left(certificate: Path) -> float:
    """How long a certificate still holds; negative: it has ended.

    Raises:
        ServiceError: it is none.
    """
    try:
        end = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except (OSError, ValueError) as error:
        raise ServiceError(
            f"{certificate} is no certificate ({error}): make one with `fedrec-server certs init`"
        ) from error
    return (end - dt.datetime.now(dt.UTC)) / dt.timedelta(days=1)


def make_node_key(path: Path) -> Path:
    """Write a node's key pair `<path>` and `<path>.pub` in OpenSSH format; returns the path of the public key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP384R1())
    write_private(path, _pem(key, serialization.PrivateFormat.OpenSSH))
    public = path.with_name(path.name + ".pub")
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    public.write_bytes(key.public_key().public_bytes(encoding, form))
    return public


def write_private(path: Path, content: bytes) -> None:
    """Write a file that was never readable by others, not even for a moment."""
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _pem(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class _Authority:
    """A certificate authority that lives as long as this object."""

    def __init__(self, name: str, validity: Validity, curve: ec.EllipticCurve | None = None) -> None:
        self._curve = curve or ec.SECP384R1()
        self._key = ec.generate_private_key(self._curve)
        self._name, self._validity = _name(name), validity
        certificate = self._sign(self._name, self._key.public_key(), is_ca=True)
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, folder: Path, name: str, purpose: x509.ObjectIdentifier, hosts: Sequence[x509.GeneralName]
    ) -> None:
        """Write `<name>.pem` and `<name>.key`."""
        key = ec.generate_private_key(self._curve)
        certificate = self._sign(_name(name), key.public_key(), is_ca=False, purpose=purpose, hosts=hosts)
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        write_private(folder / f"{name}.key", _pem(key, serialization.PrivateFormat.PKCS8))

    def _sign(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey,
        *,
        is_ca: bool,
        purpose: x509.ObjectIdentifier | None = None,
        hosts: Sequence[x509.GeneralName] = (),
    ) -> x509.Certificate:
        first, last = self._validity.times
        usage = x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False)
        own = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(first)
            .not_valid_after(last)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=0 if is_ca else None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(own, critical=False)
        )
        if purpose is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        return builder.sign(self._key, hashes.SHA384())
