"""`fedrec-server certs init` and `renew`: certificates for the services and their apps, and of a server for sites."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedrec_server.cli.answer import Answer
from fedrec_server.cli.options import JsonFlag
from fedrec_server.network.certificates import Validity, make_service_certificates, renew_certificates

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False)]
Hosts = Annotated[list[str] | None, typer.Option("--host", help="Name or address of the server.")]
Days = Annotated[float, typer.Option(min=0.01, help="How long they hold.")]


def init(folder: Folder, host: Hosts = None, days: Days = 90.0, json_: JsonFlag = False) -> Answer:
    """Make certificates: for the server, and for the app whose devices may ask it."""
    made = make_service_certificates(folder, host or (), Validity(days))
    hints = [
        f"into the app: {made['ca.crt']}, {made['app.pem']}, {made['app.key']}",
        f"off this server, for renewals: {folder / 'ca.key'}, {folder / 'apps.key'}",
    ]
    return Answer(dict(made), [escape(hint) for hint in hints])


def renew(folder: Folder, host: Hosts = None, days: Days = 90.0, json_: JsonFlag = False) -> Answer:
    """Renew all certificates of a folder; apps and sites keep what they have."""
    renewed = renew_certificates(folder, host or (), Validity(days))
    names = ", ".join(path.name for path in renewed)
    lines = [f"renewed: {names}", "the gateway takes its own within a second; restart the services"]
    return Answer({"renewed": renewed, "days": days}, [escape(line) for line in lines])
