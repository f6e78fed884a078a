"""Two small files that pass between a site and the operator of a federation; no disk is shared.

    enrolment   from the site: its name, its public keys, how many users it has
    package     back from the operator: where the gateway is, whom to believe, the terms of the run, its items

Both are JSON and hold no secret; a package must come from the operator by a way that the site trusts, because it says
whom to believe. Out of scope: making keys, what the terms mean (`fedrec.secagg.terms`).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedrec.core.errors import RunError
from fedrec.core.files import write_json

MAX_ENROLMENT_BYTES = 4096
MAX_PACKAGE_BYTES = 256 << 20
MAX_USERS = 1_000_000
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")
#: Parts of a node's configuration, as `node.json` has them.
NODE_PARTS = frozenset({"model", "settings", "evaluation", "privacy", "aggregation"})
_CURVE = b"ecdsa-sha2-nistp384"


@dataclass(frozen=True)
class SiteEnrolment:
    """What a site tells the operator.

    Attributes:
        name: lower-case letters, digits and dashes.
        node_key: public key with which its node authenticates, one line in OpenSSH's form (ECDSA P-384).
        identity: public key of secure aggregation (Ed25519), 64 hex digits.
        users: how many it has; the operator vouches for the number by admitting it.
    """

    name: str
    node_key: str
    identity: str
    users: int

    def __post_init__(self) -> None:
        check_name(self.name)
        if not isinstance(self.node_key, str) or not _is_node_key(self.node_key):
            raise RunError(f"site {self.name} has a node key that is not an ECDSA P-384 key of OpenSSH")
        if not isinstance(self.identity, str) or not _HEX_KEY.fullmatch(self.identity):
            raise RunError(f"site {self.name} has an identity that is not 64 hex digits: enrol it again")
        if type(self.users) is not int or not 1 <= self.users <= MAX_USERS:
            raise RunError(f"site {self.name} has {self.users!r:.40} users: expected 1 to {MAX_USERS}")

    def write(self, path: Path) -> None:
        """Write the file."""
        write_json(path, {"format": 1} | asdict(self), 0o644)

    @classmethod
    def read(cls, path: Path) -> SiteEnrolment:
        """The enrolment in a file.

        Raises:
            RunError: it is not one.
        """
        return cls(**_read(path, {"name", "node_key", "identity", "users"}, MAX_ENROLMENT_BYTES, "enrolment"))


@dataclass(frozen=True)
class SitePackage:
    """What the operator gives to a site.

    Attributes:
        name: of the site.
        gateway: "host:port".
        ca: certificate of the authority of the gateway, PEM.
        run: random name of the run.
        node: parts of a node's configuration by name, with the terms that are pinned.
        items: ids in the order of the model.
    """

    name: str
    gateway: str
    ca: str
    run: str
    node: Mapping[str, Any]
    items: tuple[str, ...]

    def __post_init__(self) -> None:
        check_name(self.name)
        check_address(self.gateway)
        if not isinstance(self.ca, str) or "BEGIN CERTIFICATE" not in self.ca:
            raise RunError("a package without a certificate of the gateway's authority: ask for a new one")
        if not isinstance(self.run, str) or not re.fullmatch(r"[0-9a-z-]{1,64}", self.run):
            raise RunError(f"a package for run {self.run!r:.80}: expected lower-case letters and digits")
        if not isinstance(self.node, Mapping) or set(self.node) != NODE_PARTS:
            raise RunError(f"a package whose node has not the parts {', '.join(sorted(NODE_PARTS))}")
        object.__setattr__(self, "items", tuple(self.items) if isinstance(self.items, list | tuple) else ())
        if not self.items or not all(isinstance(item, str) and item for item in self.items):
            raise RunError("a package without items: ask for a new one")
        if len(set(self.items)) != len(self.items):
            raise RunError("a package names an item twice: ask for a new one")

    def write(self, path: Path) -> None:
        """Write the file."""
        write_json(path, {"format": 1} | asdict(self), 0o644)

    @classmethod
    def read(cls, path: Path) -> SitePackage:
        """The package in a file.

        Raises:
            RunError: it is not one.
        """
        return cls(
            **_read(path, {"name", "gateway", "ca", "run", "node", "items"}, MAX_PACKAGE_BYTES, "package")
        )


def check_name(name: object) -> None:
    """Raises RunError for what is not a site's name."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RunError(f"site {name!r:.80}: expected a name of lower-case letters, digits and dashes")


def check_address(address: object) -> None:
    """Raises RunError for what is not "host:port"."""
    if (
        not isinstance(address, str)
        or not _ADDRESS.fullmatch(address)
        or not 0 < int(address.rpartition(":")[2]) < 65536
    ):
        raise RunError(f"address {address!r:.80}: expected host:port")


def _is_node_key(line: str) -> bool:
    kind, _, text = line.strip().partition(" ")
    try:
        blob = base64.b64decode(text.split(" ")[0], validate=True)
    except (binascii.Error, ValueError):
        return False
    return kind.encode() == _CURVE and "\n" not in line.strip() and blob[4 : 4 + len(_CURVE)] == _CURVE


def _read(path: Path, names: set[str], most_bytes: int, what: str) -> dict[str, Any]:
    try:
        if path.stat().st_size > most_bytes:
            raise ValueError(f"more than {most_bytes} bytes")
        plain = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read as a site's {what} ({error})") from error
    if not isinstance(plain, dict) or plain.pop("format", None) != 1 or set(plain) != names:
        raise RunError(f"{path} is not a site's {what} of this version: expected {', '.join(sorted(names))}")
    return plain
