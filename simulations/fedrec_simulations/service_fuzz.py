"""Malformed input for the port of a model service, and what a good answer to it must not hold.

Garbage as gRPC messages of every method (random bytes, mutated good messages, hostile fields), broken HTTP/2 (frames,
sizes, flags), and bytes that are no TLS at all. Used by tests and by `benchmarks.service_fuzz`.
"""

from __future__ import annotations

import random
import socket
import ssl
import struct
from collections import Counter
from typing import Any

import grpc

from fedrec.wire.proto import model_service_pb2 as messages

METHODS = ("CheckIn", "GetManifest", "Download", "Enrol", "GetTask", "SendMetrics")
INSIDE = ("Traceback", 'File "', ".py", "/tmp", "/home", "/root", "site-packages", "fedrec_server")
HOSTILE = (
    "../../etc/passwd", "a" * 60_000, "\0", "%s%n", "", "é" * 500, "models/../..", "CON", "\r\nX: y", "None"
)  # fmt: skip
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CALL_SECONDS = 10.0


def fuzz_calls(channel: grpc.Channel, count: int, rng: random.Random, population: str) -> Counter[str]:
    """Garbage as messages of every method; what came of each."""
    outcomes: Counter[str] = Counter()
    good = good_messages(population)
    for _ in range(count):
        method = rng.choice([*METHODS, "None", "CheckIn/../x"])
        content = garbage(rng, good.get(method, b"\x0a\x01a"))
        call = channel.unary_stream(f"/fedrec.v1.ModelService/{method}", lambda b: b, lambda b: b)
        try:
            answer = b"".join(call(content, timeout=CALL_SECONDS))
            outcomes[judged(f"answered {len(answer) > 0}", repr(answer[:2000]))] += 1
        except grpc.RpcError as error:
            name = error.code().name.lower()
            bad = name in ("deadline_exceeded", "unavailable", "unknown", "internal")
            outcomes[f"BAD {name}" if bad else judged(name, str(error.details()))] += 1
    return outcomes


def garbage(rng: random.Random, good: bytes) -> bytes:
    """Random bytes, a mutated good message, or one with hostile fields."""
    kind = rng.random()
    if kind < 0.3:
        return rng.randbytes(rng.randrange(200))
    if kind < 0.32:
        return rng.randbytes(rng.choice([60_000, 70_000, 300_000]))
    if kind < 0.6 and good:
        broken = bytearray(good)
        for _ in range(rng.randrange(1, 5)):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        return bytes(broken[: rng.randrange(1, len(broken) + 1)] if rng.random() < 0.3 else broken)
    fields = b""
    for _ in range(rng.randrange(1, 5)):
        number, text = rng.randrange(1, 9), rng.choice(HOSTILE).encode()
        if rng.random() < 0.5:
            fields += bytes([number << 3 | 2]) + varint(len(text)) + text
        else:
            fields += bytes([number << 3]) + varint(
                rng.choice([0, 1, 2**31, 2**63, 2**64 - 1, rng.getrandbits(64)])
            )
    return fields


def fuzz_sockets(address: tuple[str, int], count: int, rng: random.Random) -> Counter[str]:
    """Bytes that are no TLS, sent at once or left hanging."""
    outcomes: Counter[str] = Counter()
    starts = (b"GET / HTTP/1.1\r\n\r\n", PREFACE, b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x03\xff\xff", b"")
    for _ in range(count):
        try:
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(rng.choice(starts) + rng.randbytes(rng.randrange(300)))
                connection.shutdown(socket.SHUT_WR)
                answer = b""
                while part := connection.recv(4096):
                    answer += part
            outcomes[judged("no TLS: closed", repr(answer))] += 1
        except ConnectionError:
            outcomes["no TLS: reset"] += 1
        except TimeoutError:
            outcomes["BAD no TLS: left hanging"] += 1
    return outcomes


def fuzz_frames(
    address: tuple[str, int], count: int, rng: random.Random, context: ssl.SSLContext
) -> Counter[str]:
    """Broken HTTP/2 behind a good handshake: types, flags, lengths, streams as they come."""
    outcomes: Counter[str] = Counter()
    for _ in range(count // 20):
        try:
            with (
                socket.create_connection(address, timeout=5) as raw,
                context.wrap_socket(raw, server_hostname="localhost") as connection,
            ):
                connection.sendall(PREFACE if rng.random() < 0.8 else rng.randbytes(24))
                for _ in range(20):
                    connection.sendall(frame(rng))
                connection.settimeout(0.05)
                answer = b""
                while (part := connection.recv(4096)) and len(answer) < 1 << 16:
                    answer += part
            outcomes[judged("HTTP/2: closed", repr(answer))] += 20
        except TimeoutError:
            outcomes["HTTP/2: waits for more"] += 20
        except (OSError, ssl.SSLError):
            outcomes["HTTP/2: reset"] += 20
    return outcomes


def frame(rng: random.Random) -> bytes:
    """A frame of any type, whose length may lie."""
    body = rng.randbytes(rng.randrange(60))
    length = len(body) if rng.random() < 0.7 else rng.randrange(1 << 16)
    head = struct.pack(">I", length)[1:] + bytes([rng.randrange(12), rng.randrange(256)])
    return head + struct.pack(">I", rng.choice([0, 1, 3, 5, rng.getrandbits(31)])) + body


def good_messages(population: str) -> dict[str, bytes]:
    """One good message per method, to be mutated."""
    built: dict[str, Any] = {
        "CheckIn": messages.CheckInRequest(
            population=population, token="0123456789abcdef", client_version="0.1.0"
        ),
        "GetManifest": messages.ManifestRequest(population=population, version=1),
        "Download": messages.DownloadRequest(population=population, version=1, file="privacy.json"),
        "Enrol": messages.EnrolRequest(campaign="ab" * 8, identity=bytes(32), users=1),
        "GetTask": messages.TaskRequest(campaign="ab" * 8, identity=bytes(32)),
        "SendMetrics": messages.MetricsRequest(population=population, counters={"clicks": 1.0}),
    }
    return {name: message.SerializeToString() for name, message in built.items()}


def judged(outcome: str, text: str) -> str:
    """The outcome, marked where the answer says anything of the inside."""
    return f"BAD {outcome}: tells of the inside" if any(word in text for word in INSIDE) else outcome


def varint(number: int) -> bytes:
    """As protobuf writes it."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])
