"""Jobs over the device service: several at once over one database, workers that die, schedules, what is shown."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import ask_operator, operate
from device_helpers import front_end
from job_helpers import EASE, ITEMS, MF, LocalOffers, Operator, in_thread, model_digest, specification
from job_population import Population
from wire_helpers import POPULATION

from fedrec.core.errors import ServiceError
from fedrec.core.files import read_arrays
from fedrec_server.devices.state import jobs as rows
from fedrec_server.devices.state.database import State, open_state
from fedrec_server.jobs.database_offers import DatabaseOffers
from fedrec_server.jobs.events import read_events
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.overview import overview
from fedrec_server.jobs.publication import rounds_of
from fedrec_server.jobs.runner import Runner
from fedrec_server.jobs.work import Worker


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator.make(tmp_path)


@pytest.fixture
def state(operator: Operator) -> Iterator[State]:
    operator.jobs.mkdir(mode=0o700)
    with open_state(f"sqlite:///{operator.jobs}/devices.db") as made:
        yield made


def wait(holds: Callable[[], Any], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.05)


def test_two_jobs_at_once_over_one_database(operator: Operator, state: State) -> None:
    one, other = operator.job(), operator.job(specification(MF, promote=False))
    found: dict[str, str] = {}

    def work(job: Job) -> None:
        found[job.id] = Worker(job, DatabaseOffers(state)).work()

    with front_end(state) as running, Population(running, 9) as crowd:
        for thread in [in_thread(lambda job=job: work(job)) for job in (one, other)]:
            thread.join(120)
    assert found == {one.id: "published", other.id: "published"}
    assert operator.registry.aliases.champion == one.record().version
    assert sorted(operator.registry.versions()) == [1, 2, 3]
    assert {job for job, _ in crowd.ends} == {one.offer(1), other.offer(1)}
    assert [4 <= each["nodes"] <= 6 for each in rounds_of(one.run(1))] == [True, True]
    with state.read() as connection:
        assert not rows.running(connection)


def test_a_pause_reaches_devices_and_front_ends(operator: Operator, state: State) -> None:
    job, found = operator.job(), []
    with front_end(state) as running, Population(running, 2) as crowd:  # too few for a cohort
        thread = in_thread(lambda: found.append(Worker(job, DatabaseOffers(state)).work()))
        wait(lambda: (overview(job, state)["cohort"] or {}).get("devices") == 2)
        shown = overview(job, state)
        assert shown["cohort"]["state"] == "forming" and shown["worked_on"]
        job.pause()
        thread.join(30)
        wait(lambda: (job.offer(1), "aborted") in crowd.ends)
        assert found == ["paused"]
        with state.read() as connection:
            row = rows.find(connection, job.offer(1))
            assert row is not None and row.state == "paused" and not rows.running(connection)
        assert overview(job, state)["cohort"] is None


def test_a_database_that_is_gone_is_one_line(operator: Operator, state: State) -> None:
    job = operator.job()
    with state.write() as connection:
        connection.exec_driver_sql("DROP TABLE cohorts")
    with pytest.raises(ServiceError, match="database cannot be used"):
        Worker(job, DatabaseOffers(state)).work()
    assert job.record().state == "running" and "database" in job.record().error


@pytest.mark.slow
def test_the_runner_outlives_its_workers(operator: Operator, state: State) -> None:
    job, other = operator.job(specification(MF)), operator.job(specification(MF, promote=False))
    words = [sys.executable, "-m", "fedrec_server.cli.main", "jobs", "run", "--root", str(operator.jobs)]
    words += ["--database", f"sqlite:///{operator.jobs}/devices.db"]
    with front_end(state) as running, Population(running, 8):
        runner = subprocess.Popen(words, stderr=subprocess.DEVNULL)
        try:
            wait(lambda: len(rounds_of(job.run(1))) >= 2)
            struck = _worker_of(job)
            os.kill(struck, signal.SIGKILL)
            wait(lambda: (job.is_worked and _worker_of(job) != struck) or job.record().state == "published")
            wait(lambda: {job.record().state, other.record().state} == {"published"}, 180)
        finally:
            runner.send_signal(signal.SIGTERM)
            assert runner.wait(60) == 0
    for each in (job, other):
        assert [one["round"] for one in rounds_of(each.run(1))] == [1, 2, 3, 4, 5, 6]
    assert operator.registry.versions() == [1, 2, 3]
    assert any(each["what"] == "worker died" for each in read_events(job.folder))


def _worker_of(job: Job) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"work" in words and job.id.encode() in words:
                return int(entry.name)
    return 0


# Schedules, with a clock of the test ------------------------------------------------------------------------

DAY = 86_400.0


class Clock:
    """Seconds since 1970 that move when they are told to."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def quiet(job: str) -> list[str]:
    """A worker that finds nothing to do."""
    return [sys.executable, "-c", "pass"]


def test_a_schedule_starts_the_next_run_at_its_time_from_the_last_model(tmp_path: Path) -> None:
    clock = Clock()
    operator = Operator.make(tmp_path, clock)
    job, world = operator.job(specification(MF, schedule="every 7 d")), LocalOffers()
    Worker(job, world).work()
    first = job.record()
    assert first.state == "published" and first.next_start == first.started + 7 * DAY
    runner = Runner(operator.jobs, quiet, clock=clock)
    runner.look()
    clock.now += 6.9 * DAY
    runner.look()
    assert job.record() == first
    clock.now += 0.2 * DAY
    runner.look()
    runner.end()
    second = job.record()
    assert (second.state, second.run, second.next_start) == ("running", 2, None)
    Worker(job, world).work()
    assert job.record().version == 3 == operator.registry.aliases.champion
    assert job.offer(1) != job.offer(2) and world.offers[job.offer(2)] == "published"
    prepared = [each for each in read_events(job.folder) if each["what"] == "prepared"]
    assert [each["continues"] for each in prepared] == [False, True]
    assert json.loads(world.documents[job.offer(2)])["model_version"] == 2
    assert model_digest(job, 1) != model_digest(job, 2)


