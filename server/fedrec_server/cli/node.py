"""`fedrec-server node ...`: a site enrols with keys that it made, is admitted, and starts its node."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fedrec.core.errors import RunError
from fedrec_server.cli.answer import Answer, table
from fedrec_server.cli.options import JsonFlag

SiteFolder = Annotated[Path, typer.Argument(metavar="SITE", help="The site's folder.", show_default=False)]
Root = Annotated[Path, typer.Option("--root", help="Folder of the server for sites.")]
HERE = Path("sites")


def enrol(
    site: SiteFolder,
    name: Annotated[
        str, typer.Option(help="Of the site: lower-case letters, digits, dashes.", show_default=False)
    ],
    users: Annotated[int, typer.Option(help="How many users the site's table has.", show_default=False)],
    json_: JsonFlag = False,
) -> Answer:
    """On the site: make its keys, and the file that the operator needs."""
    from fedrec_server.sites.keys import enrol

    path = enrol(site, name, users)
    return Answer(
        {"enrolment": path}, [escape(f"give {path} to the operator; the keys in {site} never leave it")]
    )


def admit(
    enrolment: Annotated[Path, typer.Argument(metavar="FILE", help="Of the site.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where to write the package; none: beside FILE.")] = None,
    root: Root = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Let a site in, vouching for its number of users, and write the package for it."""
    from fedrec.wire.site_files import SiteEnrolment
    from fedrec_server.sites.server import SiteServer

    found = SiteEnrolment.read(enrolment)
    package = SiteServer(root).admit(found)
    path = out or enrolment.with_name(f"{found.name}.package.json")
    package.write(path)
    lines = [
        f"site {found.name} is admitted with {found.users} users",
        f"give it {path}, by a way that it trusts",
    ]
    return Answer(
        {"site": found.name, "users": found.users, "package": path}, [escape(line) for line in lines]
    )


def list_(root: Root = HERE, json_: JsonFlag = False) -> Answer:
    """All admitted sites, and whether they are online."""
    from fedrec_server.sites.server import SiteServer

    server = SiteServer(root)
    status = server.status()
    rows: list[dict[str, Any]] = [
        {"site": each.enrolment.name, "users": each.enrolment.users, "state": status[each.enrolment.name]}
        | {"node": each.node_id, "since": each.since}
        for each in server.admitted()
    ]
    cells = [[row["site"], str(row["users"]), row["state"]] for row in rows]
    return Answer({"sites": rows}, [table("", ["site", "users", "state"], cells, left=1)])


def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    root: Root = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Refuse a site from now on."""
    from fedrec_server.sites.server import SiteServer

    SiteServer(root).remove(name)
    return Answer({"removed": name}, [f"site {escape(name)} is refused from now on"])


def start(
    site: SiteFolder,
    package: Annotated[Path, typer.Argument(metavar="PACKAGE", help="Of the operator.", show_default=False)],
    data: Annotated[Path, typer.Option(help="Table of interactions: CSV, TSV, JSON lines or Parquet.")],
    user: Annotated[str, typer.Option(help="Column with the user.")] = "user",
    item: Annotated[str, typer.Option(help="Column with the item.")] = "item",
    rating: Annotated[str | None, typer.Option(help="Column with a rating; none: each counts 1.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Column with the time; none: the order of the rows.")
    ] = None,
    json_: JsonFlag = False,
) -> Answer:
    """On the site: start its node in the foreground, and keep it running until Ctrl-C."""
    command = [sys.executable, "-P", "-m", "fedrec_client.node.site", "--site", str(site)]
    command += ["--package", str(package), "--data", str(data), "--user", user, "--item", item]
    command += [] if rating is None else ["--rating", rating]
    command += [] if time is None else ["--time", time]
    ready = subprocess.run([*command, "--lay-out"], stderr=subprocess.PIPE, text=True, check=False)
    if ready.returncode:
        last = (ready.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RunError(f"the node cannot be laid out: {last.removeprefix('error: ')}")
    supervised = [sys.executable, "-P", "-m", "fedrec_server.federation.supervisor", *command]
    os.execv(supervised[0], supervised)
