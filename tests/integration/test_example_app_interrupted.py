"""The example app told to end, as a terminal does it: the whole foreground group gets the signal, at any moment."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from session_helpers import Sessions, own_sessions

pytestmark = [pytest.mark.slow, pytest.mark.deployment]
APP = Path(__file__).parents[2] / "client" / "examples" / "films" / "app.py"
#: The sessions of the app make their folders where this module can see them.
START = """
import sys; sys.argv = {argv!r}; sys.path[:0] = {path!r}
from pathlib import Path
from fedrec_client.training import _run_task as run_task
run_task.RAM = Path({ram!r})
from films.command import main
sys.exit(main())
"""
#: A store whose key lies in a file says so when it is opened.
OWN_LINES = ("films: ", "WARNING the key of store ")


class Running:
    """The app in a process group of its own, as a shell starts it.

    Attributes:
        url: of its page.
    """

    def __init__(self, folder: Path, sessions: Sessions, *options: str) -> None:
        argv = ["films", "--people", "3", "--port", "0", "--folder", str(folder), *options]
        code = START.format(argv=argv, path=sys.path, ram=str(sessions.ram))
        self._sessions, self.lines = sessions, []
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
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
        path = Path(self.process.args[-1].split("'--folder', '")[1].split("'")[0]) / "journal.log"  # type: ignore[index,union-attr]
        deadline = time.monotonic() + 300
        while text not in path.read_text():
            assert time.monotonic() < deadline and self.process.poll() is None, path.read_text()
            time.sleep(0.1)

    def ends(self, number: signal.Signals, times: int = 1) -> int:
        """The exit status; nothing but the app's own lines was printed, and nothing runs on."""
        for _ in range(times):
            os.killpg(self.process.pid, number)
            time.sleep(0.3)
        rest, _ = self.process.communicate(timeout=60)
        printed = "".join(self.lines) + rest
        assert all(line.startswith(OWN_LINES) for line in printed.splitlines()), printed
        assert not self._sessions.processes() and not self._sessions.folders()
        return self.process.returncode


Start = Callable[..., Running]


@pytest.fixture
def start(tmp_path: Path, sessions: Sessions) -> Iterator[Start]:
    """Starts the app in the test's folder; what a failed test leaves running is told to end."""
    started: list[Running] = []

    def begin(*options: str) -> Running:
        started.append(Running(tmp_path, sessions, *options))
        return started[-1]

    yield begin
    for app in started:
        if app.process.poll() is None:
            app.process.terminate()
            app.process.communicate(timeout=60)


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    with own_sessions() as made:
        yield made


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


MOMENTS: dict[str, Callable[[Running], None]] = {
    "enrolment": lambda app: app.said("opened for 3 devices"),
    "the servers start": lambda app: app.said("3 of 3 devices enrolled"),
    "training": lambda app: app.said("task signed"),
    "a round": lambda app: app.said("round 1: only the sum"),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_while_people_train(start: Start, tmp_path: Path, moment: str, number: signal.Signals) -> None:
    """Silent, even when somebody is impatient; and the next start shows what was spent, and who never was asked."""
    app = start()
    app.serves()
    app.trains()
    MOMENTS[moment](app)
    assert app.ends(number, times=2) == 0
    log = (tmp_path / "journal.log").read_text()
    assert "federation." not in log and "Traceback" not in log
    (state,) = [json.loads(path.read_text()) for path in tmp_path.glob("service/campaigns/*/campaign.json")]
    assert state["closed"] and state["ended"] == "stopped"
    released = moment == "a round"
    assert ("what they cost stays spent" in log) == released
    assert ("nothing was spent" in log) == (not released)
    again = start()
    again.serves()
    with httpx.Client(base_url=again.url, trust_env=False, timeout=60) as page:
        found = re.search(r'name="token" value="([^"]+)"', page.get("/").text)
        assert found is not None
        for number_ in (1, 2, 3):
            page.post(f"/people/{number_}/look", data={"token": found[1], "tab": "privacy"})
        text = page.get("/").text
    assert text.count("ε 600 of") == (6 if released else 0)
    assert text.count("Nothing was spent.") == (0 if released else 3)
    assert again.ends(number) == 0
