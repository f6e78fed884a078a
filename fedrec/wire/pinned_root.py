"""The root metadata that an app pins: read without loading anything that verifies signatures.

Out of scope: what it says, which is verified when an update runs.
"""

from __future__ import annotations

from pathlib import Path

from fedrec.core.errors import BadContent, RunError
from fedrec.wire.layout import ROOT
from fedrec.wire.strict_json import parse_json

MAX_ROOT_BYTES = 512_000


def read_root(path: Path) -> bytes:
    """The root metadata that an app pins, from its file.

    Raises:
        RunError: it cannot be read or is not root metadata.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"root metadata {path} cannot be read ({error.strerror}): use that of `fedrec-server keys init`"
        ) from error
    return check_root(content)


def check_root(content: bytes) -> bytes:
    """The same bytes, when they look like root metadata; signatures are verified when they are used.

    Raises:
        RunError: they do not.
    """
    try:
        if len(content) > MAX_ROOT_BYTES:
            raise BadContent("too long")
        if parse_json(content)["signed"]["_type"] != ROOT:
            raise BadContent("of another role")
    except (BadContent, KeyError, TypeError) as error:
        raise RunError(
            f"{len(content)} bytes are not root metadata ({error!s:.80}): use that of `fedrec-server keys init`"
        ) from error
    return content
