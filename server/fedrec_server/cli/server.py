"""`fedrec-server up`, `status`, `restart`, `down`: a whole server under one supervisor."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fedrec.core.errors import RunError
from fedrec_server.cli.answer import Answer, notice, table
from fedrec_server.cli.interrupts import StopRequest
from fedrec_server.cli.options import JsonFlag, Overrides

Root = Annotated[
    Path, typer.Option("--root", help="Folder of the server: settings, keys, models, jobs, logs.")
]
HERE = Path("server")
DOWN_SECONDS = 60.0


def up(root: Root = HERE, overrides: Overrides = None, json_: JsonFlag = False) -> Answer:
    """Start model service, device service and jobs, and keep them running until Ctrl-C.

    The first start writes server.toml and makes certificates; every address, port and name is a value there.
    """
    from fedrec_server.supervision.parts import ensure_certificates, parts_of
    from fedrec_server.supervision.settings import FILE, read_settings
    from fedrec_server.supervision.supervisor import Supervisor

    root = root.absolute()
    settings = read_settings(root, tuple(overrides or ()))
    parts = parts_of(root, settings)
    if ensure_certificates(root, settings):
        notice(f"certificates are in {root / 'certs'}: ca.crt, app.pem and app.key go into the app")
    names = ", ".join(part.name for part in parts)
    with StopRequest("stopping all parts") as stop:
        notice(f"{names} of {root / FILE}; Ctrl-C ends them")
        Supervisor(root, parts, notice).run(stop)
    return Answer({"stopped": True}, ["stopped"])


def status(root: Root = HERE, json_: JsonFlag = False) -> Answer:
    """Each part: state, since when, how often it was started again, and the last line of its log."""
    from fedrec_server.supervision.supervisor import is_running, last_line, read_parts, state_of

    root, running = root.absolute(), is_running(root.absolute())
    rows: list[dict[str, Any]] = []
    for name, part in read_parts(root).items():
        state = state_of(part) if running else "down"
        rows.append(
            {"part": name, "state": state, "since": part["since"], "restarts": part["restarts"]}
            | {
                "address": f"{part['host']}:{part['port']}" if part["port"] else "",
                "log": last_line(root, name),
            }
        )
    if not rows:
        raise RunError(f"no server was started in {root}: start it with `fedrec-server up --root {root}`")
    cells = [
        [
            row["part"],
            row["state"],
            _time(row["since"]),
            str(row["restarts"]),
            row["address"],
            escape(row["log"][:80]),
        ]
        for row in rows
    ]
    columns = ["part", "state", "since", "restarts", "address", "last line of its log"]
    healthy = running and all(row["state"] == "ready" for row in rows)
    return Answer(
        {"running": running, "parts": rows},
        [table("", columns, cells, left=6)],
        exit_code=0 if healthy else 1,
    )


def restart(
    part: Annotated[str, typer.Argument(metavar="PART", help="As `fedrec-server status` names it.")],
    root: Root = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Start one part anew, with the settings of the running server; the others stay."""
    from fedrec_server.supervision.supervisor import ask

    ask(root.absolute(), part)
    return Answer({"restarted": part}, [f"{part} is restarted: see `fedrec-server status`"])


def down(root: Root = HERE, json_: JsonFlag = False) -> Answer:
    """End all parts; devices of a cohort at work are told."""
    from fedrec_server.supervision.supervisor import STOP, ask, is_running

    root = root.absolute()
    ask(root, STOP)
    until = time.monotonic() + DOWN_SECONDS
    while is_running(root):
        if time.monotonic() > until:
            raise RunError(
                f"the server in {root} did not end within {DOWN_SECONDS:g} s: see its logs in {root / 'run'}"
            )
        time.sleep(0.1)
    return Answer({"running": False}, ["all parts have ended"])


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"
