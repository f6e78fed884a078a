"""What a caller of the service is told instead of an answer."""

from __future__ import annotations

import grpc


class Refused(Exception):  # noqa: N818 - an answer, not a mishap
    """A call is refused with a status and a fixed text; `retry`: it is told when to come back."""

    def __init__(self, code: grpc.StatusCode, text: str, retry: bool = False) -> None:
        super().__init__(text)
        self.code, self.text, self.retry = code, text, retry
