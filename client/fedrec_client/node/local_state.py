"""Personal state on the node's own disk: one snapshot per round, the newest few kept.

A round that is repeated (the coordinator was killed, or abandoned it) starts from the snapshot *before* it, so
training a round twice leaves what training it once leaves. Writing is atomic: a crash leaves the old snapshot.
"""

from __future__ import annotations

from pathlib import Path

from fedrec.core.files import PRIVATE_FOLDER, read_arrays, write_arrays
from fedrec.core.updates import State

#: A coordinator may be one checkpoint behind its nodes; one more is for safety.
KEEP = 3


class LocalStore:
    """Snapshots of local state in a folder; without a folder they live in memory only."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[tuple[str, int], State] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
            for left in folder.glob(".*.tmp"):  # of a node that was killed while it wrote
                left.unlink(missing_ok=True)

    def before(self, phase: str, round_: int) -> State | None:
        """The newest state that is older than `round_`, or None before the first round."""
        older = [r for r in self._in_memory(phase) + self._on_disk(phase) if r < round_]
        if not older:
            return None
        newest = max(older)
        if (phase, newest) not in self._memory:
            self._memory[phase, newest] = read_arrays(self._path(phase, newest))[0]
        return self._memory[phase, newest]

    def put(self, phase: str, round_: int, state: State, *, persist: bool) -> None:
        """Remember the state after `round_`; snapshots of this or later rounds are of a past that is undone."""
        for r in self._in_memory(phase):
            if r > round_:
                del self._memory[phase, r]
        for r in self._on_disk(phase):
            if r > round_ or (r == round_ and not persist):
                self._path(phase, r).unlink()
        self._memory[phase, round_] = state
        for r in self._in_memory(phase)[:-KEEP]:
            del self._memory[phase, r]
        if persist:
            self.persist(phase, round_)

    def persist(self, phase: str, round_: int) -> None:
        """Write the state after `round_` to disk, if there is a folder and such a state."""
        state = self._memory.get((phase, round_))
        if self._folder is None or not state:
            return
        write_arrays(self._path(phase, round_), state, {"phase": phase, "round": round_})
        for r in self._on_disk(phase)[:-KEEP]:
            self._path(phase, r).unlink()

    def write(self, folder: Path) -> None:
        """Write the snapshots that are held into another folder."""
        target = LocalStore(folder)
        for (phase, round_), state in sorted(self._memory.items()):
            target.put(phase, round_, state, persist=True)

    def _in_memory(self, phase: str) -> list[int]:
        return sorted(r for p, r in self._memory if p == phase)

    def _on_disk(self, phase: str) -> list[int]:
        if self._folder is None:
            return []
        return sorted(
            int(path.stem.rpartition("-")[2]) for path in self._folder.glob(f"{phase}-*.safetensors")
        )

    def _path(self, phase: str, round_: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{phase}-{round_:06d}.safetensors"
