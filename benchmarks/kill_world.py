"""A server under `fedrec-server up` with devices of the SDK, for `benchmarks.kill_matrix`."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.core.processes import free_ports
from fedrec.ranking.items import Items
from fedrec.ranking.popular import Popular
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_server.devices.state import cohorts
from fedrec_server.devices.state.database import open_state
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.preparation import new_job
from fedrec_server.jobs.specification import parse_job
from fedrec_server.operations.key_folder import KeyFolder
from fedrec_server.registry import Registry
from fedrec_server.supervision.supervisor import read_parts

POPULATION = "films"
ITEMS = [f"film-{k:02d}" for k in range(12)]
#: Devices of a cohort and of the population; the last one is struck. After a sum was lost another cohort is asked.
COHORT, DEVICES = 5, 12
VICTIM = DEVICES - 1
PATIENT_SECONDS = 300.0
CLOCK_MODULE = """
import time
real = time.time
time.time = lambda: real() + float(open({path!r}).read() or 0)
"""
JOB: dict[str, Any] = {
    "name": "struck",
    "model": {"kind": "dp_ease", "top_items": 12, "histogram_items": 5, "history_items": 20, "reg": 1.0},
    "federation": {"seed": 3, "stage_seconds": 15.0, "deadline_seconds": 15.0},
    "privacy": {
        "unit": "user",
        "trust": "distributed",
        "epsilon": 1e6,
        "delta": 1e-6,
        "force": True,
        "survivors": 0.5,
    },
    "job": {
        "participations": 2,
        "retry_seconds": 0.5,
        "longest_retry_seconds": 2.0,
        "cohort": {"target": COHORT, "least": COHORT - 1, "most": COHORT, "wait_seconds": 60.0},
    },
}


@dataclass
class World:
    """A server and its devices.

    Attributes:
        folder: the server's.
        url: of its database.
        data: folder of PostgreSQL, where it is that.
        ports: of the model service and of the device service.
        jumps: the server's clock can be set.
        by_hand: what was done after the strike.
        running: processes that were started here.
    """

    folder: Path
    url: str
    data: Path | None
    ports: tuple[int, int]
    jumps: bool = False
    by_hand: list[str] = field(default_factory=list)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        return Job.all(self.folder / "jobs")[0]

    @property
    def registry(self) -> Registry:
        return Registry(self.folder / "models", POPULATION)

    def start(self, name: str, *command: object, env: dict[str, str] | None = None) -> None:
        """A program that ends with the cell."""
        log = (self.folder / f"{name}.log").open("ab")
        words = [sys.executable, "-m", *map(str, command)]
        whole = os.environ | (env or {})
        self.running[name] = subprocess.Popen(
            words, stdout=log, stderr=log, start_new_session=True, env=whole
        )
        log.close()

    def start_server(self) -> None:
        """Where its clock is to jump, `time.time` of its processes is off by what the file `clock` says."""
        modules = self.folder / "clock-module"
        modules.mkdir(exist_ok=True)
        (modules / "sitecustomize.py").write_text(CLOCK_MODULE.format(path=str(self.folder / "clock")))
        self.set_clock(0)
        path = os.pathsep.join([str(modules), os.environ.get("PYTHONPATH", "")])
        env = {"PYTHONPATH": path} if self.jumps else None
        self.start("server", "fedrec_server.cli.main", "up", "--root", self.folder, env=env)

    def set_clock(self, seconds: int) -> None:
        """So far off from now on."""
        (self.folder / "clock").write_text(f"{seconds:+d}\n")

    def start_devices(self, name: str, first: int, count: int) -> None:
        certs, trust = self.folder / "certs", self.registry.folder / "root.json"
        words = (self.folder / "devices", POPULATION, trust, certs, *self.ports, first, count)
        self.start(name, "benchmarks.kill_devices", *words)

    def pid_of(self, part: str) -> int:
        """Of a part that runs now."""
        if part == "device":
            return self.running["victim"].pid
        if part == "server":
            return self.running["server"].pid
        if part == "front end":
            return int(read_parts(self.folder)["device-service"]["pid"])
        if part == "database":
            assert self.data is not None
            return int((self.data / "postmaster.pid").read_text().splitlines()[0])
        return next(iter(processes(b"work", self.job.id.encode())))

    def end(self) -> None:
        """Kill all that was started."""
        for process in self.running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in processes(str(self.folder).encode()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes(*words: bytes) -> Iterator[int]:
    """Of this machine whose command line has all of these."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if all(word in line for word in words):
                    yield int(entry.name)


