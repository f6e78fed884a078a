"""What the SDK costs a device: lists, events, fold-in, import, size, memory; one thread, beside named limits.

    OMP_NUM_THREADS=1 python -m benchmarks.device [--items 10000 100000 1000000]

`recommend` is the whole call of the client: 20 items, 200 seen ones excluded, d = 64. Its peer, in the same run, is
the least that any exact method must do: one pass of numpy over the table (`table @ vector`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Ridge
from fedrec.ranking.items import Items
from fedrec.ranking.model import History
from fedrec.ranking.tables import FloatTable
from fedrec.wire.manifest import ITEMS_FILE, MODEL_FILE
from fedrec_client import Client
from fedrec_client.store import FileVault, SqliteStore
from fedrec_client.testing import FakePlatform, FakeService

SIZE, SEEN, WANTED, ROUNDS = 64, 200, 20, 101
TARGETS = {10_000: 0.3, 100_000: 2.0, 1_000_000: 30.0}
BASE = (
    "numpy",
    "cryptography",
    "cffi",
    "pycparser",
    "safetensors",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
)


def main() -> None:
    """Print everything."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.device", description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=list(TARGETS))
    logging.disable(logging.WARNING)
    for n in parser.parse_args().items:
        lists(n)
    folding()
    print(
        f"import fedrec_client.app.client: {imported():.2f} s of a fresh process, torch not imported   target 0.5 s"
    )
    print(f"memory added by a model of 100,000 items, int8: {memory_added():.0f} MiB   target 50 MiB")
    print(f"installed size of the base package: {installed():.0f} MiB ({', '.join(BASE[:4])} and others)")


def lists(n: int) -> None:
    """`recommend` and `log_event` with a catalogue of n items, float32 and int8."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(n, SIZE)).astype(np.float32) / 8
    items = Items.of([f"tt{k:07d}" for k in range(n)], popularity=rng.random(n).astype(np.float32))
    plain = Factors(FloatTable(table), Ridge(unobserved_weight=0.1, reg=0.01))
    vector = rng.normal(size=SIZE).astype(np.float32)
    least = each(lambda: table @ vector)
    for kind, model in (("float32", plain), ("int8", plain.quantised())):
        with tempfile.TemporaryDirectory() as name:
            service, folder = FakeService(), Path(name)
            service.publish(model, items)
            sizes = {
                file: (service.folder(1) / file).stat().st_size / 2**20 for file in (MODEL_FILE, ITEMS_FILE)
            }
            with opened(folder, service) as client:
                client.check_for_update()
                for k in rng.choice(n, SEEN, replace=False):
                    client.log_event("play", item=f"tt{k:07d}")
                client.recommend(WANTED)
                times = each(lambda: client.recommend(WANTED))
                after = each(lambda: (client.log_event("view", item="tt0000001"), client.recommend(WANTED)))
                events = each(lambda: client.log_event("view", item="tt0000001"))
            service.end()
        target = f"   target {TARGETS[n]:g} ms" if n in TARGETS else ""
        print(f"{n:9,} items, {kind:7}: recommend {told(times)}{target}")
        print(
            f"{'':25} {statistics.median(times) / statistics.median(least):.2f} x one pass of numpy ({told(least)})"
        )
        print(f"{'':25} log_event {told(events)}   target 1 ms; event and list after it {told(after)}")
        print(f"{'':25} model {sizes[MODEL_FILE]:.2f} MiB, items {sizes[ITEMS_FILE]:.2f} MiB")


def folding() -> None:
    """Fold-in of 50 events."""
    rng = np.random.default_rng(0)
    model = Factors(FloatTable(rng.normal(size=(100_000, SIZE))), Ridge(unobserved_weight=0.1, reg=0.01))
    history = History(rng.choice(100_000, 50, replace=False), np.ones(50, np.float32))
    print(
        f"fold-in of 50 events, ridge, d = {SIZE}: {told(each(lambda: model.fold_in(history)))}   target 1 ms"
    )


def opened(folder: Path, service: FakeService) -> Client:
    """A client as an app has it: sealed on disk."""
    store = SqliteStore.open(folder, FileVault.create(folder))
    settings = {"population": service.population, "trust": service.trust, "server": service}
    return Client.open(folder, platform=FakePlatform(), store=store, **settings)


def each(call: Callable[[], object]) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def told(times: list[float]) -> str:
    """Median and 95th percentile."""
    return f"{statistics.median(times):.2f} ms (p95 {sorted(times)[int(len(times) * 0.95)]:.2f})"


def imported() -> float:
    """Seconds of a fresh process that imports the client, the least of three."""
    code = "import fedrec_client.app.client, sys; assert 'torch' not in sys.modules"
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def memory_added() -> float:
    """MiB that opening and using a model adds to a process that has the SDK imported."""
    code = (
        "import tempfile, gc, numpy as np\n"
        "from pathlib import Path\n"
        "from benchmarks.device import opened\n"
        "from fedrec.ranking.factors import Factors\n"
        "from fedrec.ranking.folding import Ridge\n"
        "from fedrec.ranking.items import Items\n"
        "from fedrec.ranking.tables import FloatTable\n"
        "from fedrec_client.testing import FakeService\n"
        "import sys\n"
        "rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20\n"
        "folder = Path(sys.argv[1])\n"
        "service = FakeService()\n"
        "if len(sys.argv) > 2:\n"
        "    table = np.random.default_rng(0).normal(size=(100_000, 64)).astype(np.float32)\n"
        "    items = Items.of([f'tt{k:07d}' for k in range(100_000)])\n"
        "    service.publish(Factors(FloatTable(table), Ridge(0.1, 0.01)).quantised(), items)\n"
        "    c = opened(folder, service); c.check_for_update(); print(service.trust.decode()); c.close()\n"
        "else:\n"
        "    from fedrec_client import Client\n"
        "    from fedrec_client.testing import FakePlatform\n"
        "    root = (folder / 'root').read_bytes()\n"
        "    def start(where):\n"
        "        return Client.open(where, population='test', trust=root, platform=FakePlatform())\n"
        "    start(folder / 'empty').recommend(5)\n"
        "    gc.collect(); before = rss(); c = start(folder); c.recommend(20); gc.collect(); print(rss() - before)\n"
    )
    with tempfile.TemporaryDirectory() as name:
        run = [sys.executable, "-c", code, name]
        made = subprocess.run([*run, "make"], check=True, capture_output=True, text=True)
        (Path(name) / "root").write_text(made.stdout.strip())
        return float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def installed() -> float:
    """MiB of the base package's dependencies and of the parts of fedrec that a device runs."""
    total = 0
    for name in BASE:
        try:
            files = importlib.metadata.files(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        total += sum(path.stat().st_size for file in files if (path := Path(str(file.locate()))).is_file())
    import fedrec
    import fedrec_client

    for package in (fedrec, fedrec_client):
        total += sum(path.stat().st_size for path in Path(str(package.__file__)).parent.rglob("*.py"))
    return total / 2**20


if __name__ == "__main__":
    main()
