"""No verification: every device of the app may join, within limits and quotas."""

from __future__ import annotations

from fedrec_server.devices.admission.verifier import ADMISSIONS, AdmissionSettings


@ADMISSIONS.register("none")
class Anyone:
    """See the module."""

    def __init__(self, settings: AdmissionSettings) -> None:
        del settings

    def verify(self, job: str, identity: bytes, evidence: bytes, address: str) -> str | None:
        """See `Admission`."""
        return None