# A world ---------------------------------------------------------------------------------------------------------


def lay_out(folder: Path) -> None:
    """Registry with a champion, keys, and a job that is started; all cells begin with a copy of it."""
    online = OnlineKeys.generate()
    registry = Registry.create(folder / "models", POPULATION, OfflineKeys.generate(), online)
    online.save(KeyFolder(folder / "keys", POPULATION).online_folder)
    known = Items.of(ITEMS, ITEMS, [()] * len(ITEMS), np.ones(len(ITEMS), np.float32))
    files = pack_model(Popular(np.ones(len(ITEMS), np.float32)), known, {"unit": "none"})
    registry.promote(registry.publish(files, Terms(0, int(time.time())), online).version, online)


@contextmanager
def world(base: Path, folder: Path, url: str, data: Path | None, *, jumps: bool = False) -> Iterator[World]:
    """A copy of the base, running, with all devices."""
    shutil.copytree(base, folder)
    (folder / "devices").mkdir()
    models, devices = free_ports(2)
    settings = (
        f"[model_service]\nport = {models}\nexpected_devices = 1\n[device_service]\nport = {devices}\n"
        f"expected_devices = 1\nlimits = ['min_retry_seconds=1', 'soon_seconds=1']\n[database]\nurl = '{url}'\n"
    )
    (folder / "server.toml").write_text(settings)
    job = new_job(
        folder / "jobs", parse_job(JOB, "job"), POPULATION, registry=folder / "models", keys=folder / "keys"
    )
    job.start()
    made = World(folder, url or f"sqlite:///{folder}/devices.db", data, (models, devices), jumps)
    try:
        made.start_server()
        wait((folder / "certs" / "app.key").exists, "certificates")
        made.start_devices("victim", VICTIM, 1)  # it is in the first cohort, whatever the others do
        _await_the_first_device(made)
        made.start_devices("devices", 0, VICTIM)
        yield made
    finally:
        made.end()


@contextmanager
def postgresql(folder: Path) -> Iterator[tuple[str, Path]]:
    """A server of PostgreSQL: its URL and its folder."""
    runtime = folder / "run"
    runtime.mkdir(mode=0o700, parents=True)
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    import pgserver

    server = pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        yield str(server.get_uri()), folder / "data"
    finally:
        server.cleanup()


def wait(holds: Callable[[], bool], what: str, seconds: float = PATIENT_SECONDS, every: float = 0.01) -> None:
    """Until it holds."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(every)


def _await_the_first_device(made: World) -> None:
    wait(lambda: _database_is_there(made), "the database")
    with open_state(made.url) as state:

        def joined() -> bool:
            with state.read() as connection:
                return any(row.joined for row in cohorts.live(connection))

        wait(joined, "the first device", every=0.05)


def _database_is_there(made: World) -> bool:
    return not made.url.startswith("sqlite") or (made.folder / "devices.db").exists()


def start_postgresql(made: World) -> None:
    """Again, after it was killed."""
    assert made.data is not None
    from pgserver._commands import POSTGRES_BIN_PATH

    def started() -> bool:
        words = [
            str(POSTGRES_BIN_PATH / "pg_ctl"),
            "-D",
            str(made.data),
            "-w",
            "start",
            "-o",
            f"-h '' -k {made.data}",
        ]
        user = {"user": "pgserver"} if os.geteuid() == 0 else {}
        log = subprocess.DEVNULL
        return subprocess.run(words, stdout=log, stderr=log, check=False, **user).returncode == 0

    wait(started, "PostgreSQL", every=0.5)
