"""A site's node: laid out from the operator's package and the site's own table of interactions, then started.

    SITE/key, key.pub        of the node, for Flower; SITE/identity.key: of secure aggregation
    SITE/enrolment.json      what the operator was told
    SITE/runs/<run>/<name>/  the node's folder of one run; never laid out twice, because it holds promises

    python -P -m fedrec_client.node.site --site SITE --package FILE --data FILE [--user COLUMN ...]

Users are known by a digest of the site's name and their id. Items that the package does not name are left out. Out of
scope: making keys and keeping the process running.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from fedrec.core.errors import FedrecError, RunError
from fedrec.core.files import atomic_write, private_folder, sync_folder
from fedrec.core.interactions import Interactions
from fedrec.core.processes import flower_environment, free_ports
from fedrec.data.split import Split
from fedrec.data.tabular import Columns, read_interactions
from fedrec.evaluation.settings import parse_evaluation
from fedrec.privacy.terms import PrivacyTerms
from fedrec.recommenders.registry import parse
from fedrec.rounds.settings import NodeSettings
from fedrec.secagg.roster import Identity
from fedrec.secagg.terms import CohortTerms, parse_terms
from fedrec.wire.site_files import SiteEnrolment, SitePackage
from fedrec_client.node.node_folder import write_node
from fedrec_client.node.node_terms import check_deployed

PROGRAM = "fedrec_client.node.node_program"


def lay_out(site: Path, package: SitePackage, table: Interactions) -> Path:
    """The node's folder of the package's run, laid out if it is not yet.

    Args:
        site: the site's folder, with its keys.
        package: of the operator.
        table: of the site's own users.

    Raises:
        RunError: the package is another site's, its terms are not for sites, or the users are not those enrolled.
        PrivacyRefused: the terms would let out sums without noise without saying so.
    """
    enrolled = SiteEnrolment.read(site / "enrolment.json")
    if package.name != enrolled.name:
        raise RunError(f"the package is for site {package.name}: this one is {enrolled.name}")
    folder = site / "runs" / package.run / package.name
    if (folder / "node.json").exists():
        return folder
    if table.n_users != enrolled.users:
        raise RunError(
            f"the table has {table.n_users} users and {enrolled.users} were enrolled: use that table, or enrol again"
        )
    parts = package.node
    try:
        terms = parse_terms(parts["aggregation"])
        privacy = PrivacyTerms.model_validate(parts["privacy"]) if parts["privacy"] else None
        settings = NodeSettings.model_validate(parts["settings"])
    except ValidationError as error:
        raise RunError(f"the package's terms cannot be read ({error.error_count()} problems)") from error
    if not isinstance(terms, CohortTerms):
        raise RunError("the package's terms are not for sites: expected a signer of rosters")
    check_deployed(terms, privacy)
    private_folder(folder.parent)
    # A kill before the rename leaves a folder that is no node's; the next start removes it.
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    write_node(
        aside,
        split_of(table, package),
        parse(parts["model"]),
        settings,
        parse_evaluation(parts["evaluation"]),
        privacy=privacy,
        aggregation=terms,
        identity=Identity.read(site / "identity.key"),
    )
    sync_folder(aside)
    aside.rename(folder)
    sync_folder(folder.parent)
    return folder


def split_of(table: Interactions, package: SitePackage) -> Split:
    """The site's users in the order of the package's items; what these do not name is left out."""
    place = {item: k for k, item in enumerate(package.items)}
    index = np.array([place.get(str(item), -1) for item in table.item_ids], dtype=np.int64)[table.item]
    known = index >= 0
    train = Interactions(
        table.user[known],
        index[known],
        table.value[known],
        table.timestamp[known],
        table.user_ids,
        np.array(package.items),
    )
    keys = [hashlib.sha256(f"{package.name}\0{user}".encode()).digest()[:8] for user in table.user_ids]
    user_key = np.array([int.from_bytes(key, "big") >> 1 for key in keys], dtype=np.int64)
    return Split(train, None, None, user_key=user_key)


def command_of(site: Path, package: SitePackage, folder: Path, port: int) -> list[str]:
    """The node's program; the certificate that it believes is written for it."""
    ca = site / "runs" / package.run / "ca.crt"
    atomic_write(ca, package.ca.encode())
    command = [sys.executable, "-P", "-m", PROGRAM, "--folder", str(site / "supernode")]
    command += ["--superlink", package.gateway, "--root-certificates", str(ca), "--key", str(site / "key")]
    return [*command, "--port", str(port), "--node-dir", str(folder)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -P -m fedrec_client.node.site", description=__doc__)
    parser.add_argument(
        "--site", type=Path, required=True, help="folder that `fedrec-server node enrol` made"
    )
    parser.add_argument("--package", type=Path, required=True, help="of the operator")
    parser.add_argument("--data", type=Path, required=True, help="table of the site's interactions")
    parser.add_argument("--lay-out", action="store_true", help="only lay the node out, and end")
    parser.add_argument("--user", default="user", help="column with the user")
    parser.add_argument("--item", default="item", help="column with the item")
    parser.add_argument("--rating", help="column with a rating; none: every interaction counts 1")
    parser.add_argument("--time", help="column with the time; none: the order of the rows")
    return parser.parse_args()


def main() -> None:
    """Lay the node out and become its program; exit codes as in `fedrec.core.errors`."""
    given = _arguments()
    try:
        package, site = SitePackage.read(given.package), given.site.resolve()
        columns = Columns(given.user, given.item, given.rating, given.time)
        folder = lay_out(site, package, read_interactions(given.data, columns)[0])
        if given.lay_out:
            return
        (port,) = free_ports(1)
        command = command_of(site, package, folder, port)
        environment = flower_environment(site / "flower")
    except FedrecError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    main()
