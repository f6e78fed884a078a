"""What a kill costs: every part of a running server and a device, struck at every moment of a round of a job.

    python -m benchmarks.kill_matrix [--only PART] [--pause 60] [--markdown FILE]

Each cell is a server of its own under `fedrec-server up` (model service, device service, job runner) with twelve
devices of the SDK, which train a job of two rounds, five in a cohort, under secure aggregation with distributed
noise. A part is struck once the database says that the moment has come; nothing is done by hand afterwards, except
where the table says so. Then the books are read: the rounds of the run and their charges, versions that the run
published, and what each device was charged. A cell is *sound* when both rounds are there once, charged once,
published once, and no device was charged twice for a round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kill_world import VICTIM, World, lay_out, postgresql, start_postgresql, wait, world
from fedrec.privacy.ledger import Ledger
from fedrec_server.devices.state import cohorts, stages
from fedrec_server.devices.state.database import State, open_state
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.publication import rounds_of
from fedrec_server.rounds.charges import Charges
from fedrec_server.rounds.task import Task

CLOCK = "clock of the server"
PARTS = ("coordinator", "front end", "device", "server", "database", CLOCK)
MOMENTS = ("join", "advertise", "share", "train", "confirm", "unmask", "publish")


@dataclass(frozen=True)
class Cell:
    """What is struck, when, and how."""

    part: str
    moment: str
    how: str = "kill -9"


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
    if cell.part == CLOCK:
        made.set_clock(int(cell.how))
        return
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
        start_postgresql(made)


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
        made = stack.enter_context(world(base, folder, url, data, jumps=cell.part == CLOCK))
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


def cells(only: str | None) -> list[Cell]:
    """All of them, an undisturbed job first."""
    found = [Cell("none", "-", "-")]
    found += [Cell(part, moment) for part in PARTS[:3] for moment in MOMENTS]
    found += [Cell(part, moment) for part in PARTS[3:5] for moment in ("join", "train", "unmask", "publish")]
    found += [Cell(part, "train", "SIGSTOP") for part in PARTS[:3]]
    found += [Cell(CLOCK, moment, jump) for moment in ("join", "train") for jump in ("+3600", "-3600")]
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
