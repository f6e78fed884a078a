"""An interrupted run, resumed, ends on the same machine bit for bit where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_helpers import ask, run, write_config

from fedrec_server.cli.interrupts import StopRequest
from fedrec_simulations.engines.in_process import run_in_process
from fedrec_simulations.experiments.run_folder import RunFolder

ROUNDS, EVERY = 400, 100
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    config = write_config(folder, "mf", ROUNDS, EVERY)
    assert run("train", config, "--out", folder / "run", "--no-report") == 0
    return folder / "run"


def _assert_same_end(folder: Path, undisturbed: Path) -> None:
    model = Path("coordinator") / "model.safetensors"
    assert (folder / model).read_bytes() == (undisturbed / model).read_bytes()
    assert RunFolder(folder).result["test"] == RunFolder(undisturbed).result["test"]
    left, right = RunFolder(folder).records, RunFolder(undisturbed).records
    assert [(r["phase"], r["round"], r["loss"]) for r in left] == [
        (r["phase"], r["round"], r["loss"]) for r in right
    ]


def test_stop_and_resume(tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tmp_path, "mf", 6)
    assert run("train", config, "--out", tmp_path / "whole") == 0
    assert run("train", config, "--out", tmp_path / "parts") == 0
    for name in ("model.safetensors", "result.json", "rounds.jsonl", "checkpoint.safetensors"):
        (tmp_path / "parts" / "coordinator" / name).unlink()
    for snapshot in (tmp_path / "parts" / "nodes" / "0" / "local").glob("*"):
        snapshot.unlink()
    # Stopped again and again, after every single round.
    for _ in range(4):
        assert not run_in_process(tmp_path / "parts", stop=lambda: True).finished
    code, document = ask(capsys, "train", "--resume", tmp_path / "parts")
    assert code == 0 and document["finished"]
    _assert_same_end(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_signal_and_resume(
    tmp_path: Path, undisturbed: Path, number: signal.Signals, capsys: Capture
) -> None:
    config, folder = write_config(tmp_path, "mf", ROUNDS, EVERY), tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "fedrec_simulations.cli.main",
        "train",
        str(config),
        "--out",
        str(folder),
    ]
    process = subprocess.Popen(
        [*command, "--no-report", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    _await_rounds(process, folder / "coordinator" / "rounds.jsonl", 5)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert not (folder / "coordinator" / "result.json").exists(), "the run was over before the signal came"
    if number == signal.SIGINT:
        document = json.loads(out)
        assert process.returncode == 130
        assert document["resume"] == f"fedrec train --resume {folder}" and not document["finished"]
        assert "stopping at the end of this round" in err
    else:
        assert process.returncode == -signal.SIGKILL
    code, document = ask(capsys, "train", "--resume", folder, "--no-report")
    assert code == 0 and document["finished"]
    _assert_same_end(folder, undisturbed)


def test_resuming_a_finished_run_changes_nothing(undisturbed: Path, capsys: Capture) -> None:
    before = (undisturbed / "coordinator" / "model.safetensors").read_bytes()
    code, document = ask(capsys, "train", "--resume", undisturbed, "--no-report")
    assert code == 0 and document["finished"]
    assert (undisturbed / "coordinator" / "model.safetensors").read_bytes() == before


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path, capsys: Capture) -> None:
    config = write_config(tmp_path, "mf")
    assert run("train", config, "--out", tmp_path / "run", "--no-report") == 0
    (tmp_path / "run" / "coordinator" / "result.json").unlink()
    for command in (["evaluate"], ["recommend", "--user", "u1"]):
        code, document = ask(capsys, command[0], tmp_path / "run", *command[1:])
        assert code == 6 and f"fedrec train --resume {tmp_path / 'run'}" in document["error"]


def test_first_interrupt_asks_second_interrupts(capsys: Capture) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop()
        signal.raise_signal(signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def _await_rounds(process: subprocess.Popen[str], path: Path, wanted: int) -> None:
    """Until the run has written that many records; there is no event to wait for across processes."""
    while process.poll() is None:
        if path.exists() and len(path.read_bytes().splitlines()) >= wanted:
            return
        time.sleep(0.01)
    raise AssertionError(f"the run ended by itself: {process.communicate()[1]}")
