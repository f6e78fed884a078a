"""A full disk is one line of a command, at whatever write it comes, and nothing is half-written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_parts import miss

from fedrec_server.cli import program
from fedrec_server.cli.answer import Answer
from fedrec_server.cli.lazy import Group


def fails(number: int) -> int:
    """The exit status of a command that the disk fails."""

    def command() -> Answer:
        raise OSError(number, os.strerror(number), "/data/file")

    module = sys.modules[__name__]
    module.command = command  # type: ignore[attr-defined]
    return program.run("fedrec-server", Group("", {"save": f"{__name__}:command"}), ["save"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_what_a_disk_says_is_one_line(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    status = fails(number)
    said = capsys.readouterr().err
    assert status > 2 and said.count("\n") == 1
    assert "/data/file" in said and os.strerror(number) in said and "make room" in said


def test_any_other_error_of_the_system_is_a_bug_and_is_shown() -> None:
    with pytest.raises(OSError, match="file"):
        fails(errno.EBADF)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 kB, nearly full."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        miss("small disk")
    (folder / "fill").write_bytes(bytes(288 << 10))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


COMMANDS = [
    ("keys", "init", "--population", "films"),
    ("certs", "init", "certs"),
    ("up", "--root", "server", "--set", "model_service.enabled=false"),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_on_a_full_disk_says_one_line_and_works_when_there_is_room(
    small: Path, words: tuple[str, ...]
) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fedrec_server.cli.main", *words]
        given = os.environ | {"FEDREC_PASSPHRASE": "a long sentence"}
        return subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=small, env=given, timeout=120
        )

    done = run()
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode > 2 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "space" in errors[0].lower()
    if words[0] == "up":  # it would run until it is stopped
        return
    (small / "fill").unlink()
    again = run()
    assert again.returncode == 0, again.stderr
