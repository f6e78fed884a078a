"""A site's keys, made on the site: of its node for Flower, and its identity of secure aggregation.

Out of scope: what the operator does with their public halves (`server`).
"""

from __future__ import annotations

from pathlib import Path

from fedrec.core.errors import RunError
from fedrec.core.files import private_folder, write_secret
from fedrec.secagg.roster import Identity
from fedrec.wire.site_files import SiteEnrolment, check_name
from fedrec_server.network.certificates import make_node_key


def enrol(site: Path, name: str, users: int) -> Path:
    """Make the keys of a site and the file for the operator; its path.

    Args:
        site: the site's folder, which only its owner may look into.
        name: of the site.
        users: how many it has.

    Raises:
        RunError: the site is enrolled already, or the name or the number cannot be used.
    """
    check_name(name)
    if (site / "enrolment.json").exists():
        raise RunError(f"{site} is enrolled already: give {site / 'enrolment.json'} to the operator")
    private_folder(site)
    identity = Identity.create()
    public = make_node_key(site / "key")
    made = SiteEnrolment(name, public.read_text().strip(), identity.public.hex(), users)
    # A start that was killed has left keys that no one has seen.
    (site / "identity.key").unlink(missing_ok=True)
    write_secret(site / "identity.key", identity.secret)
    made.write(site / "enrolment.json")
    return site / "enrolment.json"
