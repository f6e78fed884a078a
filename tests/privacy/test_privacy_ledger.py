"""The budget ledger: charged before released, whatever crashes; a hard stop at the limit; tampering shows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from privacy_plans import plan

from fedrec.core.errors import BudgetExhausted, LedgerTampered, PrivacyRefused
from fedrec.privacy.accounting import GaussianRelease, epsilon
from fedrec.privacy.ledger import Account, Charge, Ledger, Limit, Reservation

ANN = Account("user:ann", "films")
BOB = Account("user:bob", "films")
#: For tests that write the state after a crash themselves: waiting for the disk thousands of times shows nothing.
unsynced = mock.patch("os.fsync")
LIMIT = Limit(3.0, 1e-5)


def fill(folder: Path, rounds: int = 3) -> None:
    with Ledger.open(folder, LIMIT) as ledger:
        ledger.reserve(ANN, "run", plan())
        for round_ in range(1, rounds + 1):
            ledger.charge(ANN, "run", round_, f"bytes {round_}")


def charged(folder: Path) -> dict[int, str]:
    with Ledger.open(folder) as ledger:
        return ledger.charged(ANN, "run")


class TestBudget:
    def test_an_unknown_account_has_spent_nothing(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path / "deep" / "ledger") as ledger:
            spent = ledger.spent(ANN)
        assert (spent.epsilon, spent.delta, spent.releases, spent.plans) == (0.0, 0.0, 0, 0)

    def test_one_plan_spends_what_its_own_accountant_says(self, tmp_path: Path) -> None:
        fill(tmp_path, rounds=3)
        with Ledger.open(tmp_path) as ledger:
            spent = ledger.spent(ANN)
        assert spent.epsilon == pytest.approx(epsilon([GaussianRelease(4.0, 3)], 1e-5))
        assert (spent.delta, spent.releases, spent.plans) == (1e-5, 3, 1)

    def test_reserving_spends_nothing_and_repeats_for_free(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path, LIMIT) as ledger:
            ledger.reserve(ANN, "run", plan())
            ledger.reserve(ANN, "run", plan())
            assert ledger.spent(ANN).epsilon == 0
            assert len(ledger.history()) == 1

    def test_another_plan_under_the_same_run_is_refused(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path, LIMIT) as ledger:
            ledger.reserve(ANN, "run", plan())
            with pytest.raises(PrivacyRefused, match="another plan"):
                ledger.reserve(ANN, "run", plan(5.0))

    def test_a_plan_above_the_limit_is_refused_and_leaves_no_trace(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path, Limit(1.9, 1e-5)) as ledger:
            with pytest.raises(BudgetExhausted, match="nothing was released") as stop:
                ledger.reserve(ANN, "run", plan())
            assert ledger.history() == ()
        assert stop.value.exit_code == 11
        assert "\n" not in str(stop.value)

    def test_a_plan_of_larger_delta_is_refused(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path, Limit(100.0, 1e-6)) as ledger, pytest.raises(BudgetExhausted):
            ledger.reserve(ANN, "run", plan())

    def test_no_noise_fits_no_limit(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path, Limit(1e6, 1e-5)) as ledger, pytest.raises(BudgetExhausted, match="inf"):
            ledger.reserve(ANN, "run", plan(0.0))

    def test_a_second_plan_counts_on_top_of_what_the_first_was_charged(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path, LIMIT) as ledger:
            ledger.reserve(ANN, "first", plan())
            for round_ in (1, 2, 3, 4):
                ledger.charge(ANN, "first", round_, "bytes")
            with pytest.raises(BudgetExhausted):
                ledger.reserve(ANN, "second", plan())
            ledger.reserve(ANN, "small", plan(20.0))

    def test_several_plans_are_never_stated_below_their_exact_cost(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path) as ledger:
            for run in ("first", "second", "third"):
                ledger.reserve(ANN, run, plan(9.0))
                for round_ in (1, 2, 3, 4):
                    ledger.charge(ANN, run, round_, "bytes")
            spent = ledger.spent(ANN)
        exact = epsilon([GaussianRelease(9.0, 12)], 1e-5)
        assert exact < spent.epsilon < 1.1 * exact
        assert spent.plans == 3

    def test_a_resumed_run_stops_when_another_has_used_the_budget_up(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path, LIMIT) as ledger:
            ledger.reserve(ANN, "slow", plan())
            ledger.charge(ANN, "slow", 1, "bytes")
            ledger.reserve(ANN, "fast", plan())
            for round_ in (1, 2, 3, 4):
                ledger.charge(ANN, "fast", round_, "bytes")
            with pytest.raises(BudgetExhausted):
                for round_ in (2, 3, 4):
                    ledger.charge(ANN, "slow", round_, "bytes")
            assert ledger.spent(ANN).epsilon <= LIMIT.epsilon

    def test_accounts_do_not_share_a_budget(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path, Limit(2.0, 1e-5)) as ledger:
            for account in (ANN, BOB, Account("user:ann", "songs")):
                ledger.reserve(account, "run", plan())
                for round_ in (1, 2, 3, 4):
                    ledger.charge(account, "run", round_, "bytes")
            with pytest.raises(BudgetExhausted):
                ledger.reserve(BOB, "again", plan())
            assert ledger.accounts() == [ANN, BOB, Account("user:ann", "songs")]

    def test_units_that_do_not_add_up_are_refused(self, tmp_path: Path) -> None:
        interaction = {
            "local_steps": 1,
            "batch_rate": 0.5,
            "max_interactions": 20,
            "expected_batch": 10.0,
        }
        with Ledger.open(tmp_path) as ledger:
            ledger.reserve(ANN, "run", plan())
            with pytest.raises(PrivacyRefused, match="do not add up"):
                ledger.reserve(ANN, "other", plan(unit="interaction", trust="local", interaction=interaction))

    def test_seeded_noise_is_not_booked_beside_real_noise(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path) as ledger:
            ledger.reserve(ANN, "real", plan())
            with pytest.raises(PrivacyRefused, match="not private"):
                ledger.reserve(ANN, "seeded", plan(noise_seed=1))


class TestCharge:
    def test_a_retry_of_the_same_bytes_is_free(self, tmp_path: Path) -> None:
        fill(tmp_path)
        before = (tmp_path / "ledger.jsonl").read_bytes()
        with Ledger.open(tmp_path, LIMIT) as ledger:
            ledger.charge(ANN, "run", 2, "bytes 2")
        assert (tmp_path / "ledger.jsonl").read_bytes() == before

    def test_other_bytes_for_the_same_round_are_refused(self, tmp_path: Path) -> None:
        fill(tmp_path)
        with Ledger.open(tmp_path, LIMIT) as ledger:
            with pytest.raises(PrivacyRefused, match="other bytes"):
                ledger.charge(ANN, "run", 2, "something else")
            assert ledger.charged(ANN, "run") == {1: "bytes 1", 2: "bytes 2", 3: "bytes 3"}

    @pytest.mark.parametrize("round_", [0, -1, 5])
    def test_a_round_outside_the_plan_is_a_hard_stop(self, tmp_path: Path, round_: int) -> None:
        fill(tmp_path)
        with Ledger.open(tmp_path, LIMIT) as ledger, pytest.raises(BudgetExhausted, match="4 rounds"):
            ledger.charge(ANN, "run", round_, "bytes")

    def test_nothing_is_charged_without_a_plan(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path) as ledger, pytest.raises(PrivacyRefused, match="reserve"):
            ledger.charge(ANN, "run", 1, "bytes")

    def test_skipped_rounds_count_as_spent(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path) as ledger:
            ledger.reserve(ANN, "run", plan())
            ledger.charge(ANN, "run", 4, "bytes")
            assert ledger.spent(ANN).epsilon == pytest.approx(plan().epsilon())

    def test_a_charge_is_on_the_disk_when_it_returns(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path / "book") as ledger:
            ledger.reserve(ANN, "run", plan())
            ledger.charge(ANN, "run", 1, "bytes")
            shutil.copytree(tmp_path / "book", tmp_path / "copy")
        assert charged(tmp_path / "copy") == {1: "bytes"}

    def test_history_tells_everything_in_order(self, tmp_path: Path) -> None:
        fill(tmp_path, rounds=2)
        with Ledger.open(tmp_path, read_only=True) as ledger:
            first, *rest = ledger.history()
        assert isinstance(first, Reservation)
        assert first.limit == LIMIT
        assert [(e.round, e.payload) for e in rest if isinstance(e, Charge)] == [
            (1, "bytes 1"),
            (2, "bytes 2"),
        ]

    @settings(max_examples=30, deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 5), st.sampled_from(["x", "y"])),
            max_size=12,
        )
    )
    def test_any_sequence_stays_below_the_limit_and_survives_reopening(
        self, steps: list[tuple[str, int, str]]
    ) -> None:
        expected: dict[tuple[str, int], str] = {}
        with unsynced, TemporaryDirectory() as folder:
            for run, round_, payload in steps:
                with Ledger.open(Path(folder), LIMIT) as ledger:
                    try:
                        ledger.reserve(ANN, run, plan(5.0))
                        ledger.charge(ANN, run, round_, payload)
                    except (BudgetExhausted, PrivacyRefused):
                        assert expected.get((run, round_)) != payload
                    else:
                        assert expected.setdefault((run, round_), payload) == payload
                    assert ledger.spent(ANN).epsilon <= LIMIT.epsilon
            with Ledger.open(Path(folder), read_only=True) if steps else Ledger.open(Path(folder)) as ledger:
                found = {(run, r): p for run in "ab" for r, p in ledger.charged(ANN, run).items()}
        assert found == expected


class TestCrash:
    @unsynced
    def test_killed_at_any_byte_of_the_last_entry(self, _: mock.Mock, tmp_path: Path) -> None:
        """The head is written after the line: whatever there is of the line, the head may still be the old one."""
        book, copy = tmp_path / "book", tmp_path / "copy"
        fill(book, rounds=2)
        old_head, old_size = (book / "ledger.head").read_bytes(), (book / "ledger.jsonl").stat().st_size
        fill(book, rounds=3)
        whole = (book / "ledger.jsonl").read_bytes()
        new_head = (book / "ledger.head").read_bytes()
        for size in range(old_size, len(whole) + 1):
            shutil.copytree(book, copy, dirs_exist_ok=True)
            (copy / "ledger.jsonl").write_bytes(whole[:size])
            (copy / "ledger.head").write_bytes(old_head)
            complete = size == len(whole)
            assert charged(copy) == {r: f"bytes {r}" for r in range(1, 4 if complete else 3)}
            fill(copy, rounds=4)  # mended: it goes on, and what follows holds together
            assert set(charged(copy)) == {1, 2, 3, 4}
            # With the head of the whole entry on the disk, the entry cannot have been torn by a crash.
            (copy / "ledger.jsonl").write_bytes(whole[:size])
            (copy / "ledger.head").write_bytes(new_head)
            if complete:
                assert set(charged(copy)) == {1, 2, 3}
            else:
                with pytest.raises(LedgerTampered):
                    Ledger.open(copy)

    def test_killed_while_the_book_is_begun(self, tmp_path: Path) -> None:
        fill(tmp_path / "book", rounds=0)
        with Ledger.open(tmp_path / "new"):
            pass
        for written in ([], ["ledger.jsonl"], ["ledger.jsonl", "ledger.head"]):
            begun = tmp_path / f"begun {len(written)}"
            begun.mkdir()
            for name in written:
                shutil.copy(tmp_path / "new" / name, begun)
            fill(begun)
            assert set(charged(begun)) == {1, 2, 3}

    def test_killed_for_real_while_charging(self, tmp_path: Path) -> None:
        """Every charge that returned is there afterwards, at most one more is, and the book still opens."""
        script = (
            "import sys; from pathlib import Path\n"
            "from privacy_plans import plan\n"
            "from fedrec.privacy.ledger import Account, Ledger\n"
            "account = Account('user:ann', 'films')\n"
            "with Ledger.open(Path(sys.argv[1])) as ledger:\n"
            "    ledger.reserve(account, 'run', plan(rounds=100_000))\n"
            "    for r in range(1, 100_001):\n"
            "        ledger.charge(account, 'run', r, f'bytes {r}')\n"
            "        print(r, flush=True)\n"
        )
        path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        ) as process:
            assert process.stdout is not None
            seen = [int(process.stdout.readline()) for _ in range(25)]
            process.send_signal(signal.SIGKILL)
            seen += [int(line) for line in process.stdout if line.endswith("\n")]
        found = charged(tmp_path)
        assert set(seen) <= set(found)
        assert len(found) <= len(seen) + 1
        with Ledger.open(tmp_path) as ledger:
            ledger.charge(ANN, "run", max(found) + 1, "more")

    def test_a_writer_whose_disk_failed_writes_no_more(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fill(tmp_path)

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        with Ledger.open(tmp_path, LIMIT) as ledger:
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", full)
                with pytest.raises(PrivacyRefused, match="No space left"):
                    ledger.charge(ANN, "run", 4, "bytes 4")
            with pytest.raises(PrivacyRefused, match="not open"):
                ledger.charge(ANN, "run", 4, "bytes 4")
        assert {1, 2, 3} <= set(charged(tmp_path))


def _edit(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"bytes 2", b"bytes 9"))


def _respace(folder: Path) -> None:
    path = folder / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round": 2'))


def _lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "ledger.jsonl"
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return apply


def _cut_with_head(folder: Path) -> None:
    _lines(lambda lines: lines[:-1])(folder)
    last = json.loads((folder / "ledger.jsonl").read_bytes().splitlines()[-1])
    head = json.loads((folder / "ledger.head").read_bytes())
    (folder / "ledger.head").write_text(json.dumps(head | {"seq": last["seq"], "entry": last["mac"]}))


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return apply


TAMPERING: dict[str, Callable[[Path], None]] = {
    "a value edited": _edit,
    "white space edited": _respace,
    "a line deleted": _lines(lambda lines: lines[:1] + lines[2:]),
    "the first line deleted": _lines(lambda lines: lines[1:]),
    "two lines swapped": _lines(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]]),
    "a line repeated": _lines(lambda lines: [*lines, lines[-1]]),
    "the tail cut off": _lines(lambda lines: lines[:-1]),
    "half of the tail cut off": _lines(lambda lines: [*lines[:-1], lines[-1][:40]]),
    "the tail cut off and the head moved back": _cut_with_head,
    "all lines deleted": _lines(lambda _: []),
    "the head removed": _remove("ledger.head"),
    "the head empty": _write("ledger.head", b""),
    "the entries removed": _remove("ledger.jsonl"),
    "the key removed": _remove("ledger.key"),
    "another key": _write("ledger.key", b"k" * 32),
    "a short key": _write("ledger.key", b"k"),
    "lines that are no entries": _lines(lambda lines: [*lines, b"[[1]]\n"]),
    "an entry with a broken MAC": _lines(
        lambda lines: [*lines[:-1], lines[-1].replace(b'"mac":"', b'"mac":"0')]
    ),
}


class TestTampering:
    @pytest.mark.parametrize("what", TAMPERING)
    def test_is_noticed(self, tmp_path: Path, what: str) -> None:
        fill(tmp_path)
        TAMPERING[what](tmp_path)
        for read_only in (True, False):
            with pytest.raises(LedgerTampered) as found:
                Ledger.open(tmp_path, LIMIT, read_only=read_only)
            assert found.value.exit_code == 12
            assert "\n" not in str(found.value)

    def test_the_head_and_key_of_an_empty_book_do_not_hide_that_there_was_one(self, tmp_path: Path) -> None:
        fill(tmp_path)
        (tmp_path / "ledger.key").unlink()
        (tmp_path / "ledger.jsonl").write_bytes(b"")
        with pytest.raises(LedgerTampered, match="missing"):
            Ledger.open(tmp_path)

    def test_an_entry_of_an_unknown_kind_is_refused(self, tmp_path: Path) -> None:
        fill(tmp_path)
        with Ledger.open(tmp_path) as ledger:
            ledger._journal.append({"kind": "refund", "account": {"subject": "user:ann", "dataset": "films"}})
        with pytest.raises(LedgerTampered, match="'refund'"):
            Ledger.open(tmp_path)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def test_any_changed_byte_is_noticed(self, data: st.DataObject) -> None:
        with unsynced, TemporaryDirectory() as name:
            folder = Path(name)
            fill(folder, rounds=2)
            content = bytearray((folder / "ledger.jsonl").read_bytes())
            # Not the very last line end: without it the line is torn, which the head then contradicts all the same.
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] ^= data.draw(st.integers(1, 255))
            (folder / "ledger.jsonl").write_bytes(bytes(content))
            with pytest.raises(LedgerTampered):
                Ledger.open(folder)


class TestSharing:
    def test_a_second_writer_is_refused(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path), pytest.raises(PrivacyRefused, match="another process"):
            Ledger.open(tmp_path)
        Ledger.open(tmp_path).close()

    def test_a_failed_opening_lets_go_of_the_ledger(self, tmp_path: Path) -> None:
        fill(tmp_path)
        head = (tmp_path / "ledger.head").read_bytes()
        (tmp_path / "ledger.head").unlink()
        with pytest.raises(LedgerTampered):
            Ledger.open(tmp_path)
        (tmp_path / "ledger.head").write_bytes(head)
        Ledger.open(tmp_path).close()

    def test_reading_beside_a_writer(self, tmp_path: Path) -> None:
        with Ledger.open(tmp_path) as writer:
            writer.reserve(ANN, "run", plan())
            writer.charge(ANN, "run", 1, "bytes")
            with Ledger.open(tmp_path, read_only=True) as reader:
                assert reader.charged(ANN, "run") == {1: "bytes"}
                with pytest.raises(PrivacyRefused, match="not open"):
                    reader.charge(ANN, "run", 2, "bytes")

    def test_reading_mends_nothing(self, tmp_path: Path) -> None:
        fill(tmp_path)
        with (tmp_path / "ledger.jsonl").open("ab") as file:
            file.write(b'{"torn')
        content = (tmp_path / "ledger.jsonl").read_bytes()
        Ledger.open(tmp_path, read_only=True).close()
        assert (tmp_path / "ledger.jsonl").read_bytes() == content

    def test_reading_what_is_not_there_creates_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(PrivacyRefused, match="holds no ledger"):
            Ledger.open(tmp_path / "none", read_only=True)
        assert not (tmp_path / "none").exists()

    def test_only_the_owner_can_read_the_key(self, tmp_path: Path) -> None:
        fill(tmp_path)
        assert (tmp_path / "ledger.key").stat().st_mode & 0o777 == 0o600
