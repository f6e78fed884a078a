"""What one device's session takes: memory, CPU, time and bytes, in a process that imports the SDK alone.

    python -m benchmarks.device_session [--devices 100]

A round of a hundred devices of `benchmarks.thousand_devices` with DP EASE, a history of 100 events each and no
drop-outs; one of the devices is a process of its own, started with the join and ended with the session. Its figures
are the kernel's for that process, interpreter and imports included, and are printed beside their targets.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.thousand_devices import (
    JOB,
    Setting,
    coordinate,
    item_ids,
    lay_out,
    serve,
    take_part,
    task_of_run,
)

#: Peak memory in MiB, CPU seconds, seconds to the end of the round.
TARGETS = {"MiB": 120.0, "CPU s": 2.0, "seconds": 15.0}
#: Until the other devices have joined.
START_SECONDS = 6.0
DEVICE = """
import json, resource, sys, threading, time

class Refuse:
    # What `pip install 'fedrec[client]'` does not bring is not there.
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "numba", "scipy", "flwr", "opacus", "dp_accounting", "sqlalchemy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
started = time.monotonic()
folder, port, job, ids = sys.argv[1], sys.argv[2], sys.argv[3], json.load(open(sys.argv[4]))
from fedrec.secagg.roster import Identity
from fedrec.wire.device_messages import join_statement
from fedrec_client.training._device_node import make_node
from fedrec_client.training.cohort_session import CohortSession
from fedrec_client.training.device_service import Entrance
from fedrec_client.training.grpc_devices import GrpcDeviceService

parts = json.load(open(folder + "/task/task.json"))
certs = folder + "/certs/"
service = GrpcDeviceService(
    f"127.0.0.1:{port}", ca=certs + "ca.crt", certificate=certs + "app.pem", key=certs + "app.key"
)
identity = Identity.create()
while not (joined := service.join(Entrance(job, identity.public, identity.sign(join_statement(job))))).session:
    time.sleep(0.2)
node = make_node(parts, ids, list(range(100)), identity)
session = CohortSession(
    service, joined.session, node, charge=lambda: None, stopping=threading.Event(), deadline=time.monotonic() + 300
)
ending = session.run()
usage = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in ("torch", "numba", "scipy", "flwr", "pandas", "sqlalchemy") if name in sys.modules]
print(json.dumps({
    "MiB": usage.ru_maxrss / 1024,
    "CPU s": usage.ru_utime + usage.ru_stime,
    "seconds": time.monotonic() - started,
    "up": ending.bytes_up,
    "reason": ending.reason,
    "sent": ending.sent,
    "heavy": heavy,
}))
"""


def main() -> None:
    """Run one round and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedrec-device-") as folder:
        database = f"sqlite:///{folder}/devices.db"
        setting = Setting(
            arguments.devices,
            2,
            0.0,
            0.0,
            2,
            2000,
            database,
            folder,
            60.0,
            60.0,
            1,
            model="dp_ease",
            checks=False,
        )
        _report(_measure(setting))


def _measure(setting: Setting) -> dict[str, Any]:
    folder = Path(setting.folder)
    lay_out(setting)
    task_of_run(setting)
    spawn = multiprocessing.get_context("spawn")
    ports, records, sent = spawn.Queue(), spawn.Queue(), spawn.Queue()
    stopping = spawn.Event()
    servers = [
        spawn.Process(target=serve, args=(setting, ports, 0)),
        spawn.Process(target=coordinate, args=(setting, records)),
    ]
    for process in servers:
        process.start()
    _, port, _ = ports.get()
    half = setting.devices // 2
    others = [
        spawn.Process(target=take_part, args=(setting, [port], first, count, stopping, sent))
        for first, count in ((0, half), (half, setting.devices - half - 1))
    ]
    for process in others:
        process.start()
    listed = folder / "ids.json"
    listed.write_text(json.dumps(item_ids(setting).tolist()))
    try:
        time.sleep(START_SECONDS)
        done = subprocess.run(
            [sys.executable, "-c", DEVICE, str(folder), str(port), JOB, str(listed)],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        found = dict(json.loads(done.stdout))
        if not found["sent"]:
            print(f"the device has sent no update: {done.stderr[-2000:]}")
        return found
    finally:
        stopping.set()
        for process in (*others, *servers):
            process.kill()
            process.join()


def _report(found: dict[str, Any]) -> None:
    print(f"one device in a round of DP EASE, 100 events: {found['reason']}, update sent: {found['sent']}")
    for name, target in TARGETS.items():
        value = found[name]
        print(f"  {name:8s} {value:8.2f}   {value / target:5.2f} of the target of {target:g}")
    print(
        f"  {found['up']:,} bytes up; modules of training programs that were loaded: {found['heavy'] or 'none'}"
    )


if __name__ == "__main__":
    main()
