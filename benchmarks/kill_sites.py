"""What a kill costs in a federation of sites: SuperLink, gateway, coordinator and a site, struck during a round.

    python -m benchmarks.kill_sites [--only PART] [--moment STAGE] [--markdown FILE]

Each cell is a server under `fedrec-server up` with SuperLink and gateway, and three sites that `fedrec-server node
start` keeps running; `sites run` trains two rounds of matrix factorisation under secure aggregation with distributed
noise. A part is struck in the second round, once the promises that a site keeps on its disk say that the stage has
come. `sites run` that ended is called again, which the table counts as done by hand. Then the books are read as in
`benchmarks.kill_matrix`.
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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.kill_world import processes, wait
from fedrec.core.processes import free_ports
from fedrec.privacy.ledger import Ledger
from fedrec.secagg.state import Stage
from fedrec_server.rounds.charges import Charges
from fedrec_server.rounds.task import Task
from fedrec_server.sites.run import read_run
from fedrec_server.supervision.supervisor import read_parts

CLI = (sys.executable, "-m", "fedrec_server.cli.main")
SITES = ("amsterdam", "berlin", "cork")
ITEMS = [f"item-{k:02d}" for k in range(12)]
USERS = 4
PARTS = ("superlink", "gateway", "coordinator", "site")
MOMENTS = {"share": Stage.SHARE, "train": Stage.MASK, "unmask": Stage.UNMASK}
PATIENT_SECONDS = 600.0
TASK = """
name = "struck"
model = {kind = "mf", embedding_size = 4, learning_rate = 0.1}
federation = {rounds = 2, deadline_seconds = 40, stage_seconds = 40}
privacy = {unit = "user", trust = "distributed", epsilon = 1000.0, delta = 1e-6, force = true}
"""


@dataclass
class Federation:
    """A server and its sites, running.

    Attributes:
        folder: of everything.
        running: processes that were started here.
        by_hand: what was done after the strike.
    """

    folder: Path
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    by_hand: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "server" / "sites"

    def call(self, *words: object) -> dict[str, Any]:
        """A command's answer."""
        done = subprocess.run(
            [*CLI, *map(str, words), "--json"],
            capture_output=True,
            text=True,
            timeout=PATIENT_SECONDS,
            check=True,
        )
        return dict(json.loads(done.stdout))

    def keep(self, name: str, *words: object) -> None:
        """A command that runs."""
        log = (self.folder / f"{name}.log").open("ab")
        command = [*CLI, *map(str, words)]
        self.running[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        log.close()

    def run(self) -> None:
        self.keep("run", "sites", "run", "--root", self.root)

    def online(self) -> bool:
        """Whether all sites are."""
        with suppress(subprocess.SubprocessError):
            found = self.call("node", "list", "--root", self.root)["sites"]
            return [row["state"] for row in found] == ["online"] * len(SITES)
        return False

    def pid_of(self, part: str) -> int:
        """Of the process that does the work of a part."""
        if part == "site":
            site = str(self.folder / "berlin").encode()
            return next(processes(b"flower-supernode", site))
        parts = read_parts(self.folder / "server")
        if part != "coordinator":
            return int(parts[part]["pid"])
        started = set(below(int(parts["superlink"]["pid"])))
        return next(pid for pid in processes(b"serverapp") if pid in started)

    def end(self) -> None:
        """Kill all that was started."""
        for process in self.running.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for _ in range(3):  # what was about to start another one has gone after the first time
            for pid in processes(str(self.folder).encode()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)


def below(pid: int) -> Iterator[int]:
    """All descendants of a process."""
    for entry in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, entry.read_text().split()):
                yield child
                yield from below(child)


@contextmanager
def federation(folder: Path) -> Iterator[Federation]:
    """Server and sites, all online."""
    made = Federation(folder)
    server = folder / "server"
    server.mkdir(parents=True)
    gateway, superlink = free_ports(2)
    (server / "server.toml").write_text(
        "model_service = {enabled = false}\ndevice_service = {enabled = false}\njobs = {enabled = false}\n"
        f"[sites]\nenabled = true\ngateway_port = {gateway}\nsuperlink_port = {superlink}\n"
    )
    (folder / "task.toml").write_text(TASK)
    (folder / "items.txt").write_text("\n".join(ITEMS))
    try:
        made.keep("server", "up", "--root", server)
        wait((made.root / "sites.json").exists, "the server")
        words = ("--items", folder / "items.txt", "--users", USERS * len(SITES), "--root", made.root)
        made.call("sites", "task", folder / "task.toml", *words)
        wait(lambda: _answers(made), "SuperLink", every=1.0)
        for number, name in enumerate(SITES):
            _enrol(made, name, number)
        wait(made.online, "the sites", every=1.0)
        yield made
    finally:
        made.end()


