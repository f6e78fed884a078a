"""Hosts on this machine: network namespaces joined by a link of 1 Mbit/s, and a relay that adds 300 ms each way.

    A 10.77.0.1 ====(veth, tbf)==== B 10.77.0.2

The kernel of many machines has no `netem`: the delay is the relay's, which also cuts all connections when told.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

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


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


# The relay, a program of its own: python -m namespaces HOST PORT TARGET_PORT


def relay(host: str, port: int, target: int) -> list[str]:
    """Command of a relay to a port of loopback; SIGUSR1 cuts every connection.

    It prints `cut` with the number of sockets, and of each connection that has ended: address, number of cuts before
    it began, bytes there, bytes back.
    """
    return [sys.executable, __file__, host, str(port), str(target)]


class _Relay:
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
