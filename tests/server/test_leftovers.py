"""`fedrec doctor` finds what kills and earlier versions left in run folders, says what to do, and removes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import operate
from flower_helpers import lay_out
from test_secure_rounds import Nodes

from fedrec.core.errors import RunError
from fedrec.core.files import write_arrays
from fedrec.rounds.settings import RoundSettings
from fedrec_server.federation._federation_parts import Parts, Record
from fedrec_server.federation.launch import Launch
from fedrec_server.federation.leftovers import find_leftovers
from fedrec_server.rounds.coordinator import open_coordinator

ROUNDS = RoundSettings(rounds=2, min_nodes=3, deadline_seconds=5)
SUM = "secagg-sum.safetensors"


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """A finished run of trust "central" under secure aggregation; its coordinator's folder."""
    lay_out(tmp_path / "runs" / "one", 3, ROUNDS, trust="central", secure=True)
    folder = tmp_path / "runs" / "one" / "coordinator"
    assert open_coordinator(folder, Nodes(tmp_path / "runs" / "one")).run().finished
    return folder


def doctor(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, dict[str, Any]]:
    code = operate(*["doctor", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_finished_run_is_well(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = doctor(capsys, finished.parents[1])
    assert code == 0 and document["ok"]
    assert document["checks"][0]["found"].startswith("1 in ")


def test_what_an_earlier_version_left_is_found_and_removed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_arrays(finished / SUM, {"total": np.zeros(3, dtype="<u4")}, {"label": "train/refit/2"})
    (finished / f".{SUM}.4711.tmp").write_bytes(b"half")
    (finished / "staged.safetensors").write_bytes(b"never charged")
    (finished / "sealed.key").write_bytes(b"k" * 32)
    finished.chmod(0o755)
    code, document = doctor(capsys, finished.parents[1])
    found = {Path(check["name"]).name: check for check in document["checks"] if not check["ok"]}
    assert code == 10
    assert set(found) == {SUM, f".{SUM}.4711.tmp", "staged.safetensors", "sealed.key", "coordinator"}
    assert "WITHOUT NOISE" in found[SUM]["found"]
    assert found[SUM]["todo"] == f"fedrec doctor --remove {finished}"
    assert found["coordinator"]["todo"] == f"chmod 700 {finished}"
    before = {path.name for path in finished.iterdir()}
    code, document = doctor(capsys, "--remove", finished)
    assert code == 0 and document["ok"] and finished.stat().st_mode & 0o777 == 0o700
    assert before - {path.name for path in finished.iterdir()} == set(found) - {"coordinator"}
    assert doctor(capsys, finished)[0] == 0


def test_a_killed_run_is_told_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay_out(tmp_path, 3, ROUNDS, trust="central", secure=True)
    folder = tmp_path / "coordinator"
    write_arrays(folder / SUM, {"total": np.zeros(3)}, {"label": "train/refit/1", "noised": True})
    code, document = doctor(capsys, tmp_path)
    (bad,) = (check for check in document["checks"] if not check["ok"])
    assert code == 10 and "with its noise" in bad["found"] and bad["todo"].startswith("resume the run")


def test_a_run_at_work_is_left_alone(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (finished / SUM).write_bytes(b"")
    with Launch(finished).held(0.0):
        code, document = doctor(capsys, "--remove", finished)
    assert code == 0 and (finished / SUM).exists()
    assert "1 not looked into" in document["checks"][0]["found"]


def test_the_database_of_a_federation_that_was_cut_off_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = Parts(tmp_path / "federation", Record.plan(1))
    parts.write()
    parts.home("superlink").mkdir()
    for name in ("state.db", "state.db-wal"):
        (parts.home("superlink") / name).write_bytes(b"messages")
    code, document = doctor(capsys, tmp_path)
    bad = [check for check in document["checks"] if not check["ok"]]
    assert code == 10 and len(bad) == 2 and bad[0]["todo"] == f"fedrec doctor --remove {parts.folder}"
    assert doctor(capsys, "--remove", parts.folder)[0] == 0
    assert not list(parts.home("superlink").iterdir())


def test_links_are_not_followed_and_a_missing_folder_is_said_so(tmp_path: Path, finished: Path) -> None:
    (finished / SUM).write_bytes(b"")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "run").symlink_to(finished)
    assert not find_leftovers([tmp_path / "links"]).leftovers
    with pytest.raises(RunError, match="is not a folder"):
        find_leftovers([tmp_path / "none"])
