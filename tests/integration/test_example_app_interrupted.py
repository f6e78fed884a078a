"""The example app told to end, as a terminal does it: the whole foreground group gets the signal, at any moment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from fedrec_server.jobs.job import Job

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
APP = Path(__file__).parents[2] / "client" / "examples" / "films" / "app.py"
#: A store whose key lies in a file says so when it is opened.
OWN_LINES = ("films: ", "WARNING the key of store ")


class Running:
    """The app in a process group of its own, as a shell starts it.

    Attributes:
        url: of its page.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._journal, self.lines = folder / "journal.log", []
        argv = ["--people", "3", "--port", "0", "--folder", str(folder), *options]
        self.process = subprocess.Popen(
            [sys.executable, str(APP), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=0,
        )

    def serves(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := re.search(r"open (http://\S+)", line):
                self.url = found[1]
                return self.answers()
        raise AssertionError("".join(self.lines))

    def answers(self) -> None:
        """Wait until the port of the printed address is open."""
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(self.url, trust_env=False, timeout=60)
            except httpx.ConnectError:
                assert time.monotonic() < deadline and self.process.poll() is None, "".join(self.lines)
                time.sleep(0.05)
            else:
                return

    def trains(self) -> None:
        """Three people rate, agree, and press the button."""
        with httpx.Client(base_url=self.url, trust_env=False, timeout=60) as page:
            found = re.search(r'name="token" value="([^"]+)"', page.get("/").text)
            assert found is not None
            token = {"token": found[1]}
            for number in (1, 2, 3):
                page.post(f"/people/{number}/begin", data=token | {"genre": "Crime"})
                page.post(f"/people/{number}/consent", data=token | {"what": "train", "on": "1"})
            page.post("/train", data=token)

    def said(self, text: str) -> None:
        """Wait until the log says something."""
        path = self._journal
        deadline = time.monotonic() + 120
        while text not in path.read_text():
            assert time.monotonic() < deadline and self.process.poll() is None, path.read_text()
            time.sleep(0.02)

    def ends(self, number: signal.Signals, times: int = 1) -> int:
        """The exit status; nothing but the app's own lines was printed, and nothing runs on."""
        for _ in range(times):
            with suppress(ProcessLookupError):  # it has ended already
                os.killpg(self.process.pid, number)
            time.sleep(0.3)
        rest, _ = self.process.communicate(timeout=60)
        printed = "".join(self.lines) + rest
        assert all(line.startswith(OWN_LINES) for line in printed.splitlines()), printed
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)
        return self.process.returncode


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts the app in the test's folder; what a failed test leaves running is told to end."""
    started: list[Running] = []

    def begin(*options: str) -> Running:
        started.append(Running(tmp_path, *options))
        return started[-1]

    yield begin
    for app in started:
        if app.process.poll() is None:
            app.process.terminate()
            app.process.communicate(timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_it_serves(start: Start, number: signal.Signals) -> None:
    app = start("--offline")
    app.serves()
    assert app.ends(number) == 0


def test_while_it_starts(start: Start) -> None:
    app = start("--offline")
    assert app.process.stdout is not None
    app.lines.append(app.process.stdout.readline())
    assert app.ends(signal.SIGINT) == 130


MOMENTS = {
    "opened": "opened for 3 devices",
    "joined": "has joined",
    "computes": "computes its update",
    "a round": "round 1: only the sum",
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_devices_train(start: Start, tmp_path: Path, moment: str, number: signal.Signals) -> None:
    """Silent, also when the signal comes again; and the next start shows what was spent, or that nothing was."""
    app = start()
    app.serves()
    app.trains()
    app.said(MOMENTS[moment])
    assert app.ends(number, times=2) == 0
    log = (tmp_path / "journal.log").read_text()
    assert "federation." not in log and "Traceback" not in log and "internal error" not in log
    (job,) = Job.all(tmp_path / "service" / "jobs")
    published = "version 2 signed and promoted" in log
    assert job.record().state == ("published" if published else "aborted")
    again = start()
    again.serves()
    with httpx.Client(base_url=again.url, trust_env=False, timeout=60) as page:
        found = re.search(r'name="token" value="([^"]+)"', page.get("/").text)
        assert found is not None
        for number_ in (1, 2, 3):
            page.post(f"/people/{number_}/look", data={"token": found[1], "tab": "privacy"})
        text = page.get("/").text
    assert again.ends(number) == 0
    charged = len(re.findall(r"epsilon [1-9]", log))
    assert len(re.findall(r"ε [1-9][\d,.]* of", text)) == 2 * charged, log
    assert text.count('<p class="big">Nothing') == 3 - charged, log
    if moment == "a round":
        assert charged == 3
