"""Rounds over sites alone: the admitted sites that are here take part, under a roster signed for each attempt.

    coordinator/sites.json    name, identity and users of each admitted site; may grow between starts
    coordinator/signer.key    signs rosters; its public key is in the terms that sites have pinned

There are no devices in such a run: its cohorts are empty, and sites join them as beside devices. Out of scope:
admitting sites (`fedrec_server.sites`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from fedrec.core.errors import RunError
from fedrec.core.files import write_json
from fedrec.core.messages import Failure, Reply, Request
from fedrec.secagg.roster import Identity
from fedrec_server.rounds.cohorts import Cohort, CohortSettings, CohortWanted, Devices, Ending, Joined

SITES, SIGNER = "sites.json", "signer.key"


class _NoDevices:
    """An exchange and cohorts without any device."""

    def nodes(self) -> list[str]:
        """None."""
        return []

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        """See `Exchange`; only sites are asked."""
        return {node: Failure("the node is not known to the federation") for node in requests}

    def form(self, wanted: CohortWanted, stop: Callable[[], bool]) -> Cohort:
        """An empty one, at once."""
        return Cohort("sites", ())

    def prepare(self, wanted: CohortWanted) -> None:
        """Nothing waits to join."""

    def close(self, cohort: Cohort, ending: Ending) -> None:
        """No device is to be told."""


def write_sites(folder: Path, sites: Iterable[Joined]) -> None:
    """Say which sites are admitted, in a coordinator's folder."""
    listed = [{"name": each.node, "identity": each.identity.hex(), "users": each.users} for each in sites]
    write_json(folder / SITES, {"sites": listed})


def sites_only(folder: Path) -> Devices | None:
    """What a coordinator needs for rounds over sites alone; None: its run is of another kind.

    Raises:
        RunError: the list of sites or the signer cannot be read.
    """
    if not (folder / SITES).exists():
        return None
    try:
        listed = json.loads((folder / SITES).read_text())["sites"]
        sites = tuple(Joined(each["name"], bytes.fromhex(each["identity"]), each["users"]) for each in listed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder / SITES} cannot be read ({error!r:.100}): admit the sites again") from error
    none = _NoDevices()
    settings = CohortSettings(target=0, least=0, wait_seconds=0.0)
    return Devices(none, none, Identity.read(folder / SIGNER), settings, sites)
