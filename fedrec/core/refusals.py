"""What a node says when it does not answer: a code from a fixed list, and nothing else.

Words that are made where data lie tell about them: a number that overflowed, a path, an account, what other runs have
spent. So a refusal leaves a node as one of the codes below, which follow from the request and from the node's terms;
the words stay in the node's own log, and a receiver of a code looks its sentence up here. Whether a code is sent
spent. So a refusal leaves a node as one of the codes below, which follow from the request and from the terms;
where nothing could be computed. Out of scope: what is refused (each rule stands where it is kept).
"""

from __future__ import annotations

from fedrec.core.errors import AggregationRefused, FedrecError, ProtocolError
from fedrec.core.refusal_reasons import Reason

PROTOCOL, DECLINED, FAILED, FOREIGN = "protocol", "declined", "failed", "foreign"
_SECAGG = "secagg-"
#: Number of the error by which Flower's messages carry a code; Flower's own numbers end at 8.
REFUSED = 1001

#: Every code, and what it means to the operator of the coordinator.
CODES: dict[str, str] = {
    PROTOCOL: "the request does not follow the round protocol or this run's schedule",
    DECLINED: "the node declines by its own terms (budget, promises, ledger or folder); its own log says more",
    FAILED: "the node failed; its own log says more",
    FOREIGN: "the node runs its installed component only, and the app bundle that came is another",
} | {
    _SECAGG + reason.value: f"the node refused a step of secure aggregation ({reason.value})"
    for reason in Reason
}


class NodeRefused(FedrecError):  # noqa: N818 - it names what happened
    """A refusal that came as a code from the process that holds the node.

    Args:
        code: one of `CODES`; anything else counts as "failed".
    """

    exit_code = 8

    def __init__(self, code: str) -> None:
        self.code = code if code in CODES else FAILED
        super().__init__(CODES[self.code])


def code_of(error: Exception) -> str:
    """The code under which an error leaves a node; it follows from the error's type, never from its words."""
    if isinstance(error, NodeRefused):
        return error.code
    if isinstance(error, AggregationRefused):
        code = _SECAGG + str(error.reason)
        return code if code in CODES else FAILED
    if isinstance(error, ProtocolError):
        return PROTOCOL
    return DECLINED if isinstance(error, FedrecError) else FAILED


def sentence_of(code: str) -> str:
    """What a code means; one line for anything that is not a code."""
    return f"{code}: {CODES[code]}" if code in CODES else "the node answered with an unknown code"
