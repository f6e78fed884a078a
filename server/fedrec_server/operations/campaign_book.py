"""Training campaigns as they lie on disk: who enrolled, and the signed task that answers them.

    ROOT/<campaign>/campaign.json      population, when it was opened, how many may join, whether the roster is
                                       closed, and how it ended
    ROOT/<campaign>/enrolments.jsonl   one device per line, in the order of the roster
    ROOT/<campaign>/task.json          from the closing of the roster on; its hash is in the signed metadata
    ROOT/<campaign>/left.jsonl         devices of a closed roster that have left, as they said
    ROOT/<campaign>/operator.lock      locked by the operator's process while it lives

The model service serves it, the operator's process opens, closes and runs it (`fedrec-server campaign run`);
both read the same files. A device is known by keys that it made for this campaign alone. A campaign is over
when its operator says so or when the operator's process has died: devices that ask are told. Out of scope:
rounds.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedrec.core.errors import CampaignOver, RegistryError
from fedrec.core.files import atomic_write, write_json
from fedrec.wire.leaving import is_leaving

STATE, ENROLMENTS, TASK = "campaign.json", "enrolments.jsonl", "task.json"
LEFT, LOCK = "left.jsonl", "operator.lock"
#: How a campaign that brought a new version ended.
DONE = "done"


@dataclass(frozen=True)
class Enrolled:
    """A device on the roster: its two public keys, and how many users use it."""

    identity: str
    node_key: str
    users: int


@dataclass(frozen=True)
class State:
    """Of a campaign.

    Attributes:
        population: whose devices may join.
        opened: seconds since 1970.
        max_devices: more are refused.
        closed: the roster is complete.
        ended: how it ended, for the operator: `DONE`, or what went wrong; empty: it has not.
    """

    population: str
    opened: int
    max_devices: int
    closed: bool = False
    ended: str = ""


class CampaignBook:
    """All campaigns of a folder; see `fedrec_server.service._campaigns.Campaigns`."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()

    def open(self, population: str, max_devices: int) -> str:
        """A new campaign; its id.

        Raises:
            RegistryError: the folder cannot be written.
        """
        campaign = secrets.token_hex(16)
        try:
            (self._root / campaign).mkdir(parents=True)
            write_json(
                self._root / campaign / STATE, asdict(State(population, int(time.time()), max_devices))
            )
        except OSError as error:
            raise RegistryError(
                f"{self._root} cannot be written ({error.strerror}): give another folder"
            ) from error
        return campaign

    def folder(self, campaign: str) -> Path:
        """Of a campaign.

        Raises:
            RegistryError: there is none.
        """
        folder = self._root / campaign
        if not campaign.isalnum() or not (folder / STATE).exists():
            raise RegistryError(f"no campaign {campaign!r:.40} in {self._root}: open one first")
        return folder

    def state(self, campaign: str) -> State:
        """Of a campaign.

        Raises:
            RegistryError: there is none, or its file is broken.
        """
        path = self.folder(campaign) / STATE
        try:
            return State(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise RegistryError(f"{path} cannot be read ({error}): restore it from a backup") from error

    def roster(self, campaign: str) -> list[Enrolled]:
        """Everyone who enrolled, in order; a line that a crash cut off was never acknowledged."""
        path = self.folder(campaign) / ENROLMENTS
        if not path.exists():
            return []
        lines = path.read_text().splitlines(keepends=True)
        return [Enrolled(**json.loads(line)) for line in lines if line.endswith("\n")]

    def close(self, campaign: str) -> list[Enrolled]:
        """Complete the roster: no device can enrol any more."""
        with self._alone(campaign):
            state = self.state(campaign)
            self._write(campaign, replace(state, closed=True))
            return self.roster(campaign)

    def end(self, campaign: str, how: str) -> None:
        """The campaign is over: no device can enrol, and devices that ask are told so. The first word stands."""
        with self._alone(campaign):
            state = self.state(campaign)
            self._write(campaign, replace(state, closed=True, ended=state.ended or how))

    def hold(self, campaign: str) -> IO[bytes]:
        """Say that the operator's process lives, until the file that is given back is closed or the process dies."""
        path = self.folder(campaign) / LOCK
        fresh = path.with_name(f".{LOCK}.{secrets.token_hex(4)}")
        file = fresh.open("wb")
        # Locked before it has its name: there is no moment at which the operator seems dead.
        fcntl.flock(file, fcntl.LOCK_EX)
        fresh.replace(path)
        return file

    def is_over(self, campaign: str) -> bool:
        """Whether it has ended, or its operator's process died."""
        return bool(self.state(campaign).ended) or self._is_orphaned(campaign)

    def left(self, campaign: str) -> set[str]:
        """Identities, in hex, of devices that left after the roster was closed."""
        path = self.folder(campaign) / LEFT
        if not path.exists():
            return set()
        lines = path.read_text().splitlines(keepends=True)
        return {json.loads(line)["identity"] for line in lines if line.endswith("\n")}

    def give(self, campaign: str, task: bytes) -> None:
        """Let the devices of the roster have their task, once its hash is signed."""
        atomic_write(self.folder(campaign) / TASK, task)

    def open_for(self, population: str) -> str:
        """See `Campaigns`; the newest one."""
        found = []
        for path in self._root.glob(f"*/{STATE}"):
            state = self.state(path.parent.name)
            if state.population == population and not (state.closed or self._is_orphaned(path.parent.name)):
                found.append((state.opened, path.parent.name))
        return max(found, default=(0, ""))[1]

    def enrol(self, campaign: str, identity: bytes, node_key: str, users: int) -> None:
        """See `Campaigns`; keys that are none would end the campaign for everyone when it begins."""
        device = Enrolled(_checked(identity), _one_form(node_key), users)
        with self._alone(campaign):
            state, roster = self.state(campaign), self.roster(campaign)
            if device in roster:
                return
            if state.closed:
                raise CampaignOver(f"the roster of campaign {campaign} is closed: wait for another")
            if any(
                device.identity == other.identity or device.node_key == other.node_key for other in roster
            ):
                raise RegistryError(
                    "a key stands on the roster with another: make new keys for every campaign"
                )
            if len(roster) >= state.max_devices:
                raise CampaignOver(f"the roster of campaign {campaign} is full: wait for another")
            self._add(campaign, ENROLMENTS, asdict(device))

    def leave(self, campaign: str, identity: bytes, signature: bytes) -> None:
        """See `Campaigns`; an open roster forgets the device, a closed one notes that it left."""
        if not is_leaving(identity, campaign, signature):
            raise RegistryError(f"a device that left campaign {campaign} has not signed it: nothing is noted")
        if not campaign.isalnum() or not (self._root / campaign / STATE).exists():
            return  # the operator has removed it
        with self._alone(campaign):
            roster = self.roster(campaign)
            stay = [device for device in roster if device.identity != identity.hex()]
            if len(stay) == len(roster) or identity.hex() in self.left(campaign):
                return
            if self.state(campaign).closed:
                self._add(campaign, LEFT, {"identity": identity.hex(), "time": int(time.time())})
            else:
                lines = (json.dumps(asdict(device), sort_keys=True) + "\n" for device in stay)
                atomic_write(self.folder(campaign) / ENROLMENTS, "".join(lines).encode())

    def task(self, campaign: str, identity: bytes) -> bytes | None:
        """See `Campaigns`."""
        if self.is_over(campaign):
            raise CampaignOver(f"campaign {campaign} is over: wait for another")
        if not any(identity.hex() == device.identity for device in self.roster(campaign)):
            raise RegistryError(f"a device that is not on the roster of campaign {campaign}: enrol first")
        path = self.folder(campaign) / TASK
        return path.read_bytes() if path.exists() else None

    def _write(self, campaign: str, state: State) -> None:
        write_json(self.folder(campaign) / STATE, asdict(state))

    def _is_orphaned(self, campaign: str) -> bool:
        """Whether an operator's process held the campaign and died."""
        try:
            with (self.folder(campaign) / LOCK).open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            return False
        return True

    def _add(self, campaign: str, name: str, entry: dict[str, Any]) -> None:
        """A line behind the last whole one of a file; on disk when this returns."""
        path = self.folder(campaign) / name
        cut = path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0
        with path.open("ab") as file:
            file.truncate(cut)
            file.write((json.dumps(entry, sort_keys=True) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _alone(self, campaign: str) -> Iterator[None]:
        """One writer, in this process and in any other."""
        with self._lock, (self.folder(campaign) / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _checked(identity: bytes) -> str:
    """In hex.

    Raises:
        RegistryError: no point of the curve.
    """
    try:
        Ed25519PublicKey.from_public_bytes(identity)
    except ValueError as error:
        raise RegistryError(f"identity of {len(identity)} bytes: expected an Ed25519 public key") from error
    return identity.hex()


def _one_form(node_key: str) -> str:
    """The key without a comment, so that one key cannot enrol twice in two forms.

    Raises:
        RegistryError: no key of the kind that SuperLink takes.
    """
    try:
        key = load_ssh_public_key(node_key.encode())
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
            raise ValueError("another kind of key")
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RegistryError(f"node key ({error!s:.60}): expected P-384 in OpenSSH's form") from error
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
