"""The default engine: nodes are objects of this process, an exchange is a function call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedrec.core.messages import Failure, Reply, Request
from fedrec.core.refusals import sentence_of
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node, Simulated
from fedrec_client.node.node_folder import open_node
from fedrec_client.node.outgoing import emit
from fedrec_server.federation.launch import Launch
from fedrec_server.rounds.coordinator import Outcome, coordinator_in_memory, open_coordinator
from fedrec_server.rounds.storage import MemoryStorage
from fedrec_simulations.experiments.memory_run import MemoryRun
from fedrec_simulations.experiments.run_setup import RunSetup

#: Nodes that take every step of secure aggregation in one process.
FULL_PROTOCOL_NODES = 64


class InProcessExchange:
    """Calls each node in turn; there is no deadline to miss."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._nodes = nodes

    def nodes(self) -> list[str]:
        """Ids of all nodes."""
        return sorted(self._nodes)

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        """Serve every request; a node's error is a failure, as it is over a network."""
        return {node: self._serve(node, request) for node, request in requests.items()}

    def _serve(self, node: str, request: Request) -> Reply | Failure:
        outcome = emit(lambda: self._nodes[node].handle(request))
        return Failure(sentence_of(outcome)) if isinstance(outcome, str) else outcome


def run_in_memory(
    setup: RunSetup,
    *,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> MemoryRun | None:
    """Train what is set up, without a file; None where `stop` ended it.

    Args:
        setup: of a run that needs no ledger and no keys (see `fits_in_memory`).
        on_event: called with each of the coordinator's events.
        stop: when true, the run ends at the end of its round.

    Raises:
        ConfigError: the run needs a folder.
        FedrecError: whatever ended the coordinator.
    """
    stores = tuple(LocalStore(None) for _ in setup.shards)
    nodes = tuple(setup.node(k, store) for k, store in enumerate(stores))
    storage = MemoryStorage(on_event, setup.prepared.catalog.features)
    exchange = InProcessExchange({str(k): node for k, node in enumerate(nodes)})
    outcome = coordinator_in_memory(setup.task, exchange, storage, on_event=on_event, stop=stop).run()
    return MemoryRun(setup, nodes, stores, storage) if outcome.finished else None


def fits_in_memory(setup: RunSetup) -> bool:
    """Whether a run needs neither a ledger, which must outlive the process, nor keys."""
    return setup.task.privacy is None and setup.task.aggregation.kind == "plain"


def run_in_process(
    run_dir: Path,
    *,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Run (or go on with) the run of a folder in this process.

    Up to `FULL_PROTOCOL_NODES` nodes take every step of secure aggregation; more hand in the same integers without
    masks, since in one process masks hide nothing and their cost grows with the square of the number of nodes.

    Raises:
        FederationError: another process works on this run.
        FedrecError: whatever ended the coordinator.
    """
    folders = sorted((run_dir / "nodes").iterdir())
    integers = len(folders) > FULL_PROTOCOL_NODES
    mode: Simulated = "integers" if integers else "full"
    nodes = {folder.name: open_node(folder, simulated=mode) for folder in folders}
    folder, exchange = run_dir / "coordinator", InProcessExchange(nodes)
    with Launch(folder).held(0.0):
        return open_coordinator(folder, exchange, on_event=on_event, stop=stop, integers=integers).run()
