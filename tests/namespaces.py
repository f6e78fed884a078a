"""Hosts on this machine: network namespaces joined by a link of 1 Mbit/s, and a relay that adds 300 ms each way.

    A 10.77.0.1 ====(veth, tbf)==== B 10.77.0.2

The kernel of many machines has no `netem`: the delay is the relay's, which also cuts all connections when told.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedrec.core.processes import cut, start

A, B = "10.77.0.1", "10.77.0.2"
RATE = "1mbit"
DELAY_SECONDS = 0.3


def found() -> bool:
    """Whether this user may make namespaces here."""
    if not (shutil.which("ip") and shutil.which("tc")):
        return False
    name = f"fedrec-{secrets.token_hex(4)}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return False
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return True


@dataclass(frozen=True)
class Hosts:
    """Names of the namespaces of both hosts."""

    a: str
    b: str


def inside(host: str, *command: str) -> list[str]:
    """A command on a host."""
    return ["ip", "netns", "exec", host, *command]


@contextmanager
def two_hosts(rate: str = RATE) -> Iterator[Hosts]:
    """Two hosts with a link between them; gone afterwards."""
    tag = secrets.token_hex(3)
    hosts = Hosts(f"fedrec-a-{tag}", f"fedrec-b-{tag}")
    links = {hosts.a: f"fra{tag}", hosts.b: f"frb{tag}"}
    try:
        for host in links:
            _do("ip", "netns", "add", host)
        _do("ip", "link", "add", links[hosts.a], "type", "veth", "peer", "name", links[hosts.b])
        for (host, link), address in zip(links.items(), (A, B), strict=True):
            _do("ip", "link", "set", link, "netns", host)
            _do(*inside(host, "ip", "address", "add", f"{address}/24", "dev", link))
            _do(*inside(host, "ip", "link", "set", "lo", "up"))
            _do(*inside(host, "ip", "link", "set", link, "up"))
            shape = ("rate", rate, "burst", "16kb", "latency", "400ms")
            _do(*inside(host, "tc", "qdisc", "add", "dev", link, "root", "tbf", *shape))
        yield hosts
    finally:
        for host in links:
            subprocess.run(["ip", "netns", "del", host], capture_output=True, check=False)


CLI = (sys.executable, "-m", "fedrec_server.cli.main")
PATIENT_SECONDS = 600.0


class Programs:
    """What runs on the hosts; all of it ends with the stack.

    Attributes:
        hosts: on which.
        folder: of logs and files.
    """

    def __init__(self, hosts: Hosts, folder: Path, stack: ExitStack) -> None:
        self.hosts, self.folder, self._stack = hosts, folder, stack

    def call(self, host: str, *words: object) -> dict[str, object]:
        """A command's answer."""
        command = inside(host, *CLI, *map(str, words), "--json")
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENT_SECONDS, check=False, cwd=self.folder
        )
        assert done.returncode == 0, f"{words}: {done.stdout} {done.stderr}"
        return dict(json.loads(done.stdout))

    def keep(self, host: str, name: str, *command: object) -> subprocess.Popen[bytes]:
        """A process that runs until the end."""
        mark = f"two-hosts-{os.getpid()}/{name}"
        log = self.folder / f"{name}.log"
        child = start(inside(host, *map(str, command)), mark=mark, env=os.environ, log=log)
        self._stack.callback(cut, mark, [child.pid])
        return child

    def relay(self, host: str, address: str, port: int) -> subprocess.Popen[bytes]:
        """A running relay to a port of the host's loopback."""
        name = f"relay-{port}"
        found = self.keep(host, name, sys.executable, __file__, address, port, port)
        until(lambda: "ready" in self.log(name), "the relay did not start")
        return found

    def log(self, name: str) -> str:
        """What a process has printed so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait, patiently."""
    deadline = time.monotonic() + PATIENT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(1.0)


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


# The relay, a program of its own: python namespaces.py HOST PORT TARGET_PORT


class _Relay:
    """To a port of loopback; SIGUSR1 cuts every connection.

    It prints `cut` with the number of sockets, and of each connection that has ended: address, number of cuts before
    it began, bytes there, bytes back.
    """

    def __init__(self, target: int) -> None:
        self._target, self._open = target, set[asyncio.StreamWriter]()
        self._cuts = 0

    def cut(self) -> None:
        self._cuts += 1
        print("cut", len(self._open), flush=True)
        for writer in self._open:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")[0]
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._open |= {writer, back}
        passed, cuts = [0, 0], self._cuts
        try:
            await asyncio.gather(self._pass(reader, back, passed, 0), self._pass(there, writer, passed, 1))
        finally:
            self._open -= {writer, back}
            print("ended", peer, cuts, *passed, flush=True)

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, passed: list[int], way: int
    ) -> None:
        loop = asyncio.get_running_loop()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def send() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(0.0, due - loop.time()))
                if not data:
                    return
                sink.write(data)
                await sink.drain()
                passed[way] += len(data)

        sending = asyncio.create_task(send())
        with suppress(OSError):
            while data := await source.read(1 << 16):
                waiting.put_nowait((loop.time() + DELAY_SECONDS, data))
        waiting.put_nowait((loop.time() + DELAY_SECONDS, b""))
        with suppress(OSError):
            await sending
        sink.close()


async def _main(host: str, port: int, target: int) -> None:
    made = _Relay(target)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, made.cut)
    async with await asyncio.start_server(made.serve, host, port) as server:
        print("ready", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
