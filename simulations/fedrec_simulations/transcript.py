"""Makes the transcript of a deployment under attack and accident: every line is something that was observed.

    python -m fedrec_simulations.transcript RUN FEDERATION OUT.md

RUN is a run folder laid out for as many nodes as the federation is to have. Four accidents happen to the run: a
node is killed while it computes, and later started again; a node with an unregistered key asks to be let in; the
coordinator is killed; SuperLink itself is killed. Out of scope: laying out the run.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from fedrec.errors import FederationError
from fedrec_server.certificates import make_node_key
from fedrec_server.federation import Federation
from fedrec_server.processes import cut, flower_environment, free_ports, marked, start
from fedrec_simulations.engines.folders import app_folder, read_outcome

WORK_SECONDS = 60.0
REFUSAL_SECONDS = 60.0
POLL_SECONDS = 0.05


@dataclass
class NodeKiller:
    """Kills a node while it computes an answer."""

    federation: Federation
    k: int
    was_working: bool = False

    def kill_while_working(self) -> None:
        """Wait until the node's next piece of work has begun, then end the node as a power cut does."""
        before, deadline = self._workers(), time.monotonic() + WORK_SECONDS
        while not self.was_working and time.monotonic() < deadline:
            self.was_working = bool(self._workers() - before)
            time.sleep(POLL_SECONDS)
        self.federation.kill_node(self.k)

    def _workers(self) -> set[int]:
        found = marked(self.federation.parts.mark(f"node-{self.k}"))
        return {pid for pid, command in found.items() if "flwr-clientapp" in command}


def refusal_of_stranger(federation: Federation, folder: Path) -> str:
    """What a SuperNode with a good key that nobody registered is told by the gateway.

    Raises:
        FederationError: it was not refused.
    """
    key, log = folder / "stranger", folder / "stranger.log"
    make_node_key(key)
    (port,) = free_ports(1)
    command = federation.parts.supernode(key, port, folder)
    mark = federation.parts.mark("stranger")
    child = start(command, mark=mark, env=flower_environment(folder / "flower"), log=log)
    try:
        child.wait(REFUSAL_SECONDS)
    except Exception as error:
        raise FederationError(f"a node with an unregistered key was not refused: see {log}") from error
    finally:
        cut(mark, [child.pid])
    said = [line.strip() for line in log.read_text().splitlines() if "code" in line.lower()]
    return f"exit status {child.returncode}: {' '.join(said)[:200]}"


@dataclass
class Transcript:
    """Lines with the seconds since the start."""

    started: float = field(default_factory=time.time)
    lines: list[str] = field(default_factory=list)
    on_line: Callable[[str], None] = lambda line: None

    def say(self, text: str) -> None:
        """Add what was done or seen."""
        self.lines.append(f"{time.time() - self.started:7.1f} s  {text}")
        self.on_line(self.lines[-1])

    def round(self, event: dict[str, Any]) -> None:
        """Add what the coordinator reported."""
        if "refused" in event:
            self.say(f"coordinator: node {event['refused']} refused: {event['reason']}")
            return
        failures = "; ".join(f"node {node}: {reason}" for node, reason in event["failures"].items())
        state = "abandoned" if event.get("abandoned") else f"{event.get('users', 0)} users"
        text = f"coordinator: {event['phase']} round {event['round']}: {event['nodes']} nodes, {state}"
        self.say(text + (f"; {failures}" if failures else ""))


def perform(run_dir: Path, folder: Path, transcript: Transcript, nodes: int = 4) -> None:
    """Let everything happen, and say what was seen."""
    federation = Federation.up(folder, nodes, on_step=transcript.say)
    try:
        _knock(federation, transcript)
        transcript.say("a SuperNode with an unregistered key asks to be let in")
        transcript.say(f"it is refused: {refusal_of_stranger(federation, folder)}")
        _interrupted(federation, run_dir, transcript)
        _resumed(federation, run_dir, transcript)
        transcript.say(f"status of the nodes at the end: {federation.status()['nodes']}")
    finally:
        federation.down()
        federation.forget()
        left = marked(federation.record.mark)
        transcript.say(f"federation down, {len(left)} processes left")


