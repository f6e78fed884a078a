"""What a kill costs: every part of a running server and a device, struck at every moment of a round of a job.

    python -m benchmarks.kill_matrix [--only PART] [--pause 60] [--markdown FILE]

Each cell is a server of its own under `fedrec-server up` (model service, device service, job runner) with twelve
devices of the SDK, which train a job of two rounds, five in a cohort, under secure aggregation with distributed
noise. A part is struck once the database says that the moment has come; nothing is done by hand afterwards, except
where the table says so. Then the books are read: the rounds of the run and their charges, versions that the run published, and
what each device was charged. A cell is *sound* when both rounds are there once, charged once, published once, and no
device was charged twice for a round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedrec.core.processes import free_ports
from fedrec.privacy.ledger import Ledger
from fedrec.ranking.items import Items
from fedrec.ranking.popular import Popular
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_server.devices.state import cohorts, stages
from fedrec_server.devices.state.database import State, open_state
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.preparation import new_job
from fedrec_server.jobs.publication import rounds_of
from fedrec_server.jobs.specification import parse_job
from fedrec_server.operations.key_folder import KeyFolder
from fedrec_server.registry import Registry
from fedrec_server.rounds.charges import Charges
from fedrec_server.rounds.task import Task
from fedrec_server.supervision.supervisor import read_parts

POPULATION = "films"
ITEMS = [f"film-{k:02d}" for k in range(12)]
#: Devices of a cohort and of the population; the last one is struck. After a sum was lost another cohort is asked.
COHORT, DEVICES = 5, 12
VICTIM = DEVICES - 1
MOMENTS = ("join", "advertise", "share", "train", "confirm", "unmask", "publish")
PATIENT_SECONDS = 300.0
PARTS = ("coordinator", "front end", "device", "server", "database")
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


@dataclass(frozen=True)
class Cell:
    """What is struck, when, and how."""

    part: str
    moment: str
    how: str = "kill -9"


@dataclass
class World:
    """A server and its devices.

    Attributes:
        folder: the server's.
        url: of its database.
        data: folder of PostgreSQL, where it is that.
        left: messages of what was done by hand.
    """

    folder: Path
    url: str
    data: Path | None
    ports: tuple[int, int]
    by_hand: list[str] = field(default_factory=list)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def job(self) -> Job:
        return Job.all(self.folder / "jobs")[0]

    @property
    def registry(self) -> Registry:
        return Registry(self.folder / "models", POPULATION)

    def start(self, name: str, *command: object) -> None:
        """A program that ends with the cell."""
        log = (self.folder / f"{name}.log").open("ab")
        words = [sys.executable, "-m", *map(str, command)]
        self.running[name] = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        log.close()

    def start_server(self) -> None:
        self.start("server", "fedrec_server.cli.main", "up", "--root", self.folder)

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
        return next(iter(_processes(b"work", self.job.id.encode())))

    def end(self) -> None:
        """Kill all that was started."""
        for process in self.running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in _processes(str(self.folder).encode()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _processes(*words: bytes) -> Iterator[int]:
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
def world(base: Path, folder: Path, url: str, data: Path | None) -> Iterator[World]:
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
    made = World(folder, url or f"sqlite:///{folder}/devices.db", data, (models, devices))
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


def reached(state: State, job: Job, moment: str) -> bool:
    """Whether the first round is at a moment now."""
    if moment == "publish":
        return job.record().state == "trained"
    with state.read() as connection:
        live = [row for row in cohorts.live(connection) if row.round in (0, 1)]
        if moment == "join":
            return any(row.state == cohorts.FORMING and row.joined for row in live)
        last = stages.latest(connection, [row.id for row in live]).values()
        return any(row.kind == moment and row.open and row.round == 1 for row in last)


# Strikes ---------------------------------------------------------------------------------------------------------


def strike(made: World, cell: Cell, pause: float) -> None:
    """Do to the part what the cell says."""
    pid = made.pid_of(cell.part)
    if cell.how == "SIGSTOP":
        os.kill(pid, signal.SIGSTOP)
        time.sleep(pause)
        os.kill(pid, signal.SIGCONT)
        return
    os.kill(pid, signal.SIGKILL)
    if cell.part == "device":  # the system starts an app again
        made.running["victim"].wait()
        made.start_devices("victim", VICTIM, 1)
    elif cell.part == "server":
        made.running["server"].wait()
        made.by_hand.append("`fedrec-server up` again, which systemd does")
        made.start_server()
    elif cell.part == "database":
        made.by_hand.append("start PostgreSQL again, which systemd does")
        _start_postgresql(made)


def _start_postgresql(made: World) -> None:
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


# What came out ---------------------------------------------------------------------------------------------------


def books(made: World) -> dict[str, Any]:
    """What was kept, once or twice."""
    job, registry = made.job, made.registry
    coordinator = job.run(1) / "coordinator"
    charges = Charges(Task.read(coordinator).privacy, coordinator)  # type: ignore[arg-type]
    with Ledger.open(charges.ledger_folder, read_only=True) as ledger:
        booked = sorted(ledger.charged(charges.account, charges.terms.run))
    rounds = [each for each in rounds_of(job.run(1)) if not each.get("abandoned")]
    own = [v for v in registry.versions() if registry.manifest(v).privacy.get("run") == job.offer(1)]
    charged = [
        Counter(map(tuple, json.loads(path.read_text())["charged"]))
        for path in (made.folder / "devices").glob("device-*.json")
    ]
    return {
        "rounds": [each["round"] for each in rounds],
        "nodes": [each["nodes"] for each in rounds],
        "booked": booked,
        "published": len(own),
        "champion": registry.aliases.champion in own,
        "devices charged": sum(sum(each.values()) for each in charged),
        "devices twice": sum(max(each.values(), default=0) > 1 for each in charged),
        "failed rounds": _failed(job),
    }


def _failed(job: Job) -> int:
    from fedrec_server.jobs.events import read_events

    return sum(each["what"] == "round failed" for each in read_events(job.folder))


def measure(cell: Cell, base: Path, scratch: Path, pause: float) -> dict[str, Any]:
    """One cell."""
    folder = Path(tempfile.mkdtemp(prefix="cell-", dir=scratch)) / "server"
    with ExitStack() as stack:
        url, data = "", None
        if cell.part == "database":
            url, data = stack.enter_context(postgresql(folder.parent / "pg"))
        made = stack.enter_context(world(base, folder, url, data))
        job = made.job
        with open_state(made.url) as state:
            if cell.part != "none":
                wait(lambda: reached(state, job, cell.moment), f"{cell.moment} of {cell.part}", every=0.005)
            started = time.monotonic()
            if cell.part != "none":
                strike(made, cell, pause)
        wait(lambda: job.record().state == "published", f"{cell}: the end", every=0.05)
        seconds = time.monotonic() - started
        time.sleep(5.0)  # devices read how their last session ended
        found = books(made)
    shutil.rmtree(folder.parent, ignore_errors=True)
    once = found["rounds"] == found["booked"] == [1, 2] and found["published"] == 1 and found["champion"]
    sound = once and not found["devices twice"]
    return {"cell": vars(cell), "seconds": seconds, "by hand": made.by_hand, "sound": sound} | found


def _await_the_first_device(made: World) -> None:
    wait(lambda: _database_is_there(made), "the database")
    with open_state(made.url) as state:

        def joined() -> bool:
            with state.read() as connection:
                return any(row.joined for row in cohorts.live(connection))

        wait(joined, "the first device", every=0.05)


def _database_is_there(made: World) -> bool:
    return not made.url.startswith("sqlite") or (made.folder / "devices.db").exists()


def cells(only: str | None) -> list[Cell]:
    """All of them, an undisturbed job first."""
    found = [Cell("none", "-", "-")]
    found += [Cell(part, moment) for part in PARTS[:3] for moment in MOMENTS]
    found += [Cell(part, moment) for part in PARTS[3:] for moment in ("join", "train", "unmask", "publish")]
    found += [Cell(part, "train", "SIGSTOP") for part in PARTS[:3]]
    return [cell for cell in found if only in (None, cell.part) or cell.part == "none"]


HEAD = (
    "| part | moment | how | s to the end | rounds | in the sums | rounds made again | charges of devices | lost "
    "| twice | by hand |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(found: dict[str, Any]) -> str:
    """Of the table."""
    cell = found["cell"]
    lost = "no" if found["rounds"] == found["booked"] == [1, 2] and found["published"] else "**yes**"
    twice = "no" if found["published"] == 1 and not found["devices twice"] else "**yes**"
    hand = "; ".join(found["by hand"]) or "nothing"
    nodes = " and ".join(map(str, found["nodes"]))
    return (
        f"| {cell['part']} | {cell['moment']} | {cell['how']} | {found['seconds']:.0f} | {len(found['rounds'])} "
        f"| {nodes} | {found['failed rounds']} | {found['devices charged']} | {lost} | {twice} | {hand} |"
    )


def main() -> None:
    """Run and print; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--moment", choices=MOMENTS)
    parser.add_argument("--pause", type=float, default=60.0, help="seconds of SIGSTOP")
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    lines = [HEAD]
    print(HEAD, flush=True)
    sound = True
    with tempfile.TemporaryDirectory(prefix="fedrec-kills-") as scratch:
        base = Path(scratch) / "base"
        lay_out(base)
        for cell in cells(arguments.only):
            if arguments.moment not in (None, cell.moment) and cell.part != "none":
                continue
            found = measure(cell, base, Path(scratch), arguments.pause)
            sound = sound and found["sound"]
            lines.append(line(found))
            print(lines[-1], flush=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
