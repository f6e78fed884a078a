"""`fedrec-server service start`: the model service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from fedrec_server.cli.answer import Answer, notice
from fedrec_server.cli.interrupts import StopRequest
from fedrec_server.cli.options import JsonFlag

#: How often a stop is looked for.
LOOK_SECONDS = 0.5


def start(
    population: Annotated[list[str], typer.Option("--population", help="Whose models; may be repeated.")],
    registry: Annotated[Path, typer.Option(help="Folder of the registry.")] = Path("models"),
    certificates: Annotated[
        Path | None, typer.Option("--certs", help="Folder that `fedrec-server certs init` wrote.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: a free one.")] = 8443,
    devices: Annotated[int, typer.Option(min=1, help="About how many devices check in; paces them.")] = 1000,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="Folder of all keys: signs timestamp and snapshot anew; none: `fedrec-server model refresh`."
        ),
    ] = None,
    reports_per_address: Annotated[
        int, typer.Option(min=1, help="Reports of counters of one address that count in a day.")
    ] = 1,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS; on loopback only.")] = False,
    json_: JsonFlag = False,
) -> Answer:
    """Serve the champions (and canaries) of some populations until Ctrl-C."""
    # gRPC writes a line for every refused handshake: anyone who reaches the port could fill the disk.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    from fedrec.core.errors import ConfigError
    from fedrec_server.network.grpc_server import Certificates
    from fedrec_server.network.limits import Limits
    from fedrec_server.operations.key_folder import KeyFolder
    from fedrec_server.registry import Registry
    from fedrec_server.service.renewal import Renewal
    from fedrec_server.service.server import Service

    if (certificates is None) != insecure:
        raise ConfigError("give either --certs FOLDER or, for trying it out on loopback, --insecure")
    files = None
    if certificates is not None:
        names = (certificates / name for name in ("server.pem", "server.key", "apps.crt"))
        files = Certificates(*names)
    registries = [Registry(registry, name) for name in population]
    limits = Limits(
        expected_devices=devices,
        reports_per_address=reports_per_address,
    )
    signing = [] if keys is None else [(r, KeyFolder(keys, r.population).online()) for r in registries]
    with (
        StopRequest("stopping") as stop,
        Renewal(signing),
        Service.start(registries, files, host=host, port=port, limits=limits) as service,
    ):
        notice(f"serving {', '.join(population)} on {host}:{service.port}; Ctrl-C ends it")
        if keys is None:
            notice(
                "no --keys: run `fedrec-server model refresh` daily, or devices refuse these models in a week"
            )
        # Looked at often: a signal may reach a thread of gRPC, and then wakes no one here.
        while not stop.asked and not service.wait(LOOK_SECONDS):
            pass
    return Answer({"stopped": True}, ["stopped"])
