"""Buffered asynchronous aggregation for models that learn by gradients.

FedBuff (Nguyen et al. 2022, arXiv 2106.06639): up to S + 1 cohorts are at work at once, each on the model that it was
given. The buffer is a cohort's sum under secure aggregation. A sum that was asked for s versions ago is applied with
weight 1 / sqrt(1 + s); one with s > S is dropped.

What is accounted does not change: each cohort is one release, of the sensitivity of one update over its own members,
charged whether it is applied or dropped; weights come after the noise. Cohorts form one after the other in the order
of their rounds, so a device is in one at a time and keeps the distance between its rounds. The model depends on the
order in which cohorts are complete, and on nothing else.

    RUN/coordinator/flights/<round>/     attempts and the noised sum of a round that is at work, and the version of
                                         its model; gone once the round counts

Killed, a coordinator applies the sums that it finds there, and asks the rounds without one again of other devices.
Out of scope: one round at a time (`coordinator`).
"""

from __future__ import annotations

import json
import math
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from fedrec.core.errors import AggregationAborted, ConfigError, PrivacyRefused, RoundAbandoned
from fedrec.core.files import sync_folder, write_json
from fedrec.core.messages import Exchange, Request
from fedrec.core.updates import UpdateSum
from fedrec.privacy.private_files import make_private
from fedrec.rounds.chain import ServerRound
from fedrec_server.rounds._checkpoints import RECORDS, Checkpoints
from fedrec_server.rounds._cohort_collector import CohortCollector
from fedrec_server.rounds._collectors import Answers, Members
from fedrec_server.rounds._make_collector import make_collector
from fedrec_server.rounds._membership import Attendance
from fedrec_server.rounds.charges import Charges
from fedrec_server.rounds.cohorts import Cohort, Cohorts, CohortWanted, Devices, Ending
from fedrec_server.rounds.coordinator import Coordinator, Event, Outcome, question_of
from fedrec_server.rounds.task import Task

FLIGHTS, _VERSION = "flights", "version.json"
_LOOK_SECONDS = 0.1


@dataclass
class _Flight:
    """A round that is at work.

    Attributes:
        number: of the round.
        version: of the model that its devices were given: how many sums had counted then.
        turn: the chain in that round.
        folder: of the round.
        started: by `time.perf_counter`.
        answers, error: once it is complete.
    """

    number: int
    version: int
    turn: ServerRound
    folder: Path
    started: float
    answers: Answers | None = None
    error: BaseException | None = None


