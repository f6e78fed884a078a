"""Where a coordinator stands, on disk: the model with its progress in one file, and a line for each round.

A killed coordinator goes on after its last checkpoint. In a private run the order is: stage the new model, charge for
it, let it be seen; a staged model that was never charged is removed, when the charge fails or at the next start.
Models are readable by their owner only, and on the disk with their names before anything is charged for them.
Out of scope: rounds (`coordinator`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import BudgetExhausted, FedrecError, LedgerTampered, RunError
from fedrec.core.files import atomic_write, read_arrays, write_arrays, write_json
from fedrec.core.updates import State
from fedrec.privacy.durable import sync_folder
from fedrec.privacy.private_files import remove_durably, remove_half_written
from fedrec_server.rounds.charges import Charges
from fedrec_server.rounds.task import FEATURES_FILE, SEALED_KEY, Progress, Standing

Event = dict[str, Any]
STAGED = "staged.safetensors"
CHECKPOINT = "checkpoint.safetensors"
RECORDS = "rounds.jsonl"


class Checkpoints:
    """The files of a coordinator's folder that change from round to round.

    Args:
        folder: of the coordinator.
        private: charges for models before they are seen; None: nothing is private.
        on_event: told each round's record.
        forget_sum: called as soon as a checkpoint is in place, or will never be: the sum of its round goes.
    """

    def __init__(
        self,
        folder: Path,
        private: Charges | None,
        on_event: Callable[[Event], None],
        forget_sum: Callable[[], None] = lambda: None,
    ) -> None:
        self._path = folder / CHECKPOINT
        self._staged = folder / STAGED
        self._records = folder / RECORDS
        self._folder = folder
        self._private = private
        self._on_event = on_event
        self._forget_sum = forget_sum

    def load(self) -> Standing | None:
        """The last checkpoint; None, and no records of an earlier attempt, when there is none."""
        remove_half_written(self._path.parent)
        if self._private is not None:
            self._settle(self._private)
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
        shared, server, stages = (_part(arrays, name) for name in ("shared/", "server/", "stages/"))
        return Standing(shared, server, stages, progress)

    def save(self, standing: Standing) -> None:
        """Write a checkpoint in the place of the last one."""
        write_arrays(self._path, standing.arrays(), asdict(standing.progress))
        self._forget_sum()

    def save_round(self, standing: Standing, record: Event, *, checkpoint: bool) -> None:
        """Write the record of a round that is over and, in a private run or when asked to, a checkpoint."""
        if self._private is not None:
            self._save_charged(self._private, standing, record)
            return
        self.write_record(standing.progress, record)
        if checkpoint:
            self.save(standing)

    def features(self) -> NDArray[np.float32] | None:
        """[I, F] public features of the items; None: the run has none."""
        path = self._folder / FEATURES_FILE
        return read_arrays(path)[0]["features"].astype(np.float32) if path.exists() else None

    def keep_model(self, standing: Standing) -> None:
        """Write the final model."""
        write_arrays(self._folder / "model.safetensors", standing.shared, {"round": standing.progress.round})

    def keep_result(self, result: Event) -> None:
        """Write the result of a run that is finished."""
        write_json(self._folder / "result.json", result)

    def end(self) -> Event:
        """The result; the key to sealed replies is not needed any more."""
        remove_durably([self._folder / SEALED_KEY])
        return dict(json.loads((self._folder / "result.json").read_text()))

    def write_record(self, progress: Progress, record: Event) -> None:
        """Write what happened in a round, or in an attempt at one."""
        self._append(record)
        progress.records += 1
        self._on_event(record)

    def _save_charged(self, private: Charges, standing: Standing, record: Event) -> None:
        """Stage the new model, charge for it, and only then let anyone see it; the record lies with it."""
        standing.progress.records += 1
        header = asdict(standing.progress) | {"record": record}
        write_arrays(self._staged, standing.arrays(), header)
        try:
            private.charge(standing.progress.round, _file_digest(self._staged))
        except (Exception, KeyboardInterrupt) as error:
            # Where even the ledger cannot be read, the next start looks again.
            with suppress(FedrecError, OSError):
                self._settle(private)
            if isinstance(error, BudgetExhausted | LedgerTampered):
                self._forget_sum()
            raise
        self._promote()
        self._append(record)
        self._on_event(record)

    def _settle(self, private: Charges) -> None:
        """A model that was staged counts if it was charged; otherwise it was never seen, and never will be."""
        if not self._staged.exists():
            return
        try:
            charged = private.charged(int(read_arrays(self._staged)[1]["round"]))
        except (RunError, KeyError):
            charged = None
        if charged is not None and charged == _file_digest(self._staged):
            self._promote()
        else:
            remove_durably([self._staged])

    def _promote(self) -> None:
        self._staged.replace(self._path)
        sync_folder(self._path.parent)
        self._forget_sum()

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
