"""Which app bundle belongs to this installation, and the check of one that a server sends.

Flower hands the bundle (FAB) of a run, an archive of code, from SuperLink to every node and device. Devices and nodes
serve their messages with what is installed on them and execute nothing of it: its bytes are compared with what they
expect and then dropped. What is expected stands in two places, which must agree:

    here                      the bundle of this version of fedrec, fixed when it was released
    FOLDER/bundle.json        of a node's folder, or of the folder of a device's session, where it comes from the
                              signed task: {"sha256": 64 hex digits}

A missing file, another digest or another bundle is refused. Out of scope: reading a bundle.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from fedrec.core.errors import ProtocolError, RunError
from fedrec.core.files import write_json

#: SHA-256 of the bundle that Flower builds from `server/apps/fedrec`; a test builds it.
BUNDLE = "4e3c1aa31373893fbc82fc4593398a98093d7b0fae8a8393f827c983838af2da"
FILE = "bundle.json"


def write_expected(folder: Path, digest: str = BUNDLE) -> None:
    """Say in a node's folder which bundle is expected: SHA-256 in hex."""
    write_json(folder / FILE, {"sha256": digest})


def read_expected(folder: Path, installed: str = BUNDLE) -> str:
    """The digest that a node's folder names.

    Args:
        folder: of the node.
        installed: digest of the bundle that belongs to what is installed.

    Raises:
        RunError: the folder names none.
        ProtocolError: it names another than belongs to this installation.
    """
    path = folder / FILE
    try:
        digest = json.loads(path.read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{path} names no app bundle ({type(error).__name__}): prepare the run first"
        ) from error
    check_named(digest, installed)
    return installed


def check_named(digest: object, installed: str = BUNDLE) -> None:
    """A task or a node file must name the bundle that belongs to this installation.

    Raises:
        ProtocolError: it names another.
    """
    if digest != installed:
        raise ProtocolError(
            f"an app bundle {str(digest)[:16]!r} is named: expected {installed[:16]!r}, which belongs to the "
            "installed fedrec; install the same version here as the operator runs"
        )


def check_bundle(content: bytes, expected: str) -> None:
    """The bytes of a bundle must be those expected; nothing in them is looked at.

    Raises:
        ProtocolError: they are others.
    """
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ProtocolError(f"bundle sha256 {digest}: expected {expected}")
