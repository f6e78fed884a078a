"""Where a coordinator stands, on disk: the model with its progress in one file, and a line for each round.

A killed coordinator goes on after its last checkpoint. In a private run the order is: stage the new model, charge for
it, let it be seen; a staged model that was never charged is forgotten. Out of scope: rounds (`coordinator`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedrec.errors import RunError
from fedrec.learning.updates import State
from fedrec.wire.files import atomic_write, read_arrays, write_arrays
from fedrec_server.private_rounds import PrivateRounds
from fedrec_server.task import Progress

Event = dict[str, Any]
STAGED = "staged.safetensors"


@dataclass
class Standing:
    """Where a run stands.

    Attributes:
        shared: the model, which is broadcast.
        server: what the server keeps to itself (moments of its optimiser).
        progress: rounds done.
    """

    shared: State
    server: State
    progress: Progress

    def arrays(self) -> State:
        """Both states under names of their own."""
        arrays = {f"shared/{name}": values for name, values in self.shared.items()}
        return arrays | {f"server/{name}": values for name, values in self.server.items()}


class Checkpoints:
    """The files of a coordinator's folder that change from round to round.

    Args:
        folder: of the coordinator.
        private: charges for models before they are seen; None: nothing is private.
        on_event: told each round's record.
    """

    def __init__(
        self, folder: Path, private: PrivateRounds | None, on_event: Callable[[Event], None]
    ) -> None:
        self._path = folder / "checkpoint.safetensors"
        self._staged = folder / STAGED
        self._records = folder / "rounds.jsonl"
        self._private = private
        self._on_event = on_event

    def load(self) -> Standing | None:
        """The last checkpoint; None, and no records of an earlier attempt, when there is none."""
        if self._private is not None:
            self._promote(self._private)
        if not self._path.exists():
            self._records.unlink(missing_ok=True)
            return None
        arrays, header = read_arrays(self._path)
        record = header.pop("record", None)
        progress = Progress(**header)
        if record is not None:
            self._keep_records(progress.records - 1)
            self._append(record)
        self._keep_records(progress.records)
        return Standing(_part(arrays, "shared/"), _part(arrays, "server/"), progress)

    def save(self, standing: Standing) -> None:
        """Write a checkpoint in the place of the last one."""
        write_arrays(self._path, standing.arrays(), asdict(standing.progress))

    def save_round(self, standing: Standing, record: Event, *, checkpoint: bool) -> None:
        """Write the record of a round that is over and, in a private run or when asked to, a checkpoint."""
        if self._private is not None:
            self._save_charged(self._private, standing, record)
            return
        self.write_record(standing.progress, record)
        if checkpoint:
            self.save(standing)

    def write_record(self, progress: Progress, record: Event) -> None:
        """Write what happened in a round, or in an attempt at one."""
        self._append(record)
        progress.records += 1
        self._on_event(record)

    def _save_charged(self, private: PrivateRounds, standing: Standing, record: Event) -> None:
        """Stage the new model, charge for it, and only then let anybody see it; the record lies with it."""
        standing.progress.records += 1
        header = asdict(standing.progress) | {"record": record}
        write_arrays(self._staged, standing.arrays(), header)
        private.charge(standing.progress.round, _file_digest(self._staged))
        self._staged.replace(self._path)
        self._append(record)
        self._on_event(record)

    def _promote(self, private: PrivateRounds) -> None:
        """A model staged before a kill counts if it was charged; otherwise nobody has seen it."""
        if not self._staged.exists():
            return
        try:
            number = int(read_arrays(self._staged)[1]["round"])
        except RunError:
            self._staged.unlink()
            return
        if private.charged(number) == _file_digest(self._staged):
            self._staged.replace(self._path)
        else:
            self._staged.unlink()

    def _append(self, record: Event) -> None:
        with self._records.open("a") as file:
            file.write(json.dumps(record, default=float) + "\n")

    def _keep_records(self, count: int) -> None:
        """Drop the records of rounds after the checkpoint: they will be run again."""
        if self._records.exists():
            atomic_write(
                self._records, b"".join(self._records.read_bytes().splitlines(keepends=True)[:count])
            )


def _part(arrays: State, prefix: str) -> State:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
