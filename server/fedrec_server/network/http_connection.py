"""Serves HTTP/1.1 over TLS on one connection, with a time for each step of it.

    handshake -> first byte -> whole header -> whole body -> answer taken -> idle until the next call

A caller that is late at any step, or slower than a least rate within a body, is cut off; none of these steps holds
anything that other connections wait for. Bodies need a length, so that their size is known before the first byte.
Parsing is h11's. Out of scope: which connections are kept (`admission`), what is answered (a `Handler`).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import h11

from fedrec.core.errors import ServiceError
from fedrec_server.network.admission import Admission, Entry

MAX_HEADER_BYTES = 16 << 10
MAX_HEADERS = 64
READ_BYTES = 64 << 10
#: For what a caller still sends after it was refused, and for its part in closing TLS.
LINGER_SECONDS = 1.0
Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class TimeLimits:
    """Of one connection, all in seconds.

    Attributes:
        handshake_seconds: from the connection to the end of TLS's handshake.
        first_byte_seconds: from there to the first byte.
        header_seconds: from the first byte of a request to the end of its header.
        body_seconds: for a body of any size, and again for taking an answer.
        least_bytes_per_second: earns a larger body more time, byte by byte as it comes.
        request_seconds: for a body, however much time it has earned.
        idle_seconds: between an answer and the next request.
    """

    handshake_seconds: float = 10.0
    first_byte_seconds: float = 10.0
    header_seconds: float = 10.0
    body_seconds: float = 20.0
    least_bytes_per_second: float = 32 << 10
    request_seconds: float = 120.0
    idle_seconds: float = 15.0

    def allowed(self, size: int) -> float:
        """Seconds since its start that a body may take of which `size` bytes have passed."""
        return min(self.body_seconds + size / self.least_bytes_per_second, self.request_seconds)


@dataclass(frozen=True)
class Head:
    """Of a request, as it came over the wire."""

    method: str
    target: bytes
    headers: Headers


@dataclass(frozen=True)
class Answer:
    """To a request; `close`: the connection ends with it."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    close: bool = False


class Caller:
    """The other end of a connection, as a handler sees it.

    Attributes:
        address: as a limit knows it.
    """

    def __init__(self, entry: Entry, admission: Admission, transport: asyncio.BaseTransport) -> None:
        self.address = entry.address
        self._entry, self._admission, self._transport = entry, admission, transport

    @property
    def authenticated(self) -> bool:
        """Whether a call of it was accepted by the service behind."""
        return self._entry.authenticated

    def accept(self, node: bytes = b"") -> None:
        """The service behind has accepted its call, of a node where that is known."""
        self._admission.accept(self._entry, node)

    def calling(self) -> AbstractContextManager[None]:
        """While its request is answered."""
        return self._admission.calling(self._entry)

    def forwarding(self) -> AbstractContextManager[None]:
        """While the service behind works for it."""
        return self._admission.forwarding(self._entry)

    def holds(self, size: int) -> None:
        """So many bytes of its request have come."""
        self._admission.hold(self._entry, size)

    async def is_gone(self) -> bool:
        """Whether an answer would reach it no more."""
        return self._transport.is_closing()


class Handler(Protocol):
    """What is answered."""

    #: Of a request.
    max_body_bytes: int

    def refusal(self, head: Head) -> Answer | None:
        """An answer that needs no body; it ends the connection."""
        ...

    async def answer(self, head: Head, body: bytes, caller: Caller) -> Answer:
        """The answer to a whole request."""
        ...


def tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """Of a server: TLS 1.2 or 1.3, forward secrecy, no compression, no renegotiation.

    Raises:
        ServiceError: the files cannot be read.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    made.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    made.set_alpn_protocols(["http/1.1"])
    try:
        made.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ServiceError(
            f"{certificate} and {key} cannot be used ({error}): expected a certificate and its key in PEM"
        ) from error
    return made


class HttpServer:
    """Serves connections; `serve` is what a `Front` calls.

    Args:
        handler: answers.
        context: of TLS; None: none, on loopback only.
        admission: of the connections.
        limits: of time.
    """

    def __init__(
        self, handler: Handler, context: ssl.SSLContext | None, admission: Admission, limits: TimeLimits
    ) -> None:
        self._handler, self._context, self._admission, self._limits = handler, context, admission, limits

    async def serve(self, connection: socket.socket, entry: Entry) -> None:
        """One connection until its end.

        Raises:
            OSError, TimeoutError: it ended, or was late.
        """
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=READ_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol,
            connection,
            ssl=self._context,
            ssl_handshake_timeout=self._limits.handshake_seconds if self._context else None,
            ssl_shutdown_timeout=LINGER_SECONDS if self._context else None,
        )
        try:
            transport.set_write_buffer_limits(high=1, low=0)  # asyncio's TLS stalls at high=0
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            caller = Caller(entry, self._admission, transport)
            await _Conversation(reader, writer, self._handler, caller, self._limits).run()
            transport.close()
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await writer.wait_closed()
        finally:
            transport.abort()


class _Conversation:
    """Requests and answers on a connection."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handler: Handler,
        caller: Caller,
        limits: TimeLimits,
    ) -> None:
        self._reader, self._writer, self._caller = reader, writer, caller
        self._handler, self._limits = handler, limits
        self._wire = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)

    async def run(self) -> None:
        """Until either side ends it."""
        wait = self._limits.first_byte_seconds
        try:
            while (head := await self._head(wait)) is not None:
                await self._exchange(head)
                if self._wire.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                    await self._linger()
                    return
                self._wire.start_next_cycle()
                wait = self._limits.idle_seconds
        except h11.RemoteProtocolError as error:
            await self._end(error.error_status_hint)
        except TimeoutError:
            if self._wire.our_state is h11.SEND_RESPONSE:  # a part of a request came
                await self._end(408)

    async def _end(self, status: int) -> None:
        if self._wire.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self._send(Answer(status, close=True))
            await self._linger()

    async def _head(self, wait_seconds: float) -> Head | None:
        """Of the next request; None: there is no other."""
        if not self._wire.trailing_data[0]:
            async with asyncio.timeout(wait_seconds):
                self._wire.receive_data(await self._reader.read(READ_BYTES))
        async with asyncio.timeout(self._limits.header_seconds):
            while (event := self._wire.next_event()) is h11.NEED_DATA:
                self._wire.receive_data(await self._reader.read(READ_BYTES))
        if not isinstance(event, h11.Request):
            return None
        return Head(event.method.decode(), event.target, event.headers.raw_items())

    async def _exchange(self, head: Head) -> None:
        refusal = _refusal(head, self._handler.max_body_bytes) or self._handler.refusal(head)
        if refusal is not None:
            await self._send(Answer(refusal.status, refusal.headers, refusal.body, close=True))
            return
        body = await self._body()
        with self._caller.calling():
            await self._send(await self._handler.answer(head, body, self._caller))

    async def _body(self) -> bytes:
        now = asyncio.get_running_loop().time
        start, body = now(), bytearray()
        if self._wire.they_are_waiting_for_100_continue:
            self._writer.write(self._wire.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        try:
            while not isinstance(event := self._wire.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    async with asyncio.timeout_at(start + self._limits.allowed(len(body))):
                        self._wire.receive_data(await self._reader.read(READ_BYTES))
                elif isinstance(event, h11.Data):
                    body += event.data
                    self._caller.holds(len(body))
                else:
                    raise ConnectionResetError("the connection ended within a request")
        finally:
            self._caller.holds(0)
        return bytes(body)

    async def _send(self, answer: Answer) -> None:
        """At the pace of the caller, within the limits."""
        headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
        if answer.close:
            headers.append((b"connection", b"close"))
        content = self._wire.send(h11.Response(status_code=answer.status, headers=headers)) or b""
        content += self._wire.send(h11.Data(data=answer.body)) or b""
        content += self._wire.send(h11.EndOfMessage()) or b""
        now = asyncio.get_running_loop().time
        start = now()
        for first in range(0, len(content), READ_BYTES):
            async with asyncio.timeout_at(start + self._limits.allowed(first)):
                self._writer.write(content[first : first + READ_BYTES])
                await self._writer.drain()

    async def _linger(self) -> None:
        """Take what is still on its way, because closing before would take our last answer back."""
        if self._wire.their_state is h11.CLOSED:
            return
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(LINGER_SECONDS):
                while await self._reader.read(READ_BYTES):
                    pass


def _refusal(head: Head, max_body_bytes: int) -> Answer | None:
    """What is refused whatever the handler says."""
    if len(head.headers) > MAX_HEADERS or sum(len(n) + len(v) for n, v in head.headers) > MAX_HEADER_BYTES:
        return Answer(431)
    fields = {name.lower(): value for name, value in head.headers}
    if b"transfer-encoding" in fields:
        return Answer(411)
    if int(fields.get(b"content-length", b"0")) > max_body_bytes:
        return Answer(413)
    return None
