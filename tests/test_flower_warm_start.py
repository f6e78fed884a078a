"""Forks instead of starts: the same arguments, streams, folder, environment and status, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedrec_client.warm_start import PROGRAM, write_program

#: Run in a process of its own, because it forks and takes over signals: serves a program that tells where it is.
SERVER = """
import json, os, sys
from pathlib import Path
from fedrec_client.warm_start import serve, write_program

def program():
    told = json.dumps({
        "pid": os.getpid(), "parent": os.getppid(), "arguments": sys.argv, "folder": os.getcwd(),
        "said": os.environ.get("SAID"), "input": sys.stdin.read(),
    })
    os.write(1, told.encode() + b"\\n")
    print("warned", file=sys.stderr)
    sys.exit(int(sys.argv[1]))

folder = Path(sys.argv[1])
write_program(folder)
sys.exit(serve(["sh", "-c", sys.argv[2]], folder, program))
"""


def serve(folder: Path, script: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SERVER, str(folder), script]
    return subprocess.run(
        command,
        check=False,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder.parent,
    )


def test_the_program_runs_as_if_started_by_name(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "warm", tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = f"for n in 7 0; do echo word | SAID=$n {PROGRAM} $n 'a b' --token x; echo $?; done; exit 5"
    script = f"cd {elsewhere}; {script}"
    done = serve(folder, script)
    assert done.returncode == 5, done.stderr
    first, seven, second, zero = done.stdout.splitlines()
    assert (seven, zero) == ("7", "0") and done.stderr.count("warned") == 2
    told: list[dict[str, Any]] = [json.loads(first), json.loads(second)]
    assert told[0]["arguments"] == [PROGRAM, "7", "a b", "--token", "x"]
    assert (told[0]["folder"], told[0]["said"], told[0]["input"]) == (str(elsewhere), "7", "word\n")
    assert told[0]["pid"] != told[1]["pid"] and told[0]["parent"] == told[1]["parent"]


def test_many_at_once(tmp_path: Path) -> None:
    done = serve(tmp_path / "warm", f"for n in 1 2 3 4 5 6; do {PROGRAM} 0 $n </dev/null & done; wait")
    told = [json.loads(line)["arguments"][-1] for line in done.stdout.splitlines()]
    assert sorted(told) == list("123456")


def test_a_death_of_the_program_is_no_success(tmp_path: Path) -> None:
    done = serve(tmp_path / "warm", f"{PROGRAM} nonsense </dev/null; echo $?")
    assert done.stdout.splitlines()[-1] == "1"


def test_without_the_warm_process_flowers_own_program_runs(tmp_path: Path) -> None:
    write_program(tmp_path / "warm")
    done = subprocess.run(
        [tmp_path / "warm" / PROGRAM, "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "--runtime-api-address" in done.stdout


def test_only_the_owner_can_ask(tmp_path: Path) -> None:
    folder = tmp_path / "warm"
    done = serve(folder, f"stat -c %a {folder} {folder}/socket {folder}/{PROGRAM}")
    assert done.stdout.split() == ["700", "600", "700"]


def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    done = serve(folder, f"{PROGRAM} 0 </dev/null")
    assert done.returncode == 0 and json.loads(done.stdout)["arguments"] == [PROGRAM, "0"]


@pytest.mark.parametrize("request_text", ["", "nonsense\n", "{}\n"])
def test_a_request_that_cannot_be_read_harms_nobody(tmp_path: Path, request_text: str) -> None:
    folder = tmp_path / "warm"
    ask = f"import socket, os; os.chdir({str(folder)!r}); s = socket.socket(socket.AF_UNIX); s.connect('socket'); "
    ask += f"s.sendall({request_text.encode()!r}); s.shutdown(socket.SHUT_WR); print(s.recv(9))"
    done = serve(folder, f'{sys.executable} -c "{ask}"; {PROGRAM} 0 </dev/null')
    nothing, told = done.stdout.splitlines()
    assert nothing == "b''" and json.loads(told)["arguments"] == [PROGRAM, "0"]
