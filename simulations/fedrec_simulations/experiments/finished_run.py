"""What is read of a run that is finished, be it in this process's memory or in a run folder.

Out of scope: how it came about (`engines`), where it is stored (`run_folder`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrec.core.interactions import Catalog
from fedrec.core.updates import State
from fedrec.data.split import Split
from fedrec_client.node.node import Node
from fedrec_simulations.experiments.config import Config


@dataclass(frozen=True)
class Host:
    """A node of a run, with its part of the data.

    Attributes:
        name: of the node.
        shard: its users' interactions.
        node: with the personal state that it had when the run ended.
    """

    name: str
    shard: Split
    node: Node


class FinishedRun(Protocol):
    """A run and everything that reports, evaluations and lists need of it."""

    @property
    def config(self) -> Config:
        """The resolved configuration."""

    @property
    def engine(self) -> str:
        """On which the run went."""

    @property
    def data(self) -> dict[str, Any]:
        """What the data was, and what cleaning removed."""

    @property
    def records(self) -> list[dict[str, Any]]:
        """One record per round."""

    @property
    def result(self) -> dict[str, Any]:
        """Rounds, metrics and totals.

        Raises:
            RunError: the run is not finished.
        """

    @property
    def split(self) -> Split:
        """The split of the whole data set."""

    @property
    def catalog(self) -> Catalog:
        """Titles and categories in the order of the item indices."""

    @property
    def features(self) -> NDArray[np.float32] | None:
        """[I, F] public features of the items; None: the run has none."""

    @property
    def model(self) -> State:
        """Shared state of the final model."""

    def hosts(self) -> Iterator[Host]:
        """The nodes of the run, in order."""
