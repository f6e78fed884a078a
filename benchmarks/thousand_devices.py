"""A thousand devices in a round: the real device service, the real coordinator, the SDK's own session code.

    python -m benchmarks.thousand_devices [--devices 1000] [--rounds 20] [--dropout .2] [--processes 4]
        [--database URL] [--front-ends 1] [--kill-front-end] [--items 3000] [--check-ins 0] [--json FILE]

Front ends and the coordinator are processes of their own, over TLS on loopback and one database. Devices are threads
in a few processes: each joins by the calls of the SDK under a fresh identity, has a connection of its own, and runs
`CohortSession` with a `Node` that holds one history. Updates are those of matrix factorisation under secure
aggregation with distributed noise. A part of the devices, drawn by a seed, ends at a random stage: half of them say
that they leave, half fall silent (`--silent`).

Every device writes what it put under its mask aside; after each round the sum that the coordinator opened is compared
with the sum of what the survivors put in. A round is *exact*, or it was *aborted* with a reason; anything else is an
error of the product, and the program ends with status 1. Server CPU is user and system time of front ends and
coordinator, from /proc; memory is the resident set at the end of each round.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import queue
import random
import secrets
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TARGET_MS = 10.0
JOB = "ab" * 16
POPULATION = "benchmark"
STAGES = ("advertise", "share", "train", "confirm", "unmask")
HISTORY = 100
MODELS = {
    "mf": {"kind": "mf", "embedding_size": 32, "negatives": 2},
    "dp_ease": {"kind": "dp_ease", "top_items": 400, "histogram_items": 5, "history_items": 100},
}


@dataclass(frozen=True)
class Setting:
    """Of one run; see the module's text."""

    devices: int
    rounds: int
    dropout: float
    silent: float
    processes: int
    items: int
    database: str
    folder: str
    stage_seconds: float
    computing_seconds: float
    seed: int
    model: str = "mf"
    checks: bool = True


def specification(setting: Setting) -> Any:
    """The job."""
    from fedrec_server.jobs.specification import parse_job

    return parse_job(
        {
            "name": "thousand",
            "model": MODELS[setting.model],
            "federation": {
                "rounds": setting.rounds,
                "stage_seconds": setting.stage_seconds,
                "deadline_seconds": setting.computing_seconds,
            },
            "privacy": {
                "unit": "user",
                "trust": "distributed",
                "epsilon": 1e4,
                "delta": 1e-6,
                "survivors": 0.7,
                "force": True,
            },
            "job": {
                "participations": setting.rounds,
                "cohort": {
                    "target": setting.devices,
                    "least": max(3, int(0.9 * setting.devices)),
                    "dropout": setting.dropout,
                    "wait_seconds": 120.0,
                },
            },
        },
        "the benchmark",
    )


def item_ids(setting: Setting) -> np.ndarray:
    """[I]."""
    return np.array([f"i{k:06d}" for k in range(setting.items)])


def lay_out(setting: Setting) -> None:
    """Certificates and an empty database, before any process of a run starts."""
    from fedrec_server.devices.state.database import open_state
    from fedrec_server.network.certificates import make_service_certificates

    folder = Path(setting.folder)
    make_service_certificates(folder / "certs")
    (folder / "vectors").mkdir()
    open_state(setting.database).close()


# Server processes --------------------------------------------------------------------------------------------


def serve(setting: Setting, ports: Any, number: int) -> None:
    """A front end, until it is killed."""
    from dataclasses import replace

    from fedrec_server.devices.limits import DeviceLimits
    from fedrec_server.devices.server import FrontEnd, Listening
    from fedrec_server.devices.state.database import open_state
    from fedrec_server.network.grpc_server import Certificates

    certs = Path(setting.folder) / "certs"
    limits = DeviceLimits(held_calls=setting.devices + 200)
    network = replace(
        limits.network, connections=setting.devices + 500, expected_devices=10 * setting.devices
    )
    certificates = Certificates(certs / "server.pem", certs / "server.key", certs / "apps.crt")
    with open_state(setting.database) as state:
        front = FrontEnd(state, Listening(certificates), limits=replace(limits, network=network))
        ports.put((number, front.port, os.getpid()))
        front.wait()


