"""What a coordinator keeps of its run between rounds: on disk, or in memory for a simulation in one process.

Out of scope: the files of a run on disk (`_checkpoints`), and the rounds (`coordinator`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fedrec.core.updates import State
from fedrec_server.rounds._checkpoints import Checkpoints
from fedrec_server.rounds.task import Progress, Standing

Event = dict[str, Any]


class Storage(Protocol):
    """See the module's text."""

    def load(self) -> Standing | None:
        """The state after the last checkpoint; None before the first."""

    def features(self) -> NDArray[np.float32] | None:
        """[I, F] public features of the items; None: the run has none."""

    def save(self, standing: Standing) -> None:
        """Keep a checkpoint in the place of the last one."""

    def save_round(self, standing: Standing, record: Event, *, checkpoint: bool) -> None:
        """Keep the record of a round that is over and, in a private run or when asked to, a checkpoint."""

    def write_record(self, progress: Progress, record: Event) -> None:
        """Keep what happened in a round, or in an attempt at one."""

    def keep_model(self, standing: Standing) -> None:
        """Keep the final model."""

    def keep_result(self, result: Event) -> None:
        """Keep the result of a run that is finished."""

    def end(self) -> Event:
        """The result; what only a run that continues needs is removed."""


class MemoryStorage:
    """Of a run that ends with its process, and that no one else can resume.

    Args:
        on_event: called with each round's record.
        features: [I, F] public features of the items, or None.

    Attributes:
        records: one per round.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None] = lambda event: None,
        features: NDArray[np.float32] | None = None,
    ) -> None:
        self.records: list[Event] = []
        self._on_event = on_event
        self._features = features
        self._standing: Standing | None = None
        self._result: Event = {}

    def load(self) -> Standing | None:
        """See `Storage`."""
        return self._standing

    def features(self) -> NDArray[np.float32] | None:
        """See `Storage`."""
        return self._features

    def save(self, standing: Standing) -> None:
        """See `Storage`."""
        self._standing = replace(standing, progress=deepcopy(standing.progress))

    def save_round(self, standing: Standing, record: Event, *, checkpoint: bool) -> None:
        """See `Storage`."""
        self.write_record(standing.progress, record)
        if checkpoint:
            self.save(standing)

    def write_record(self, progress: Progress, record: Event) -> None:
        """See `Storage`."""
        self.records.append(json.loads(json.dumps(record, default=float)))
        progress.records += 1
        self._on_event(record)

    def keep_model(self, standing: Standing) -> None:
        """See `Storage`; the last checkpoint holds it."""
        self.save(standing)

    def keep_result(self, result: Event) -> None:
        """See `Storage`."""
        self._result = result

    def end(self) -> Event:
        """See `Storage`."""
        return dict(self._result)

    @property
    def model(self) -> State:
        """Shared state of the last checkpoint."""
        assert self._standing is not None
        return self._standing.shared

    def write(self, folder: Path) -> None:
        """Write the files that a finished run has on disk into the coordinator's folder."""
        assert self._standing is not None
        disk = Checkpoints(folder, None, lambda event: None)
        disk.load()
        done = self._standing.progress.records
        for record in self.records:
            disk.write_record(self._standing.progress, record)
        self._standing.progress.records = done
        disk.keep_model(self._standing)
        disk.keep_result(self._result)
        disk.save(self._standing)
