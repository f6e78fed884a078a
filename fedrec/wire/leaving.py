"""How a device says that it has left a campaign: its campaign key signs that, and no one else can say it.

The public keys of a campaign are known to all its devices, so that a message without a signature could put others
out. Out of scope: what the operator does with it (`fedrec_server.operations.campaign_book`).
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64
_WHAT = b"fedrec: this device has left campaign\0"


def sign_leaving(identity: bytes, campaign: str) -> bytes:
    """[64] signature of a device's [32] secret campaign key (Ed25519, RFC 8032)."""
    return Ed25519PrivateKey.from_private_bytes(identity).sign(_WHAT + campaign.encode())


def is_leaving(public: bytes, campaign: str, signature: bytes) -> bool:
    """Whether the owner of a [32] public campaign key signed that it has left this campaign."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, _WHAT + campaign.encode())
    except (InvalidSignature, ValueError):
        return False
    return True
