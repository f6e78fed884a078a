"""The contract of a verifier, and how a configuration names one.

    @ADMISSIONS.register("mine")                        # or an entry point of the group fedrec.admissions
    class Mine:
        def __init__(self, settings: AdmissionSettings) -> None: ...
        def verify(self, job, identity, evidence, address) -> str | None: ...

A verifier learns no account and keeps no list of who joined. Out of scope: quotas and limits (`calls`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fedrec.core.registry import Registry
from fedrec_server.devices.state.database import State


@dataclass(frozen=True)
class AdmissionSettings:
    """What verifiers are built from.

    Attributes:
        state: the database that all front ends share.
        key: a file of the verifier's, e.g. a shared key or the pinned key of an authority; None: none was given.
    """

    state: State
    key: Path | None = None


class Admission(Protocol):
    """Decides on one join; safe for several threads."""

    def verify(self, job: str, identity: bytes, evidence: bytes, address: str) -> str | None:
        """Whether a device may join.

        Args:
            job: 32 hexadecimal digits.
            identity: [32] public key of the device in this cohort, whose possession it has shown.
            evidence: what the device sent.
            address: as a limit knows it.

        Returns:
            None: it may; else a short text without anything of the evidence, which the device is sent.
        """
        ...


ADMISSIONS = Registry[type[Admission]](
    "admissions", "admission", ("fedrec_server.devices.admission",), by_module=False
)


def make_admission(name: str, settings: AdmissionSettings) -> Admission:
    """The verifier of a name.

    Raises:
        ConfigError: the name is not known.
        ServiceError: its key cannot be read.
    """
    made: type = ADMISSIONS.get(name)
    verifier: Admission = made(settings)
    return verifier
