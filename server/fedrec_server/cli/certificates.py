"""`fedrec-server certs init`: certificates for the model service and its apps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedrec_server.cli.answer import Answer
from fedrec_server.cli.options import JsonFlag
from fedrec_server.network.certificates import Validity, make_service_certificates


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False)],
    host: Annotated[list[str] | None, typer.Option("--host", help="Name or address of the server.")] = None,
    days: Annotated[float, typer.Option(min=0.01, help="How long they hold.")] = 90.0,
    json_: JsonFlag = False,
) -> Answer:
    """Make certificates: for the server, and for the app whose devices may ask it."""
    made = make_service_certificates(folder, host or (), Validity(days))
    hint = f"into the app: {made['ca.crt']}, {made['app.pem']}, {made['app.key']}"
    return Answer(dict(made), [escape(hint)])