def coordinate(setting: Setting, records: Any) -> None:
    """The coordinator; after each round it says what happened, and whether the sum was exact."""
    from fedrec.core.errors import AggregationAborted, FedrecError
    from fedrec_server.devices.exchange import DeviceExchange, RetryAfter
    from fedrec_server.devices.state import jobs
    from fedrec_server.devices.state.database import open_state
    from fedrec_server.jobs.offers import NoSites
    from fedrec_server.rounds import _cohort_collector
    from fedrec_server.rounds.cohorts import CohortSettings, Devices
    from fedrec_server.rounds.coordinator import open_coordinator

    folder = Path(setting.folder)
    signer = _signer(folder)
    task = task_of_run(setting)
    task.write(folder / "coordinator")
    aside = folder / "vectors"
    plain = _cohort_collector.run_attempt

    @functools.wraps(plain)
    def checked(exchange: Any, attempt: Any, steps: Any) -> Any:
        """The attempt, and what its survivors put in."""
        found: dict[str, Any] = {"round": attempt.request.round, "members": len(attempt.by_place)}
        try:
            total, facts = plain(exchange, attempt, steps)
        except AggregationAborted as error:
            records.put(found | {"aborted": str(error)[:300]})
            raise
        keys = {node: attempt.terms.roster.members[place].key for place, node in attempt.by_place.items()}
        survivors = [key for node, key in keys.items() if node not in facts["failures"]]
        expected = np.zeros_like(total)
        for key in survivors:
            np.add(expected, np.load(aside / f"{key}.npy"), out=expected)
        for key in keys.values():
            (aside / f"{key}.npy").unlink(missing_ok=True)
        exact = bool(np.array_equal(expected, total)) and len(survivors) == facts["nodes"]
        secagg = facts["record"]["secagg"]
        found |= {"survivors": len(survivors), "exact": exact, "stages": secagg["seconds"]}
        found |= {"up": secagg["bytes_up_per_node"], "down": secagg["bytes_down_per_node"]}
        records.put(found | {"neighbours": attempt.terms.neighbours, "parameters": attempt.length})
        return total, facts

    if setting.checks:
        _cohort_collector.run_attempt = checked  # type: ignore[assignment]
    cohort = specification(setting).job.cohort
    with open_state(setting.database) as state:
        with state.write() as connection:
            most = specification(setting).most
            jobs.add(
                connection,
                jobs.JobRow(JOB, POPULATION, b"task", cohort.target, cohort.least, most, cycle=None),
            )
        patience = specification(setting).patience
        exchange = DeviceExchange(state, JOB, RetryAfter(1.0, 1.0, 1.0, 5.0), patience)
        devices = Devices(
            exchange, exchange, signer, CohortSettings(cohort.target, cohort.least, cohort.wait_seconds)
        )
        try:
            for _ in range(3 * setting.rounds):
                try:
                    outcome = open_coordinator(folder / "coordinator", NoSites(), devices=devices).run()
                    records.put({"finished": outcome.finished, "rounds": outcome.rounds})
                    return
                except FedrecError as error:  # an aborted attempt: again, as a job does
                    records.put({"again": str(error)[:200]})
        finally:
            records.put(None)


@functools.cache
def _signer(folder: Path) -> Any:
    from fedrec.secagg.roster import Identity

    path = folder / "signer.key"
    if not path.exists():
        path.write_bytes(Identity.create().secret)
    return Identity.read(path)


def task_of_run(setting: Setting) -> Any:
    """The same in every process: a plan is planned once, and read by the others."""
    from fedrec_server.jobs.preparation import task_of
    from fedrec_server.rounds.task import Task

    folder = Path(setting.folder) / "task"
    if not folder.exists():
        task_of(specification(setting), item_ids(setting), JOB, _signer(Path(setting.folder))).write(folder)
    return Task.read(folder)


# Devices -----------------------------------------------------------------------------------------------------


