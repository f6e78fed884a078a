"""kill -9 before each durable step of a job: what comes out is what an undisturbed job gives, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("job_kills.py")


#: Kills processes that were forked.
needs_fork = pytest.mark.needs("Linux")


def outcomes(folder: Path, *words: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Of the kills, and of the undisturbed job."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), *words],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *killed, undisturbed = [json.loads(line) for line in done.stdout.splitlines()]
    assert undisturbed["status"] == 0 and undisturbed["state"] == "published"
    assert killed and all(each["status"] == -9 and each["again"] == 0 for each in killed)
    return killed, undisturbed


@pytest.mark.slow
@needs_fork
def test_a_job_that_is_killed_at_any_step_ends_as_one_that_is_not(tmp_path: Path) -> None:
    killed, undisturbed = outcomes(tmp_path)
    assert undisturbed["rounds"] == undisturbed["booked"] == [1, 2] and undisturbed["versions"] == [1, 2]
    assert len(killed) > 30
    for each in killed:
        told = f"killed at {each['at']}"
        for name in ("state", "rounds", "booked", "model", "left"):
            assert each[name] == undisturbed[name], told
        # A version that was never signed leaves a number that is not given again.
        assert each["versions"] == [1, each["champion"]] and each["of the run"] == [each["champion"]], told


@pytest.mark.slow
@needs_fork
def test_rounds_that_overlap_count_once_whatever_is_killed(tmp_path: Path) -> None:
    killed, undisturbed = outcomes(tmp_path, "overlapping")
    for each in (*killed, undisturbed):
        told = f"killed at {each['at']}"
        assert sorted(each["rounds"]) == each["booked"] == [1, 2, 3, 4, 5, 6], told
        assert each["state"] == "published" and each["of the run"] == [each["champion"]], told
