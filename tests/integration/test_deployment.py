"""A real federation on loopback, brought up once: TLS, node keys, gateway, and what happens when parts are killed."""

from __future__ import annotations

import json
import os
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flower_helpers
import foreign_app
import httpx
import numpy as np
import pytest
from small_models import features_of, model_of

from benchmarks.transcript import NodeKiller, await_checkpoint, refusal_of_stranger
from fedrec.core.errors import ConfigError, FederationError, RunError
from fedrec.core.processes import is_alive, marked
from fedrec.core.refusals import FOREIGN, REFUSED
from fedrec.rounds.settings import RoundSettings
from fedrec_server.federation.federation import Federation, _point
from fedrec_server.federation.run_files import app_folder, read_outcome
from fedrec_simulations.engines.in_process import run_in_process

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
NODES = 3


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    made = Federation.up(tmp_path_factory.mktemp("federation"), NODES)
    try:
        yield made
    finally:
        made.down()
        assert not marked(made.record.mark) and not made.parts.home("superlink").exists()


def test_the_control_api_is_closed_to_nodes(federation: Federation) -> None:
    trust = ssl.create_default_context(cafile=str(federation.parts.ca))
    with httpx.Client(verify=trust, trust_env=False) as client:
        for path in ("/v1/control/start-run", "/v1/control/list-nodes", "/v1/runtime/get-nodes", "/docs"):
            through = client.post(f"https://127.0.0.1:{federation.record.gateway_port}{path}")
            direct = client.post(f"https://127.0.0.1:{federation.record.superlink_port}{path}")
            assert through.status_code == 404 and through.content == b""
            assert direct.status_code != 404
    for k in range(NODES):
        commands = " ".join(marked(federation.parts.mark(f"node-{k}")).values())
        assert str(federation.record.gateway_port) in commands
        assert str(federation.record.superlink_port) not in commands


def test_an_unregistered_node_is_refused(federation: Federation, tmp_path: Path) -> None:
    assert "2004" in refusal_of_stranger(federation, tmp_path)


def test_another_process_finds_the_federation_again(federation: Federation) -> None:
    found = Federation.open(federation.parts.folder).status()
    assert found["nodes"] == {"0": "online", "1": "online", "2": "online"}
    assert all(found["processes"].values()) and len(found["processes"]) == NODES + 2
    with pytest.raises(FederationError, match="already runs"):
        Federation.up(federation.parts.folder, NODES)
    for k in range(NODES):
        assert (federation.parts.node_home(k) / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("name", ["LSTM of texts", "FedRep"])
def test_features_and_personal_parts_find_their_way(
    federation: Federation, tmp_path: Path, name: str
) -> None:
    """Public features travel with the model, a personal head outlives its round on the node; sums are masked."""
    rounds = RoundSettings(rounds=2, deadline_seconds=90, min_nodes=NODES)
    how = {"secure": True, "model": model_of(name), "features": features_of(name)}
    run = flower_helpers.lay_out(tmp_path / "run", NODES, rounds, **how)
    assert federation.run_and_wait(run, app_folder())
    # Masked vectors and the shares that open their sum went through SuperLink's database.
    home = federation.parts.home("superlink")
    kept = b"".join(path.read_bytes() for path in home.glob("state.db*"))
    assert kept and b"opened" not in kept and b"masked" not in kept
    assert home.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in home.glob("state.db*"))
    deployed = read_outcome(run, finished=True)
    here = run_in_process(flower_helpers.lay_out(tmp_path / "here", NODES, rounds, **how))
    for part, values in here.shared.items():
        np.testing.assert_array_equal(deployed.shared[part], values)
    assert deployed.result["test"] == here.result["test"]


