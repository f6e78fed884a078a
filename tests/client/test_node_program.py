"""The program of a node: a process per message, a SuperNode that can start nothing, and nothing left when it dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import flower_helpers  # noqa: F401 - imports Flower without its libraries' warnings
import pytest
from flwr.common.constant import ISOLATION_MODE_PROCESS
from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

from fedrec.core.errors import EnvironmentProblem
from fedrec.core.processes import end, flower_environment, is_alive, marked, start
from fedrec_client.node import node_program
from fedrec_client.node.node_program import parse, supernode_command

#: Run in a process of its own, because it forks and takes over signals: "serves" words in the place of messages.
PROGRAM = """
import json, os, sys, time
from fedrec_client.node.flower_tasks import Task
from fedrec_client.node.node_program import run

words = sys.argv[2:]

def serve(task):
    told = {"pid": os.getpid(), "parent": os.getppid(), "word": task.token}
    os.write(1, json.dumps(told).encode() + b"\\n")
    if task.token == "fail":
        raise ValueError("no")
    if task.token == "stay":
        time.sleep(600)
    if "/" in task.token:
        open(task.token, "w").close()

sys.exit(run(["/bin/sh", "-c", sys.argv[1]], lambda: Task(words.pop(0), "flwr-clientapp") if words else None, serve))
"""
SECONDS = 60.0
OPTIONS = ["--folder", "f", "--node-dir", "d", "--superlink", "127.0.0.1:1", "--root-certificates", "c"]
OPTIONS += ["--key", "k", "--port", "9"]


def command(script: str, *words: str) -> list[str]:
    return [sys.executable, "-P", "-c", PROGRAM, script, *words]


def told(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_each_message_has_a_process_of_its_own(tmp_path: Path) -> None:
    """One that fails takes nothing with it; the status is the SuperNode's."""
    last = tmp_path / "last"
    script = f"while [ ! -e {last} ]; do /bin/sleep 0.1; done; exit 5"
    done = subprocess.run(
        command(script, "one", "fail", "two", str(last)),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    lines = told(done.stdout)
    assert done.returncode == 5 and "ValueError: no" in done.stderr
    assert [line["word"] for line in lines] == ["one", "fail", "two", str(last)]
    assert len({line["pid"] for line in lines}) == 4 and len({line["parent"] for line in lines}) == 1


def test_the_supernode_finds_no_program_by_name(tmp_path: Path) -> None:
    """Were it to start Flower's own programs, as it does when it is left to itself, it would not find them."""
    names = ("flower-superexec", "flwr-clientapp", "flwr-agentapp", "flwr-model", "flwr-connector")
    beside = Path(sys.executable).parent
    assert all((beside / name).exists() for name in names)
    script = "; ".join(f"command -v {name} && exit 1" for name in names) + '; echo "PATH=$PATH"; exit 0'
    environment = flower_environment(tmp_path / "home")
    assert str(beside) in environment["PATH"]
    # A program of that name in the current folder is not found either.
    planted = tmp_path / names[0]
    planted.write_text("#!/bin/sh\nexit 1\n")
    planted.chmod(0o700)
    done = subprocess.run(
        command(script),
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=environment,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (0, "PATH=/dev/null\n"), done.stderr


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_when_the_program_ends(tmp_path: Path, number: signal.Signals) -> None:
    """Neither a SuperNode that would hand its messages to another program, nor the process of a message."""
    log, mark = tmp_path / "log", f"node-program-{os.getpid()}-{number}"
    child = start(command("exec /bin/sleep 600", "stay"), mark=mark, env=os.environ, log=log)
    try:
        await_(lambda: len(told(log.read_text())) == 1 and len(marked(mark)) == 3)
        os.kill(child.pid, number)
        await_(lambda: not is_alive(child.pid) and not marked(mark))
    finally:
        end(mark, [child.pid])


def await_(done: Any) -> None:
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_flower_reads_the_command_as_meant(tmp_path: Path) -> None:
    given = parse(OPTIONS)
    words = supernode_command(given, tmp_path / "secret")
    read = _parse_args_run_supernode().parse_args(words[1:])
    assert read.isolation == ISOLATION_MODE_PROCESS and not read.runtime_dependency_install
    assert read.superexec_auth_secret_file == str(tmp_path / "secret") and read.host == "127.0.0.1"
    assert Path(words[0]).is_absolute()


@pytest.mark.parametrize("version", ["1.40.9", "1.42.0", "2.0.0"])
def test_another_flower_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, version: str
) -> None:
    monkeypatch.setattr(node_program, "version", lambda _: version)
    monkeypatch.setattr(sys, "argv", ["node_program", *OPTIONS])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        node_program.main()
    assert ended.value.code == EnvironmentProblem.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert f"flwr {version} is installed: expected 1.41.*" in line


def test_a_flower_that_serves_messages_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fedrec_client.node.flower_tasks", raising=False)
    monkeypatch.setitem(sys.modules, "flwr.supernode.runtime.run_clientapp", None)
    with pytest.raises(EnvironmentProblem, match="Flower lacks what a node needs"):
        node_program.load("127.0.0.1:1", Path())
