"""How much a front end of the device service does at once, for whom and for how long."""

from __future__ import annotations

from dataclasses import dataclass, field

from fedrec_server.network.limits import Limits

#: Thousands of devices may be behind the one address of a carrier: what is limited by address is large, and a call
#: with a valid session is limited by its session alone.
NETWORK = Limits(
    calls_per_second=500.0,
    burst=5_000,
    app_calls_per_second=2_000.0,
    app_burst=20_000,
    threads=64,
    calls_per_address=4_096,
    max_waiting=4_096,
    connections=4_096,
    connections_per_address=4_096,
    unauthenticated_per_address=1_024,
    opened_per_second=500.0,
    opened_burst=4_000,
    max_connection_seconds=3_600.0,
)


@dataclass(frozen=True)
class DeviceLimits:
    """Of a front end; all are options of `fedrec-server devices start`.

    Attributes:
        network: of connections, of calls without a valid session, and the pace of check-ins.
        hold_seconds: for which a device that has nothing to do is held; 0: it is answered at once.
        held_calls: at once; more are answered at once.
        poll_seconds: between two looks for new stages.
        retry_seconds: when a device that is not held is to call again.
        soon_seconds: when a device that came too late for a cohort may come for the next.
        session_calls_per_second, session_burst: of one device in a cohort.
        sessions: remembered at once; others are looked up.
        small_answer_bytes: of an answer that is sent with `Stage`.
        short_content_bytes: of the common part of a question that is sent with the question.
        answer_bytes: of any answer.
        piece_bytes: of what is sent or taken in one call.
        upload_bytes: of unfinished uploads, all together; more devices wait.
        upload_idle_seconds: after which an unfinished upload gives way to others.
        content_bytes: of common parts that are remembered.
        joins_per_address, joins_per_day: that are admitted in a day.
        group: devices whose writing is done in one transaction.
        gather_seconds: for which a transaction waits for more of them.
    """

    network: Limits = field(default_factory=lambda: NETWORK)
    hold_seconds: float = 20.0
    held_calls: int = 1_200
    poll_seconds: float = 0.2
    retry_seconds: float = 2.0
    soon_seconds: float = 5.0
    session_calls_per_second: float = 20.0
    session_burst: int = 200
    sessions: int = 20_000
    small_answer_bytes: int = 64 << 10
    short_content_bytes: int = 64 << 10
    answer_bytes: int = 64 << 20
    piece_bytes: int = 512 << 10
    upload_bytes: int = 256 << 20
    upload_idle_seconds: float = 60.0
    content_bytes: int = 256 << 20
    joins_per_address: int = 10_000
    joins_per_day: int = 1_000_000
    group: int = 128
    gather_seconds: float = 0.1
