"""`fedrec-server job ...` and `jobs run`: training tasks for devices, kept going over months."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from fedrec_server.cli.answer import Answer, notice, table, warn
from fedrec_server.cli.interrupts import StopRequest
from fedrec_server.cli.options import JsonFlag, Keys, Models, Overrides, Population

TaskFile = Annotated[
    Path,
    typer.Argument(metavar="TASK", help="TOML file: a task as `fedrec config task` writes it, and [job]."),
]
JobArgument = Annotated[
    str, typer.Argument(metavar="JOB", help="Its id, or the beginning of it.", show_default=False)
]
Root = Annotated[Path, typer.Option("--root", help="Folder of all jobs.")]
Database = Annotated[
    str,
    typer.Option("--database", help="sqlite:///FILE or postgresql://...; shared with the device service."),
]
HERE, SHARED = Path("jobs"), "sqlite:///devices.db"


def create(
    task: TaskFile,
    population: Population,
    begin: Annotated[bool, typer.Option("--start", help="Start it at once.")] = False,
    overrides: Overrides = None,
    registry: Models = Path("models"),
    keys: Keys = Path("keys"),
    root: Root = HERE,
    json_: JsonFlag = False,
) -> Answer:
    """Make a job of a task; its plan is made once, to see whether it keeps the target."""
    from fedrec_server.jobs.preparation import new_job
    from fedrec_server.jobs.specification import load_job

    what = load_job(task, overrides or ())
    warn(what.warnings())
    job = new_job(root, what, population, registry=registry, keys=keys)
    if begin:
        job.start()
    return _told(job, f"job {job.id} of {escape(population)}")


def list_(root: Root = HERE, json_: JsonFlag = False) -> Answer:
    """All jobs: whose, where they stand, which run, and the last version they published."""
    from fedrec_server.jobs.job import Job

    rows: list[dict[str, Any]] = []
    for job in Job.all(root):
        record = job.record()
        rows.append(
            {"job": job.id, "population": record.population, "state": record.state, "since": record.since}
            | {"run": record.run, "version": record.version, "error": record.error}
        )
    cells = [
        [
            row["job"],
            row["population"],
            row["state"],
            _time(row["since"]),
            str(row["run"]),
            str(row["version"] or "-"),
        ]
        for row in rows
    ]
    columns = ["job", "population", "state", "since", "run", "version"]
    return Answer({"jobs": rows}, [table("", columns, cells, left=4)])


def start(name: JobArgument, root: Root = HERE, json_: JsonFlag = False) -> Answer:
    """Let a job begin; `fedrec-server jobs run` takes it up within a second."""
    from fedrec_server.jobs.job import Job

    job = Job.find(root, name)
    job.start()
    return _told(job)


def pause(name: JobArgument, root: Root = HERE, json_: JsonFlag = False) -> Answer:
    """Ask no devices until `resume`; those of the cohort at work are told within seconds."""
    from fedrec_server.jobs.job import Job

    job = Job.find(root, name)
    job.pause()
    return _told(job)


def resume(name: JobArgument, root: Root = HERE, json_: JsonFlag = False) -> Answer:
    """Continue after a pause or a failure, after the last finished round."""
    from fedrec_server.jobs.job import Job

    job = Job.find(root, name)
    job.resume()
    return _told(job)


def abort(name: JobArgument, root: Root = HERE, json_: JsonFlag = False) -> Answer:
    """End a job for good; what was trained stays in its folder."""
    from fedrec_server.jobs.job import Job

    job = Job.find(root, name)
    job.abort()
    return _told(job)


def publish(name: JobArgument, root: Root = HERE, json_: JsonFlag = False) -> Answer:
    """Publish what a job has trained, where its worker could not; again, nothing changes."""
    from fedrec_server.jobs import work
    from fedrec_server.jobs.job import Job

    job = Job.find(root, name)
    found = work.publish(job)
    lines = [f"version {found['version']}: {'champion' if found['promoted'] else 'published, not promoted'}"]
    lines += [f"gate {escape(why)}" for why in found["gates"]]
    return Answer({"job": job.id} | found, lines)


def status(
    name: JobArgument, root: Root = HERE, database: Database = SHARED, json_: JsonFlag = False
) -> Answer:
    """State, round, stage, the devices that are here, epsilon, and the last error with what to do."""
    from fedrec_server.devices.state.database import open_state
    from fedrec_server.jobs.job import Job
    from fedrec_server.jobs.overview import overview

    job = Job.find(root, name)
    if database == SHARED and not Path("devices.db").exists():
        found = overview(job)  # no device service has been here: looking makes no database
    else:
        with open_state(database) as state:
            found = overview(job, state)
    return Answer(found, [escape(line) for line in _lines(found)])


def work(
    name: JobArgument, root: Root = HERE, database: Database = SHARED, json_: JsonFlag = False
) -> Answer:
    """Work on one job until there is nothing to do; `fedrec-server jobs run` starts this."""
    from fedrec_server.devices.state.database import open_state
    from fedrec_server.jobs.database_offers import DatabaseOffers
    from fedrec_server.jobs.job import Job
    from fedrec_server.jobs.work import Worker, orphaned

    parent, job = os.getppid(), Job.find(root, name)
    with (
        StopRequest("stopping: the devices of the cohort are told") as stop,
        open_state(database) as state,
    ):
        ended = Worker(job, DatabaseOffers(state), stop=lambda: stop() or orphaned(parent)).work()
    return Answer({"job": job.id, "state": ended}, [f"job {job.id[:8]} is {ended}"])


def run(root: Root = HERE, database: Database = SHARED, json_: JsonFlag = False) -> Answer:
    """Keep all jobs going until Ctrl-C: a process for each, started again when it dies."""
    from fedrec.core.files import private_folder
    from fedrec_server.devices.state.database import open_state
    from fedrec_server.jobs.runner import Runner

    private_folder(root)
    open_state(database).close()

    def command(job: str) -> list[str]:
        words = [sys.executable, "-m", "fedrec_server.cli.main", "job", "work", job]
        return [*words, "--root", str(root.absolute()), "--database", database]

    with StopRequest("stopping: workers end, one after the other") as stop:
        notice(f"running the jobs of {root}; Ctrl-C ends it")
        Runner(root, command).run(stop, notice)
    return Answer({"stopped": True}, ["stopped"])


def _told(job: Any, view: str | None = None) -> Answer:
    record = job.record()
    facts = {"job": job.id, "population": record.population, "state": record.state, "run": record.run}
    return Answer(facts, [f"{view or f'job {job.id[:8]}'} is {record.state}"])


def _lines(found: dict[str, Any]) -> list[str]:
    rounds, cohort, epsilon = found["rounds"], found["cohort"], found["epsilon"]
    lines = [f"job {found['job']} of {found['population']} is {found['state']} since {_time(found['since'])}"]
    if found["state"] in ("running", "trained") and not found["worked_on"]:
        lines.append("no process works on it: is `fedrec-server jobs run` running?")
    if found["run"]:
        failed = f", {rounds['failed']} attempts failed" if rounds["failed"] else ""
        lines.append(f"run {found['run']}: {rounds['done']} of {rounds['of']} rounds{failed}")
    if cohort:
        what = "forming" if cohort["stage"] is None else f"{cohort['stage']}, {cohort['answered']} answered"
        lines.append(
            f"round {cohort['round']}: {cohort['devices']} devices of {cohort['target']} here, {what}, "
            f"{cohort['seconds_left']:.0f} s left"
        )
    if epsilon:
        lines.append(
            f"a device has spent epsilon {epsilon['spent']:.3g} of {epsilon['planned']:.3g} at most "
            f"(delta {epsilon['delta']:.1e})"
        )
    if found["version"]:
        lines.append(f"published last: version {found['version']}")
    if found["next_start"]:
        lines.append(f"next run: {_time(found['next_start'])}")
    if found["error"]:
        lines.append(f"last error: {found['error']}")
    return lines


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
