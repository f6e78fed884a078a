"""What one training session costs a device: memory, processor, bytes; in a process that has only the SDK's imports.

    OMP_NUM_THREADS=1 python -m benchmarks.device_session [--cohort 100] [--events 100] [--items 2000]

A real job over gRPC on loopback: a registry, a model service, a front end, a worker, and a cohort of devices that are
all clients of the SDK. All but one of them are threads of this process; the measured one is a process of its own,
which notes its peak memory and its time on a processor before and after `train_if_eligible`. Bytes are counted at the
calls of the device service, as messages without what TLS and HTTP/2 add.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from fedrec.ranking.items import Items
from fedrec.ranking.popular import Popular
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_client import Client, Conditions, Consent, MemoryStore, Policy
from fedrec_client.testing import FakePlatform
from fedrec_server.devices.limits import DeviceLimits
from fedrec_server.devices.server import FrontEnd, Listening
from fedrec_server.devices.state import jobs
from fedrec_server.devices.state.database import State, open_state
from fedrec_server.jobs.database_offers import DatabaseOffers
from fedrec_server.jobs.preparation import new_job
from fedrec_server.jobs.specification import parse_job
from fedrec_server.jobs.work import Worker
from fedrec_server.network.limits import Limits
from fedrec_server.operations.key_folder import KeyFolder
from fedrec_server.registry import Registry
from fedrec_server.service.server import Service

POPULATION, DEADLINE_SECONDS = "measured", 300.0
TARGET_MIB, TARGET_SECONDS = 120, 2.0
CONDITIONS = Conditions(min_events=1, min_period_seconds=0.0)
POLICY = Policy(min_cohort=3, dishonest=0.0, max_epsilon_period=1e9, max_epsilon_lifetime=1e9, max_delta=1.0)
#: What the measured device runs: the SDK, where only its extra is installed.
DEVICE = """
import json, logging, sys, time

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numba", "scipy", "flwr"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NotInstalled())
from pathlib import Path
logging.disable(logging.WARNING)
from fedrec_client import Client, Conditions, Consent, MemoryStore, Policy
from fedrec_client.terms.platform import SystemPlatform
from fedrec_client.training.grpc_devices import GrpcDeviceService
from fedrec_client.updates.grpc_transport import GrpcTransport

told = json.loads(sys.argv[1])

class Ready(SystemPlatform):
    def charging(self): return True
    def idle(self): return True
    def unmetered(self): return True

def mib():  # the peak of this program; getrusage would count its parent's, too
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

service = GrpcDeviceService(told["training"], insecure=True)
bytes_ = {"up": 0, "down": 0}
call = service._line.call
def counted(name, request, kind, *more, **other):
    reply = call(name, request, kind, *more, **other)
    bytes_["up"] += request.ByteSize(); bytes_["down"] += reply.ByteSize()
    return reply
service._line.call = counted
client = Client.open(
    Path(told["folder"]), population=told["population"], trust=Path(told["trust"]).read_bytes(),
    server=GrpcTransport(told["models"], insecure=True), training_server=service, platform=Ready(),
    policy=Policy(**told["policy"]), store=MemoryStore(),
)
client.check_for_update()
for item in told["items"]:
    client.log_event("view", item)
