"""A job with devices of the SDK: a signed task, a device service in this process, and its coordinator in a thread."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from cohort_helpers import CONFIG, Job

from fedrec.core.messages import Reply, Request
from fedrec_client.app.client import Client
from fedrec_client.store.base import Store
from fedrec_client.terms.consent import Consent
from fedrec_client.terms.eligibility import Conditions
from fedrec_client.terms.policy import Policy
from fedrec_client.testing import NOW, FakePlatform, FakeService, make_client, small_items, small_model
from fedrec_client.training.device_service import (
    DeviceService,
    Entrance,
    Joined,
    Offer,
    StageAnswer,
    Uploaded,
)
from fedrec_client.training.grpc_devices import GrpcDeviceService
from fedrec_server.devices.exchange import DeviceExchange
from fedrec_server.devices.limits import DeviceLimits
from fedrec_server.devices.server import FrontEnd, Listening
from fedrec_server.devices.state import jobs
from fedrec_server.devices.state.database import State, open_state
from fedrec_server.devices.state.jobs import JobRow
from fedrec_server.rounds.cohorts import Devices
from fedrec_server.rounds.coordinator import Outcome, open_coordinator

JOB = "cd" * 16
ITEMS = 12
POLICY = Policy(
    min_cohort=3,
    dishonest=0.0,
    max_epsilon_period=1e9,
    max_epsilon_lifetime=1e9,
    max_delta=1.0,
    trusts=("distributed",),
)
ANYTIME = Conditions(min_events=1, min_period_seconds=0)
#: Noise of its own, as a device asks for.
UNSEEDED = CONFIG.model_copy(
    update={
        "privacy": CONFIG.privacy.model_copy(update={"noise_seed": None}),
        # No device of a busy machine is late for a stage.
        "federation": CONFIG.federation.model_copy(update={"deadline_seconds": 60.0}),
    }
)
HISTORIES = ([0, 1, 2], [0, 1, 3], [0, 2, 4], [5, 0, 11])


def item_ids() -> list[str]:
    return list(small_items(ITEMS).ids)


@dataclass
class World:
    """A service, a job of small devices, and what runs it.

    Attributes:
        models: the model service.
        job: terms and privacy plan.
        state: of the device service.
        front: its front end; None: none runs.
    """

    folder: Path
    models: FakeService
    job: Job
    state: State
    front: FrontEnd

    @property
    def task(self) -> dict[str, Any]:
        return task_of(self.job)

    def device(self, name: str, history: list[int], **settings: Any) -> Client:
        """A device that has seen some films and agreed to train."""
        service = settings.pop("service", None) or self.connection()
        client = make_client(
            self.folder / name,
            self.models,
            settings.pop("platform", None),
            settings.pop("store", None),
            policy=settings.pop("policy", POLICY),
            training_server=service,
        )
        client.check_for_update()
        ids = item_ids()
        for item in history:
            client.log_event("view", ids[item])
        client.set_consent(Consent(personalize=True, train=True))
        return client

    def connection(self) -> DeviceService:
        return GrpcDeviceService(f"127.0.0.1:{self.front.port}", insecure=True)

    def coordinate(self) -> Coordinating:
        return Coordinating(self)


class Coordinating:
    """The job's coordinator in a thread of its own."""

    def __init__(self, world: World) -> None:
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.stop = threading.Event()
        self._world = world
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        world = self._world
        folder = world.folder / "coordinator"
        if not folder.exists():
            world.job.write(folder)
        exchange = DeviceExchange(world.state, JOB)
        devices = Devices(exchange, exchange, world.job.signer, world.job.settings, {})
        try:
            self.outcome = open_coordinator(folder, exchange, devices=devices, stop=self.stop.is_set).run()
        except BaseException as error:
            self.error = error

    def wait(self, seconds: float = 60.0) -> Outcome:
        self._thread.join(seconds)
        if self.error is not None:
            raise self.error
        assert self.outcome is not None, "the job did not end in time"
        return self.outcome

    def end(self) -> None:
        self.stop.set()
        self._thread.join(30)


def task_of(job: Job) -> dict[str, Any]:
    """The payload of the job's signed task."""
    parts = {
        "model": job.config.model,
        "settings": job.config.node_settings(),
        "evaluation": job.config.evaluation,
        "privacy": job.privacy,
        "aggregation": job.terms,
    }
    plan = job.privacy.plan
    return {
        "created": NOW,
        "expires": NOW + 6 * 3600,
        "model_version": 1,
        "items": hashlib.sha256("\0".join(item_ids()).encode()).hexdigest(),
        "rounds": plan.rounds,
        "cycle": plan.cycle,
        "cohort": {"target": job.settings.target, "least": job.settings.least},
        "node": {name: part.model_dump(mode="json") for name, part in parts.items()},
    }


