"""`fedrec-server devices`: a front end of the device service, and a relay to one."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from fedrec_server.cli.answer import Answer, notice
from fedrec_server.cli.interrupts import StopRequest
from fedrec_server.cli.options import JsonFlag

#: How often a stop is looked for.
LOOK_SECONDS = 0.5


def start(
    database: Annotated[
        str, typer.Option(help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME; shared with jobs.")
    ] = "sqlite:///devices.db",
    certificates: Annotated[
        Path | None, typer.Option("--certs", help="Folder that `fedrec-server certs init` wrote.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="For gRPC; 0: a free one.")] = 8444,
    connect_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="For browsers (Connect); none: not served.")
    ] = None,
    origin: Annotated[
        list[str] | None, typer.Option(help="Of pages whose scripts may call over Connect; may be repeated.")
    ] = None,
    admission: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=FILE]",
            help="Who may join: none, token=KEY, attested=AUTHORITY, or a registered name; may be repeated.",
        ),
    ] = None,
    devices: Annotated[int, typer.Option(min=1, help="About how many devices check in; paces them.")] = 1000,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A limit of the reference page; may be repeated."),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS; on loopback only.")] = False,
    json_: JsonFlag = False,
) -> Answer:
    """Answer devices that take part in training jobs until Ctrl-C."""
    # gRPC writes a line for every refused handshake: anyone who reaches the port could fill the disk.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from fedrec.core.errors import ConfigError
    from fedrec_server.devices.options import parse_admissions, parse_limits
    from fedrec_server.devices.server import FrontEnd, Listening
    from fedrec_server.devices.state.database import open_state
    from fedrec_server.network.grpc_server import Certificates

    if (certificates is None) != insecure:
        raise ConfigError("give either --certs FOLDER or, for trying it out on loopback, --insecure")
    files = None
    if certificates is not None:
        files = Certificates(*(certificates / name for name in ("server.pem", "server.key", "apps.crt")))
    limits = parse_limits([f"expected_devices={devices}", *(limit or [])])
    listening = Listening(files, host, port, connect_port, tuple(origin or ()))
    with StopRequest("stopping") as stop, open_state(database) as state:
        admissions = parse_admissions(admission or [], state)
        with FrontEnd(state, listening, admissions, limits) as running:
            browsers = f", for browsers on port {running.connect_port}" if running.connect_port else ""
            notice(f"serving devices on {host}:{running.port}{browsers}; Ctrl-C ends it")
            if not admissions:
                notice("no --admission: every device of the app may join, within the quotas of a day")
            # What a front end holds lives long or dies at once: looking for circles costs a tenth of its time.
            gc.freeze()
            gc.set_threshold(50_000, 20, 100)
            # Looked at often: a signal may reach a thread of gRPC, and then wakes no one here.
            while not stop.asked and not running.wait(LOOK_SECONDS):
                pass
    return Answer({"stopped": True}, ["stopped"])


def relay(
    upstream: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Of the device service, or of a relay to it.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8444,
    connections: Annotated[int, typer.Option(min=1, help="Of devices, at once.")] = 1024,
    json_: JsonFlag = False,
) -> Answer:
    """Pass connections of devices nearby on to a device service until Ctrl-C; TLS stays end to end."""
    from fedrec_server.devices.edge import Edge, EdgeLimits, parse_address

    to = parse_address(upstream)
    with StopRequest("stopping") as stop, Edge(to, host, port, EdgeLimits(connections)) as running:
        notice(f"passing devices from {host}:{running.port} on to {upstream}; Ctrl-C ends it")
        while not stop.asked:
            time.sleep(LOOK_SECONDS)
    return Answer({"stopped": True}, ["stopped"])
