"""A relay between devices and their service: rounds work through it, and it sees nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from device_helpers import JOB, Crowd, Device, add_job, ask, channel, front_end, vectors, wanted

from fedrec.core.errors import ConfigError
from fedrec.core.processes import free_ports
from fedrec_server.devices.edge import Edge, EdgeLimits, parse_address
from fedrec_server.devices.exchange import DeviceExchange
from fedrec_server.devices.state.database import State, open_state

LENGTH = 5_000


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with open_state(f"sqlite:///{tmp_path}/devices.db") as made:
        add_job(made)
        yield made


class Recorder:
    """Passes bytes on to a port and keeps them; `change`: what it makes of bytes on their way to the service."""

    def __init__(self, port: int) -> None:
        self._target, self.seen, self.change = port, bytearray(), bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def close(self) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(30)
        for each in self._sockets:
            each.close()

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                one, _ = self._listener.accept()
                self._sockets.append(one)
                other = socket.create_connection(("127.0.0.1", self._target))
                self._sockets.append(other)
                self._start(self._pass, one, other, True)
                self._start(self._pass, other, one, False)

    def _pass(self, source: socket.socket, sink: socket.socket, there: bool) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                self.seen += content
                sink.sendall(self.change(content) if there else content)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def test_a_round_through_a_relay_is_exact_and_the_relay_sees_none_of_it(state: State, tmp_path: Path) -> None:
    tls = tmp_path / "tls"
    exchange = DeviceExchange(state, JOB)
    with (
        front_end(state, tls) as running,
        closing(Recorder(running.port)) as recorder,
        Edge(("127.0.0.1", recorder.port)) as edge,
    ):
        devices = [Device(channel(edge.port, tls)) for _ in range(3)]
        with Crowd(devices, vectors(LENGTH)) as crowd:
            cohort = exchange.form(wanted(3), lambda: False)
            nodes = [each.node for each in cohort.members]
            summed = exchange.exchange_summed(ask(nodes, "train"), 60, "uint32", LENGTH)
            assert summed.total.tolist() == [6] * LENGTH
            exchange.close(cohort, "done")
        assert [end.reason for end in crowd.ends.values()] == ["done"] * 3
    assert len(recorder.seen) > 3 * 4 * LENGTH  # the vectors did pass
    for secret in (
        JOB.encode(),
        np.full(8, 1, np.uint32).tobytes(),
        *(device.identity for device in devices),
    ):
        assert secret not in recorder.seen


def test_a_relay_that_changes_a_byte_ends_the_connection(state: State, tmp_path: Path) -> None:
    tls = tmp_path / "tls"
    with (
        front_end(state, tls) as running,
        closing(Recorder(running.port)) as recorder,
        Edge(("127.0.0.1", recorder.port)) as edge,
    ):
        device = Device(channel(edge.port, tls))
        assert device.check_in().retry_min_seconds > 0
        recorder.change = lambda content: content[:-1] + bytes([content[-1] ^ 1])
        with pytest.raises(Exception, match="StatusCode"):
            device.call("CheckIn", device.join_request(), timeout=5)
        recorder.change = bytes
        assert Device(channel(edge.port, tls)).check_in().retry_min_seconds > 0


def test_a_service_that_is_away_is_found_again(state: State) -> None:
    (port,) = free_ports(1)
    with Edge(("127.0.0.1", port)) as edge:
        with socket.create_connection(("127.0.0.1", edge.port)) as line:
            line.sendall(b"hello")
            _expect_closed([line], 1)
        with front_end(state, listening={"port": port}):
            assert Device(channel(edge.port)).check_in().retry_min_seconds > 0


def test_connections_that_say_nothing_take_none_of_the_service() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as service,
        Edge(("127.0.0.1", service.getsockname()[1]), limits=EdgeLimits(first_seconds=0.3)) as edge,
    ):
        service.settimeout(1.0)
        with socket.create_connection(("127.0.0.1", edge.port)) as silent:
            _expect_closed([silent], 1)
            with pytest.raises(TimeoutError):
                service.accept()


def test_one_device_cannot_take_all_connections(state: State) -> None:
    with front_end(state) as running, Edge(("127.0.0.1", running.port), limits=EdgeLimits(8, 2)) as edge:
        lines = [socket.create_connection(("127.0.0.1", edge.port)) for _ in range(5)]
        _expect_closed(lines, 3)
        for line in lines:
            line.close()


def _expect_closed(lines: list[socket.socket], count: int) -> None:
    """So many of these connections end."""
    until = time.monotonic() + 60
    while (ended := sum(map(_is_closed, lines))) < count and time.monotonic() < until:
        time.sleep(0.05)
    assert ended == count


def _is_closed(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        return line.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


@pytest.mark.parametrize("text", ["devices.example.org", ":8444", "host:0", "host:70000", "host:x", ""])
def test_an_address_that_is_none_is_one_line(text: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        parse_address(text)


def test_addresses_are_read() -> None:
    assert parse_address("devices.example.org:8444") == ("devices.example.org", 8444)
    assert parse_address("[::1]:8444") == ("::1", 8444)
