"""Flower's command line as an operator uses it: register nodes, list them, start runs.

A SuperLink's control API is spoken to by Flower's own `flwr` program with a home folder of the federation, so
that neither the user's Flower settings nor Flower's private modules matter here. Out of scope: reading logs.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrec.core.errors import FederationError
from fedrec.core.processes import flower_environment, program, start

CONNECTION = "fedrec"
COMMAND_SECONDS = 120.0
#: How the status of a run that is over begins.
FINISHED = "finished"


@dataclass(frozen=True)
class NodeStatus:
    """What Flower says of a node: "online" or another word, and for how many seconds since it came."""

    status: str
    seconds: float


@dataclass(frozen=True)
class FlowerCli:
    """Runs `flwr` against one SuperLink.

    Attributes:
        home: folder for Flower's settings; written by `write_config`.
    """

    home: Path

    def write_config(self, address: str, ca: Path | None) -> None:
        """Say where the SuperLink is; without a CA the connection is plain (loopback only)."""
        trust = "insecure = true" if ca is None else f"root-certificates = {json.dumps(str(ca))}"
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n'
            f"[superlink.{CONNECTION}]\naddress = {json.dumps(address)}\n{trust}\n"
        )

    def call(self, *arguments: str) -> dict[str, Any]:
        """What a command answers.

        Raises:
            FederationError: it failed; the message holds what Flower said.
        """
        command = [program("flwr"), *arguments, "--format", "json"]
        try:
            done = subprocess.run(
                command,
                env=flower_environment(self.home),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FederationError(
                f"`flwr {arguments[0]}` did not end in {COMMAND_SECONDS:g} s: see `fedrec-server federation status`"
            ) from error
        answer = _json_in(done.stdout)
        if done.returncode != 0 or not answer.get("success", True):
            said = str(answer.get("error-message") or done.stderr or done.stdout)
            raise FederationError(f"`flwr {' '.join(arguments[:2])}` failed: {' '.join(said.split())[:400]}")
        return answer

    def register(self, public_key: Path, name: str) -> str:
        """Admit a node by its public key; returns its id at Flower."""
        answer = self.call("supernode", "register", str(public_key), CONNECTION, "--name", name)
        return str(answer["node-id"])

    def unregister(self, node_id: str) -> None:
        """Refuse a node from now on."""
        self.call("supernode", "unregister", node_id, CONNECTION)

    def node_status(self) -> dict[str, NodeStatus]:
        """Status of each registered node by its id at Flower."""
        nodes = self.call("supernode", "ls", CONNECTION)["nodes"]
        return {str(n["node-id"]): NodeStatus(str(n["status"]), float(n["online-elapsed"])) for n in nodes}

    def run_status(self) -> dict[str, str]:
        """Status of each run by its id, such as "running" or "finished:failed"."""
        return {str(run["run-id"]): str(run["status"]) for run in self.call("ls", CONNECTION)["runs"]}

    def stop_run(self, run_id: str) -> None:
        """End a run at Flower; one that ends by itself meanwhile is as good as stopped.

        Raises:
            FederationError: it is still not finished.
        """
        try:
            self.call("stop", run_id, CONNECTION)
        except FederationError:
            # The list that named it may be older than its end, and Flower refuses to stop what is over.
            if not self.run_status().get(run_id, FINISHED).startswith(FINISHED):
                raise

    def run(
        self,
        app: Path,
        config: dict[str, str | int | float],
        *,
        mark: str,
        log: Path,
        federation: str | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a run of the app; the process returned copies the run's log to `log` and ends with the run."""
        values = self.home / "run-config.toml"
        # A JSON scalar is a TOML value, too.
        values.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in config.items()))
        command = [program("flwr"), "run", str(app), CONNECTION, "--stream", "--run-config", str(values)]
        if federation is not None:
            command += ["--federation-config", federation]
        return start(command, mark=mark, env=flower_environment(self.home), log=log)


def last_words(log: Path, lines: int = 3) -> str:
    """The end of a log in one line, for an error message."""
    if not log.exists():
        return "no log"
    text = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(text[-lines:])[-500:] or "an empty log"


def _json_in(text: str) -> dict[str, Any]:
    """The JSON object in a program's output, which may begin with other words."""
    start_at = text.find("{")
    try:
        return dict(json.loads(text[start_at:])) if start_at >= 0 else {}
    except ValueError:
        return {}
