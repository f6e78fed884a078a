"""The outbox: what was staged comes back word for word, until it is too old."""

from __future__ import annotations

from pathlib import Path

from fedrec.privacy.outbox import KEPT_ROUNDS, Outbox


class TestOutbox:
    def test_staged_bytes_come_back_after_a_restart(self, tmp_path: Path) -> None:
        digest = Outbox(tmp_path / "out").stage("run/1", 1, b"noised")
        assert Outbox(tmp_path / "out").get("run/1", 1, digest) == b"noised"
        assert Outbox(tmp_path / "out").get("run/2", 1, digest) is None
        assert Outbox(tmp_path / "out").get("run/1", 2, digest) is None

    def test_only_its_owner_reads_it_and_half_files_go(self, tmp_path: Path) -> None:
        outbox = Outbox(tmp_path / "out")
        outbox.stage("run", 1, b"clean")
        (tmp_path / "out" / ".killed.4711.tmp").write_bytes(b"half of something clean")
        digest = outbox.stage("run", 2, b"clean, too")
        (kept,) = (tmp_path / "out").iterdir()
        assert digest in kept.name and kept.stat().st_mode & 0o777 == 0o600
        assert (tmp_path / "out").stat().st_mode & 0o777 == 0o700

    def test_the_newest_round_of_every_run_is_kept(self, tmp_path: Path) -> None:
        outbox = Outbox(tmp_path)
        other = outbox.stage("other", 1, b"1")
        digests = {r: outbox.stage("run", r, f"bytes {r}".encode()) for r in range(1, 8)}
        kept = [r for r, digest in digests.items() if outbox.get("run", r, digest) is not None]
        assert kept == list(range(8 - KEPT_ROUNDS, 8))
        assert outbox.get("other", 1, other) == b"1"
        outbox.discard("run")
        assert outbox.get("run", 7, digests[7]) is None
        assert outbox.get("other", 1, other) == b"1"

    def test_an_uncharged_draft_is_replaced(self, tmp_path: Path) -> None:
        outbox = Outbox(tmp_path)
        first = outbox.stage("run", 1, b"first")
        second = outbox.stage("run", 1, b"second")
        assert outbox.get("run", 1, first) is None
        assert outbox.get("run", 1, second) == b"second"

    def test_damaged_bytes_are_not_sent(self, tmp_path: Path) -> None:
        outbox = Outbox(tmp_path)
        digest = outbox.stage("run", 1, b"noised")
        next(tmp_path.glob("*.bin")).write_bytes(b"noisee")
        assert outbox.get("run", 1, digest) is None