class AsynchronousCoordinator(Coordinator):
    """Runs the rounds of a task, several at once; see the module's text."""

    def begin(self, folder: Path, members: Members, devices: Devices, staleness: int) -> None:
        """Say how rounds overlap, before `run`.

        Args:
            folder: the coordinator's.
            members: of the task.
            devices: of the job.
            staleness: S.

        Raises:
            ConfigError: a model or a chain for which the order of rounds counts, or sites, which answer one round at
                a time.
        """
        _expect_independent(self, devices)
        self._folder, self._staleness, self._members = folder / FLIGHTS, staleness, members
        self._turns = _Turns(devices.cohorts)
        self._devices = replace(devices, cohorts=self._turns)
        self._flights: dict[int, _Flight] = {}
        self._complete: queue.Queue[_Flight] = queue.Queue()
        self._threads: list[threading.Thread] = []
        self._ending, self._failed = threading.Event(), False
        self._counted = _counted_rounds(folder)
        for path in self._folder.glob("*"):
            if int(path.name) in self._counted:
                shutil.rmtree(path)

    def run(self) -> Outcome:
        """Run all rounds that are left; see `Coordinator.run`."""
        try:
            return super().run()
        finally:
            self._land()

    def _land(self) -> None:
        """Let go of all rounds that are at work."""
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _round(self) -> None:
        """Keep S + 1 rounds at work, and let the next complete one count."""
        self._fill()
        while True:
            try:
                self._take(self._complete.get(timeout=_LOOK_SECONDS))
                return
            except queue.Empty:
                if self._stop():
                    break
        # What only has to be opened is opened, and counts.
        self._land()
        while not self._complete.empty():
            self._take(self._complete.get())

    def _take(self, flight: _Flight) -> None:
        del self._flights[flight.number]
        if flight.error is not None:
            self._missed(flight, flight.error)
        else:
            self._failed = False
            self._count(flight)

    # Rounds at work --------------------------------------------------------------------------------------

    def _fill(self) -> None:
        """After a round that failed no other begins until those at work are over."""
        rest = [r for r in range(1, self._last_round() + 1) if r not in self._counted | self._flights.keys()]
        room = 0 if self._failed or self._stop() else self._staleness + 1 - len(self._flights)
        for number in rest[: max(room, 0)]:
            self._launch(number)

    def _launch(self, number: int) -> None:
        folder = self._folder / str(number)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        flight = _Flight(number, self._progress.round, self._turn(number), folder, time.perf_counter())
        collector = make_collector(
            self.task, self._exchange, self._members, folder, devices=self._devices, stop=self._is_over
        )
        request = Request(
            "train", number, self._progress.phase, self._shared, {"persist": True} | flight.turn.announced
        )
        question = question_of(request, flight.turn)
        assert isinstance(collector, CohortCollector)
        if collector.keeps(question):
            flight.version = int(json.loads((folder / _VERSION).read_text())["version"])
        else:
            write_json(folder / _VERSION, {"version": flight.version})
            sync_folder(self._folder)
        ticket = self._turns.ticket()

        def ask() -> None:
            with self._turns.held(ticket):
                try:
                    flight.answers = collector.ask(question)
                except BaseException as error:
                    flight.error = error
            self._complete.put(flight)

        self._flights[number] = flight
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(threading.Thread(target=ask, name=f"round {number}", daemon=True))
        self._threads[-1].start()

    def _is_over(self) -> bool:
        return self._ending.is_set() or self._stop()

    # Rounds that are complete ----------------------------------------------------------------------------

    def _count(self, flight: _Flight) -> None:
        """Apply a sum with its weight, or drop it; the round counts either way."""
        assert flight.answers is not None
        answers, turn, progress = flight.answers, flight.turn, self._progress
        record: Event = {"phase": progress.phase, "round": flight.number} | {
            "nodes": answers.nodes,
            "failures": answers.failures,
        }
        kept = answers.released
        try:
            total, _, facts = turn.finish(
                turn.combine(answers.values) if kept is None else turn.released(kept)
            )
        except PrivacyRefused as error:
            self._missed(flight, error)
            return
        stale = progress.round - flight.version
        applied = stale <= self._staleness and bool(total.users)
        if applied:
            self._apply(weighted(total, stale), turn.context.layout)
        progress.round, progress.abandoned = progress.round + 1, 0
        record |= answers.facts | facts | self._sizes(turn, answers)
        record |= {"staleness": stale, "applied": applied, "seconds": time.perf_counter() - flight.started}
        progress.totals["seconds"] += record["seconds"]
        progress.totals["bytes_up"] += record["bytes_up_per_user"]
        progress.totals["bytes_down"] += record["bytes_down_per_user"]
        self._checkpoints.save_round(self._standing, record, checkpoint=True)
        self._counted.add(flight.number)
        shutil.rmtree(flight.folder)

    def _missed(self, flight: _Flight, error: BaseException) -> None:
        """A round without a sum is asked again; once nothing else is at work the run rests.

        Raises:
            RoundAbandoned: nothing else is at work.
        """
        if not isinstance(error, AggregationAborted | PrivacyRefused):
            raise error
        if self._stop():
            return
        self._failed = True
        record: Event = {"phase": self._progress.phase, "round": flight.number, "nodes": 0}
        record |= {"failures": {"sum": str(error)}, "abandoned": True}
        self._checkpoints.write_record(self._progress, record)
        if not self._flights:
            self._checkpoint(persist=True)
            raise RoundAbandoned(
                f"round {flight.number} was abandoned ({error}); start more nodes, then resume the run"
            )


