"""The gateway waits on a node's behalf: answers when there is a message, looks seldom, fetches for no one."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from fedrec_server.federation._patience import HOLD_SECONDS, MOST_LOOKS_PER_SECOND, Patience
from fedrec_server.federation.gateway import PULL_PATH, Gateway
from fedrec_server.network.admission import Admission, ConnectionLimits
from fedrec_server.network.http_connection import Caller, Head


class Leaping(asyncio.SelectorEventLoop):
    """A loop whose clock leaps to the next event instead of waiting for it."""

    def __init__(self) -> None:
        self.now = 100.0
        selector = selectors.SelectSelector()
        look = selector.select

        def leap(timeout: float | None = None) -> Any:
            self.now += timeout or 0.0
            return look(0)

        selector.select = leap  # type: ignore[method-assign]
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run(work: Coroutine[Any, Any, Any]) -> tuple[Any, float]:
    """What the work gives, and for how many seconds it waited."""
    loop = Leaping()
    try:
        return loop.run_until_complete(work), loop.now - 100.0
    finally:
        loop.close()


class Mailbox:
    """Has a message from a moment on, for each of those who look."""

    def __init__(self, comes_at: float = float("inf"), leaves_at: float = float("inf")) -> None:
        self.comes_at, self.leaves_at, self.looks, self.fetched_at = comes_at, leaves_at, 0, [0.0]

    async def ask(self) -> str:
        self.looks += 1
        now = asyncio.get_running_loop().time() - 100.0
        if now < self.comes_at:
            return ""
        self.fetched_at.append(now)
        return "message"

    async def is_gone(self) -> bool:
        return asyncio.get_running_loop().time() - 100.0 >= self.leaves_at

    async def wait(self, patience: Patience) -> str:
        return await patience.wait(self.ask, bool, self.is_gone)


def test_a_message_that_is_there_is_handed_over_at_once() -> None:
    box = Mailbox(0.0)
    said, seconds = run(box.wait(Patience()))
    assert (said, box.looks) == ("message", 1) and seconds < 1.0


@given(st.floats(0.1, 24.0))
def test_a_message_that_comes_while_a_node_waits_is_found_soon(comes_at: float) -> None:
    box = Mailbox(comes_at)
    said, seconds = run(box.wait(Patience()))
    assert said == "message" and comes_at <= seconds < comes_at + 1.0


def test_nothing_is_said_before_flowers_node_gives_up() -> None:
    box = Mailbox()
    said, seconds = run(box.wait(Patience()))
    assert said == "" and HOLD_SECONDS <= seconds < 30.0
    assert box.looks < 60


def test_without_patience_one_look_is_all() -> None:
    box = Mailbox(5.0)
    assert run(box.wait(Patience(hold_seconds=0.0))) == ("", 0.0) and box.looks == 1


def test_nothing_is_fetched_for_a_node_that_has_left() -> None:
    box = Mailbox(comes_at=5.0, leaves_at=4.0)
    said, seconds = run(box.wait(Patience()))
    assert said == "" and seconds < 5.0 and box.fetched_at == [0.0]


@given(st.integers(2, 64))
def test_looks_are_bounded_and_the_first_message_wakes_the_others(nodes: int) -> None:
    boxes = [Mailbox(10.0) for _ in range(nodes)]

    async def all_wait() -> list[str]:
        patience = Patience()
        return list(await asyncio.gather(*(box.wait(patience) for box in boxes)))

    said, _ = run(all_wait())
    assert said == ["message"] * nodes
    fetched = [box.fetched_at[-1] for box in boxes]
    assert max(fetched) - min(fetched) < 0.1
    assert sum(box.looks for box in boxes) < 3 * nodes + MOST_LOOKS_PER_SECOND * 10


class Open(asyncio.Transport):
    """A connection whose other end stays."""

    def is_closing(self) -> bool:
        return False


def test_the_gateway_asks_again_for_messages_and_for_nothing_else() -> None:
    asked: list[str] = []

    async def superlink(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        asked.append(f"{request.url.path} {(await request.body()).decode()} {request.headers['x-signature']}")
        body = b"message" if len(asked) % 3 == 0 else b""
        await Response(body)(scope, receive, send)

    async def ask(path: bytes) -> bytes:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(superlink), base_url="https://superlink")
        admission = Admission(ConnectionLimits())
        entry = admission.admit("127.0.0.1", lambda: None)
        assert entry is not None
        async with client:
            caller = Caller(entry, admission, Open())
            head = Head("POST", path, [(b"x-signature", b"mine")])
            return (await Gateway(client).answer(head, b"who", caller)).body

    content, _ = run(ask(PULL_PATH))
    assert content == b"message"
    assert asked == [f"{PULL_PATH.decode()} who mine"] * 3
    content, _ = run(ask(b"/v1/fleet/push-messages"))
    assert content == b"" and len(asked) == 4