@contextmanager
def world(
    folder: Path,
    *,
    target: int = 4,
    most: int = 6,
    least: int = 3,
    separation: int | None = 2,
    wait_seconds: float = 60.0,
    **changes: Any,
) -> Iterator[World]:
    """A published model, a signed task and a running front end."""
    models = FakeService()
    models.publish(small_model(ITEMS), small_items(ITEMS))
    job = Job.of(target, most, least=least, config=UNSEEDED, separation=separation)
    job.settings = replace(job.settings, wait_seconds=wait_seconds)
    document = models.give_task(JOB, task_of(job) | changes)
    state = open_state(f"sqlite:///{folder / 'devices.db'}")
    with state.write() as connection:
        cycle = job.privacy.plan.cycle
        jobs.add(connection, JobRow(JOB, models.population, document, target, least, most, cycle=cycle))
    limits = replace(
        DeviceLimits(), hold_seconds=5.0, poll_seconds=0.05, retry_seconds=0.05, soon_seconds=0.1
    )
    network = replace(limits.network, min_retry_seconds=0.1, expected_devices=1)
    with FrontEnd(state, Listening(None), limits=replace(limits, network=network)) as front:
        yield World(folder, models, job, state, front)
    state.close()
    models.end()


# A service of made-up questions ------------------------------------------------------------------------------


@dataclass
class Scripted:
    """A device service that hands out given answers, notes what comes, and fails when it is told to.

    Attributes:
        document: the task.
        stages: what `stage` answers, in order; then "over".
        before: called with the name of each call before it is answered.
        calls: names and what was sent.
    """

    document: bytes = b""
    stages: list[StageAnswer] = field(default_factory=list)
    before: Callable[[str], None] = lambda name: None
    ending: StageAnswer = field(
        default_factory=lambda: StageAnswer("over", reason="done", retry_after_seconds=60.0)
    )
    joined: Joined = field(default_factory=lambda: Joined(b"s" * 32))
    offer: Offer = field(default_factory=lambda: Offer((60.0, 120.0), JOB, True))
    contents: Mapping[bytes, bytes] = field(default_factory=dict)
    piece: int = 1 << 20
    calls: list[tuple[str, Any]] = field(default_factory=list)
    uploads: dict[int, bytearray] = field(default_factory=dict)

    def _note(self, name: str, what: Any) -> None:
        self.before(name)
        self.calls.append((name, what))

    def check_in(self, population: str, client_version: str, model_version: int) -> Offer:
        self._note("check_in", population)
        return self.offer

    def task(self, job: str) -> bytes:
        self._note("task", job)
        return self.document

    def join(self, entrance: Entrance) -> Joined:
        self._note("join", entrance)
        return self.joined

    def stage(
        self, session: bytes, *, answered: int = 0, answer: bytes = b"", refused: bool = False, known: int = 0
    ) -> StageAnswer:
        self._note("stage", (answered, answer, refused, known))
        return self.stages.pop(0) if self.stages else self.ending

    def upload(
        self, session: bytes, number: int, offset: int, total: int, sha256: bytes, content: bytes
    ) -> Uploaded:
        self._note("upload", (number, offset, content))
        came = self.uploads.setdefault(number, bytearray())
        if offset != len(came):
            return Uploaded(len(came))
        came += content
        whole = len(came) == total and hashlib.sha256(bytes(came)).digest() == sha256
        return Uploaded(len(came), whole)

    def content(self, session: bytes, sha256: bytes, offset: int) -> bytes:
        self._note("content", offset)
        return self.contents[sha256][offset : offset + self.piece]

    def leave(self, session: bytes) -> None:
        self._note("leave", session)

    def close(self) -> None:
        self.calls.append(("close", None))


def sent(service: Scripted, name: str) -> list[Any]:
    """What came with the calls of a name."""
    return [what for called, what in service.calls if called == name]


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.01)


def vector_reply(request: Request, length: int = 8) -> Reply:
    return Reply(request.kind, request.round, request.phase, {"masked": np.zeros(length, np.uint32)}, {})


def memory_device(
    folder: Path, service: DeviceService, models: FakeService, store: Store | None = None
) -> Client:
    """A device with a history, of a scripted service."""
    client = make_client(folder, models, FakePlatform(), store, policy=POLICY, training_server=service)
    client.check_for_update()
    for item in item_ids()[:3]:
        client.log_event("view", item)
    client.set_consent(Consent(personalize=True, train=True))
    return client
