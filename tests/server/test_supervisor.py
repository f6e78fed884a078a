"""A server under its supervisor: parts start, are started again, restarted by name, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest

from fedrec.core.errors import ConfigError, RunError
from fedrec.core.processes import free_ports
from fedrec_server.cli.commands import PROGRAM
from fedrec_server.cli.lazy import command_of
from fedrec_server.sites.server import SiteServer
from fedrec_server.supervision.parts import Part, database_url, ensure_certificates, parts_of
from fedrec_server.supervision.settings import FILE, ServerSettings, read_settings
from fedrec_server.supervision.supervisor import (
    STOP,
    Supervisor,
    ask,
    is_running,
    last_line,
    read_parts,
    state_of,
)

LISTEN = """
import socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    listener.accept()[0].close()
"""
CHAIN = """
import sys, time
from pathlib import Path
from fedrec_server.supervision.parts import Part
from fedrec_server.supervision.supervisor import Supervisor
sleeper = Part("sleeper", (sys.executable, "-c", "import time; time.sleep(600)"))
Supervisor(Path(sys.argv[1]), [sleeper]).run(lambda: False)
"""


def wait_until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.05)


@contextmanager
def running(root: Path, *parts: Part) -> Iterator[list[str]]:
    steps: list[str] = []
    stop = threading.Event()
    thread = threading.Thread(
        target=Supervisor(root, parts, steps.append).run, args=(stop.is_set,), daemon=True
    )
    thread.start()
    try:
        wait_until(lambda: set(read_parts(root)) == {part.name for part in parts})
        yield steps
    finally:
        stop.set()
        thread.join(60)
    assert not is_running(root)


def listening(name: str = "listener") -> Part:
    (port,) = free_ports(1)
    return Part(name, (sys.executable, "-c", LISTEN, str(port)), port)


def pid_of(root: Path, name: str) -> int:
    return int(read_parts(root)[name]["pid"] or 0)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1] != "Z"
    except OSError:
        return False


def test_parts_start_and_end_with_the_server(tmp_path: Path) -> None:
    one, other = listening("one"), listening("other")
    with running(tmp_path, one, other):
        wait_until(lambda: all(state_of(part) == "ready" for part in read_parts(tmp_path).values()))
        assert is_running(tmp_path) and last_line(tmp_path, "one") == "listening"
        pids = [pid_of(tmp_path, name) for name in ("one", "other")]
        with pytest.raises(RunError, match="is running already"):
            Supervisor(tmp_path, [one]).run(lambda: True)
    assert not any(lives(pid) for pid in pids)
    assert [state_of(part) for part in read_parts(tmp_path).values()] == ["down", "down"]


def test_a_part_that_dies_is_started_again(tmp_path: Path) -> None:
    with running(tmp_path, listening()) as steps:
        first = pid_of(tmp_path, "listener")
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: pid_of(tmp_path, "listener") not in (0, first))
        wait_until(lambda: state_of(read_parts(tmp_path)["listener"]) == "ready")
        assert read_parts(tmp_path)["listener"]["restarts"] == 1
        assert "was ended by SIGKILL" in steps[0]


def test_a_part_that_cannot_start_is_tried_again_after_growing_pauses(tmp_path: Path) -> None:
    broken = Part("broken", (sys.executable, "-c", "raise SystemExit('no port')"))
    with running(tmp_path, broken) as steps:
        wait_until(lambda: len(steps) >= 3)
    pauses = [float(step.partition("again in ")[2].partition(" s")[0]) for step in steps[:3]]
    assert pauses == [1.0, 2.0, 4.0] and "status 1" in steps[0]
    assert last_line(tmp_path, "broken") == "no port"


def test_one_part_is_restarted_by_name_and_the_others_stay(tmp_path: Path) -> None:
    with running(tmp_path, listening("one"), listening("other")):
        before = {name: pid_of(tmp_path, name) for name in ("one", "other")}
        ask(tmp_path, "one")
        wait_until(lambda: pid_of(tmp_path, "one") not in (0, before["one"]))
        assert pid_of(tmp_path, "other") == before["other"] and not lives(before["one"])
        with pytest.raises(RunError, match="use one of one, other"):
            ask(tmp_path, "third")
    with pytest.raises(RunError, match="no server runs"):
        ask(tmp_path, "one")


def test_a_stop_that_is_asked_for_ends_the_server(tmp_path: Path) -> None:
    with running(tmp_path, listening()):
        ask(tmp_path, STOP)
        wait_until(lambda: not is_running(tmp_path))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="parts die with the supervisor on Linux")
def test_a_killed_supervisor_leaves_no_part_and_the_next_start_works(tmp_path: Path) -> None:
    program = subprocess.Popen([sys.executable, "-c", CHAIN, str(tmp_path)])
    wait_until(lambda: "sleeper" in read_parts(tmp_path) and pid_of(tmp_path, "sleeper") > 0)
    part = pid_of(tmp_path, "sleeper")
    program.kill()
    program.wait()
    wait_until(lambda: not lives(part))
    with running(tmp_path, listening("sleeper")):
        wait_until(lambda: pid_of(tmp_path, "sleeper") not in (0, part))


def parse(
    words: list[str], command: click.Command | None = None, before: click.Context | None = None
) -> None:
    """Parse a command line of the program down to the last command, carrying nothing out."""
    command = command or command_of("fedrec-server", PROGRAM)
    context = command.make_context(command.name or "fedrec-server", words, parent=before)
    if isinstance(command, click.Group):
        _, chosen, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert chosen is not None, words
        parse(rest, chosen, context)


# Settings and commands ---------------------------------------------------------------------------------------


def test_the_first_start_writes_settings_with_the_usual_values(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "new") == ServerSettings()
    assert (tmp_path / "new" / FILE).read_text().startswith("# A server")
    assert read_settings(tmp_path / "new", ("device_service.port=9000",)).device_service.port == 9000


def test_a_wrong_setting_is_one_line(tmp_path: Path) -> None:
    read_settings(tmp_path)
    for wrong in ("device_service.port=0", "device_service.frontends=2", "certificate_days=-1"):
        with pytest.raises(ConfigError, match=wrong.partition("=")[0]) as found:
            read_settings(tmp_path, (wrong,))
        assert "\n" not in str(found.value)


def test_parts_are_commands_that_the_program_has(tmp_path: Path) -> None:
    (tmp_path / "models" / "films").mkdir(parents=True)
    (tmp_path / "models" / "films" / "root.json").touch()
    (tmp_path / "keys").mkdir()
    text = (
        "device_service.front_ends=2",
        "device_service.connect_port=8500",
        'device_service.origins=["https://x"]',
        "sites.enabled=true",
        "sites.gateway_port=4443",
    )
    parts = parts_of(tmp_path, read_settings(tmp_path, text))
    names = ["model-service", "device-service", "device-service-2", "jobs", "superlink", "gateway"]
    assert [part.name for part in parts] == names
    assert [part.port for part in parts] == [8443, 8444, 8445, None, 9091, 4443]
    for part in parts:
        parse(list(part.command[part.command.index("fedrec_server.cli.main") + 1 :]))


def test_a_server_without_a_population_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fedrec-server keys init"):
        parts_of(tmp_path, ServerSettings())


def test_certificates_are_made_once_for_the_names_of_the_server(tmp_path: Path) -> None:
    from cryptography import x509

    settings = ServerSettings.model_validate(
        {
            "public_names": ["fed.example.org", "10.77.0.1"],
            "sites": {"enabled": True, "public_address": "sites.example.org"},
        }
    )
    assert ensure_certificates(tmp_path, settings)
    assert SiteServer(tmp_path / "sites").addresses.gateway == "sites.example.org:9092"
    before = (tmp_path / "certs" / "server.pem").read_bytes()
    names = x509.load_pem_x509_certificate(before).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert "fed.example.org" in names.value.get_values_for_type(x509.DNSName)
    assert not ensure_certificates(tmp_path, settings)
    assert (tmp_path / "certs" / "server.pem").read_bytes() == before


def test_the_database_is_a_setting(tmp_path: Path) -> None:
    assert database_url(tmp_path, ServerSettings()) == f"sqlite:///{tmp_path}/devices.db"
    url = "postgresql://fed@db/fed"
    assert database_url(tmp_path, read_settings(tmp_path, (f"database.url={url}",))) == url


def test_the_systemd_unit_starts_and_ends_the_server_by_commands_that_exist() -> None:
    unit = (Path(__file__).parents[2] / "server" / "systemd" / "fedrec-server.service").read_text()
    lines = dict(line.split("=", 1) for line in unit.splitlines() if "=" in line and not line.startswith("#"))
    for key, name in (("ExecStart", "up"), ("ExecStop", "down")):
        program, *words = lines[key].split()
        assert program.endswith("/fedrec-server") and words[0] == name
        parse(words)
    assert lines["NoNewPrivileges"] == "yes" and lines["ProtectSystem"] == "strict"
