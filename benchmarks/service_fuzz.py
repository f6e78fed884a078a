"""Malformed input on the port of a real model service: at least 100,000 of them, with a good client served all along.

    python -m benchmarks.service_fuzz [--inputs 100000]

Four kinds, from several threads: garbage as gRPC messages of every method (random bytes, mutated good messages,
hostile fields), calls that are good HTTP/2 and broken gRPC, broken HTTP/2, and bytes that are no TLS at all. The
first three behind a handshake with the app's certificate. The service is a process of its own with the usual limits,
but for how many calls a second it takes. Every answer is searched for traces, paths and names of modules. Prints
outcomes, seconds, memory of the service before and after; exits with 1 when anything was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import random
import ssl
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

# Each refused handshake would be a line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import numpy as np

from benchmarks.service_fuzz_calls import fuzz_calls
from benchmarks.service_fuzz_wire import Line, fuzz_frames, fuzz_sockets, fuzz_streams
from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Ridge
from fedrec.ranking.items import Items
from fedrec.ranking.tables import FloatTable
from fedrec.wire.layout import hashed_name, model_target
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import OfflineKeys, OnlineKeys
from fedrec_client.updates.grpc_transport import GrpcTransport
from fedrec_client.updates.transport import CheckIn
from fedrec_server.network.certificates import make_service_certificates
from fedrec_server.network.grpc_server import Certificates
from fedrec_server.network.limits import Limits
from fedrec_server.registry import Registry
from fedrec_server.service.server import Service

POPULATION = "films"
GOOD_SECONDS = 0.05
#: A service that grows by more has kept something of what was sent.
GROWTH_MIB = 200.0


def main() -> None:
    """Send, count, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service_fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    inputs = parser.parse_args().inputs
    with tempfile.TemporaryDirectory() as name, served(Path(name)) as (port, pid):
        sys.exit(run(port, pid, Path(name) / "tls", inputs))


def run(port: int, pid: int, tls: Path, inputs: int) -> int:
    """All kinds against a running service; 0 when all went well."""
    good = Good(port, tls)
    before, start = memory(pid), time.perf_counter()
    outcomes: Counter[str] = Counter()
    with ThreadPoolExecutor(6) as pool:
        asking = pool.submit(good.ask_on)
        try:
            for job in [pool.submit(*each) for each in kinds(port, tls, inputs)]:
                outcomes += job.result()
        finally:
            good.done.set()
        asking.result()
    seconds, after = time.perf_counter() - start, memory(pid)
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:9,}  {outcome}")
    print(f"{outcomes.total():9,}  inputs in {seconds:.0f} s")
    print(f"{after:9,.0f}  MiB of memory afterwards, {before:,.0f} before")
    print(f"{len(good.waits):9,}  good calls meanwhile, all answered; {quantiles(good.waits)}")
    return int(any(outcome.startswith("BAD") for outcome in outcomes) or after - before > GROWTH_MIB)


def kinds(port: int, tls: Path, inputs: int) -> list[tuple]:  # type: ignore[type-arg]
    """What is sent: functions and their arguments, one thread each."""
    context = ssl.create_default_context(cafile=str(tls / "ca.crt"))
    context.load_cert_chain(tls / "app.pem", tls / "app.key")
    context.set_alpn_protocols(["h2"])
    target = ("127.0.0.1", port)
    sockets, frames, streams = inputs // 50, inputs // 25, inputs // 10
    calls = inputs - sockets - frames - streams
    return [
        (some_calls, port, tls, calls // 2, 1),
        (some_calls, port, tls, calls - calls // 2, 2),
        (fuzz_sockets, Line(target, source="127.0.0.2"), sockets, random.Random(3)),
        (fuzz_frames, Line(target, context, "127.0.0.3"), frames, random.Random(4)),
        (fuzz_streams, Line(target, context, "127.0.0.4"), streams, random.Random(5), POPULATION),
    ]


def some_calls(port: int, tls: Path, count: int, seed: int) -> Counter[str]:
    """`fuzz_calls` over a connection of its own."""
    read = [(tls / name).read_bytes() for name in ("ca.crt", "app.key", "app.pem")]
    with grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(*read)) as channel:
        return fuzz_calls(channel, count, random.Random(seed), POPULATION)


class Good:
    """A client that behaves, and fetches whole files all along."""

    def __init__(self, port: int, tls: Path) -> None:
        self._transport = GrpcTransport(
            f"127.0.0.1:{port}", ca=tls / "ca.crt", certificate=tls / "app.pem", key=tls / "app.key"
        )
        self._path = model_path(tls.parent)
        self._file = b"".join(self._transport.fetch(POPULATION, self._path))
        self.done, self.waits = threading.Event(), list[float]()

    def ask_on(self) -> None:
        """Until it is told to end; any refusal or wrong byte is an error."""
        while not self.done.wait(GOOD_SECONDS):
            start = time.perf_counter()
            answer = self._transport.check_in(CheckIn(POPULATION, "0.1.0", 0))
            assert answer.retry_after_seconds
            assert b"".join(self._transport.fetch(POPULATION, self._path)) == self._file
            self.waits.append(time.perf_counter() - start)
        self._transport.close()


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[int, int]]:
    """A service in a process of its own: its port and the number of the process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=serve, args=(folder, theirs))
    child.start()
    try:
        yield ours.recv(), int(child.pid or 0)
        assert child.is_alive(), "the service has died"
        ours.send("enough")
        child.join(20)
        assert child.exitcode == 0, f"the service ended with {child.exitcode}"
    finally:
        child.kill()
        child.join()


def serve(folder: Path, told: Connection) -> None:
    """The service's process."""
    logging.getLogger("fedrec_server").setLevel(logging.ERROR)
    registry, tls = made(folder)
    files = (tls / name for name in ("server.pem", "server.key", "apps.crt"))
    limits = Limits(
        calls_per_second=1e9,
        burst=10**9,
        app_calls_per_second=1e9,
        app_burst=10**9,
        opened_per_second=1e9,
        opened_burst=10**9,
    )
    with Service.start([registry], Certificates(*files), limits=limits) as service:
        told.send(service.port)
        told.recv()


def memory(pid: int) -> float:
    """Resident MiB of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def quantiles(waits: list[float]) -> str:
    """In words."""
    middle, most, worst = np.quantile(waits, [0.5, 0.99, 1.0]) * 1e3
    return f"median {middle:.0f} ms, p99 {most:.0f} ms, slowest {worst:.0f} ms"


def model_path(folder: Path) -> str:
    """Under which devices fetch the champion's model."""
    registry = Registry(folder / "models", POPULATION)
    name, version = "model.safetensors", registry.aliases.champion
    sha256 = registry.hashes(registry.manifest(version))[name]
    return "targets/" + hashed_name(sha256, model_target(POPULATION, version, name))


def made(folder: Path) -> tuple[Registry, Path]:
    """A registry with one champion, and certificates."""
    keys = OnlineKeys.generate()
    registry = Registry.create(folder / "models", POPULATION, OfflineKeys.generate(), keys)
    table = FloatTable(np.random.default_rng(0).normal(size=(10_000, 16)))
    files = pack_model(Factors(table, Ridge(0.1, 0.01)), Items.of([f"i{k}" for k in range(10_000)]), {})
    registry.promote(registry.publish(files, Terms(0, int(time.time())), keys).version, keys)
    make_service_certificates(folder / "tls")
    return registry, folder / "tls"


if __name__ == "__main__":
    main()