client.set_consent(Consent(personalize=True, train=True))
client.recommend(20)
before, began, clock = mib(), time.process_time(), time.monotonic()
steps = []
report = client.train_if_eligible(Conditions(**told["conditions"]), told["deadline"], on_step=steps.append)
print(json.dumps({
    "rounds": report.rounds, "reason": report.reason, "answers": report.bytes_up, "before": before, "peak": mib(),
    "cpu": time.process_time() - began, "seconds": time.monotonic() - clock, **bytes_,
}))
"""


@dataclass
class Job:
    """What devices connect to.

    Attributes:
        models, training: addresses.
        trust: root metadata.
    """

    folder: Path
    models: str
    training: str
    trust: bytes
    item_ids: list[str]

    def told(self, events: int) -> str:
        """To the measured device."""
        path = self.folder / "root.json"
        path.write_bytes(self.trust)
        return json.dumps(
            {
                "folder": str(self.folder / "measured"),
                "trust": str(path),
                "models": self.models,
                "training": self.training,
                "population": POPULATION,
                "items": self.history(0, events),
                "deadline": DEADLINE_SECONDS,
                "conditions": {"min_events": 1, "min_period_seconds": 0.0},
                "policy": {"min_cohort": 3, "dishonest": 0.0, "max_epsilon_period": 1e9}
                | {"max_epsilon_lifetime": 1e9, "max_delta": 1.0},
            }
        )

    def history(self, user: int, events: int) -> list[str]:
        """Items of a user."""
        chosen = np.random.default_rng(user).permutation(len(self.item_ids))[:events]
        return [self.item_ids[k] for k in chosen]

    def take_part(self, user: int, events: int) -> int:
        """Another device; in how many rounds it was."""
        from fedrec_client.training.grpc_devices import GrpcDeviceService
        from fedrec_client.updates.grpc_transport import GrpcTransport

        with Client.open(
            self.folder / f"device-{user}",
            population=POPULATION,
            trust=self.trust,
            server=GrpcTransport(self.models, insecure=True),
            training_server=GrpcDeviceService(self.training, insecure=True),
            platform=FakePlatform(clock=time.time()),
            policy=POLICY,
            store=MemoryStore(),
        ) as client:
            client.check_for_update()
            for item in self.history(user, events):
                client.log_event("view", item)
            client.set_consent(Consent(personalize=True, train=True))
            return client.train_if_eligible(CONDITIONS, DEADLINE_SECONDS).rounds


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device_session", description=__doc__)
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--items", type=int, default=2_000)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    with job(options.cohort, options.items) as made, ThreadPoolExecutor(options.cohort) as pool:
        others = [pool.submit(made.take_part, user, options.events) for user in range(1, options.cohort)]
        said = subprocess.run(
            [sys.executable, "-c", DEVICE, made.told(options.events)],
            capture_output=True,
            text=True,
            check=False,
        )
        failed = [str(each.exception()) for each in others if each.exception()]
        rounds = [each.result() for each in others if not each.exception()]
    for line in sorted(set(failed)):
        print(f"{failed.count(line)} of the others: {line}")
    if said.returncode:
        raise SystemExit(said.stderr)
    found: dict[str, Any] = json.loads(said.stdout)
    print(f"cohort of {options.cohort}, {options.events} events, {options.items} items: {found['reason']}")
    print(f"rounds: {found['rounds']} here, {min(rounds)} to {max(rounds)} of the others")
    print(f"peak RSS: {found['peak']:.0f} MiB ({found['before']:.0f} before)   target {TARGET_MIB} MiB")
    print(f"processor: {found['cpu']:.2f} s of {found['seconds']:.1f} s   target {TARGET_SECONDS} s")
    print(f"bytes: {found['up']:,} up ({found['answers']:,} of answers), {found['down']:,} down")


@contextmanager
def job(cohort: int, n_items: int) -> Iterator[Job]:
    """A job whose rounds are open for `cohort` devices."""
    with tempfile.TemporaryDirectory() as name:
        folder, keys = Path(name), OnlineKeys.generate()
        registry = Registry.create(folder / "models", POPULATION, OfflineKeys.generate(), keys)
        keys.save(KeyFolder(folder / "keys", POPULATION).online_folder)
        popularity = np.linspace(n_items, 1, n_items, dtype=np.float32)
        items = Items.of([f"item-{k:06d}" for k in range(n_items)], popularity=popularity)
        files = pack_model(Popular(popularity), items, {"unit": "none"})
        registry.promote(registry.publish(files, Terms(0, int(time.time())), keys).version, keys)
        running = new_job(
            folder / "jobs",
            specification(cohort),
            POPULATION,
            registry=folder / "models",
            keys=folder / "keys",
        )
        running.start()
        state, stop = open_state(f"sqlite:///{folder / 'devices.db'}"), threading.Event()
        limits = DeviceLimits()
        network = replace(limits.network, expected_devices=1, min_retry_seconds=0.1)
        worker = threading.Thread(
            target=Worker(running, DatabaseOffers(state), stop=stop.is_set).work, daemon=True
        )
        worker.start()
        pace = Limits(
            calls_per_second=5_000,
            burst=50_000,
            app_calls_per_second=5_000,
            app_burst=50_000,
            calls_per_address=1_000,
            downloads_per_address=64,
            unauthenticated_per_address=1_000,
        )
        with (
            Service.start([registry], None, limits=pace) as service,
            FrontEnd(
                state, Listening(None), limits=replace(limits, network=network, soon_seconds=0.5)
            ) as front,
        ):
            while not _offered(state, running.offer(1)):
                time.sleep(0.2)
            time.sleep(2.0)  # the front end looks for jobs once a second
            yield Job(
                folder,
                f"127.0.0.1:{service.port}",
                f"127.0.0.1:{front.port}",
                registry.pinned,
                list(items.ids),
            )
            stop.set()
            worker.join(60)
        state.close()


def _offered(state: State, offer: str) -> bool:
    with state.read() as connection:
        return jobs.find(connection, offer) is not None


def specification(cohort: int) -> Any:
    """DP EASE as devices would be asked for it, with noise that is stated and hides no one among so few."""
    return parse_job(
        {
            "model": {"kind": "dp_ease"},
            "privacy": {
                "unit": "user",
                "trust": "distributed",
                "epsilon": 600.0,
                "delta": 1e-6,
                "survivors": 0.8,
                "force": True,
            },
            "federation": {"deadline_seconds": 120, "stage_seconds": 120},
            "job": {"participations": 2, "cohort": {"target": cohort, "most": cohort, "wait_seconds": 60}},
        },
        "the benchmark",
    )


if __name__ == "__main__":
    main()
