"""What the service must know of training campaigns; who runs them is elsewhere."""

from __future__ import annotations

from typing import Protocol

from fedrec.core.errors import RegistryError


class Campaigns(Protocol):
    """Safe for several threads."""

    def open_for(self, population: str) -> str:
        """Id of a campaign in which devices can enrol now; empty: none."""
        ...

    def enrol(self, campaign: str, identity: bytes, node_key: str, users: int) -> None:
        """Put a device on the roster; the same keys again change nothing.

        Raises:
            CampaignOver: its roster is closed or full.
            RegistryError: there is no such campaign.
        """
        ...

    def task(self, campaign: str, identity: bytes) -> bytes | None:
        """The signed task, for a device on the roster; None while the roster is open.

        Raises:
            CampaignOver: it has ended, or its operator's process has.
            RegistryError: there is no such campaign, or the device is not on its roster.
        """
        ...

    def leave(self, campaign: str, identity: bytes, signature: bytes) -> None:
        """A device has left; told again, or of a campaign that there is not, nothing changes.

        Raises:
            RegistryError: the device has not signed this.
        """
        ...


class NoCampaigns:
    """A service without training."""

    def open_for(self, population: str) -> str:
        """See `Campaigns`."""
        return ""

    def enrol(self, campaign: str, identity: bytes, node_key: str, users: int) -> None:
        """See `Campaigns`."""
        raise RegistryError("there is no such campaign")

    def task(self, campaign: str, identity: bytes) -> bytes | None:
        """See `Campaigns`."""
        raise RegistryError("there is no such campaign")

    def leave(self, campaign: str, identity: bytes, signature: bytes) -> None:
        """See `Campaigns`."""
