"""A node's part of secure aggregation over requests: reads them, takes the protocol's steps, keeps the promises.

Which sums there are is fixed by the schedule in the terms; what this node has bound itself to in a run is its
`Promises` (`promises`). Secrets lie in the `Memory` alone.

This module knows neither models nor data, so that the short stages of a round start fast. Out of scope: the steps
themselves (`fedrec.secagg.client`), what is summed (`senders`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import AggregationRefused, ProtocolError
from fedrec.core.messages import Reply, Request
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg.client import Client
from fedrec.secagg.context import Context
from fedrec.secagg.digest import question_digest
from fedrec.secagg.messages import Arrays
from fedrec.secagg.roster import Identity
from fedrec.secagg.state import ClientState, Stage
from fedrec.secagg.terms import SecaggTerms
from fedrec_client.node._commitments import Promises
from fedrec_client.node._memory import Memory
from fedrec_client.node.outgoing import checked

#: Prefix of the protocol's own arrays and fields in a request that carries a model, too.
PREFIX = "secagg/"
#: Stages that need neither model nor data.
STAGES = ("advertise", "share", "confirm", "unmask")
Step = Callable[[Arrays], Arrays]


class SecureParty:
    """One node in all attempts of a run.

    Args:
        terms: pinned on this node.
        identity: its signing key.
        folder: where the promises are kept; None: in memory, for simulations.
    """

    def __init__(self, terms: SecaggTerms, identity: Identity, folder: Path | None) -> None:
        self.terms = terms
        self.place = terms.roster.index(identity.public)
        self.name = terms.roster.members[self.place].name
        self._identity = identity
        self._promises = Promises(terms, folder)

    def handle(self, request: Request, memory: Memory) -> Reply:
        """Serve one of the stages without a vector.

        Raises:
            AggregationRefused: a rule of the protocol is broken; the secrets of the attempt are gone.
        """
        if request.kind not in STAGES:
            raise ProtocolError(f"stage {request.kind!r}: expected one of {', '.join(STAGES)}")
        if request.kind == "advertise":
            reply = self._advertise(request, memory)
        else:
            client = self._client(request, memory)
            steps: dict[str, Step] = {
                "share": client.share,
                "confirm": partial(self._confirm, client),
                "unmask": client.unmask,
            }
            reply = self._answer(request, memory, client, steps[request.kind])
        return checked(self.terms, request, reply)

    def payload(self, request: Request) -> Request:
        """The request as it would be without secure aggregation."""
        return payload_of(request)

    def mask(self, request: Request, memory: Memory, vector: NDArray[Any]) -> Reply:
        """The masked vector in answer to a request that carried the model.

        Raises:
            AggregationRefused: the model is not the announced one, or a rule of the protocol is broken.
        """
        client = self._client(request, memory)
        context, asked = client.state.context, self.payload(request)
        if question_digest(asked.arrays, asked.meta) != context.model or request.kind != context.kind:
            memory.clear()
            raise AggregationRefused(
                "the model or question that came is not the one announced for this attempt: nodes may be getting "
                "different ones",
                Reason.MODEL,
            )

        def masked(arrays: Arrays) -> Arrays:
            made = client.mask(arrays, vector)
            self._promises.join_group(context, client.state.sharers)
            return made

        return self._answer(request, memory, client, masked, Stage.MASK)

    def _advertise(self, request: Request, memory: Memory) -> Reply:
        memory.clear()
        context = _context(self.terms, request)
        self._promises.join(context)
        client = Client.begin(self.terms, self._identity, context)
        arrays = client.advertise()
        memory.put(client.state.dump())
        return Reply(request.kind, request.round, request.phase, arrays, {})

    def _confirm(self, client: Client, arrays: Arrays) -> Arrays:
        """The signature under a list of survivors that the protocol and earlier sums allow."""
        signed = client.confirm(arrays)
        self._promises.check_survivors(client.state.context, client.state.survivors)
        return signed

    def _client(self, request: Request, memory: Memory) -> Client:
        data = memory.get()
        if data is None:
            raise AggregationRefused(
                "this node holds no secrets of this attempt: it was restarted, or the attempt is over",
                Reason.FORGOTTEN,
            )
        client = Client(self.terms, self._identity, ClientState.load(data))
        context = client.state.context
        asked = (request.phase, request.round, request.meta.get(PREFIX + "attempt"))
        if asked != (context.phase, context.round, context.attempt):
            raise AggregationRefused(
                f"a message of attempt {asked[2]!r:.20} of round {asked[1]} came: this node is in attempt "
                f"{context.attempt} of round {context.round}",
                Reason.CONTEXT,
            )
        return client

    def _answer(
        self,
        request: Request,
        memory: Memory,
        client: Client,
        step: Step,
        stage: Stage | None = None,
    ) -> Reply:
        asked, context = _protocol_part(request), client.state.context
        stage = Stage[request.kind.upper()] if stage is None else stage
        try:
            if client.state.earlier(stage, asked) is None:
                # Before anything leaves: a node that is killed here has lost a round, not a secret.
                self._promises.step(context, stage, client.state.survivors)
            arrays = step(asked)
        except AggregationRefused:
            memory.clear()
            raise
        if client.state.wiped:
            memory.clear()
        else:
            memory.put(client.state.dump())
        return Reply(request.kind, request.round, request.phase, arrays, {})


def payload_of(request: Request) -> Request:
    """The request without the protocol's own arrays and fields."""
    return replace(
        request,
        arrays={name: values for name, values in request.arrays.items() if not name.startswith(PREFIX)},
        meta={name: value for name, value in request.meta.items() if not name.startswith(PREFIX)},
    )


def _context(terms: SecaggTerms, request: Request) -> Context:
    """What the server says of the attempt; `Client.begin` holds it against this node's own terms."""
    fields = {
        name: request.meta.get(PREFIX + name) for name in ("terms", "kind", "attempt", "model", "length")
    }
    kinds = {"terms": str, "kind": str, "attempt": int, "model": str, "length": int}
    for name, kind in kinds.items():
        if type(fields[name]) is not kind:
            raise AggregationRefused(
                f"field {name} is {fields[name]!r:.80}: expected {kind.__name__}", Reason.FORMAT
            )
    return Context(phase=request.phase, round=request.round, **cast(dict[str, Any], fields))


def _protocol_part(request: Request) -> dict[str, NDArray[np.generic]]:
    return {
        name.removeprefix(PREFIX): values
        for name, values in request.arrays.items()
        if name.startswith(PREFIX)
    }
