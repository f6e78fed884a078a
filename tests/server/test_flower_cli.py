"""Flower's own words are not what decides whether a run is over: a run that ended meanwhile needs no stop."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from fedrec.core.errors import FederationError
from fedrec_server.federation import flower_cli
from fedrec_server.federation.flower_cli import FlowerCli

#: What `flwr` 1.41 answered when the run had ended between `flwr ls` and `flwr stop`.
REFUSED = {"success": False, "error-message": "[code: 18] Run is already finished"}
PROGRAM = """#!/bin/sh
case "$1" in
stop) cat <<'END'
{stop}
END
exit 1 ;;
ls) cat <<'END'
{runs}
END
esac
"""


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def make(status: str) -> FlowerCli:
        path = tmp_path / "flwr"
        runs = {"success": True, "runs": [{"run-id": 7, "status": status}]}
        path.write_text(PROGRAM.format(stop=json.dumps(REFUSED), runs=json.dumps(runs)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(flower_cli, "program", lambda name: str(path))
        return FlowerCli(tmp_path / "operator")

    return make


@pytest.mark.parametrize("status", ["finished:completed", "finished:failed", "finished:stopped"])
def test_a_run_that_ended_between_the_list_and_the_stop_is_stopped(cli, status: str) -> None:  # type: ignore[no-untyped-def]
    cli(status).stop_run("7")
    cli(status).stop_run("8")  # Flower has forgotten it


def test_a_run_that_cannot_be_stopped_is_an_error(cli) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FederationError, match="code: 18"):
        cli("running").stop_run("7")
