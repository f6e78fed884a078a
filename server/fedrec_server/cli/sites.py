"""`fedrec-server sites ...`: SuperLink and gateway for sites on any host, the terms of a run, and the run itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fedrec.core.errors import DataError
from fedrec_server.cli.answer import INTERRUPTED, Answer, notice, warn
from fedrec_server.cli.interrupts import StopRequest
from fedrec_server.cli.options import JsonFlag, Overrides

Root = Annotated[Path, typer.Option("--root", help="Folder of the server for sites.")]
HERE = Path("sites")
_PORT = {"min": 1, "max": 65535}


def init(
    public_address: Annotated[
        str, typer.Option(help="Name or address by which sites reach the gateway.")
    ] = "localhost",
    host: Annotated[
        str, typer.Option(help="Address on which the gateway listens; 0.0.0.0: all.")
    ] = "127.0.0.1",
    gateway_port: Annotated[int, typer.Option(**_PORT, help="Of the gateway.")] = 9092,
    superlink_port: Annotated[int, typer.Option(**_PORT, help="Of SuperLink.")] = 9091,
    superlink_host: Annotated[
        str, typer.Option(help="Address on which SuperLink listens; no site may reach it.")
    ] = "127.0.0.1",
    name: Annotated[
        list[str] | None, typer.Option(help="Further name in certificates; may be repeated.")
    ] = None,
    days: Annotated[float, typer.Option(min=0.01, help="How long certificates hold.")] = 90.0,
    root: Root = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Fix addresses and ports, and make certificates."""
    from fedrec_server.sites.addresses import Addresses

    made = Addresses(public_address, host, gateway_port, superlink_port, superlink_host, tuple(name or ()))
    made.create(root, days)
    lines = [
        f"sites reach this server at {made.gateway}",
        f"off this server, for renewals: {root / 'tls' / 'ca.key'}",
    ]
    return Answer({"gateway": made.gateway, "superlink": made.superlink}, [escape(line) for line in lines])


def task(
    task: Annotated[
        Path, typer.Argument(metavar="TASK", help="TOML file, as `fedrec config task` writes it.")
    ],
    items: Annotated[Path, typer.Option(help="Text file with the ids of all items, one a line.")],
    users: Annotated[int, typer.Option(min=1, help="Of all sites together; sizes the noise.")],
    overrides: Overrides = None,
    root: Root = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Fix the terms of a run; packages of sites that are admitted from now on are for it."""
    from fedrec_server.operations.specification import load_specification
    from fedrec_server.sites.addresses import Addresses
    from fedrec_server.sites.run import lay_out

    Addresses.read(root)
    what = load_specification(task, overrides or ())
    warn(what.warnings())
    folder = lay_out(root, what, _lines(items), users)
    return Answer({"run": folder.name, "folder": folder}, [f"run {folder.name}: admit sites, then start it"])


def superlink(root: Root = HERE, json_: JsonFlag = False) -> Answer:
    """Run SuperLink in the foreground, for a supervisor."""
    return _become("superlink", root)


def gateway(root: Root = HERE, json_: JsonFlag = False) -> Answer:
    """Run the gateway in the foreground, for a supervisor."""
    return _become("gateway", root)


def run(
    wait_seconds: Annotated[
        float, typer.Option(min=0.0, help="Wait for all admitted sites for so long.")
    ] = 300.0,
    root: Root = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Run, or resume, the current run over the sites that are online."""
    from fedrec_server.federation.run_files import read_outcome
    from fedrec_server.sites.server import SiteServer

    server = SiteServer(root)
    folder = server.current()
    with StopRequest() as stop:
        finished = server.run_and_wait(wait_seconds=wait_seconds, on_event=_tell, stop=stop)
    outcome = read_outcome(folder, finished)
    document = {"run": folder.name, "folder": folder, "rounds": outcome.rounds, "finished": finished}
    if not finished:
        again = f"fedrec-server sites run --root {root}"
        text = f"stopped after round {outcome.rounds} with a checkpoint; continue with: {escape(again)}"
        return Answer(document | {"resume": again}, [text], INTERRUPTED)
    return Answer(document, [f"run {folder.name} is finished after {outcome.rounds} rounds"])


def _become(part: str, root: Path) -> Answer:
    from fedrec_server.sites.server import SiteServer

    server = SiteServer(root)
    command, environment = server.superlink() if part == "superlink" else server.gateway()
    os.umask(0o077)
    os.execve(command[0], command, environment)


def _lines(path: Path) -> list[str]:
    try:
        return [line for line in path.read_text("utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): expected ids of items, one a line") from error


def _tell(event: dict[str, Any]) -> None:
    if "round" in event:
        missing = len(event.get("failures", {}))
        notice(f"round {event['round']}: {event.get('nodes', 0)} sites, {missing} failures", "dim")
