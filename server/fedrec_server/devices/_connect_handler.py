"""The calls of the device service as Connect sends them, so that a browser can make them: one POST per call.

    POST /fedrec.devices.v1.DeviceService/<Method>     content-type: application/proto or application/json
    200 and the answer, or a status with {"code": ..., "message": ...}     (connectrpc.com/docs/protocol, unary calls)

Browsers ask first whether a page of another origin may call (CORS): pages of the origins that the operator has named
may. An origin authenticates no device, and this form asks for no app's certificate, which a browser cannot show:
limits, sessions and admission are those of every call. Out of scope: connections (`network.http_connection`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection
from concurrent.futures import Executor
from typing import Any

import grpc
from google.protobuf import json_format

from fedrec_server.devices.calls import SERVICE, DeviceCalls
from fedrec_server.network import call_guard
from fedrec_server.network.http_connection import Answer, Caller, Head
from fedrec_server.network.refusals import Refused

PROTO, JSON = "application/proto", "application/json"
#: Seconds for which a browser need not ask again.
PREFLIGHT_SECONDS = 7200
#: What a caller without a certificate counts as.
APP = "connect"
STATUS = {
    "cancelled": 499, "unknown": 500, "invalid_argument": 400, "deadline_exceeded": 504, "not_found": 404,
    "already_exists": 409, "permission_denied": 403, "resource_exhausted": 429, "failed_precondition": 400,
    "aborted": 409, "out_of_range": 400, "unimplemented": 501, "internal": 500, "unavailable": 503,
    "data_loss": 500, "unauthenticated": 401,
}  # fmt: skip
Header = tuple[bytes, bytes]


class ConnectHandler:
    """A `Handler` of HTTP.

    Args:
        calls: what is answered.
        origins: "https://app.example.com", of pages whose scripts may call.
        pool: threads that calls are answered in.
        piece_bytes: of what is sent or taken in one call.
        retry_seconds: which callers that are refused for a while are sent.
    """

    def __init__(
        self,
        calls: DeviceCalls,
        origins: Collection[str],
        pool: Executor,
        piece_bytes: int,
        retry_seconds: float,
    ) -> None:
        self._calls, self._pool, self._retry_seconds = calls, pool, retry_seconds
        self._origins = {origin.encode("ascii") for origin in origins}
        # JSON holds bytes in base64.
        self.max_body_bytes = piece_bytes * 4 // 3 + (64 << 10)

    def refusal(self, head: Head) -> Answer | None:
        """See `Handler`: whatever is not a call."""
        if _method(head) not in self._calls.methods:
            return Answer(404)
        return None if head.method in ("POST", "OPTIONS") else Answer(405, [(b"allow", b"POST, OPTIONS")])

    async def answer(self, head: Head, body: bytes, caller: Caller) -> Answer:
        """See `Handler`."""
        fields = {name.lower(): value for name, value in head.headers}
        cors = self._cors(fields)
        if head.method == "OPTIONS":
            return Answer(204, [*cors, *_PREFLIGHT] if cors else [(b"vary", b"origin")])
        kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        if kind not in (PROTO, JSON):
            return Answer(415, [*cors, (b"accept-post", f"{PROTO}, {JSON}".encode())])
        try:
            _expect_plain(fields)
            method = _method(head)
            known = call_guard.Caller(caller.address, APP)
            loop = asyncio.get_running_loop()
            with caller.forwarding():
                content = await loop.run_in_executor(self._pool, self._call, method, kind, body, known)
        except Exception as error:
            return self._refused(call_guard.as_refusal(error), cors)
        caller.accept()
        return Answer(200, [*cors, (b"content-type", kind.encode())], content)

    def _call(self, method: str, kind: str, body: bytes, caller: call_guard.Caller) -> bytes:
        if kind == PROTO:
            return self._calls.answer(method, body, caller)
        asked, answered, _ = self._calls.methods[method]
        return _to_json(answered, self._calls.answer(method, _from_json(asked, body), caller))

    def _cors(self, fields: dict[bytes, bytes]) -> list[Header]:
        origin = fields.get(b"origin", b"")
        if origin not in self._origins:
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"retry-after"),
            (b"vary", b"origin"),
        ]

    def _refused(self, refused: Refused, cors: list[Header]) -> Answer:
        code = refused.code.name.lower()
        named = "canceled" if code == "cancelled" else code  # as Connect spells it
        headers = [*cors, (b"content-type", JSON.encode())]
        if refused.retry:
            headers.append((b"retry-after", f"{self._retry_seconds:.0f}".encode()))
        body = json.dumps({"code": named, "message": refused.text}).encode()
        return Answer(STATUS[code], headers, body)


_PREFLIGHT: list[Header] = [
    (b"access-control-allow-methods", b"POST"),
    (b"access-control-allow-headers", b"content-type, connect-protocol-version, connect-timeout-ms"),
    (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode()),
]


def _method(head: Head) -> str:
    """The name in a target, compared as it came; empty: it is not a call of this service."""
    prefix = f"/{SERVICE}/".encode()
    found = head.target.removeprefix(prefix)
    return found.decode("latin-1") if found != head.target else ""


def _expect_plain(fields: dict[bytes, bytes]) -> None:
    if fields.get(b"content-encoding", b"identity") != b"identity":
        raise Refused(grpc.StatusCode.UNIMPLEMENTED, "content-encoding: expected identity")
    if fields.get(b"connect-protocol-version", b"1") != b"1":
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "connect-protocol-version: expected 1")


def _from_json(kind: Any, body: bytes) -> bytes:
    try:
        return bytes(json_format.Parse(body.decode(), kind()).SerializeToString())
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "no message of this call") from error


def _to_json(kind: Any, content: bytes) -> bytes:
    return str(json_format.MessageToJson(kind.FromString(content), indent=None)).encode()
