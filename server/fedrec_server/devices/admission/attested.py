"""Attestation by a platform: an authority that the operator trusts has signed that the app on this device is genuine.

    evidence  = statement | signature
    statement = JSON {"authority", "app", "expires", "identity"}; identity: SHA-256 of the cohort's identity, in hex
    signature = 64 bytes, Ed25519, over "fedrec attestation v1|" and the statement, by the authority's key

The identity is made for one cohort, so it is the nonce: a statement is worth nothing to another device or for another
cohort. The operator pins the authority's key and the app's name in one file:

    {"authority": "name", "key": "64 hexadecimal digits", "app": "com.example.app"}

A platform's own format (App Attest, Play Integrity) is verified by the app's server, which signs this statement.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedrec.core.errors import BadContent, ServiceError
from fedrec.wire.strict_json import canonical, parse_json
from fedrec_server.devices.admission.verifier import ADMISSIONS, AdmissionSettings

CONTEXT = b"fedrec attestation v1|"
SIGNATURE_BYTES = 64
MAX_EVIDENCE_BYTES = 4096
MAX_SECONDS = 86_400
REFUSAL = "attestation: expected a statement of the platform for this identity"


def attest(key: Ed25519PrivateKey, authority: str, app: str, identity: bytes, expires: float) -> bytes:
    """Evidence, as an authority makes it.

    Args:
        key: of the authority.
        authority, app: names that the operator pins.
        identity: [32] of the device in its cohort.
        expires: seconds since 1970, at most a day ahead.
    """
    statement = canonical(
        {
            "authority": authority,
            "app": app,
            "expires": expires,
            "identity": hashlib.sha256(identity).hexdigest(),
        }
    )
    return statement + key.sign(CONTEXT + statement)


@ADMISSIONS.register("attested")
class AttestedAdmission:
    """Lets in who shows a statement of the pinned authority.

    Raises:
        ServiceError: there is no file with the pinned key, or it cannot be used.
    """

    def __init__(self, settings: AdmissionSettings) -> None:
        if settings.key is None:
            raise ServiceError(
                "admission by attestation without a key: give the file that pins the authority"
            )
        try:
            pinned = parse_json(settings.key.read_bytes())
            self._expected = {name: str(pinned[name]) for name in ("authority", "app")}
            self._key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(pinned["key"]))
        except (OSError, BadContent, KeyError, ValueError, TypeError) as error:
            raise ServiceError(
                f"{settings.key} cannot be used ({error!s:.80}): expected JSON with authority, key and app"
            ) from error

    def verify(self, job: str, identity: bytes, evidence: bytes, address: str) -> str | None:
        """See `Admission`."""
        if not SIGNATURE_BYTES < len(evidence) <= MAX_EVIDENCE_BYTES:
            return REFUSAL
        statement, signature = evidence[:-SIGNATURE_BYTES], evidence[-SIGNATURE_BYTES:]
        try:
            self._key.verify(signature, CONTEXT + statement)
            said = parse_json(statement)
        except (InvalidSignature, BadContent):
            return REFUSAL
        return None if self._fits(said, identity) else REFUSAL

    def _fits(self, said: dict[str, Any], identity: bytes) -> bool:
        expires = said.get("expires")
        if isinstance(expires, bool) or not isinstance(expires, (int, float)):
            return False
        if not 0 <= expires - time.time() <= MAX_SECONDS:
            return False
        expected = self._expected | {"identity": hashlib.sha256(identity).hexdigest(), "expires": expires}
        return said == expected
