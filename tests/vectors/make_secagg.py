"""Writes secagg.json: every byte of a few small attempts, and requests that a device must refuse.

The file is what another implementation of the protocol is checked against, so it changes only when the protocol does:
`python tests/vectors/make_secagg.py`. All inputs are in it, also the bytes that each device drew as random: c key,
s key and seed (32 each), then t - 1 coefficients of the seed's and of the s key's polynomial (64 each, from the
coefficient of x up). Arrays are {dtype, shape, data}; data is hex for uint8 and a flat list for the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from fedrec.secagg import _shamir as shamir
from fedrec.secagg._keys import Pair, commitment
from fedrec.secagg._masks import mask
from fedrec.secagg.client import Client
from fedrec.secagg.context import Context
from fedrec.secagg.encoding import Encoding
from fedrec.secagg.graph import neighbours, threshold
from fedrec.secagg.messages import Arrays, advert_digest
from fedrec.secagg.roster import Identity, Member, Roster
from fedrec.secagg.server import Server
from fedrec.secagg.terms import SecaggTerms

FILE = Path(__file__).parent / "secagg.json"
STAGES = ("advertise", "share", "mask", "confirm", "unmask")
Plain = dict[str, Any]


class Tape:
    """A source of random bytes that were written down."""

    def __init__(self, data: bytes) -> None:
        self.data, self.used = data, 0

    def __call__(self, size: int) -> bytes:
        out = self.data[self.used : self.used + size]
        assert len(out) == size, "the recorded random bytes are used up"
        self.used += size
        return out


def to_plain(arrays: Arrays) -> Plain:
    return {
        name: {
            "dtype": values.dtype.name,
            "shape": list(values.shape),
            "data": values.tobytes().hex() if values.dtype == np.uint8 else values.reshape(-1).tolist(),
        }
        for name, values in arrays.items()
    }


def from_plain(plain: Plain) -> Arrays:
    def one(part: Plain) -> NDArray[Any]:
        if part["dtype"] == "uint8":
            return np.frombuffer(bytes.fromhex(part["data"]), dtype=np.uint8).reshape(part["shape"]).copy()
        return np.array(part["data"], dtype=part["dtype"]).reshape(part["shape"])

    return {name: one(part) for name, part in plain.items()}


def identity(secret: str) -> Identity:
    return Identity(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(secret)))


def begin(given: Plain, place: int) -> Client:
    """One device of a case."""
    terms, context = SecaggTerms.model_validate(given["terms"]), Context(**given["context"])
    tape = Tape(bytes.fromhex(given["random"][place]))
    return Client.begin(terms, identity(given["identities"][place]), context, tape)


def ask(client: Client, stage: str, request: Arrays, vector: NDArray[Any]) -> Arrays:
    if stage == "advertise":
        return client.advertise()
    if stage == "mask":
        return client.mask(request, vector)
    reply: Arrays = getattr(client, stage)(request)
    return reply


def vector_of(given: Plain, place: int) -> NDArray[Any]:
    return np.array(given["vectors"][place], dtype=f"<u{given['terms']['bits'] // 8}")


def play(given: Plain) -> Plain:
    """What all devices and the server say: every request and reply by stage and place, the sum, and the graph."""
    server = Server(SecaggTerms.model_validate(given["terms"]), Context(**given["context"]))
    clients = {place: begin(given, place) for place in range(len(given["identities"]))}
    requests: dict[int, Arrays] = {place: {} for place in clients}
    said: Plain = {"requests": {}, "replies": {}}
    gone: set[int] = set()
    result: Any = None
    steps = (server.adverts, server.shares, server.masked, server.signatures, server.unmask)
    for stage, step in zip(STAGES, steps, strict=True):
        gone |= set(given["drops"].get(stage, ()))
        replies = {
            place: ask(clients[place], stage, request, vector_of(given, place))
            for place, request in requests.items()
            if place not in gone
        }
        said["requests"][stage] = {str(place): to_plain(arrays) for place, arrays in requests.items()}
        said["replies"][stage] = {str(place): to_plain(arrays) for place, arrays in replies.items()}
        result = step(replies)
        requests = result if isinstance(result, dict) else {}
    cohort = server._cohort
    return said | {
        "context_digest": Context(**given["context"]).digest.hex(),
        "transcript": cohort.transcript.hex(),
        "threshold": cohort.threshold,
        "neighbours": [list(cohort.neighbours(place)) for place in cohort.members],
        "survivors": list(server.survivors),
        "sum": np.asarray(result).tolist(),
    }


def inputs(name: str, drops: dict[str, list[int]], **fields: Any) -> Plain:
    """Everything that four devices with eight values each start from."""
    secrets = [hashlib.sha256(f"{name} identity {place}".encode()).hexdigest() for place in range(4)]
    members = tuple(
        Member(name=f"device {place}", key=identity(secret).public.hex(), users=place + 1, vouched=place > 0)
        for place, secret in enumerate(secrets)
    )
    terms = SecaggTerms(run=name, roster=Roster(members=members), range_users=10, clip_norm=1.0, **fields)
    context = Context(terms.digest.hex(), "train", "refit", 3, 7, "ab" * 32, 8)
    drawn = [hashlib.shake_256(f"{name} random {place}".encode()).digest(4096) for place in range(4)]
    # Two shares' polynomials of t - 1 coefficients, and three secrets.
    used = 3 * 32 + 2 * 64 * (terms.shares_needed(terms.degree(4)) - 1)
    stream = hashlib.shake_256(f"{name} vectors".encode()).digest(4 * 8 * terms.bits // 8)
    values = np.frombuffer(stream, dtype=f"<u{terms.bits // 8}").reshape(4, 8)
    return {
        "name": name,
        "drops": drops,
        "terms": terms.model_dump(mode="json"),
        "context": asdict(context),
        "identities": secrets,
        "random": [data[:used].hex() for data in drawn],
        "vectors": values.tolist(),
    }


def cases() -> list[Plain]:
    given = [
        inputs("everyone, 32 bits", {}, bits=32, min_users=10),
        inputs("one drops before its vector, 16 bits", {"mask": [2]}, bits=16, rotate=True),
        inputs("a ring, one drops before its vector, 32 bits", {"mask": [1]}, bits=32, neighbours=2),
        inputs("one drops at the end, 16 bits", {"unmask": [0]}, bits=16, rotate=True),
    ]
    return [one | {"said": play(one)} for one in given]


# Requests that must be refused ------------------------------------------------------------------------------


def negatives(case: Plain) -> list[Plain]:
    """Device 1 of the first case: `after` these stages it is asked `stage` with `request`."""
    asked = {stage: by_place["1"] for stage, by_place in case["said"]["requests"].items()}
    other = asked["share"] | {"adverts": asked["share"]["digests"]}
    again = asked["unmask"] | {"signers": asked["share"]["cohort"]}
    found = [
        (name, list(STAGES[: STAGES.index(stage)]), stage, to_plain(request), reason)
        for name, stage, request, reason in _changed(case)
    ]
    found += [
        ("stage_skipped", ["advertise"], "confirm", asked["confirm"], "stage"),
        ("stage_again_with_other_content", ["advertise", "share"], "share", other, "answered"),
        ("unmask_twice", list(STAGES), "unmask", again, "forgotten"),
    ]
    return [
        {"name": name, "after": after, "stage": stage, "request": request, "reason": reason}
        for name, after, stage, request, reason in found
    ]


def _changed(case: Plain) -> Iterator[tuple[str, str, Arrays, str]]:
    def asked(stage: str) -> Arrays:
        return from_plain(case["said"]["requests"][stage]["1"])

    def flipped(values: NDArray[Any], *index: int) -> NDArray[Any]:
        values[index] ^= 1
        return values

    q = asked("share")
    yield "advert_not_as_announced", "share", q | {"adverts": flipped(q["adverts"], 0, 0)}, "advert"
    q = asked("share")
    yield "own_advert_changed", "share", q | {"digests": flipped(q["digests"], 1, 0)}, "advert"
    for name, signer, changes, reason in (
        ("advert_key_swapped", 3, {}, "signature"),
        ("advert_of_another_attempt", 0, {"attempt": 6}, "signature"),
        ("advert_of_another_model", 0, {"model": "cd" * 32}, "signature"),
    ):
        yield name, "share", _with_forged(case, asked("share"), signer, changes), reason
    q = asked("share")
    yield "cohort_out_of_order", "share", q | {"cohort": q["cohort"][::-1].copy()}, "cohort"
    q = asked("share")
    small = {"cohort": q["cohort"][:2], "digests": q["digests"][:2], "adverts": q["adverts"][:1]}
    yield "cohort_below_the_minimum", "share", small, "cohort"
    yield "part_missing", "share", {name: values for name, values in q.items() if name != "digests"}, "format"

    q = asked("mask")
    yield "share_changed", "mask", q | {"shares": flipped(q["shares"], 1, 5)}, "ciphertext"
    sent = from_plain(case["said"]["replies"]["share"]["0"])["shares"]
    rerouted = asked("mask")["shares"]
    rerouted[0] = sent[1]
    yield "share_made_for_another_device", "mask", q | {"shares": rerouted}, "ciphertext"
    q = asked("mask")
    lonely = {"sharers": np.array([0, 1], dtype=np.uint32), "shares": q["shares"][:1]}
    yield "sharers_too_few", "mask", lonely, "sharers"
    yield "sharers_without_oneself", "mask", q | {"sharers": np.array([0, 2, 3], dtype=np.uint32)}, "sharers"

    for name, listed, reason in (
        ("survivors_without_oneself", [0, 2, 3], "survivors"),
        ("survivors_too_few", [0, 1], "survivors"),
        ("survivors_with_strangers", [0, 1, 2, 9], "survivors"),
        ("survivors_speak_for_too_few_users", [0, 1, 2], "users"),
    ):
        yield name, "confirm", {"survivors": np.array(listed, dtype=np.uint32)}, reason

    q = asked("unmask")
    yield "signature_changed", "unmask", q | {"signatures": flipped(q["signatures"], 0, 0)}, "signature"
    q = asked("unmask")
    swapped = q | {"signatures": q["signatures"][::-1].copy()}
    yield "signatures_swapped", "unmask", swapped, "signature"
    few = {"signers": q["signers"][:1], "signatures": q["signatures"][:1]}
    yield "too_few_signatures", "unmask", few, "consent"
    strangers = q["signers"].copy()
    strangers[-1] = 9
    yield "signature_of_a_stranger", "unmask", q | {"signers": strangers}, "consent"


def _with_forged(case: Plain, request: Arrays, signer: int, changes: Plain) -> Arrays:
    """The request with keys of the server's making for device 0."""
    context = replace(Context(**case["context"]), **changes)
    public = Pair(b"c" * 32).public + Pair(b"s" * 32).public + commitment(b"b" * 32, context, 0)
    signed = context.bind("advert", (0).to_bytes(4, "big"), public)
    advert = public + identity(case["identities"][signer]).sign(signed)
    request["adverts"][0] = np.frombuffer(advert, dtype=np.uint8)
    request["digests"][0] = np.frombuffer(advert_digest(0, advert), dtype=np.uint8)
    return request


