"""Malformed calls for a model service, and what a good answer to them must not hold.

Garbage as gRPC messages of every method: random bytes, mutated good messages, hostile fields. Used by tests and by
`benchmarks.service_fuzz`. Out of scope: what is no gRPC (`service_fuzz_wire`).
"""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import grpc

from fedrec.wire.proto import model_service_pb2 as messages

METHODS = ("CheckIn", "Fetch", "SendMetrics")
INSIDE = (
    "Traceback", 'File "', ".py", "/tmp", "/home", "/root:", "/srv", "site-packages", "fedrec_server",
    "Exception", "Error(", "<class",
)  # fmt: skip
HOSTILE = (
    "../../etc/passwd", "a" * 60_000, "\0", "%s%n", "", "é" * 500, "models/../..", "CON", "\r\nX: y", "None",
    "model.safetensors/..", "metadata/../root.json", "targets/../history.jsonl", "1e309", "' OR 1=1 --",
)  # fmt: skip
NUMBERS = (0, 1, 2**31, 2**63 - 1, 2**63, 2**64 - 1)
#: A call that is answered later hangs.
CALL_SECONDS = 10.0
NEVER = ("deadline_exceeded", "unavailable", "unknown", "internal", "data_loss")


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
            outcomes[evaluated("answered", repr(answer[:2000]))] += 1
        except grpc.RpcError as error:
            name = error.code().name.lower()
            outcomes[f"BAD {name}" if name in NEVER else evaluated(name, str(error.details()))] += 1
    return outcomes


def garbage(rng: random.Random, good: bytes) -> bytes:
    """Random bytes, a mutated good message, or one with hostile fields."""
    kind = rng.random()
    if kind < 0.3:
        return rng.randbytes(rng.randrange(200))
    if kind < 0.32:
        return rng.randbytes(rng.choice([60_000, 70_000, 300_000]))
    return mutated(rng, good) if kind < 0.6 else hostile(rng)


def mutated(rng: random.Random, good: bytes) -> bytes:
    """A good message with some bits turned, perhaps cut short."""
    broken = bytearray(good)
    for _ in range(rng.randrange(1, 5)):
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
    return bytes(broken[: rng.randrange(1, len(broken) + 1)] if rng.random() < 0.3 else broken)


def hostile(rng: random.Random) -> bytes:
    """A well-formed message of fields that mean ill."""
    fields = b""
    for _ in range(rng.randrange(1, 5)):
        number, text = rng.randrange(1, 9), rng.choice(HOSTILE).encode()
        if rng.random() < 0.5:
            fields += bytes([number << 3 | 2]) + varint(len(text)) + text
        else:
            fields += bytes([number << 3]) + varint(rng.choice([*NUMBERS, rng.getrandbits(64)]))
    return fields


def good_messages(population: str) -> dict[str, bytes]:
    """One good message per method, to be mutated."""
    built: dict[str, Any] = {
        "CheckIn": messages.CheckInRequest(population=population, client_version="0.1.0"),
        "Fetch": messages.FetchRequest(population=population, path="metadata/timestamp.json"),
        "SendMetrics": messages.MetricsRequest(
            population=population, counters={"clicks": 1.0}, token="ab" * 16
        ),
    }
    return {name: message.SerializeToString() for name, message in built.items()}


def evaluated(outcome: str, text: str) -> str:
    """The outcome, marked where the answer says anything of the inside."""
    return f"BAD {outcome}: tells of the inside" if any(word in text for word in INSIDE) else outcome


def varint(number: int) -> bytes:
    """As protobuf writes it."""
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])
