"""One question and one answer over the socket of a session's folder, between processes of one device.

Flower starts a process per message; the node, with the user's data, is in another (`host`). What passes here is
what would leave the device anyway, and the secrets of a secure sum stay on the node's side. The folder is its owner's
only. No model, no torch. Out of scope: what is answered.

    question   header of `fedrec.wire.messages`, arrays as safetensors
    answer     the same with a field "ok", or {"refused": a code of `fedrec.core.refusals`}
"""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fedrec.core.errors import ProtocolError
from fedrec.core.messages import Reply, Request
from fedrec.core.refusals import OVER, NodeRefused
from fedrec.wire.messages import decode, encode
from fedrec.wire.packed import unpack

SOCKET, SENT = "socket", "sent.jsonl"
MAX_BYTES = 1 << 31
_LENGTHS = struct.Struct(">QQ")
Arrays = dict[str, NDArray[np.generic]]


def forward(folder: Path, request: Request) -> Reply:
    """The answer of the node that listens in a folder.

    Raises:
        NodeRefused: the node refuses, or no process listens any more.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        try:
            line.connect(str(folder / SOCKET))
            send(line, *encode(request))
            header, arrays = receive(line)
        except OSError as error:
            raise NodeRefused(OVER) from error
    if "refused" in header:
        raise NodeRefused(str(header["refused"]))
    header.pop("ok", None)
    return decode(arrays, header, Reply)


def listen(folder: Path) -> socket.socket:
    """The socket of a folder; who asks before someone accepts waits."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(folder / SOCKET))
    listener.listen(8)
    return listener


def send(line: socket.socket, arrays: Arrays, header: dict[str, Any]) -> None:
    """Put a header and arrays on the line."""
    head, body = json.dumps(header).encode(), bytes(save(dict(arrays)))
    line.sendall(_LENGTHS.pack(len(head), len(body)) + head + body)


def receive(line: socket.socket) -> tuple[dict[str, Any], Arrays]:
    """A header and arrays from the line.

    Raises:
        OSError: the line was closed too early.
        ProtocolError: it brought something else.
    """
    head_bytes, body_bytes = _LENGTHS.unpack(_exactly(line, _LENGTHS.size))
    if head_bytes + body_bytes > MAX_BYTES:
        raise ProtocolError(f"{head_bytes + body_bytes} bytes on the line: expected at most {MAX_BYTES}")
    try:
        header = dict(json.loads(_exactly(line, head_bytes)))
    except (ValueError, TypeError) as error:
        raise ProtocolError(f"no header on the line ({error}): expected JSON") from error
    return header, unpack(_exactly(line, body_bytes))


def _exactly(line: socket.socket, size: int) -> bytes:
    parts, left = [], size
    while left:
        part = line.recv(min(left, 1 << 20))
        if not part:
            raise ConnectionResetError(0, "closed")
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
