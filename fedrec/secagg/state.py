"""Where a device stands in an attempt, and the bytes by which it goes on in another process.

The bytes hold secrets between two steps: they belong in memory, never on disk. What a later step does not need is
gone after the step, and everything after the last one or a refusal. Python cannot overwrite `bytes`: "gone" means
that nothing refers to them any more. Out of scope: the steps (`client`).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg.context import Context
from fedrec.secagg.messages import Arrays

#: Replies up to this size are kept, to be sent again; a masked vector is not kept from process to process.
_KEPT_BYTES = 1 << 16


class Stage(IntEnum):
    """The steps, in order."""

    ADVERTISE = 1
    SHARE = 2
    MASK = 3
    CONFIRM = 4
    UNMASK = 5


@dataclass
class ClientState:
    """See the module's text.

    Attributes:
        context: of the attempt.
        c_key, s_key, seed: [32] secrets of this device; empty once they are not needed.
        members, digests: the cohort.
        c_publics, s_publics: keys of neighbours, by place.
        incoming: keys that open what neighbours send, by place.
        held: by owner, the 66 bytes of a share of its seed and one of its s key.
        sharers, survivors: as accepted.
        stage: the last step taken; 0 before the first.
        asked, answer: fingerprint of the question of the last step, and its reply.
        wiped: the attempt is over.
    """

    context: Context
    c_key: bytes = b""
    s_key: bytes = b""
    seed: bytes = b""
    members: tuple[int, ...] = ()
    digests: tuple[bytes, ...] = ()
    c_publics: dict[int, bytes] = field(default_factory=dict)
    s_publics: dict[int, bytes] = field(default_factory=dict)
    incoming: dict[int, bytes] = field(default_factory=dict)
    held: dict[int, bytes] = field(default_factory=dict)
    sharers: tuple[int, ...] = ()
    survivors: tuple[int, ...] = ()
    stage: int = 0
    asked: bytes = b""
    answer: Arrays | None = None
    wiped: bool = False

    def expect(self, stage: Stage) -> None:
        """The next step must be this one.

        Raises:
            AggregationRefused: it is another, or the attempt is over.
        """
        if self.wiped:
            raise AggregationRefused("this attempt is over for this device", Reason.FORGOTTEN)
        if stage != self.stage + 1:
            known = Stage(self.stage).name.lower() if self.stage else "nothing"
            raise AggregationRefused(
                f"stage {stage.name.lower()} was asked for after {known}: expected the stages in order, once each",
                Reason.ANSWERED if stage <= self.stage else Reason.STAGE,
            )

    def earlier(self, stage: Stage, arrays: Arrays) -> Arrays | None:
        """The reply of the last step if the very same is asked again."""
        same = stage == self.stage and self.asked == _fingerprint(arrays)
        return self.answer if same else None

    def took(self, stage: Stage, arrays: Arrays, reply: Arrays) -> None:
        """Note a step; after the last one nothing secret is left."""
        if stage is Stage.UNMASK:
            self.wipe()
        self.stage, self.asked, self.answer = int(stage), _fingerprint(arrays), reply

    def wipe(self) -> None:
        """Forget everything but the context."""
        self.c_key = self.s_key = self.seed = self.asked = b""
        self.c_publics, self.s_publics, self.incoming, self.held = {}, {}, {}, {}
        self.answer, self.wiped = None, True

    def dump(self) -> bytes:
        """The state for another process; secret."""
        plain: dict[str, Any] = {"context": asdict(self.context)}
        for name in ("c_key", "s_key", "seed", "asked"):
            plain[name] = getattr(self, name).hex()
        for name in ("c_publics", "s_publics", "incoming", "held"):
            plain[name] = {str(place): data.hex() for place, data in getattr(self, name).items()}
        for name in ("members", "sharers", "survivors"):
            plain[name] = list(getattr(self, name))
        plain["digests"] = b"".join(self.digests).hex()
        plain |= {"stage": self.stage, "wiped": self.wiped, "answer": None}
        if self.answer is not None and sum(a.nbytes for a in self.answer.values()) <= _KEPT_BYTES:
            plain["answer"] = {
                name: [a.dtype.str, list(a.shape), a.tobytes().hex()] for name, a in self.answer.items()
            }
        return json.dumps(plain).encode()

    @classmethod
    def load(cls, data: bytes) -> ClientState:
        """The state that `dump` gave.

        Raises:
            AggregationRefused: it is something else.
        """
        try:
            return cls._load(json.loads(data))
        except (ValueError, KeyError, TypeError):
            raise AggregationRefused(
                "the kept state of this attempt cannot be read", Reason.FORGOTTEN
            ) from None

    @classmethod
    def _load(cls, plain: dict[str, Any]) -> ClientState:
        state = cls(Context(**plain["context"]))
        for name in ("c_key", "s_key", "seed", "asked"):
            setattr(state, name, bytes.fromhex(plain[name]))
        for name in ("c_publics", "s_publics", "incoming", "held"):
            setattr(state, name, {int(place): bytes.fromhex(text) for place, text in plain[name].items()})
        for name in ("members", "sharers", "survivors"):
            setattr(state, name, tuple(plain[name]))
        digests = bytes.fromhex(plain["digests"])
        state.digests = tuple(digests[i : i + 32] for i in range(0, len(digests), 32))
        state.stage, state.wiped = plain["stage"], plain["wiped"]
        if plain["answer"] is not None:
            state.answer = {
                name: np.frombuffer(bytes.fromhex(text), dtype=dtype).reshape(shape).copy()
                for name, (dtype, shape, text) in plain["answer"].items()
            }
        return state


def _fingerprint(arrays: Arrays) -> bytes:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {values.dtype.str} {values.shape} ".encode())
        digest.update(values.tobytes())
    return digest.digest()