def weighted(total: UpdateSum, staleness: int) -> UpdateSum:
    """A sum with the weight 1 / sqrt(1 + s) of one that was asked for s versions ago."""
    weight = 1.0 / math.sqrt(1.0 + staleness)
    blocks = {name: weight * values for name, values in total.blocks.items()}
    return replace(total, blocks=blocks, noise_std=weight * total.noise_std)


def open_asynchronous(
    folder: Path,
    exchange: Exchange,
    *,
    devices: Devices,
    staleness: int,
    on_event: Callable[[Event], None] = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> AsynchronousCoordinator:
    """The coordinator of a job's run folder's `coordinator/`; see `open_coordinator`.

    Args:
        folder: the coordinator's.
        exchange: to nodes that stay.
        devices: of the job; exchange and cohorts are called from several threads.
        staleness: S.
        on_event: told what happens.
        stop: asked all the while, from several threads.

    Raises:
        RunError: no task can be read there.
        ConfigError: see `AsynchronousCoordinator.begin`.
    """
    task = Task.read(folder)
    make_private(folder)
    private = Charges(task.privacy, folder) if task.privacy else None
    members = Attendance(task, exchange, on_event)
    collector = make_collector(task, exchange, members, folder, devices=devices, stop=stop)
    storage = Checkpoints(folder, private, on_event)
    made = AsynchronousCoordinator(task, exchange, collector, storage, private=private, stop=stop)
    made.begin(folder, members, devices, staleness)
    return made


def _expect_independent(coordinator: Coordinator, devices: Devices) -> None:
    """Raises ConfigError where a round means something else when another one counts before it."""
    plan = coordinator.task.privacy.plan if coordinator.task.privacy else None
    problems = {
        f"model {coordinator.task.model.kind!r} needs its rounds one after the other": not coordinator.is_gradient,
        "the plan's noise differs from round to round": plan is not None
        and len(set(plan.noise_multipliers)) > 1,
        "a stage of the chain remembers earlier rounds": coordinator.remembers,
        "sites answer one round at a time": bool(devices.sites),
    }
    wrong = [text for text, holds in problems.items() if holds]
    if wrong:
        raise ConfigError(f"rounds cannot overlap: {'; '.join(wrong)}; set job.staleness = 0")


def _counted_rounds(folder: Path) -> set[int]:
    """Rounds whose sums are in the checkpoint, or were dropped."""
    path = folder / RECORDS
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {int(each["round"]) for each in records if not each.get("abandoned")}


class _Turns:
    """Cohorts that form one at a time, in the order in which their rounds began; safe for several threads."""

    def __init__(self, cohorts: Cohorts) -> None:
        self._cohorts, self._next = cohorts, 0
        self._waiting: list[int] = []
        self._changed = threading.Condition()
        self._mine = threading.local()

    def ticket(self) -> int:
        """The place in the queue of a round that begins."""
        with self._changed:
            self._next += 1
            self._waiting.append(self._next)
            return self._next

    @contextmanager
    def held(self, ticket: int) -> Iterator[None]:
        """In the thread of that round; it leaves the queue at the end, if not before."""
        self._mine.ticket = ticket
        try:
            yield
        finally:
            self._leave()

    def form(self, wanted: CohortWanted, stop: Callable[[], bool]) -> Cohort:
        """See `Cohorts`."""
        with self._changed:
            while self._waiting and self._waiting[0] != self._mine.ticket:
                if stop():
                    raise AggregationAborted("stopped while other cohorts formed: nothing was sent")
                self._changed.wait(_LOOK_SECONDS)
        try:
            return self._cohorts.form(wanted, stop)
        finally:
            self._leave()

    def prepare(self, wanted: CohortWanted) -> None:
        """See `Cohorts`; the next round forms its own while this one is at work."""

    def close(self, cohort: Cohort, ending: Ending) -> None:
        """See `Cohorts`."""
        self._cohorts.close(cohort, ending)

    def _leave(self) -> None:
        with self._changed:
            if self._mine.ticket in self._waiting:
                self._waiting.remove(self._mine.ticket)
            self._changed.notify_all()
