"""Fetch a file once: resumed where it broke off, checked, and put in place in a single step.

The bytes go to `<name>.part`; only a whole, verified file gets its final name. A checksum is given only where its
publisher states one; otherwise the file's MD5 is reported and `verified` is False.
Out of scope: which files a data set needs (`fedrec.data.loaders`).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrec.core.errors import DownloadError

Progress = Callable[[int, int | None], None]
CHUNK_BYTES = 1 << 18
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Remote:
    """A file somewhere else.

    Attributes:
        url: where it lies.
        name: file name here.
        md5: as published with the file; None where the publisher states none.
    """

    url: str
    name: str
    md5: str | None = None


@dataclass(frozen=True)
class Downloaded:
    """A whole file; `verified` says whether its MD5 is the published one or merely what was computed."""

    path: Path
    md5: str
    verified: bool


def cache_folder() -> Path:
    """`$FEDREC_HOME`, or `~/.cache/fedrec`."""
    home = os.environ.get("FEDREC_HOME")
    return Path(home) if home else Path.home() / ".cache" / "fedrec"


def download(remote: Remote, folder: Path, progress: Progress | None = None) -> Downloaded:
    """Fetch a file into a folder, going on where an earlier attempt stopped.

    Args:
        remote: what is fetched.
        folder: made if missing.
        progress: called with the bytes there are and the bytes there will be (None: unknown).

    Raises:
        DownloadError: the server cannot be reached, refuses, breaks off, or sends other bytes than published; the
            message says where to place the file by hand.
    """
    target = folder / remote.name
    part = folder / (remote.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            _fetch(remote, part, progress)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _failure(remote, target, str(getattr(error, "reason", None) or error)) from error
    except _BrokenOffError as error:
        raise _failure(remote, target, str(error)) from error
    return _verify(remote, target if target.exists() else part, target)


class _BrokenOffError(Exception):
    """The connection ended before the file did."""


def _fetch(remote: Remote, part: Path, progress: Progress | None, may_restart: bool = True) -> None:
    """Bring `part` up to the whole file.

    A server that knows no ranges sends the file from its start. `If-Range` makes it do so as well when the file has
    changed since the first attempt, so that two versions are never glued together.
    """
    stamp = part.with_name(part.name + ".version")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(remote.url, headers={"User-Agent": "fedrec"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if stamp.exists():
            request.add_header("If-Range", stamp.read_text())
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as reply:
            if reply.status != http.HTTPStatus.PARTIAL_CONTENT or _range_start(reply) != have:
                have = 0
            version = reply.headers.get("ETag") or reply.headers.get("Last-Modified")
            if version and not version.startswith("W/"):
                stamp.write_text(version)
            _receive(reply, part, have, progress)
    except urllib.error.HTTPError as error:
        with error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not may_restart:
                raise
            whole = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
        if whole is None or int(whole[1]) != have:
            part.unlink()
            _fetch(remote, part, progress, may_restart=False)
    stamp.unlink(missing_ok=True)


def _range_start(reply: Any) -> int:
    match = re.match(r"bytes (\d+)-", reply.headers.get("Content-Range", ""))
    return int(match[1]) if match else -1


def _receive(reply: Any, part: Path, have: int, progress: Progress | None) -> None:
    length = reply.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    with part.open("ab" if have else "wb") as out:
        while chunk := reply.read(CHUNK_BYTES):
            out.write(chunk)
            have += len(chunk)
            if progress is not None:
                progress(have, total)
    if total is not None and have < total:
        raise _BrokenOffError(
            f"the connection ended after {have} of {total} bytes; run again to go on from there"
        )


def _verify(remote: Remote, found: Path, target: Path) -> Downloaded:
    with found.open("rb") as stream:
        md5 = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if remote.md5 is not None and md5 != remote.md5:
        if found != target:
            found.unlink()
        raise _failure(remote, target, f"{found.name} has MD5 {md5}, published is {remote.md5}")
    if found != target:
        found.replace(target)
    return Downloaded(target, md5, remote.md5 is not None)


def _failure(remote: Remote, target: Path, reason: str) -> DownloadError:
    return DownloadError(
        f"download of {remote.url} failed ({reason}): try again, or fetch it by other means and place it at {target}"
    )
