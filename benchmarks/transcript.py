"""Makes the transcript of a deployment under attack and accident: every line is something that was observed.

    python -m benchmarks.transcript simulations/experiments/movietweetings-mf.toml FOLDER OUT.md

A run with that configuration is laid out in FOLDER for four nodes. A node with an unregistered key asks to be let
in; a node is killed while it computes, and later started again; the coordinator is killed; SuperLink is killed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import re
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from fedrec.core.errors import FederationError
from fedrec.core.files import read_arrays
from fedrec.core.processes import cut, flower_environment, free_ports, marked, start
from fedrec_server.federation.federation import Federation
from fedrec_server.federation.run_files import app_folder, read_outcome
from fedrec_server.network.certificates import make_node_key
from fedrec_simulations.experiments.config import load_config
from fedrec_simulations.experiments.prepare import prepare
from fedrec_simulations.experiments.run_folder import RunFolder

NODES = 4
#: Enough rounds for all that happens, a deadline that is not long to watch, and no choice of rounds.
OVERRIDES = (
    "federation.rounds=16",
    "federation.deadline_seconds=30",
    "federation.checkpoint_every=1",
    "split.validation=false",
)
NODE_PROGRAM = "-m fedrec_client.node.node_program"
WORK_SECONDS = 60.0
#: Flower notices a dead coordinator after about a minute.
NOTICE_SECONDS = 150.0
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
        # The program of the node itself is one of them; each message has a fork of it.
        return {pid for pid, command in found.items() if NODE_PROGRAM in command}


def refusal_of_stranger(federation: Federation, folder: Path) -> str:
    """What a SuperNode with a good key that no one registered is told by the gateway.

    Raises:
        FederationError: it was not refused.
    """
    home, log = folder / "stranger", folder / "stranger.log"
    make_node_key(home / "key")
    (port,) = free_ports(1)
    command = federation.parts.supernode(home, port)
    mark = federation.parts.mark("stranger")
    child = start(command, mark=mark, env=flower_environment(folder / "flower"), log=log)
    try:
        child.wait(REFUSAL_SECONDS)
    except Exception as error:
        raise FederationError(f"a node with an unregistered key was not refused: see {log}") from error
    finally:
        cut(mark, [child.pid])
    said = re.findall(r"\[code: \d+\][^.\n]*", log.read_text())
    return f"exit status {child.returncode}, {' '.join(said) or 'without a word'}"


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


def perform(run_dir: Path, folder: Path, transcript: Transcript, nodes: int = NODES) -> None:
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
            transcript.say(f"node 1 killed (SIGKILL); it was computing its answer: {killer.was_working}")
        elif event.get("round") == 2:
            federation.restart_node(1, wait=False)
            transcript.say("node 1 started again; Flower refuses its key until it has noticed the death")
        elif event.get("round", 0) > 2 and event["nodes"] == federation.record.nodes:
            transcript.say("node 1 takes part again, with the users' state on its disk")
            await_checkpoint(run_dir, event["round"])
            federation.kill_coordinator()
            transcript.say("coordinator killed (SIGKILL)")

    transcript.say("training starts")
    try:
        federation.run_and_wait(run_dir, app_folder(), on_event=interfere)
    except FederationError as error:
        transcript.say(f"engine: {error}")
    deadline = time.monotonic() + NOTICE_SECONDS
    while "running" in federation.cli.run_status().values() and time.monotonic() < deadline:
        time.sleep(2.0)
    _tell_flowers_view(federation, transcript)


def await_checkpoint(run_dir: Path, round_: int) -> None:
    """Wait until the coordinator has written the checkpoint of a round that it reported."""
    path, deadline = run_dir / "coordinator" / "checkpoint.safetensors", time.monotonic() + WORK_SECONDS
    while time.monotonic() < deadline:
        if path.exists() and read_arrays(path)[1]["round"] >= round_:
            return
        time.sleep(POLL_SECONDS)
    raise FederationError(f"{path} did not come: expected a checkpoint of round {round_}")


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
            await_checkpoint(run_dir, event["round"])
            transcript.say("SuperLink killed (SIGKILL), and the coordinator with it")
            federation.kill_superlink()

    try:
        federation.run_and_wait(run_dir, app_folder(), on_event=cut_superlink)
    except FederationError as error:
        transcript.say(f"engine: {error}")
    transcript.say("SuperLink started again on its database, coordinator resumed")
    finished = federation.run_and_wait(run_dir, app_folder(), on_event=transcript.round)
    outcome = read_outcome(run_dir, finished)
    transcript.say(f"run finished: {outcome.finished}, after {outcome.rounds} rounds")
    _tell_flowers_view(federation, transcript)


def main() -> None:
    """Write the transcript of one performance."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transcript")
    for name in ("config", "folder", "out"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    config = load_config(given.config, (*OVERRIDES, f"federation.nodes={NODES}"))
    RunFolder.create(folder / "run", config, prepare(config), NODES)
    transcript = Transcript(on_line=lambda line: print(line, file=sys.stderr, flush=True))
    perform(folder / "run", folder / "federation", transcript)
    given.out.write_text(render(transcript, config.name, folder))


def render(transcript: Transcript, name: str, folder: Path) -> str:
    """The page; paths of this machine are replaced."""
    body = "\n".join(transcript.lines).replace(str(folder), "FOLDER")
    return (
        "# A deployment, attacked and hit by accidents\n\n"
        f"Experiment `{name}` on {NODES} SuperNodes on loopback over TLS with node keys, "
        f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {os.cpu_count()} cores. Every line was observed; "
        "times are since the start. Made by `python -m benchmarks.transcript "
        f"simulations/experiments/{name}.toml FOLDER OUT.md`.\n\n```text\n{body}\n```\n"
    )


if __name__ == "__main__":
    main()
