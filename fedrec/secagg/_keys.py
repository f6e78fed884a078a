"""Keys of one attempt: two X25519 pairs and a seed per device, and what is derived from them.

The c pair keeps shares from the server that carries them, the s pair gives pairwise masks, the seed the device's own
mask (Bonawitz et al. 2017, "Practical secure aggregation", CCS; the pairs are called c and s there). All of them are
drawn anew for every attempt, and every derived key is used for one stream or one message, so nonces can be zero.
Derivation is HKDF-SHA256 (RFC 5869) with the context as salt. Out of scope: who is at the other end (`roster`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg.context import Context

KEY_BYTES = 32
TAG_BYTES = 16
_NONCE = bytes(12)


@dataclass(frozen=True)
class Pair:
    """An X25519 pair (RFC 7748); any 32 random bytes are a private key."""

    private: bytes

    @cached_property
    def public(self) -> bytes:
        """[32]."""
        return self._key.public_key().public_bytes_raw()

    @cached_property
    def _key(self) -> X25519PrivateKey:
        # Making it costs as much as an exchange.
        return X25519PrivateKey.from_private_bytes(self.private)

    def agree(self, public: bytes) -> bytes:
        """[32] the shared secret.

        Raises:
            AggregationRefused: a public key of small order, which would give everyone the same secret.
        """
        try:
            return self._key.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise AggregationRefused(
                "a public key of small order came: expected an honest X25519 key", Reason.ADVERT
            ) from None


def derive(secret: bytes, context: Context, label: str, *places: int) -> bytes:
    """[32] a key for one purpose between the devices at `places` of the roster."""
    info = label.encode() + b"".join(place.to_bytes(4, "big") for place in places)
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=context.digest, info=info).derive(secret)


def pair_mask_key(pair: Pair, public: bytes, context: Context, one: int, other: int) -> bytes:
    """[32] the key of the mask that two devices share; the same from both ends."""
    return derive(pair.agree(public), context, "pair mask", min(one, other), max(one, other))


def own_mask_key(seed: bytes, context: Context, place: int) -> bytes:
    """[32] the key of a device's own mask."""
    return derive(seed, context, "own mask", place)


def commitment(seed: bytes, context: Context, place: int) -> bytes:
    """[32] binds a device to its seed; a seed put together from wrong shares is noticed by it."""
    return hashlib.sha256(context.bind("seed", place.to_bytes(4, "big"), seed)).digest()


def seal(key: bytes, plaintext: bytes, bound: bytes) -> bytes:
    """[len + 16] AES-256-GCM under a key that is used for this message alone."""
    return AESGCM(key).encrypt(_NONCE, plaintext, bound)


def open_sealed(key: bytes, ciphertext: bytes, bound: bytes) -> bytes:
    """The plaintext.

    Raises:
        AggregationRefused: it was changed, or made for another device, attempt or direction.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, ciphertext, bound)
    except InvalidTag:
        raise AggregationRefused(
            "a share does not open: someone changed it, or it was made for another device or attempt",
            Reason.CIPHERTEXT,
        ) from None
