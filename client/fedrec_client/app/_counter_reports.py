"""Reports of counters: at most one a day, charged before it leaves, refused beyond a budget of their own.

A report is made once: its bytes lie in the store, in the same transaction as its charge, until the service has taken
them. What is sent again is the same report under the same random token, which the service counts once; it costs
nothing more. Epsilons add up (basic composition), apart from those of training: a user who agrees to both spends
both. Out of scope: the noise (`metrics`), what a report may hold (`fedrec.wire.counters`).
"""

from __future__ import annotations

import json
import secrets
from typing import Any

from fedrec.core.errors import ServiceError
from fedrec.wire.counters import DAYS_TRIED, EPSILON, TOKEN_HEX
from fedrec_client.app import _metrics as metrics
from fedrec_client.app._client_state import ClientState
from fedrec_client.terms.metrics_budget import PENDING, exhausted
from fedrec_client.terms.participation import Book
from fedrec_client.updates.transport import Transport

DAY_RECORD = "metrics"


def send(state: ClientState, transport: Transport) -> None:
    """Send the report of yesterday, or the one that was not taken yet, where the user has agreed.

    Where a transport takes no counters none are made and nothing is charged. Whatever the service says, an update of
    the model does not fail for it; the report waits for the next call.
    """
    if not transport.takes_counters or not state.consent.metrics:
        return
    with state.lock, state.store.transaction():
        report = _waiting(state) or _made(state)
    if report is None:
        return
    try:
        transport.send_metrics(state.setup.population, report["version"], report["counters"], report["token"])
    except ServiceError:
        return
    with state.lock:
        state.store.remove(PENDING)


def _waiting(state: ClientState) -> dict[str, Any] | None:
    """The report that the service has not taken yet; one that it would not take for days is given up."""
    content = state.store.get(PENDING)
    if content is None:
        return None
    report: dict[str, Any] = json.loads(content)
    if abs(metrics.day_of(state.setup.now()) - report["day"]) <= DAYS_TRIED:
        return report
    state.store.remove(PENDING)
    return None


def _made(state: ClientState) -> dict[str, Any] | None:
    """Yesterday's report, kept and charged in the transaction of the caller; None: it is not due, or not paid for."""
    now, book = state.setup.now(), Book(state.store)
    today = metrics.day_of(now)
    if int(state.store.get(DAY_RECORD) or b"-1") >= today or exhausted(book, state.setup.policy, now):
        return None
    start = (today - 1) * metrics.DAY
    events = [event for event in state.store.events(since=start) if event.time < start + metrics.DAY]
    counters = metrics.noised(metrics.counters(events))
    token = secrets.token_hex(TOKEN_HEX // 2)
    report = {"day": today, "version": state.version, "counters": counters, "token": token}
    content = json.dumps(report).encode()
    book.note("metrics", now, bytes=len(content), epsilon=EPSILON, day=today - 1)
    state.store.put(DAY_RECORD, str(today).encode())
    state.store.put(PENDING, content)
    return report