def _answers(made: Federation) -> bool:
    with suppress(subprocess.SubprocessError):
        made.call("node", "list", "--root", made.root)
        return True
    return False


def _enrol(made: Federation, name: str, number: int) -> None:
    own = made.folder / name
    made.call("node", "enrol", own, "--name", name, "--users", USERS)
    package = made.folder / f"{name}.package.json"
    made.call("node", "admit", own / "enrolment.json", "--out", package, "--root", made.root)
    rows = [f"{name}{u},{ITEMS[(number + 3 * u + k) % len(ITEMS)]}" for u in range(USERS) for k in range(3)]
    (own / "plays.csv").write_text("user,item\n" + "\n".join(rows) + "\n")
    made.keep(name, "node", "start", own, package, "--data", own / "plays.csv")


def measure(part: str, moment: str, folder: Path) -> dict[str, Any]:
    """One cell."""
    with federation(folder) as made:
        coordinator = read_run(made.root) / "coordinator"
        made.run()
        wait(lambda: len(rounds_of(coordinator)) >= 1, "the first round", PATIENT_SECONDS, every=0.1)
        first = max(_promise(made, site)[0] for site in SITES)
        if part != "none":
            wait(lambda: _reached(made, first, MOMENTS[moment]), f"{moment} of {part}", every=0.01)
            os.kill(made.pid_of(part), signal.SIGKILL)
        started = time.monotonic()
        _await_the_end(made)
        seconds = time.monotonic() - started
        return {"part": part, "moment": moment, "seconds": seconds, "by hand": made.by_hand} | _books(
            coordinator
        )


def _await_the_end(made: Federation) -> None:
    until = time.monotonic() + PATIENT_SECONDS
    while (status := made.running["run"].wait(PATIENT_SECONDS)) != 0:
        if time.monotonic() > until:
            raise TimeoutError((made.folder / "run.log").read_text()[-2000:])
        made.by_hand.append(f"`sites run` again, after status {status}")
        made.run()


def _promise(made: Federation, site: str) -> tuple[int, int]:
    """Attempt and stage that a site has promised last."""
    for path in (made.folder / site).rglob("secagg.json"):
        plain = json.loads(path.read_text())
        return int(plain["attempt"]), int(plain["stage"])
    return 0, 0


def _reached(made: Federation, first: int, stage: Stage) -> bool:
    return any(attempt > first and at >= stage for attempt, at in (_promise(made, site) for site in SITES))


def rounds_of(coordinator: Path) -> list[dict[str, Any]]:
    """Rounds that count."""
    path = coordinator / "events.jsonl"
    if not path.exists():
        return []
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [each for each in found if not each.get("abandoned")]


def _books(coordinator: Path) -> dict[str, Any]:
    charges = Charges(Task.read(coordinator).privacy, coordinator)  # type: ignore[arg-type]
    with Ledger.open(charges.ledger_folder, read_only=True) as ledger:
        booked = sorted(ledger.charged(charges.account, charges.terms.run))
    rounds = rounds_of(coordinator)
    return {
        "rounds": [each["round"] for each in rounds],
        "lost": [each["round"] for each in rounds if each.get("lost")],
        "nodes": [each["nodes"] for each in rounds if not each.get("lost")],
        "booked": booked,
    }


HEAD = (
    "| part | moment | s to the end | in the sums | lost | twice | by hand |\n|---|---|---|---|---|---|---|"
)


def line(found: dict[str, Any]) -> str:
    """Of the table."""
    once = found["rounds"] == found["booked"] == [1, 2]
    lost = f"the sum of round {found['lost'][0]}" if found["lost"] else "no"
    hand = "; ".join(found["by hand"]) or "nothing"
    nodes = " and ".join(map(str, found["nodes"]))
    return (
        f"| {found['part']} | {found['moment']} | {found['seconds']:.0f} | {nodes} | {lost} "
        f"| {'no' if once else '**yes**'} | {hand} |"
    )


def main() -> None:
    """Run and print; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--moment", choices=tuple(MOMENTS))
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    cells = [("none", "-"), *((part, moment) for part in PARTS for moment in MOMENTS)]
    lines = [HEAD]
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory(prefix="fedrec-sites-") as scratch:
        for number, (part, moment) in enumerate(cells):
            if part == "none" or (arguments.only in (None, part) and arguments.moment in (None, moment)):
                folder = Path(scratch) / f"cell-{number}"
                lines.append(line(measure(part, moment, folder)))
                print(lines[-1], flush=True)
                shutil.rmtree(folder, ignore_errors=True)
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