def test_an_app_of_the_operators_own_is_refused_by_every_node(federation: Federation, tmp_path: Path) -> None:
    """SuperLink sends a bundle that reads histories and keys; nodes run what is installed, and say so in a line."""
    run = flower_helpers.lay_out(tmp_path / "run", NODES, RoundSettings(rounds=1, min_nodes=NODES))
    for k in range(NODES):
        _point(federation.parts.node_home(k) / "data", run / "nodes" / str(k))
    answers = foreign_app.ask(federation, foreign_app.write(tmp_path / "app", look=run), tmp_path)
    assert answers == [{"code": REFUSED, "reason": FOREIGN}] * NODES
    for k in range(NODES):
        log = federation.parts.log(f"node-{k}").read_text()
        assert log.count("refused a message") == 1 and "nothing of it was run" in log
        assert not list(federation.parts.node_home(k).rglob("apps")) and not list(run.rglob("loot*"))
        commands = " ".join(marked(federation.parts.mark(f"node-{k}")).values())
        assert "flower-supernode" in commands
        assert not any(name in commands for name in ("flower-superexec", "flwr-clientapp", "flwr-agentapp"))
    # The same nodes serve our own app right after.
    assert federation.run_and_wait(run, app_folder())


def test_a_private_run_releases_noised_metrics_and_no_others(federation: Federation, tmp_path: Path) -> None:
    rounds = RoundSettings(rounds=2, deadline_seconds=90, min_nodes=NODES)
    run = flower_helpers.lay_out(tmp_path / "run", NODES, rounds, secure=True, trust="distributed")
    assert federation.run_and_wait(run, app_folder())
    deployed = read_outcome(run, finished=True)
    here = run_in_process(
        flower_helpers.lay_out(tmp_path / "here", NODES, rounds, secure=True, trust="distributed")
    )
    test = deployed.result["test"]
    assert test == here.result["test"] and test["noised"] is True and "lists" not in test


def test_killed_node_costs_its_update_and_killed_coordinator_goes_on(
    federation: Federation, tmp_path: Path
) -> None:
    rounds = RoundSettings(rounds=3, deadline_seconds=20, min_nodes=2)
    run = flower_helpers.lay_out(tmp_path / "run", NODES, rounds)
    killer = NodeKiller(federation, 1)

    def interfere(event: dict[str, Any]) -> None:
        if event.get("round") == 1:
            killer.kill_while_working()
        if event.get("round") == 2:
            await_checkpoint(run, 2)
            federation.kill_coordinator()

    with pytest.raises(FederationError, match="resume"):
        federation.run_and_wait(run, app_folder(), on_event=interfere)
    assert killer.was_working
    federation.restart_node(1, wait=False)
    assert federation.run_and_wait(run, app_folder())
    records = [json.loads(line) for line in (run / "coordinator" / "rounds.jsonl").read_text().splitlines()]
    assert [record["round"] for record in records] == [1, 2, 3]
    assert records[0]["nodes"] == 3 and not records[0]["failures"]
    assert records[1]["nodes"] == 2 and set(records[1]["failures"]) == {"1"}
    assert not records[1].get("abandoned")
    assert (run / "coordinator" / "result.json").exists()


def test_runs_that_do_not_fit_are_refused(federation: Federation, tmp_path: Path) -> None:
    run = flower_helpers.lay_out(tmp_path / "run", 2, RoundSettings(rounds=1))
    with pytest.raises(RunError, match="expected 3"):
        federation.run_and_wait(run, app_folder())
    with pytest.raises(FederationError, match="federation up"):
        Federation.open(tmp_path)
    with pytest.raises(ConfigError, match="expected 1 to"):
        Federation.up(tmp_path / "none", 0)


def test_supervisor_starts_its_program_again_and_stops_with_it(tmp_path: Path) -> None:
    import sys

    from fedrec.core.processes import end, start

    script = f"import os, pathlib; pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()"
    command = [sys.executable, "-m", "fedrec_server.federation.supervisor", sys.executable, "-c", script]
    child = start(command, mark="supervisor-test", env=os.environ, log=tmp_path / "log.txt")
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("[0-9]*"))) < 2 and time.monotonic() < deadline:
        assert is_alive(child.pid)
    end("supervisor-test", [child.pid])
    assert len(list(tmp_path.glob("[0-9]*"))) >= 2
    assert child.returncode == 0 and not marked("supervisor-test")
