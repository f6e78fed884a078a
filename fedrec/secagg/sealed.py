"""Replies encrypted to the server's key: no one on the way reads them, the server reads every one.

This is not secure aggregation, and no report calls it that. HPKE (RFC 9180) with X25519, HKDF-SHA256 and AES-256-GCM;
a box is bound to one reply of one node, so it opens as nothing else. Out of scope: whether the server may be trusted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_LENGTH_BYTES = 4
_NUMBERS = "numbers of the reply"
Scalar = str | int | float | bool


def generate_key() -> tuple[bytes, bytes]:
    """A private and a public key, 32 bytes each."""
    private = X25519PrivateKey.generate()
    return private.private_bytes_raw(), private.public_key().public_bytes_raw()


def seal(public: bytes, payload: bytes, bound: bytes) -> bytes:
    """A box that only the owner of the private key opens, and only as what it is bound to.

    Raises:
        AggregationRefused: the public key is no key.
    """
    try:
        key = X25519PublicKey.from_public_bytes(public)
    except ValueError:
        raise AggregationRefused(
            f"the server's key has {len(public)} bytes: expected 32; prepare this node again", Reason.FORMAT
        ) from None
    return _SUITE.encrypt(payload, key, bound)


def open_(private: bytes, box: bytes, bound: bytes) -> bytes:
    """What was sealed.

    Raises:
        AggregationRefused: it was changed, sealed to another key, or bound to something else.
    """
    try:
        return _SUITE.decrypt(box, X25519PrivateKey.from_private_bytes(private), bound)
    except (InvalidTag, ValueError):
        raise AggregationRefused(
            "a sealed reply does not open: it was changed, is for another key, or of another node, round or run",
            Reason.CIPHERTEXT,
        ) from None


def sealed_context(run: str, phase: str, round_: int, kind: str, node: str) -> bytes:
    """What a sealed reply is bound to."""
    return json.dumps([run, phase, round_, kind, node]).encode()


def pack(arrays: Mapping[str, NDArray[Any]], numbers: Mapping[str, Scalar]) -> bytes:
    """Arrays and scalars as bytes, whose length follows from names, types and shapes alone."""
    names = sorted(numbers)
    head = json.dumps(names).encode()
    values = np.array([float(numbers[name]) for name in names])
    body = save({name: np.ascontiguousarray(each) for name, each in arrays.items()} | {_NUMBERS: values})
    return len(head).to_bytes(_LENGTH_BYTES, "big") + head + body


def unpack(payload: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, Scalar]]:
    """What `pack` packed.

    Raises:
        AggregationRefused: it is something else.
    """
    end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "big")
    try:
        names = json.loads(payload[_LENGTH_BYTES:end])
        arrays = load(payload[end:])
        values = arrays.pop(_NUMBERS).tolist()
        numbers = {str(name): _scalar(value) for name, value in zip(names, values, strict=True)}
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise AggregationRefused(
            f"a sealed reply holds no reply ({type(error).__name__}): run one version of fedrec",
            Reason.FORMAT,
        ) from None
    return arrays, numbers


def _scalar(value: float) -> Scalar:
    return int(value) if value == int(value) else value