def _knock(federation: Federation, transcript: Transcript) -> None:
    """Ask the gateway for what is not open to nodes."""
    trust = ssl.create_default_context(cafile=str(federation.parts.ca))
    with httpx.Client(verify=trust, trust_env=False) as client:
        for path in ("/v1/control/start-run", "/v1/fleet/..%2fcontrol/start-run", "/openapi.json"):
            address = f"https://127.0.0.1:{federation.record.gateway_port}"
            status = client.post(address + path).status_code
            transcript.say(f"gateway: POST {path} -> {status}")


def _interrupted(federation: Federation, run_dir: Path, transcript: Transcript) -> None:
    """A node dies in mid-round and comes back; then the coordinator dies."""
    killer = NodeKiller(federation, 1)

    def interfere(event: dict[str, Any]) -> None:
        transcript.round(event)
        if event.get("round") == 1:
            killer.kill_while_working()
            transcript.say(f"node 1 killed (SIGKILL), computing at that moment: {killer.was_working}")
        if event.get("round") == 2:
            transcript.say("node 1 started again; Flower refuses its key until it has noticed the death")
            federation.restart_node(1)
            transcript.say("node 1 online again, with the local state on its disk")
        if event.get("round", 0) >= 3 and event["nodes"] == federation.record.nodes:
            transcript.say("coordinator killed (SIGKILL)")
            federation.kill_coordinator()

    run = federation.start_run(run_dir, app_folder())
    try:
        run.wait(on_event=interfere)
    except FederationError as error:
        transcript.say(f"engine: {error}")
    _tell_flowers_view(federation, transcript)


def _tell_flowers_view(federation: Federation, transcript: Transcript) -> None:
    """Flower has no resume: it marks the run as failed."""
    transcript.say(f"Flower's own view of its runs: {', '.join(federation.cli.run_status().values())}")


def _resumed(federation: Federation, run_dir: Path, transcript: Transcript) -> None:
    """The coordinator goes on, SuperLink dies, the coordinator goes on again and finishes."""
    transcript.say("coordinator resumed as a new Flower run on the same run folder")
    first: list[int] = []

    def cut_superlink(event: dict[str, Any]) -> None:
        transcript.round(event)
        if not first:
            first.append(event["round"])
            transcript.say("SuperLink killed (SIGKILL), and the coordinator with it")
            federation.kill_superlink()

    try:
        federation.resume(run_dir, app_folder(), on_event=cut_superlink)
    except FederationError as error:
        transcript.say(f"engine: {error}")
    transcript.say("SuperLink started again on its database, coordinator resumed")
    finished = federation.resume(run_dir, app_folder(), on_event=transcript.round)
    outcome = read_outcome(run_dir, finished)
    transcript.say(f"run finished: {outcome.finished}, after {outcome.rounds} rounds")
    _tell_flowers_view(federation, transcript)


def main() -> None:
    """Write the transcript of one performance."""
    parser = argparse.ArgumentParser(prog="python -m fedrec_simulations.transcript")
    parser.add_argument("run", type=Path)
    parser.add_argument("federation", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    transcript = Transcript(on_line=lambda line: print(line, file=sys.stderr, flush=True))  # noqa: T201
    nodes = len(list((given.run / "nodes").iterdir()))
    perform(given.run, given.federation, transcript, nodes)
    body = "\n".join(transcript.lines)
    for folder, name in ((given.run, "RUN"), (given.federation, "FEDERATION")):
        body = body.replace(str(folder.resolve()), name).replace(str(folder), name)
    given.out.write_text(
        "# A deployment, attacked and hit by accidents\n\n"
        f"{nodes} SuperNodes on loopback over TLS with node keys, {dt.datetime.now(dt.UTC):%Y-%m-%d}, "
        f"{os.cpu_count()} cores. Made by `python -m fedrec_simulations.transcript RUN FEDERATION OUT.md`; "
        f"every line was observed.\n\n```text\n{body}\n```\n"
    )


if __name__ == "__main__":
    main()
