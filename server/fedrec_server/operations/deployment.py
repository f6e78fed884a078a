"""The deployment engine: a real federation on this machine, for one run or kept up for many.

The functions are what the command line offers as `fedrec-server federation up|status|run|down`, and what
`fedrec train --engine deployment` does in one go. Out of scope: printing, laying out run folders.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedrec.core.errors import ConfigError
from fedrec_server.federation.federation import Federation
from fedrec_server.federation.flower_run import check_nodes
from fedrec_server.federation.run_files import app_folder, read_outcome
from fedrec_server.operations.run_artifacts import RunArtifacts
from fedrec_server.operations.sections import NoPrivacy
from fedrec_server.rounds.coordinator import Outcome

Event = dict[str, Any]


def run_deployment(
    run_dir: Path,
    n_nodes: int,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
    on_step: Callable[[str], None] = lambda step: None,
) -> Outcome:
    """Bring up a federation for one run (or go on with the run), and take it down again, whatever happens.

    Args:
        run_dir: a run folder with `coordinator/` and `nodes/0` to `nodes/<n_nodes - 1>`.
        n_nodes: how many SuperNodes.
        on_event: called with each of the coordinator's events.
        stop: when true, the run ends at the end of its round, with a checkpoint.
        on_step: told what was started.

    Raises:
        ConfigError: the run asks for exact metrics on data that only a simulation holds, or would let exact sums out
            without saying so.
        RunError: the run folder has not as many nodes.
        FedrecError: the federation did not start, or whatever ended the coordinator.
    """
    _refuse(run_dir)
    check_nodes(run_dir, n_nodes)
    federation = Federation.up(run_dir / "federation", n_nodes, on_step=on_step)
    try:
        finished = federation.start_run(run_dir, app_folder()).wait(on_event=on_event, stop=stop)
    finally:
        federation.down()
        federation.forget()
    return read_outcome(run_dir, finished)


def federation_up(
    folder: Path, nodes: int = 4, *, on_step: Callable[[str], None] = lambda step: None
) -> dict[str, Any]:
    """Start a federation that stays up; its status. Raises what `Federation.up` raises."""
    return Federation.up(folder, nodes, on_step=on_step).status()


def federation_status(folder: Path) -> dict[str, Any]:
    """Whether each part runs, and what Flower says of each node.

    Raises:
        FederationError: there is no federation in the folder.
    """
    return Federation.open(folder).status()


def federation_run(
    folder: Path,
    run_dir: Path,
    *,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run (or go on with) a run on the federation of a folder; a SuperLink that died is started again.

    Raises:
        ConfigError: the run asks for exact metrics on data that only a simulation holds, or would let exact sums out
            without saying so.
        FederationError: there is no federation in the folder.
        FedrecError: whatever ended the coordinator.
    """
    _refuse(run_dir)
    finished = Federation.open(folder).run_and_wait(run_dir, app_folder(), on_event=on_event, stop=stop)
    return read_outcome(run_dir, finished)


def federation_down(folder: Path) -> None:
    """Stop the federation of a folder.

    Raises:
        FederationError: there is none.
    """
    Federation.open(folder).down()


def _refuse(run_dir: Path) -> None:
    """What nodes would refuse one by one; a run without a configuration has nothing to refuse."""
    if not (run_dir / "config.json").exists():
        return
    run = RunArtifacts(run_dir)
    if run.asks_for_held_data:
        raise ConfigError(
            "evaluation.held_data is true: a deployment's data is with its users; drop it, or take an engine that "
            "simulates (in-process, flower)"
        )
    privacy = run.config.privacy
    if isinstance(privacy, NoPrivacy) and privacy.aggregator == "secagg" and not privacy.exact_sums:
        raise ConfigError(
            "privacy.unit is 'none': nodes of a deployment would let sums without noise out; set a privacy target, "
            "or privacy.exact_sums = true if that is meant"
        )