def test_a_run_that_continues_begins_with_the_bytes_of_the_last_model(operator: Operator) -> None:
    from fedrec_server.jobs.preparation import prepared

    job = operator.job(specification(MF, schedule="continuous"))
    Worker(job, LocalOffers()).work()
    before = job.record()
    assert before.next_start is not None and before.next_start <= time.time()
    job.next_run(before)
    begun, header = read_arrays(prepared(job, 2) / "coordinator" / "checkpoint.safetensors")
    last = read_arrays(job.run(1) / "coordinator" / "model.safetensors")[0]
    assert header["round"] == 0 and last
    assert all(begun[f"shared/{name}"].tobytes() == values.tobytes() for name, values in last.items())


def test_a_one_round_model_begins_anew_and_other_items_do_too(operator: Operator) -> None:
    job, world = operator.job(specification(schedule="continuous")), LocalOffers()
    Worker(job, world).work()
    job.next_run(job.record())
    Worker(job, world).work()
    prepared = [each["continues"] for each in read_events(job.folder) if each["what"] == "prepared"]
    assert prepared == [False, False] and job.record().version == 3
    assert len(_items(operator)) == ITEMS


def _items(operator: Operator) -> list[str]:
    registry = operator.registry
    return list(registry.open(registry.aliases.champion).items.ids)


# Workers that die -------------------------------------------------------------------------------------------


def test_a_worker_that_dies_is_started_again_after_a_pause_that_grows(operator: Operator) -> None:
    job, now = operator.job(), [0.0]

    def dying(job: str) -> list[str]:
        return [sys.executable, "-c", "raise SystemExit(9)"]

    runner = Runner(operator.jobs, dying, steady=lambda: now[0])
    starts = []
    for _ in range(4):
        runner.look()
        starts.append(now[0])
        wait(lambda: not runner.working)
        runner.look()  # sees that it is gone, and waits
        assert not runner.working
        died = [each["seconds"] for each in read_events(job.folder) if each["what"] == "worker died"]
        now[0] += died[-1]
    assert died == [1.0, 2.0, 4.0, 8.0] and starts == [0.0, 1.0, 3.0, 7.0]
    runner.end()


def test_a_broken_job_stops_no_other(operator: Operator) -> None:
    broken, good, told = operator.job(), operator.job(), []
    (broken.folder / "job.json").write_text("{")
    runner = Runner(operator.jobs, lambda job: [sys.executable, "-c", "import time; time.sleep(60)"])
    runner.look(told.append)
    assert list(runner.working) == [good.id]
    runner.end()
    assert not runner.working


def test_what_has_nothing_to_do_has_no_process(operator: Operator) -> None:
    waiting, started = operator.job(start=False), operator.job()
    runner = Runner(operator.jobs, lambda job: [sys.executable, "-c", "import time; time.sleep(60)"])
    runner.look()
    assert list(runner.working) == [started.id]
    with started.worked():
        runner.end()
        runner.look()
        assert not runner.working  # a worker of an earlier runner has it
    waiting.start()
    runner.look()
    assert set(runner.working) == {waiting.id, started.id}
    runner.end()


# The command line -------------------------------------------------------------------------------------------


def test_the_commands_of_a_job(
    operator: Operator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = tmp_path / "task.toml"
    task.write_text(_toml(EASE))
    places = ("--registry", operator.models, "--keys", operator.keys, "--root", operator.jobs)
    code, made = ask_operator(capsys, "job", "create", task, "--population", POPULATION, *places)
    assert code == 0 and made["state"] == "created"
    name, root = made["job"], ("--root", operator.jobs)
    for words, expected in (
        (("start",), "running"),
        (("start",), "running"),
        (("pause",), "paused"),
        (("resume",), "running"),
    ):
        code, found = ask_operator(capsys, "job", *words, name[:12], *root)
        assert (code, found["state"]) == (0, expected)
    Worker(Job.find(operator.jobs, name), LocalOffers()).work()
    code, found = ask_operator(capsys, "job", "status", name, *root)
    assert code == 0 and found["version"] == 2 and found["rounds"] == {"done": 2, "of": 2, "failed": 0}
    assert 0 < found["epsilon"]["spent"] <= found["epsilon"]["planned"]
    assert operate("job", "status", name, *root) == 0
    text = capsys.readouterr().out
    assert "run 1: 2 of 2 rounds" in text and "published last: version 2" in text
    code, found = ask_operator(capsys, "job", "publish", name, *root)
    assert code == 0 and found["promoted"]
    code, found = ask_operator(capsys, "job", "list", *root)
    assert [row["state"] for row in found["jobs"]] == ["published"]
    code, found = ask_operator(capsys, "job", "pause", name, *root)
    assert code == 6 and "is published" in found["error"]
    code, found = ask_operator(capsys, "job", "status", "ff", *root)
    assert code == 6 and "no job" in found["error"]
    code, found = ask_operator(capsys, "job", "abort", name, *root)
    assert (code, found["state"]) == (0, "aborted")


def _toml(plain: dict[str, Any], before: str = "") -> str:
    values = "".join(f"{k} = {json.dumps(v)}\n" for k, v in plain.items() if not isinstance(v, dict))
    parts = (_toml(v, f"{before}{k}.") for k, v in plain.items() if isinstance(v, dict))
    return (f"[{before[:-1]}]\n" if before else "") + values + "".join(parts)
