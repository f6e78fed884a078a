"""A secure round over Flower SuperNodes, beside `benchmarks.thousand_devices`: seconds, server CPU and memory.

    python -m benchmarks.site_rounds

Three sites on this machine, two rounds of matrix factorisation under secure aggregation with distributed noise.
Server CPU is user and system time of SuperLink, gateway and what SuperLink starts (the coordinator), from /proc, over
the rounds; memory of a site is the resident set of its processes.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from benchmarks.kill_sites import SITES, below, federation, rounds_of
from benchmarks.kill_world import processes
from fedrec_server.sites.run import read_run
from fedrec_server.supervision.supervisor import read_parts


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of processes, with children that have ended."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def resident_mib(pids: Iterable[int]) -> float:
    """Of processes together."""
    pages = 0
    for pid in pids:
        with suppress(OSError):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Run once and print."""
    with (
        tempfile.TemporaryDirectory(prefix="fedrec-sites-") as scratch,
        federation(Path(scratch) / "all") as made,
    ):
        parts = {name: int(part["pid"]) for name, part in read_parts(made.folder / "server").items()}
        coordinator = read_run(made.root) / "coordinator"

        def server() -> set[int]:
            return {*parts.values(), *below(parts["superlink"])}

        before, started = cpu_seconds(server()), time.monotonic()
        made.run()
        spent = before
        while made.running["run"].poll() is None:
            spent = max(
                spent, cpu_seconds(server())
            )  # a coordinator's time is its parent's once it has ended
            time.sleep(0.2)
        seconds = time.monotonic() - started
        rounds = rounds_of(coordinator)
        each = len(rounds) * len(SITES)
        site = [*processes(b"flower-supernode", str(made.folder / SITES[0]).encode())]
        memory = resident_mib([*site, *(pid for one in site for pid in below(one))])
    print(f"{len(rounds)} rounds of {len(SITES)} sites in {seconds:.0f} s, start of the run included")
    print(f"  server CPU {1000 * (spent - before) / each:.0f} ms per site and round")
    for found in rounds:
        print(
            "  seconds of the stages of a round:",
            {k: round(v, 1) for k, v in found["secagg"]["seconds"].items()},
        )
    print(f"  memory of a site's processes {memory:.0f} MiB")


if __name__ == "__main__":
    main()
