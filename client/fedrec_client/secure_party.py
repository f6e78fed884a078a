"""A node's part of secure aggregation over requests: reads them, takes the protocol's steps, keeps the promises.

Promises outlive a process and lie in the node's folder, written before anything leaves: of the newest attempt only,
each stage is taken once, whatever memory an older process has left behind; and a sum for which this node has given
away a share is never joined again, since two sums over almost the same nodes differ by one node's update. Secrets lie
in the `Memory` alone.

This module knows neither models nor data, so that the short stages of a round start fast. Out of scope: the steps
themselves (`fedrec.secagg.client`), what is summed (`senders`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fedrec.errors import AggregationRefused, ProtocolError, RunError
from fedrec.learning.protocol import Reply, Request
from fedrec.secagg.client import Client
from fedrec.secagg.context import Context
from fedrec.secagg.digest import question_digest
from fedrec.secagg.messages import Arrays
from fedrec.secagg.reasons import Reason
from fedrec.secagg.roster import Identity
from fedrec.secagg.state import ClientState, Stage
from fedrec.secagg.sums import label_of
from fedrec.secagg.terms import SecaggTerms, parse_terms
from fedrec.wire.files import write_json
from fedrec_client.memory import Memory

#: Prefix of the protocol's own arrays and fields in a request that carries a model, too.
PREFIX = "secagg/"
#: Stages that need neither model nor data.
STAGES = ("advertise", "share", "confirm", "unmask")


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
        self._identity = identity
        self._promises = Promises(terms.run, folder)

    def handle(self, request: Request, memory: Memory) -> Reply:
        """Serve one of the stages without a vector.

        Raises:
            AggregationRefused: a rule of the protocol is broken; the secrets of the attempt are gone.
        """
        if request.kind not in STAGES:
            raise ProtocolError(f"stage {request.kind!r}: expected one of {', '.join(STAGES)}")
        if request.kind == "advertise":
            return self._advertise(request, memory)
        client = self._client(request, memory)
        return self._answer(request, memory, client, getattr(client, request.kind))

    def payload(self, request: Request) -> Request:
        """The request as it would be without secure aggregation."""
        return replace(
            request,
            arrays={name: values for name, values in request.arrays.items() if not name.startswith(PREFIX)},
            meta={name: value for name, value in request.meta.items() if not name.startswith(PREFIX)},
        )

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
        return self._answer(request, memory, client, lambda arrays: client.mask(arrays, vector), Stage.MASK)

    def _advertise(self, request: Request, memory: Memory) -> Reply:
        memory.clear()
        context = _context(self.terms, request)
        self._promises.join(context.attempt, _label(context))
        client = Client.begin(self.terms, self._identity, context)
        arrays = client.advertise()
        memory.put(client.state.dump())
        return Reply(request.kind, request.round, request.phase, arrays, {})

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
        step: Callable[[Arrays], Arrays],
        stage: Stage | None = None,
    ) -> Reply:
        asked, context = _protocol_part(request), client.state.context
        stage = Stage[request.kind.upper()] if stage is None else stage
        try:
            if client.state.earlier(stage, asked) is None:
                # Before anything leaves: a node that is killed here has lost a round, not a secret.
                self._promises.step(context.attempt, stage, _label(context))
            arrays = step(asked)
        except AggregationRefused:
            memory.clear()
            raise
        if client.state.wiped:
            memory.clear()
        else:
            memory.put(client.state.dump())
        return Reply(request.kind, request.round, request.phase, arrays, {})


class Promises:
    """What a node has bound itself to in a run; see the module's text."""

    def __init__(self, run: str, folder: Path | None) -> None:
        self._run = run
        self._path = None if folder is None else folder / "secagg.json"
        self._kept: dict[str, Any] | None = None

    def join(self, attempt: int, label: str) -> None:
        """Promise never to join this attempt again.

        Raises:
            AggregationRefused: the attempt, or a later one, was joined before, or the sum's shares were given away.
        """
        kept = self._read()
        self._not_given(kept, label)
        if attempt <= kept["attempt"]:
            raise AggregationRefused(
                f"attempt {attempt} is not new: this node has joined attempt {kept['attempt']}", Reason.REPLAY
            )
        self._write(kept | {"attempt": attempt, "stage": int(Stage.ADVERTISE)})

    def step(self, attempt: int, stage: Stage, label: str) -> None:
        """Promise never to take this stage again, and with the last one never to join this sum again.

        Raises:
            AggregationRefused: the node has joined another attempt since, has taken this stage, or has given shares
                of this sum away.
        """
        kept = self._read()
        self._not_given(kept, label)
        if attempt != kept["attempt"] or stage <= kept["stage"]:
            raise AggregationRefused(
                f"stage {stage.name.lower()} of attempt {attempt} is over: this node has taken stage "
                f"{Stage(kept['stage']).name.lower()} of attempt {kept['attempt']}",
                Reason.REPLAY,
            )
        given = [*kept["given"], label] if stage is Stage.UNMASK else kept["given"]
        self._write(kept | {"stage": int(stage), "given": given})

    @staticmethod
    def _not_given(kept: dict[str, Any], label: str) -> None:
        if label in kept["given"]:
            raise AggregationRefused(
                f"this node's shares of sum {label} were given away: it will not be summed again",
                Reason.REPLAY,
            )

    def _read(self) -> dict[str, Any]:
        if self._kept is None or self._path is not None:
            fresh: dict[str, Any] = {"run": self._run, "attempt": 0, "stage": 1, "given": []}
            found = self._load()
            self._kept = found if found is not None and found["run"] == self._run else fresh
        return self._kept

    def _load(self) -> dict[str, Any] | None:
        if self._path is None or not self._path.exists():
            return None
        try:
            kept = json.loads(self._path.read_text())
            numbers = {name: int(kept[name]) for name in ("attempt", "stage")}
            return {"run": str(kept["run"]), "given": list(kept["given"])} | numbers
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"{self._path} cannot be read ({error}): without it this node could be asked twice; start a new run"
            ) from error

    def _write(self, kept: dict[str, Any]) -> None:
        self._kept = kept
        if self._path is not None:
            write_json(self._path, kept)


def open_party(folder: Path) -> SecureParty | None:
    """The party of a node's folder; None where its terms are not those of secure aggregation.

    Raises:
        RunError: the folder is missing or incomplete.
    """
    try:
        plain = json.loads((folder / "node.json").read_text())["aggregation"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"node folder {folder} has no readable node.json ({error}): prepare the run first"
        ) from error
    terms = parse_terms(plain)
    if not isinstance(terms, SecaggTerms):
        return None
    return SecureParty(terms, Identity.read(folder / "identity.key"), folder)


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


def _label(context: Context) -> str:
    return label_of(context.kind, context.phase, context.round)
