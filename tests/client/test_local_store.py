"""Personal state on a node's disk: rounds may be repeated, undone, or cut off, and state stays the right one.

A killed node is one whose store is opened again on the same folder: what was in memory only is gone.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from properties import quick

from fedrec.core.errors import RunError
from fedrec.core.updates import State
from fedrec_client.node.local_state import KEEP, LocalStore


def state(number: float) -> State:
    return {"user_vector": np.full((2, 3), number, dtype=np.float32), "seen": np.array([number])}


def number(found: State | None) -> float | None:
    if found is None:
        return None
    assert set(found) == {"user_vector", "seen"}
    assert found["user_vector"].dtype == np.float32 and found["user_vector"].shape == (2, 3)
    assert (found["user_vector"] == found["seen"][0]).all()
    return float(found["seen"][0])


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "local" if request.param == "disk" else None)


def test_nothing_before_the_first_round(store: LocalStore) -> None:
    assert store.before("tuning", 1) is None
    store.put("tuning", 1, state(1), persist=True)
    assert store.before("tuning", 1) is None, "a repeated first round starts from nothing"


def test_a_round_starts_from_the_newest_older_state(store: LocalStore) -> None:
    store.put("tuning", 1, state(1), persist=True)
    store.put("tuning", 2, state(2), persist=False)
    assert number(store.before("tuning", 3)) == 2
    assert number(store.before("tuning", 2)) == 1
    # This node took no part in rounds 3 to 8.
    assert number(store.before("tuning", 9)) == 2


def test_a_repeated_round_replaces_what_it_left(store: LocalStore) -> None:
    store.put("tuning", 1, state(1), persist=True)
    store.put("tuning", 2, state(2), persist=True)
    assert number(store.before("tuning", 2)) == 1
    store.put("tuning", 2, state(22), persist=True)
    assert number(store.before("tuning", 3)) == 22


def test_going_back_undoes_later_rounds(store: LocalStore) -> None:
    for r in (1, 2, 3):
        store.put("tuning", r, state(r), persist=True)
    store.put("tuning", 2, state(22), persist=False)
    assert number(store.before("tuning", 3)) == 22
    assert number(store.before("tuning", 9)) == 22, "round 3 belongs to a past that is undone"


def test_phases_do_not_meet(store: LocalStore) -> None:
    store.put("tuning", 5, state(5), persist=True)
    assert store.before("refit", 9) is None
    store.put("refit", 1, state(1), persist=True)
    assert number(store.before("tuning", 9)) == 5
    assert number(store.before("refit", 9)) == 1


def test_only_what_was_persisted_survives(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for r in range(1, 8):
        store.put("tuning", r, state(r), persist=False)
        if r % 3 == 0:  # checkpoints after rounds 3 and 6
            store.persist("tuning", r)
    assert number(store.before("tuning", 8)) == 7
    again = LocalStore(tmp_path)
    assert number(again.before("tuning", 8)) == 6
    assert number(again.before("tuning", 6)) == 3
    assert again.before("tuning", 3) is None
    # The coordinator resumes after round 6; what is trained then is what an undisturbed node has.
    again.put("tuning", 7, state(7), persist=False)
    assert number(again.before("tuning", 8)) == 7


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for r in range(1, 11):
        store.put("tuning", r, state(r), persist=True)
    again = LocalStore(tmp_path)
    kept = [number(again.before("tuning", r)) for r in range(1, 12)]
    assert [k for k in kept if k is not None] == list(range(11 - KEEP, 11))
    assert len(list(tmp_path.iterdir())) == KEEP


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = LocalStore(None)
    store.put("tuning", 1, state(1), persist=True)
    assert number(store.before("tuning", 2)) == 1
    assert not list(tmp_path.iterdir())


def test_a_model_without_local_state_writes_nothing(tmp_path: Path) -> None:
    LocalStore(tmp_path).put("tuning", 1, {}, persist=True)
    assert not list(tmp_path.iterdir())


def test_persisting_an_unknown_round_changes_nothing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("tuning", 1, state(1), persist=True)
    store.persist("tuning", 2)
    assert number(LocalStore(tmp_path).before("tuning", 9)) == 1


def test_half_written_files_are_no_snapshots(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put("tuning", 1, state(1), persist=True)
    (whole,) = tmp_path.iterdir()
    (tmp_path / f".{whole.name.replace('1', '2')}.4711.tmp").write_bytes(whole.read_bytes()[:40])
    again = LocalStore(tmp_path)
    assert number(again.before("tuning", 9)) == 1
    again.put("tuning", 2, state(2), persist=True)
    assert number(LocalStore(tmp_path).before("tuning", 9)) == 2


def test_a_write_that_is_cut_off_leaves_the_old_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(tmp_path)
    store.put("tuning", 1, state(1), persist=True)

    def power_cut(*_: object) -> None:
        raise OSError("power cut")

    monkeypatch.setattr("os.fsync", power_cut)
    with pytest.raises(OSError, match="power cut"):
        store.put("tuning", 1, state(11), persist=True)
    monkeypatch.undo()
    assert number(LocalStore(tmp_path).before("tuning", 2)) == 1


def test_a_broken_snapshot_is_one_clear_error(tmp_path: Path) -> None:
    LocalStore(tmp_path).put("tuning", 1, state(1), persist=True)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(RunError, match="cannot be read"):
        LocalStore(tmp_path).before("tuning", 2)


class Node(RuleBasedStateMachine):
    """A node through rounds, checkpoints, kills and resumptions, beside a plain record of what must hold."""

    @initialize(every=st.integers(1, 3))
    def begin(self, every: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = LocalStore(Path(self.folder.name))
        self.every, self.round, self.count = every, 0, 0
        self.memory: dict[int, float] = {}
        self.disk: dict[int, float] = {}

    @rule()
    def train(self) -> None:
        """One more round, from the state before it."""
        expected = [r for r in {**self.disk, **self.memory} if r <= self.round]
        found = number(self.store.before("refit", self.round + 1))
        assert found == ({**self.disk, **self.memory}[max(expected)] if expected else None)
        self.round += 1
        self.count += 1
        keep = self.round % self.every == 0
        self.store.put("refit", self.round, state(self.count), persist=keep)
        self.memory = {r: n for r, n in self.memory.items() if r < self.round} | {self.round: self.count}
        self.disk = {r: n for r, n in self.disk.items() if r <= self.round}
        if keep:
            self.disk[self.round] = self.count

    @precondition(lambda self: self.disk)
    @rule()
    def kill(self) -> None:
        """The node and the coordinator are killed; both go on from the last checkpoint."""
        self.store, self.memory = LocalStore(Path(self.folder.name)), {}
        self.round = max(self.disk)

    @precondition(lambda self: self.disk)
    @rule()
    def coordinator_falls_back(self) -> None:
        """Only the coordinator is killed: the node still remembers rounds that will be repeated."""
        self.round = max(r for r in self.disk if r <= self.round)

    @invariant()
    def few_files(self) -> None:
        """Old snapshots are not kept for ever."""
        if hasattr(self, "folder"):
            assert len(list(Path(self.folder.name).iterdir())) <= KEEP

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()


TestNode = Node.TestCase
TestNode.settings = quick
