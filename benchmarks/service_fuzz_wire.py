"""Bytes for the port of a model service that a gRPC client would never send.

Three kinds: what is no TLS at all; random HTTP/2 frames behind a good handshake; and well-formed HTTP/2 whose gRPC is
wrong (lengths that lie, compression flags, calls without an end, hostile paths and headers). Everything is sent from
an address of its own on loopback, so that the limits of an address tell it from a good client on 127.0.0.1.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.service_fuzz_calls import METHODS, evaluated, garbage, good_messages

Address = tuple[str, int]
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS = 0, 1, 3, 4
END_STREAM, END_HEADERS = 1, 4
#: Inputs per connection.
FRAMES = 20
SECONDS = 5.0
QUIET_SECONDS = 0.05
STARTS = (b"GET / HTTP/1.1\r\n\r\n", PREFACE, b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x03\xff\xff", b"")
PATHS = ("/../../etc/passwd", "", "/", "//", "/fedrec.v1.ModelService/", "*", "/" + "a" * 5000, "/\x7f\xff")
TIMEOUTS = ("1S", "0n", "-1S", "99999999H", "x", "1")


@dataclass(frozen=True)
class Line:
    """Where to connect to, and from where; with a context, behind a TLS handshake."""

    target: Address
    context: ssl.SSLContext | None = None
    source: str = "127.0.0.2"

    def open(self, stack: ExitStack) -> socket.socket:
        """A connection that the stack closes."""
        raw = stack.enter_context(
            socket.create_connection(self.target, timeout=SECONDS, source_address=(self.source, 0))
        )
        if self.context is None:
            return raw
        return stack.enter_context(self.context.wrap_socket(raw, server_hostname="localhost"))


def fuzz_sockets(line: Line, count: int, rng: random.Random) -> Counter[str]:
    """Bytes that are no TLS; the service must close."""
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        try:
            with ExitStack() as stack:
                connection = line.open(stack)
                connection.sendall(rng.choice(STARTS) + rng.randbytes(rng.randrange(300)))
                connection.shutdown(socket.SHUT_WR)
                answer = read_all(connection)
            outcomes[evaluated("no TLS: closed", repr(answer))] += 1
        except ConnectionError:
            outcomes["no TLS: reset"] += 1
        except TimeoutError:
            outcomes["BAD no TLS: left hanging"] += 1
    return outcomes


def fuzz_frames(line: Line, count: int, rng: random.Random) -> Counter[str]:
    """Frames of any type, flag, length and stream."""
    outcomes: Counter[str] = Counter()
    for _ in range(count // FRAMES):
        start = PREFACE if rng.random() < 0.8 else rng.randbytes(24)
        answer, how = talk(line, start + b"".join(any_frame(rng) for _ in range(FRAMES)))
        outcomes[evaluated(f"frames: {how}", repr(answer))] += FRAMES
    return outcomes


def fuzz_streams(line: Line, count: int, rng: random.Random, population: str) -> Counter[str]:
    """Calls that HTTP/2 takes for good and gRPC must not."""
    outcomes: Counter[str] = Counter()
    good = good_messages(population)
    for _ in range(count // FRAMES):
        calls = b"".join(broken_call(rng, 2 * k + 1, good) for k in range(FRAMES))
        answer, how = talk(line, PREFACE + frame(SETTINGS, 0, 0, b"") + calls)
        told = min(answer.count(b"grpc-message"), FRAMES)
        outcomes[evaluated("streams: told a status", repr(answer))] += told
        outcomes[f"streams: told nothing, {how}"] += FRAMES - told
    return +outcomes


def talk(line: Line, content: bytes) -> tuple[bytes, str]:
    """Send, read until nothing more comes: what came, and how it ended."""
    answer = b""
    try:
        with ExitStack() as stack:
            connection = line.open(stack)
            connection.sendall(content)
            connection.settimeout(QUIET_SECONDS)
            while (part := connection.recv(4096)) and len(answer) < 1 << 16:
                answer += part
        return answer, "closed"
    except TimeoutError:
        return answer, "kept open"
    except OSError:
        return answer, "reset"


def broken_call(rng: random.Random, stream: int, good: dict[str, bytes]) -> bytes:
    """One call of a method, wrong in its headers, in its message or in how it ends."""
    method = rng.choice(METHODS)
    headers = call_headers(f"/fedrec.v1.ModelService/{method}")
    if rng.random() < 0.4:
        headers = broken_headers(rng, headers)
    sent = frame(HEADERS, END_HEADERS, stream, b"".join(literal(k, v) for k, v in headers))
    body = broken_message(rng, good[method])
    end = rng.random()
    if end < 0.1:
        return sent + frame(RST_STREAM, 0, stream, struct.pack(">I", rng.randrange(20)))
    return sent + frame(DATA, END_STREAM if end < 0.8 else 0, stream, body)


def broken_headers(rng: random.Random, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A header left out, twice, or with another value."""
    changed = list(headers)
    kind, k = rng.randrange(4), rng.randrange(len(headers))
    if kind == 0:
        del changed[k]
    elif kind == 1:
        changed.insert(rng.randrange(len(headers)), headers[k])
    elif kind == 2:
        changed[2] = (b":path", rng.choice(PATHS).encode("latin-1"))
    else:
        name, value = rng.choice(
            [("grpc-timeout", rng.choice(TIMEOUTS)), ("grpc-encoding", "gzip"), ("grpc-encoding", "none such"),
             ("content-type", "text/html"), ("x-long", "a" * 12_000), ("UPPER", "x"), ("grpc-bin-bin", "%%%")]
        )  # fmt: skip
        changed.append((name.encode(), value.encode()))
    return changed


