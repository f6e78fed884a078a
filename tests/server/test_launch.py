"""An engine and a coordinator in another process: events arrive, ends are told, deaths are noticed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedrec.core.errors import FederationError, RoundAbandoned
from fedrec_server.federation.launch import Launch, follow

COORDINATOR = """
import sys, time
from pathlib import Path
from fedrec.core.errors import RoundAbandoned
from fedrec_server.federation.launch import Launch

launch = Launch(Path(sys.argv[1]))
with launch.held(5.0):
    for number in (1, 2, 3):
        launch.report({"round": number})
    match sys.argv[2]:
        case "finish":
            launch.end(finished=True)
        case "abandon":
            launch.end(finished=False, error=RoundAbandoned("too few: mend the nodes"))
        case "bug":
            launch.end(finished=False, error=KeyError("x"))
        case "stop":
            while not launch.stop_requested():
                time.sleep(0.01)
            launch.end(finished=False)
        case "hang":
            time.sleep(600)
"""


@pytest.fixture
def coordinator(tmp_path: Path) -> Any:
    started: list[subprocess.Popen[bytes]] = []

    def begin(how: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", COORDINATOR, str(tmp_path), how]))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def listen(folder: Path, **kwargs: Any) -> tuple[bool, list[int]]:
    seen: list[int] = []
    arguments = {"on_event": lambda e: seen.append(e["round"]), "stop": lambda: False} | kwargs
    launch = arguments.pop("launch", Launch(folder))
    return follow(launch, lambda: None, **arguments), seen


def test_events_come_in_order_and_the_end_is_told(tmp_path: Path, coordinator: Any) -> None:
    coordinator("finish")
    assert listen(tmp_path) == (True, [1, 2, 3])


def test_errors_keep_their_kind_and_words(tmp_path: Path, coordinator: Any) -> None:
    coordinator("abandon")
    with pytest.raises(RoundAbandoned, match="too few: mend the nodes"):
        listen(tmp_path)


def test_a_bug_is_told_as_one(tmp_path: Path, coordinator: Any) -> None:
    coordinator("bug")
    with pytest.raises(FederationError, match="KeyError"):
        listen(tmp_path)


def test_a_stop_is_asked_for_and_heard(tmp_path: Path, coordinator: Any) -> None:
    coordinator("stop")
    assert listen(tmp_path, stop=lambda: True)[0] is False


def test_a_killed_coordinator_is_noticed_and_its_folder_is_free_again(
    tmp_path: Path, coordinator: Any
) -> None:
    process = coordinator("hang")

    def kill(event: dict[str, Any]) -> None:
        if event["round"] == 3:
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(FederationError, match=r"died before the run was finished.*resume"):
        listen(tmp_path, on_event=kill, grace_seconds=0.0)
    launch = Launch(tmp_path)
    launch.prepare()
    coordinator("finish")
    assert listen(tmp_path, launch=launch) == (True, [1, 2, 3])


def test_a_coordinator_that_died_before_the_first_look_is_noticed(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    with launch.held(0.0):
        launch.report({"round": 1})
    with pytest.raises(FederationError, match="died before the run was finished"):
        listen(tmp_path, grace_seconds=0.0)


def test_a_coordinator_that_never_came_is_told_with_its_starters_words(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="no such app"):
        follow(Launch(tmp_path), lambda: "no such app", on_event=print, stop=lambda: False, grace_seconds=0.0)


def test_two_coordinators_never_work_on_one_folder(tmp_path: Path) -> None:
    with Launch(tmp_path).held(0.0):
        assert Launch(tmp_path).is_alive()
        with pytest.raises(FederationError, match="held by another"), Launch(tmp_path).held(0.0):
            pass
    assert not Launch(tmp_path).is_alive()


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    launch = Launch(tmp_path)
    (tmp_path / "events.jsonl").write_text('{"round": 1}\n{"rou')
    assert launch.new_events() == [{"round": 1}]
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('nd": 2}\n')
    assert launch.new_events() == [{"round": 2}]
    assert launch.new_events() == []