class Vanished(BaseException):
    """A device falls silent."""


class DroppingNode:
    """A node that may end at a stage, and puts what goes under its mask aside."""

    def __init__(self, node: Any, stage: str | None, silent: bool, aside: Path) -> None:
        self._node, self._stage, self._silent, self._aside = node, stage, silent, aside

    def handle(self, request: Any) -> Any:
        """The reply of the node."""
        if request.kind == self._stage:
            raise Vanished
        _ASIDE.path = self._aside
        return self._node.handle(request)


_ASIDE = threading.local()


def take_part(setting: Setting, ports: list[int], first: int, count: int, stopping: Any, sent: Any) -> None:
    """The devices of one process, until told to stop."""
    from fedrec_client.node import _senders

    plain = _senders.residues

    def residues(terms: Any, reply: Any, rounding: Any) -> Any:
        made = plain(terms, reply, rounding)
        part = _ASIDE.path.with_suffix(".part.npy")
        np.save(part, made)
        part.rename(_ASIDE.path)
        return made

    _senders.residues = residues  # type: ignore[assignment]
    threading.stack_size(1 << 20)
    threads = [
        threading.Thread(target=_device, args=(setting, ports, first + k, stopping, sent), daemon=True)
        for k in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _device(setting: Setting, ports: list[int], number: int, stopping: Any, sent: Any) -> None:
    """One device in one cohort after the other."""
    from contextlib import suppress

    from fedrec.core.errors import FedrecError
    from fedrec.secagg.roster import Identity
    from fedrec.wire.device_messages import join_statement
    from fedrec_client.training._device_node import make_node
    from fedrec_client.training.cohort_session import CohortSession
    from fedrec_client.training.device_service import Entrance
    from fedrec_client.training.grpc_devices import GrpcDeviceService

    certs, aside = Path(setting.folder) / "certs", Path(setting.folder) / "vectors"
    draw = random.Random(1000 * setting.seed + number)
    history = draw.sample(range(setting.items), HISTORY)
    parts = json.loads((Path(setting.folder) / "task" / "task.json").read_text())
    ids, last, at = item_ids(setting), 0, number % len(ports)
    # gRPC goes to the next address when one does not answer, as behind a name with several.
    addresses = ",".join(f"127.0.0.1:{port}" for port in (*ports[at:], *ports[:at]))

    def connect() -> GrpcDeviceService:
        return GrpcDeviceService(
            f"ipv4:{addresses}",
            server_name="localhost",
            ca=certs / "ca.crt",
            certificate=certs / "app.pem",
            key=certs / "app.key",
        )

    service = connect()
    while not stopping.is_set():
        identity = Identity.create()
        entrance = Entrance(JOB, identity.public, identity.sign(join_statement(JOB)), last_round=last)
        try:
            joined = service.join(entrance)
        except FedrecError:
            stopping.wait(1.0)
            service.close()
            service = connect()
            continue
        if not joined.session:
            stopping.wait(min(joined.retry_after_seconds, 2.0))
            continue
        drops = draw.random() < setting.dropout
        stage, silent = draw.choice(STAGES) if drops else None, draw.random() < setting.silent
        node = make_node(parts, ids, history, identity)
        dropping = DroppingNode(node, stage, silent, aside / f"{identity.public.hex()}.npy")
        session = CohortSession(
            service,
            joined.session,
            dropping,
            charge=lambda: None,
            stopping=threading.Event(),
            deadline=time.monotonic() + 600,
        )
        try:
            ending = session.run()
            sent.put((ending.sent, ending.bytes_up, ending.reason))
            stopping.wait(min(ending.retry_after_seconds, 2.0) * draw.random())
        except Vanished:
            for _ in range(0 if silent else 5):
                with suppress(FedrecError):
                    service.leave(joined.session)
                    break
            stopping.wait(5.0 * draw.random())
    service.close()


def check_in(setting: Setting, ports: list[int], count: int, stopping: Any, made: Any) -> None:
    """Devices that only ask whether there is something to do, each over a connection of its own."""
    from fedrec.core.errors import FedrecError
    from fedrec_client.training.grpc_devices import GrpcDeviceService

    certs = Path(setting.folder) / "certs"

    def ask(number: int) -> None:
        service = GrpcDeviceService(
            f"127.0.0.1:{ports[number % len(ports)]}",
            ca=certs / "ca.crt",
            certificate=certs / "app.pem",
            key=certs / "app.key",
        )
        try:
            service.check_in(POPULATION, "0.1.0", 1)
            made.put(True)
        except FedrecError:
            made.put(False)
        service.close()

    for number in range(count):
        if stopping.is_set():
            return
        ask(number)


# The whole ---------------------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(pid: int) -> float:
    """Of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Run and print; see the module's text."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory(prefix="fedrec-devices-", dir=arguments.scratch) as folder:
        database = arguments.database or f"sqlite:///{folder}/devices.db"
        setting = Setting(
            arguments.devices,
            arguments.rounds,
            arguments.dropout,
            arguments.silent,
            arguments.processes,
            arguments.items,
            database,
            folder,
            arguments.stage_seconds,
            arguments.computing_seconds,
            arguments.seed,
        )
        found = run(setting, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(0 if found["all_exact_or_aborted"] else 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--silent", type=float, default=0.5, help="part of those that drop without a word")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--items", type=int, default=3030, help="33 parameters each")
    parser.add_argument("--database", default="", help="SQLAlchemy URL; default: SQLite in a scratch folder")
    parser.add_argument("--front-ends", type=int, default=1)
    parser.add_argument(
        "--kill-front-end", action="store_true", help="the first one, in the middle of round 2"
    )
    parser.add_argument(
        "--check-ins", type=int, default=0, help="devices that only check in, beside the rounds"
    )
    parser.add_argument("--stage-seconds", type=float, default=60.0)
    parser.add_argument("--computing-seconds", type=float, default=300.0)
    parser.add_argument("--scratch", default="/dev/shm" if Path("/dev/shm").is_dir() else None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def run(setting: Setting, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run; its figures."""
    lay_out(setting)
    task_of_run(setting)
    spawn = multiprocessing.get_context("spawn")
    ports_queue, records, sent, made = (spawn.Queue() for _ in range(4))
    stopping = spawn.Event()
    fronts = [
        spawn.Process(target=serve, args=(setting, ports_queue, k)) for k in range(arguments.front_ends)
    ]
    coordinator = spawn.Process(target=coordinate, args=(setting, records))
    for process in (*fronts, coordinator):
        process.start()
    ports = [port for _, port, _ in sorted(ports_queue.get() for _ in fronts)]
    share = -(-setting.devices // setting.processes)
    groups = [
        spawn.Process(
            target=take_part,
            args=(setting, ports, k * share, min(share, setting.devices - k * share), stopping, sent),
        )
        for k in range(setting.processes)
    ]
    if arguments.check_ins:
        groups.append(
            spawn.Process(target=check_in, args=(setting, ports, arguments.check_ins, stopping, made))
        )
    for process in groups:
        process.start()
    try:
        rounds = _watch(setting, fronts, coordinator, records, kill=arguments.kill_front_end)
    finally:
        stopping.set()
        for process in (*groups, *fronts, coordinator):
            process.kill()
            process.join()
    found = _summary(setting, rounds)
    if arguments.check_ins:
        answers = _drain(made)
        found["check_ins"] = {"asked": len(answers), "answered": sum(answers)}
        print(f"check-ins beside the rounds: {sum(answers):,} of {len(answers):,} answered")
    return found


def _drain(made: Any) -> list[Any]:
    found = []
    while True:
        try:
            found.append(made.get(timeout=0.5))
        except queue.Empty:
            return found


def _watch(
    setting: Setting, fronts: list[Any], coordinator: Any, records: Any, *, kill: bool
) -> list[dict[str, Any]]:
    rounds: list[dict[str, Any]] = []
    print(
        f"{setting.devices} devices, {setting.items * 33:,} parameters, {setting.dropout:.0%} dropping at random "
        f"stages ({setting.silent:.0%} of them silently), {len(fronts)} front end(s), "
        f"{setting.database.partition(':')[0]}, load {os.getloadavg()[0]:.1f}"
    )
    print(" round  seconds  members  in the sum  result    CPU ms per device  front MiB  coordinator MiB")
    killed = dict[int, float]()
    before, started = _cpu(fronts, coordinator, killed), time.monotonic()
    while (record := records.get()) is not None:
        if "round" not in record:
            print("       ", record)
            continue
        now, ended = _cpu(fronts, coordinator, killed), time.monotonic()
        record |= {"seconds": ended - started, "cpu": {k: now[k] - before[k] for k in now}}
        record["cpu_ms_per_device"] = 1000 * sum(record["cpu"].values()) / max(record["members"], 1)
        living = [front for front in fronts if front.is_alive()]
        record["front_mib"] = max((resident_mib(front.pid) for front in living), default=0.0)
        record["coordinator_mib"] = resident_mib(coordinator.pid) if coordinator.is_alive() else 0.0
        before, started = now, ended
        rounds.append(record)
        result = "aborted" if "aborted" in record else "exact" if record["exact"] else "WRONG"
        print(
            f"{record['round']:6d} {record['seconds']:8.1f} {record['members']:8d} {record.get('survivors', 0):11d}  "
            f"{result:8s} {record['cpu_ms_per_device']:18.1f} {record['front_mib']:10.0f} "
            f"{record['coordinator_mib']:16.0f}  {record.get('aborted', '')[:120]}",
            flush=True,
        )
        if kill and record["round"] == 1 and result == "exact" and not killed:
            threading.Timer(0.3 * record["seconds"], _kill, (fronts[0], killed)).start()
    return rounds


def _kill(front: Any, killed: dict[int, float]) -> None:
    killed[front.pid] = cpu_seconds(front.pid)
    os.kill(front.pid, signal.SIGKILL)
    print(f"         front end {front.pid} killed", flush=True)


def _cpu(fronts: list[Any], coordinator: Any, killed: dict[int, float]) -> dict[str, float]:
    front = sum(killed.get(each.pid, 0.0) if each.pid in killed else cpu_seconds(each.pid) for each in fronts)
    return {
        "front ends": front,
        "coordinator": cpu_seconds(coordinator.pid) if coordinator.is_alive() else 0.0,
    }


def _summary(setting: Setting, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    complete = [each for each in rounds if "aborted" not in each]
    good = all(each["exact"] for each in complete)
    if not complete:
        print("no round was completed")
        return {"rounds": rounds, "all_exact_or_aborted": good}
    later = complete[1:] or complete
    cpu = float(np.median([each["cpu_ms_per_device"] for each in later]))
    front = float(np.median([1000 * each["cpu"]["front ends"] / each["members"] for each in later]))
    last, first = complete[-1], complete[0]
    print(
        f"{len(complete)} rounds complete, all exact: {good}; {len(rounds) - len(complete)} attempts aborted. Median:"
    )
    print(f"  {np.median([each['seconds'] for each in later]):.1f} s a round")
    print(
        f"  server CPU per device {cpu:.1f} ms (front end {front:.1f}, coordinator {cpu - front:.1f}), "
        f"{cpu / TARGET_MS:.2f} of the target of {TARGET_MS:g} ms"
    )
    print(f"  per device {last['up'] / 1e6:.2f} MB up, {last['down'] / 1e6:.2f} MB down")
    print(
        f"  front end {first['front_mib']:.0f} -> {last['front_mib']:.0f} MiB, coordinator "
        f"{first['coordinator_mib']:.0f} -> {last['coordinator_mib']:.0f} MiB"
    )
    return {
        "rounds": rounds,
        "all_exact_or_aborted": good,
        "cpu_ms_per_device": cpu,
        "setting": vars(setting) | {"folder": "", "database": setting.database.partition(":")[0]},
        "run": secrets.token_hex(4),
    }


if __name__ == "__main__":
    main()