def broken_message(rng: random.Random, good: bytes) -> bytes:
    """A message whose five bytes of gRPC in front lie, or that is garbage itself."""
    content = garbage(rng, good)[:2000] if rng.random() < 0.5 else good
    flag = rng.choice([0, 0, 0, 1, 2, 255])
    length = rng.choice([len(content)] * 3 + [0, len(content) + 9, 1 << 20, 2**32 - 1])
    message = bytes([flag]) + struct.pack(">I", length) + content
    return rng.choice([message, message, message * 2, message[:3], b"", message[: len(message) // 2]])


def call_headers(path: str) -> list[tuple[bytes, bytes]]:
    """Those of a good call."""
    return [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ]


def good_call(method: str, content: bytes) -> bytes:
    """A whole connection's bytes that ask one thing and ask it well: what the broken ones are measured against."""
    headers = b"".join(literal(k, v) for k, v in call_headers(f"/fedrec.v1.ModelService/{method}"))
    message = b"\0" + struct.pack(">I", len(content)) + content
    call = frame(HEADERS, END_HEADERS, 1, headers) + frame(DATA, END_STREAM, 1, message)
    return PREFACE + frame(SETTINGS, 0, 0, b"") + call


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """Of HTTP/2 (RFC 9113, section 4.1)."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


def any_frame(rng: random.Random) -> bytes:
    """A frame of any type, whose length may lie."""
    body = rng.randbytes(rng.randrange(60))
    length = len(body) if rng.random() < 0.7 else rng.randrange(1 << 16)
    head = struct.pack(">I", length)[1:] + bytes([rng.randrange(12), rng.randrange(256)])
    return head + struct.pack(">I", rng.choice([0, 1, 3, 5, rng.getrandbits(31)])) + body


def literal(name: bytes, value: bytes) -> bytes:
    """A header in full, not indexed (RFC 7541, section 6.2.2)."""
    return b"\0" + text(name) + text(value)


def text(content: bytes) -> bytes:
    """A string in front of which its length stands, in 7 bits and more where it needs them (RFC 7541, section 5)."""
    if len(content) < 127:
        return bytes([len(content)]) + content
    rest, head = len(content) - 127, b"\x7f"
    while rest > 127:
        head, rest = head + bytes([rest & 127 | 128]), rest >> 7
    return head + bytes([rest]) + content


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    answer = b""
    while part := connection.recv(4096):
        answer += part
    return answer
