"""Malformed input on the port of a real model service: at least 100,000 of them, with a good client served all along.

    python -m benchmarks.service_fuzz [--inputs 100000]

Three kinds, over TLS with the app's certificate: garbage as gRPC messages of every method (random bytes, mutated
good messages, hostile fields), broken HTTP/2 (frames, sizes, flags) and bytes that are no TLS at all. Every answer
is searched for traces, paths and names of modules. Prints outcomes, seconds, memory before and after.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import ssl
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Each refused handshake would be a line.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import numpy as np

from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Ridge
from fedrec.ranking.items import Items
from fedrec.ranking.tables import FloatTable
from fedrec.wire.package import Terms, pack_model
from fedrec.wire.signing import RootKey, RoundKey
from fedrec_client.grpc_transport import GrpcTransport
from fedrec_client.transport import CheckIn
from fedrec_server.certificates import make_service_certificates
from fedrec_server.registry import Registry
from fedrec_server.service.limits import Limits
from fedrec_server.service.server import Certificates, Service
from fedrec_simulations.service_fuzz import fuzz_calls, fuzz_frames, fuzz_sockets


def main() -> None:
    """Send, count, print; exit 1 when anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service_fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    inputs = parser.parse_args().inputs
    logging.getLogger("fedrec_server").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        registry, tls = made(folder)
        files = (tls / name for name in ("server.pem", "server.key", "apps.crt"))
        limits = Limits(calls_per_second=1e9, burst=10**9)
        with Service.start([registry], Certificates(*files), limits=limits) as service:
            sys.exit(run(service, tls, inputs))


def run(service: Service, tls: Path, inputs: int) -> int:
    """All kinds against a running service; 0 when all went well."""
    target = f"127.0.0.1:{service.port}"
    read = [(tls / name).read_bytes() for name in ("ca.crt", "app.key", "app.pem")]
    context = ssl.create_default_context(cafile=str(tls / "ca.crt"))
    context.load_cert_chain(tls / "app.pem", tls / "app.key")
    context.set_alpn_protocols(["h2"])
    good = GrpcTransport(target, ca=tls / "ca.crt", certificate=tls / "app.pem", key=tls / "app.key")
    done, waits = threading.Event(), list[float]()

    def keep_asking() -> None:
        while not done.is_set():
            start = time.perf_counter()
            assert good.check_in(CheckIn("films", "0123456789abcdef", "0.1.0", 0)).model_version == 1
            waits.append(time.perf_counter() - start)
            time.sleep(0.05)

    before, start = memory(), time.perf_counter()
    outcomes: Counter[str] = Counter()
    sockets, frames = inputs // 50, inputs // 25
    calls = inputs - sockets - frames
    with ThreadPoolExecutor(5) as pool:
        asking = pool.submit(keep_asking)

        def some_calls(seed: int) -> Counter[str]:
            with grpc.secure_channel(target, grpc.ssl_channel_credentials(*read)) as channel:
                return fuzz_calls(channel, calls // 2 + (seed < calls % 2), random.Random(seed), "films")

        jobs = [pool.submit(some_calls, seed) for seed in range(2)]
        jobs.append(pool.submit(fuzz_sockets, ("127.0.0.1", service.port), sockets, random.Random(7)))
        jobs.append(pool.submit(fuzz_frames, ("127.0.0.1", service.port), frames, random.Random(8), context))
        for job in jobs:
            outcomes += job.result()
        done.set()
        asking.result()
    seconds = time.perf_counter() - start
    good.close()
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:9,}  {outcome}")
    print(f"{sum(outcomes.values()):9,}  inputs in {seconds:.0f} s")
    print(f"{memory():9,.0f}  MiB of memory afterwards, {before:,.0f} before")
    print(f"{len(waits):9,}  good calls meanwhile, all answered; slowest {max(waits) * 1e3:.0f} ms")
    return int(any(outcome.startswith("BAD") for outcome in outcomes))


def memory() -> float:
    """Resident MiB of this process, which is the service's, too."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def made(folder: Path) -> tuple[Registry, Path]:
    """A registry with one champion, and certificates."""
    root, now = RootKey.generate(), time.time()
    key = RoundKey.generate(root, "films", serial=1, not_before=now - 60, not_after=now + 86_400)
    registry = Registry.create(folder / "models", "films", root.public)
    table = FloatTable(np.random.default_rng(0).normal(size=(500, 16)))
    files = pack_model(Factors(table, Ridge(0.1, 0.01)), Items.of([f"i{k}" for k in range(500)]), {})
    registry.promote(registry.publish(files, Terms(0, int(now)), key).version)
    make_service_certificates(folder / "tls")
    return registry, folder / "tls"


if __name__ == "__main__":
    main()
