"""Keys and certificates: a private CA, server certificates, one key per node; for the model service also for apps.

P-384 for nodes, the strongest curve that Flower's node authentication takes; P-256 for services and apps, whose
handshakes cost a server a tenth of the time. Private files are readable by their owner only. A CA lives for years and
its key is in `ca.key`, so that certificates are renewed without anything new for those who believe it. The holder of
that file can be any server to them: keep it off the server, and bring it for a renewal. Out of scope: revocation.
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
from fedrec.core.files import atomic_write

VALID_DAYS = 90
#: Of a CA, whose certificate is pinned by nodes and apps.
AUTHORITY_DAYS = 3650
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


def make_certificates(
    folder: Path, servers: Sequence[str], hosts: Sequence[str] = (), validity: Validity | None = None
) -> Path:
    """A CA, and a certificate of it for each server.

    Args:
        folder: for `ca.crt`, `ca.key`, and for each server `<name>.pem` and `<name>.key`.
        servers: their names as files.
        hosts: names or addresses of the servers, beside localhost.
        validity: of the servers' certificates; None: 90 days from now.

    Returns:
        Path of the CA's certificate.
    """
    folder.mkdir(parents=True, exist_ok=True)
    validity = validity or Validity()
    ca = _Authority.create("fedrec private CA", validity)
    ca.write(folder, "ca")
    for server in servers:
        ca.issue(folder, server, ExtendedKeyUsageOID.SERVER_AUTH, (*LOOPBACK, *map(_host, hosts)), validity)
    return folder / "ca.crt"


def renew_certificates(
    folder: Path, hosts: Sequence[str] = (), validity: Validity | None = None
) -> list[Path]:
    """New certificates and keys of all servers and apps of a folder, of the CA that is believed already.

    Args:
        folder: as `make_certificates` or `make_service_certificates` wrote it.
        hosts: names or addresses to add to those that each server's certificate has.
        validity: None: 90 days from now.

    Returns:
        Paths of the certificates.

    Raises:
        ServiceError: a CA's key is not there or does not fit, or nothing can be written.
    """
    validity = validity or Validity()
    try:
        server_ca = _Authority.read(folder, "ca")
        renewed = []
        for path in sorted(folder.glob("*.pem")):
            old = x509.load_pem_x509_certificate(path.read_bytes())
            purpose = next(iter(old.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value))
            names = list(old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
            is_app = purpose == ExtendedKeyUsageOID.CLIENT_AUTH
            added = () if is_app else tuple(host for host in map(_host, hosts) if host not in names)
            authority = _Authority.read(folder, "apps") if is_app else server_ca
            authority.issue(folder, path.stem, purpose, (*names, *added), validity)
            renewed.append(path)
    except OSError as error:
        raise ServiceError(f"{folder} cannot be written ({error.strerror}): renew as its owner") from error
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ServiceError(f"{folder} has a file that is not a certificate of ours ({error})") from error
    if not renewed:
        raise ServiceError(f"{folder} has no certificates: make them with `fedrec-server certs init`")
    return renewed


def make_service_certificates(
    folder: Path, hosts: Sequence[str] = (), validity: Validity | None = None
) -> dict[str, Path]:
    """Certificates for a model service and for the app whose devices may ask it.

    Args:
        folder: for `ca.crt`, `server.pem`, `server.key` (of the server), `apps.crt` (whom the server believes),
            `app.pem`, `app.key` (that go into the app: they tell apps apart, not users), and the keys of both CAs,
            `ca.key` and `apps.key`, for a renewal.
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
        servers = _Authority.create("fedrec service CA", validity, curve)
        apps = _Authority.create("fedrec apps CA", validity, curve)
        servers.write(folder, "ca")
        apps.write(folder, "apps")
        names = (*LOOPBACK, *map(_host, hosts))
        servers.issue(folder, "server", ExtendedKeyUsageOID.SERVER_AUTH, names, validity)
        apps.issue(folder, "app", ExtendedKeyUsageOID.CLIENT_AUTH, (x509.DNSName("app"),), validity)
    except OSError as error:
        for name in (
            "ca.crt",
            "ca.key",
            "apps.crt",
            "apps.key",
            "server.pem",
            "server.key",
            "app.pem",
            "app.key",
        ):
            (folder / name).unlink(missing_ok=True)
        raise ServiceError(f"{folder} cannot be written ({error.strerror}): give another folder") from error
    files = ("ca.crt", "server.pem", "server.key", "apps.crt", "app.pem", "app.key")
    return {name: folder / name for name in files}


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


@dataclass(frozen=True)
class _Authority:
    """A certificate authority.

    Attributes:
        certificate: its own.
    """

    _key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def create(cls, name: str, validity: Validity, curve: ec.EllipticCurve | None = None) -> _Authority:
        """A new one, which holds for years, from the start of what it is to issue."""
        key = ec.generate_private_key(curve or ec.SECP384R1())
        long = Validity(max(AUTHORITY_DAYS, validity.days), validity.start)
        return cls(key, _signed(key, _name(name), _name(name), key.public_key(), long, is_ca=True))

    @classmethod
    def read(cls, folder: Path, name: str) -> _Authority:
        """The one that `write` wrote.

        Raises:
            ServiceError: its key is not there, or does not fit its certificate.
        """
        try:
            certificate = x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())
            key = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
        except (OSError, ValueError) as error:
            raise ServiceError(
                f"{folder / name}.crt and .key cannot be read ({error}): bring the CA's key back for a renewal, or "
                "make new certificates in another folder with `fedrec-server certs init`"
            ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ServiceError(f"{folder / name}.key does not fit {name}.crt: bring the key of this CA")
        return cls(key, certificate)

    def write(self, folder: Path, name: str) -> None:
        """Write `<name>.crt` and `<name>.key`."""
        (folder / f"{name}.crt").write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))
        write_private(folder / f"{name}.key", _pem(self._key, serialization.PrivateFormat.PKCS8))

    def issue(
        self,
        folder: Path,
        name: str,
        purpose: x509.ObjectIdentifier,
        hosts: Sequence[x509.GeneralName],
        validity: Validity,
    ) -> None:
        """Write `<name>.pem` and `<name>.key`."""
        key = ec.generate_private_key(self._key.curve)
        certificate = _signed(
            self._key,
            self.certificate.subject,
            _name(name),
            key.public_key(),
            validity,
            is_ca=False,
            purpose=purpose,
            hosts=hosts,
        )
        # The key first: a server that looks between the two sees a pair that does not fit, and keeps its old one.
        write_private(folder / f"{name}.key", _pem(key, serialization.PrivateFormat.PKCS8))
        atomic_write(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _signed(
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    validity: Validity,
    *,
    is_ca: bool,
    purpose: x509.ObjectIdentifier | None = None,
    hosts: Sequence[x509.GeneralName] = (),
) -> x509.Certificate:
    first, last = validity.times
    usage = x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False)
    own = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
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
    return builder.sign(signer, hashes.SHA384())
