"""Kills a job's process before each of its durable steps in turn, and lets a fresh one finish; prints what came out.

Run as a program of its own, so that it can fork: `python job_kills.py FOLDER [overlapping]`; prints one JSON line per
kill, the last one that of the undisturbed job.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from job_helpers import MF, LocalOffers, Operator, model_digest, specification
from wire_helpers import POPULATION

from fedrec.privacy.ledger import Ledger
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.publication import rounds_of
from fedrec_server.jobs.specification import JobSpecification
from fedrec_server.jobs.work import Worker
from fedrec_server.registry import Registry
from fedrec_server.rounds.charges import Charges
from fedrec_server.rounds.task import Task

#: What puts a durable write in its place, or takes one away.
STEPS = ((Path, "replace"), (Path, "rename"), (Path, "unlink"))


class Killer:
    """Ends this process, as kill -9 does, before the step with a number."""

    def __init__(self, at: int) -> None:
        self._left = at
        for owner, name in STEPS:
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **more: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args, **more)

        return counted


def forked(work: Callable[[], None]) -> int:
    """The status of a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def work(folder: Path, at: int = 0) -> None:
    """Start the job if that was not done, and work on it."""
    if at:
        Killer(at)
    job = Job.all(folder / "jobs")[0]
    if not job.record().run:
        job.start()
    assert Worker(job, LocalOffers(others=bool(job.specification.job.staleness))).work() == "published"


def outcome(folder: Path) -> dict[str, Any]:
    """What may not depend on a kill."""
    job = Job.all(folder / "jobs")[0]
    registry = Registry(folder / "models", POPULATION)
    coordinator = job.run(1) / "coordinator"
    charges = Charges(Task.read(coordinator).privacy, coordinator)  # type: ignore[arg-type]
    with Ledger.open(charges.ledger_folder, read_only=True) as ledger:
        booked = sorted(ledger.charged(charges.account, charges.terms.run))
    return {
        "state": job.record().state,
        "versions": registry.versions(),
        "champion": registry.aliases.champion,
        "of the run": [
            v for v in registry.versions() if registry.manifest(v).privacy.get("run") == job.offer(1)
        ],
        "rounds": [each["round"] for each in rounds_of(job.run(1))],
        "booked": booked,
        "model": model_digest(job),
        "left": [path.name for path in (*job.folder.glob("*.tmp"), *(job.folder / "runs").glob("*.tmp"))],
    }


def main(root: Path, what: JobSpecification, every: int) -> None:
    base, place = root / "base", root / "place"
    operator = Operator.make(place)
    operator.job(what, start=False)
    place.rename(base)
    at = 1
    while True:
        shutil.copytree(base, place)
        status = forked(partial(work, place, at))
        again = forked(partial(work, place)) if status == -signal.SIGKILL else 0
        print(json.dumps({"at": at, "status": status, "again": again} | outcome(place)), flush=True)
        shutil.rmtree(place)
        if status != -signal.SIGKILL:
            return
        at += every


if __name__ == "__main__":
    OVERLAPPING = specification(MF, staleness=1)
    main(Path(sys.argv[1]), *((OVERLAPPING, 9) if sys.argv[2:] else (specification(), 1)))