# Parts of the protocol --------------------------------------------------------------------------------------


def parts() -> Plain:
    """Masks, sharings, graphs and encodings by themselves."""
    key, seed = bytes(range(32)), hashlib.sha256(b"graph").digest()
    drawn = hashlib.shake_256(b"sharing").digest(64 * 2)
    shares = shamir.split(key, [1, 2, 3, 4], 3, Tape(drawn))
    # No value lies so close to an integer, rotated or not, that another order of sums could round it elsewhere.
    values, numbers = [0.513, -0.257, 0.118, 1.031, -0.706], [3.0, -17.5]
    uniforms = [0.01, 0.25, 0.5, 0.75, 0.99, 0.1, 0.2, 0.3]
    formats = [Encoding(5, 32, 1000.5, 2), Encoding(5, 16, 100.0, 2, rotation=11)]
    return {
        "masks": [{"key": key.hex(), "bits": b, "words": mask(6, b, key).tolist()} for b in (16, 32)],
        "sharing": {
            "secret": key.hex(),
            "threshold": 3,
            "random": drawn.hex(),
            "shares": [one.hex() for one in shares],
        },
        "graph": {
            "nodes": 9,
            "degree": 4,
            "seed": seed.hex(),
            "neighbours": [list(neighbours(position, 9, 4, seed)) for position in range(9)],
        },
        "thresholds": [[k, c, threshold(k, corrupted=c)] for k in (2, 3, 10, 99, 160) for c in (0, 1)],
        "encodings": [
            asdict(form)
            | {"values": values, "numbers_in": numbers, "uniforms": uniforms[: form.carried]}
            | {"residues": form.encode(np.array(values), np.array(numbers), _uniform(uniforms)).tolist()}
            for form in formats
        ],
    }


def _uniform(drawn: list[float]) -> Any:
    return lambda size: np.array(drawn[:size])


def document() -> str:
    made = cases()
    return json.dumps({"cases": made, "negatives": negatives(made[0]), "parts": parts()}, indent=1) + "\n"


if __name__ == "__main__":
    FILE.write_text(document())
