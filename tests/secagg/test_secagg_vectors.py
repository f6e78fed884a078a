"""The published vectors of secure aggregation: reproduced byte for byte, and derived anew from the papers' formulas.

The second derivation uses the standard library and `cryptography` only, so that a slip which moved code and vectors
together would be seen.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray
from vectors.make_secagg import FILE, Plain, Tape, ask, begin, document, from_plain, play, vector_of

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg import _shamir as shamir
from fedrec.secagg._masks import mask
from fedrec.secagg.encoding import Encoding
from fedrec.secagg.graph import neighbours, threshold

VECTORS: Plain = json.loads(FILE.read_text())
CASES: list[Plain] = VECTORS["cases"]
NEGATIVES: list[Plain] = VECTORS["negatives"]
each_case = pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
PRIME = 2**256 + 297


@each_case
def test_the_code_says_what_is_written(case: Plain) -> None:
    assert json.loads(json.dumps(play(case))) == case["said"]


def test_the_file_is_what_its_script_writes() -> None:
    assert document() == FILE.read_text()


@pytest.mark.parametrize("negative", NEGATIVES, ids=[one["name"] for one in NEGATIVES])
def test_a_changed_request_is_refused_for_the_written_reason(negative: Plain) -> None:
    case = CASES[0]
    client, vector = begin(case, 1), vector_of(case, 1)
    for stage in negative["after"]:
        reply = ask(client, stage, from_plain(case["said"]["requests"][stage]["1"]), vector)
        np.testing.assert_equal(reply, from_plain(case["said"]["replies"][stage]["1"]))
    with pytest.raises(AggregationRefused) as refused:
        ask(client, negative["stage"], from_plain(negative["request"]), vector)
    state = client.state
    assert refused.value.reason == negative["reason"]
    assert state.wiped and not (state.c_key or state.s_key or state.seed or state.held or state.incoming)


def test_every_reason_that_a_request_can_have_is_among_the_negative_ones() -> None:
    """The others are of terms, models and updates."""
    elsewhere = {Reason.THRESHOLD, Reason.CONTEXT, Reason.REPLAY, Reason.MODEL, Reason.IDENTITY}
    elsewhere |= {Reason.RANGE, Reason.SCHEDULE, Reason.DIFFERENCE, Reason.PROMISES}
    assert {one["reason"] for one in NEGATIVES} == {str(reason) for reason in set(Reason) - elsewhere}
    assert len({one["name"] for one in NEGATIVES}) == len(NEGATIVES)


# Parts ------------------------------------------------------------------------------------------------------


def test_masks_sharings_and_graphs_are_as_written() -> None:
    parts = VECTORS["parts"]
    for one in parts["masks"]:
        assert mask(6, one["bits"], bytes.fromhex(one["key"])).tolist() == one["words"]
        assert stream(bytes.fromhex(one["key"]), 6, one["bits"]).tolist() == one["words"]
    sharing = parts["sharing"]
    secret, drawn = bytes.fromhex(sharing["secret"]), bytes.fromhex(sharing["random"])
    shares = shamir.split(secret, [1, 2, 3, 4], sharing["threshold"], Tape(drawn))
    assert [share.hex() for share in shares] == sharing["shares"]
    assert [polynomial(secret, drawn, x).hex() for x in (1, 2, 3, 4)] == sharing["shares"]
    graph = parts["graph"]
    seed, found = bytes.fromhex(graph["seed"]), graph["neighbours"]
    assert [list(neighbours(i, graph["nodes"], graph["degree"], seed)) for i in range(9)] == found
    assert all(len(near) == 4 and all(i in found[j] for j in near) for i, near in enumerate(found))
    for k, corrupted, t in parts["thresholds"]:
        assert threshold(k, corrupted=corrupted) == t and 2 * t > k + 1 + corrupted and 3 * t >= 2 * (k + 1)


@pytest.mark.parametrize("one", VECTORS["parts"]["encodings"], ids=lambda one: f"{one['bits']} bits")
def test_encodings_are_as_written(one: Plain) -> None:
    form = Encoding(one["size"], one["bits"], one["scale"], one["numbers"], one["rotation"])
    uniforms = np.array(one["uniforms"])
    values, numbers = np.array(one["values"]), np.array(one["numbers_in"])
    residues = form.encode(values, numbers, lambda size: uniforms[:size])
    assert residues.tolist() == one["residues"]
    decoded, exact = form.decode(np.array(one["residues"], dtype=form.dtype))
    assert exact.tolist() == one["numbers_in"]
    # A rounding moves a value by less than a step, and a rotation keeps lengths.
    assert np.linalg.norm(decoded - values) < np.sqrt(form.carried) / form.scale


# The same once more, by hand --------------------------------------------------------------------------------


def place_bytes(*places: int) -> bytes:
    return b"".join(place.to_bytes(4, "big") for place in places)


def bind(digest: bytes, label: str, *parts: bytes) -> bytes:
    lengths = ((len(part).to_bytes(8, "big"), part) for part in (label.encode(), *parts))
    return hashlib.sha256(digest + b"".join(size + part for size, part in lengths)).digest()


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869, one block of output."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def agree(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def public_of(private: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def stream(key: bytes, size: int, bits: int) -> NDArray[Any]:
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(encryptor.update(bytes(size * bits // 8)), dtype=f"<u{bits // 8}")


def polynomial(secret: bytes, drawn: bytes, x: int) -> bytes:
    """A share: secret + drawn coefficients times powers of x."""
    rest = [int.from_bytes(drawn[i : i + 64], "big") for i in range(0, len(drawn), 64)]
    terms = (c * pow(x, power, PRIME) for power, c in enumerate([int.from_bytes(secret, "big"), *rest]))
    return (sum(terms) % PRIME).to_bytes(33, "big")


class ByHand:
    """What devices of a case must say, from its inputs and the formulas."""

    def __init__(self, case: Plain) -> None:
        self.case, self.said, self.bits = case, case["said"], case["terms"]["bits"]
        self.digest = hashlib.sha256(json.dumps(case["context"], sort_keys=True).encode()).digest()
        drawn = [bytes.fromhex(data) for data in case["random"]]
        self.c, self.s, self.b = ([data[i : i + 32] for data in drawn] for i in (0, 32, 64))
        half = 64 * (self.said["threshold"] - 1)
        self.coefficients = [(data[96 : 96 + half], data[96 + half :]) for data in drawn]

    def advert(self, i: int) -> bytes:
        committed = hashlib.sha256(bind(self.digest, "seed", place_bytes(i), self.b[i])).digest()
        public = public_of(self.c[i]) + public_of(self.s[i]) + committed
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.case["identities"][i]))
        return public + key.sign(bind(self.digest, "advert", place_bytes(i), public))

    def transcript(self) -> bytes:
        digests = b"".join(hashlib.sha256(place_bytes(i) + self.advert(i)).digest() for i in range(4))
        return bind(self.digest, "cohort", place_bytes(*range(4)), digests)

    def share(self, owner: int, holder: int) -> tuple[bytes, bytes]:
        """Of the seed and of the s key."""
        x = sorted([*self.said["neighbours"][owner], owner]).index(holder) + 1
        seed, key = self.coefficients[owner]
        return polynomial(self.b[owner], seed, x), polynomial(self.s[owner], key, x)

    def sealed(self, owner: int, holder: int) -> bytes:
        secret = agree(self.c[owner], public_of(self.c[holder]))
        key = hkdf(secret, self.digest, b"share" + place_bytes(owner, holder))
        return AESGCM(key).encrypt(bytes(12), b"".join(self.share(owner, holder)), self.transcript())

    def masked(self, i: int) -> list[int]:
        m = self.case["context"]["length"]
        total = np.array(self.case["vectors"][i], dtype=f"<u{self.bits // 8}")
        total += stream(hkdf(self.b[i], self.digest, b"own mask" + place_bytes(i)), m, self.bits)
        for j in self.said["neighbours"][i]:
            secret = agree(self.s[i], public_of(self.s[j]))
            pair = stream(
                hkdf(secret, self.digest, b"pair mask" + place_bytes(min(i, j), max(i, j))), m, self.bits
            )
            total = total + pair if i < j else total - pair
        return [int(value) for value in total]


@each_case
def test_what_devices_say_follows_from_the_formulas(case: Plain) -> None:
    hand, said = ByHand(case), case["said"]
    assert hand.digest.hex() == said["context_digest"] and hand.transcript().hex() == said["transcript"]
    for i in range(4):
        near = said["neighbours"][i]
        assert said["replies"]["advertise"][str(i)]["advert"]["data"] == hand.advert(i).hex()
        sealed = b"".join(hand.sealed(i, j) for j in near)
        assert said["replies"]["share"][str(i)]["shares"]["data"] == sealed.hex()
    for i in said["survivors"]:
        assert said["replies"]["mask"][str(i)]["masked"]["data"] == hand.masked(i)
    for i in map(int, said["replies"]["unmask"]):
        owners = sorted([*said["neighbours"][i], i])
        opened = [hand.share(owner, i)[0 if owner in said["survivors"] else 1] for owner in owners]
        assert said["replies"]["unmask"][str(i)]["opened"]["data"] == b"".join(opened).hex()


@each_case
def test_the_written_sum_is_that_of_the_survivors(case: Plain) -> None:
    rows = [case["vectors"][i] for i in case["said"]["survivors"]]
    modulus = 2 ** case["terms"]["bits"]
    assert case["said"]["sum"] == [sum(column) % modulus for column in zip(*rows, strict=True)]
    gone = {place for places in (case["drops"].get("mask", []),) for place in places}
    assert set(case["said"]["survivors"]) == set(range(4)) - gone
