"""A finished run in this process's memory, and how it becomes a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import Catalog
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec_client.node.local_state import LocalStore
from fedrec_client.node.node import Node
from fedrec_server.rounds.storage import MemoryStorage
from fedrec_simulations.experiments.config import Config
from fedrec_simulations.experiments.finished_run import Host
from fedrec_simulations.experiments.run_folder import RunFolder
from fedrec_simulations.experiments.run_setup import RunSetup


@dataclass(frozen=True)
class MemoryRun:
    """See `fedrec_simulations.experiments.finished_run.FinishedRun`.

    Attributes:
        setup: what the run was made of.
        nodes: after the last round, in order.
        stores: their personal state.
        storage: what the coordinator kept.
    """

    setup: RunSetup
    nodes: tuple[Node, ...]
    stores: tuple[LocalStore, ...]
    storage: MemoryStorage

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return self.setup.config

    @property
    def engine(self) -> str:
        """Always in process."""
        return "in-process"

    @property
    def data(self) -> dict[str, Any]:
        """What the data was."""
        return self.setup.prepared.description | {"nodes": len(self.nodes)}

    @property
    def records(self) -> list[dict[str, Any]]:
        """One record per round."""
        return self.storage.records

    @property
    def result(self) -> dict[str, Any]:
        """Rounds, metrics and totals."""
        return self.storage.end()

    @property
    def split(self) -> Split:
        """The split of the whole data set."""
        return self.setup.prepared.split

    @property
    def catalog(self) -> Catalog:
        """Titles and categories in the order of the item indices."""
        return self.setup.prepared.catalog

    @property
    def features(self) -> NDArray[np.float32] | None:
        """[I, F] public features of the items; None: the run has none."""
        return self.catalog.features

    @property
    def model(self) -> State:
        """Shared state of the final model."""
        return self.storage.model

    def hosts(self) -> Iterator[Host]:
        """The nodes of the run, in order."""
        for k, (shard, node) in enumerate(zip(self.setup.shards, self.nodes, strict=True)):
            yield Host(str(k), shard, node)

    def save(self, path: Path) -> RunFolder:
        """Write a run folder, as if the run had been written while it went.

        Raises:
            RunError: the folder holds a run already.
        """
        run = RunFolder.write(path, self.setup, engine="in-process")
        self.storage.write(path / "coordinator")
        for folder, store in zip(run.node_folders(), self.stores, strict=True):
            store.write(folder / "local")
        return run
