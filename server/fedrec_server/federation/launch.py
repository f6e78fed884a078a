"""Files through which an engine and the coordinator it started elsewhere understand each other.

Flower starts the coordinator in a process of its own, which can be killed and of which Flower only reports
"finished" or "failed" a minute later. These files lie in the coordinator's folder:

    run.lock       held by the living coordinator: two never work on one folder, and a dead one is noticed
    events.jsonl   what it reports while it works
    stop           asks it to stop at the end of a round
    left.json      nodes that have said that they will not answer any more
    ended.json     how it ended, in one line for the user; missing after a kill

Out of scope: processes, and everything about rounds.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fedrec.core.errors
from fedrec.core.errors import FederationError, FedrecError
from fedrec.core.files import write_json

Event = dict[str, Any]
POLL_SECONDS = 0.2


@dataclass
class Launch:
    """One folder's files; `seen` bytes of the events were reported already."""

    folder: Path
    seen: int = field(default=0)

    # The engine's side ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Forget how an earlier start ended; events of earlier starts are not reported again."""
        for name in ("ended.json", "stop"):
            (self.folder / name).unlink(missing_ok=True)
        events = self.folder / "events.jsonl"
        self.seen = events.stat().st_size if events.exists() else 0

    def new_events(self) -> list[Event]:
        """Events written since the last call."""
        path = self.folder / "events.jsonl"
        if not path.exists():
            return []
        with path.open("rb") as file:
            file.seek(self.seen)
            whole = file.read().rpartition(b"\n")[0]
        if not whole:
            return []
        self.seen += len(whole) + 1
        return [json.loads(line) for line in whole.splitlines()]

    def request_stop(self) -> None:
        """Ask the coordinator to stop at the end of its round."""
        (self.folder / "stop").touch()

    def note_left(self, nodes: Collection[str]) -> None:
        """Let the coordinator know all nodes that have left for good, by their registered names."""
        write_json(self.folder / "left.json", sorted(nodes))

    def is_alive(self) -> bool:
        """Whether a coordinator holds the folder."""
        try:
            with (self.folder / "run.lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def ending(self) -> dict[str, Any] | None:
        """What `ended.json` says, or None while there is none."""
        path = self.folder / "ended.json"
        return dict(json.loads(path.read_text())) if path.exists() else None

    # The coordinator's side ----------------------------------------------------------------------------

    @contextmanager
    def held(self, wait_seconds: float) -> Iterator[None]:
        """Be the one coordinator of the folder; says how it ended when the block is left.

        Raises:
            FederationError: another coordinator holds the folder and did not leave it in time.
        """
        deadline = time.monotonic() + wait_seconds
        with (self.folder / "run.lock").open("ab") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise FederationError(
                            f"{self.folder} is held by another coordinator: stop that run, then start this one again"
                        ) from None
                    time.sleep(POLL_SECONDS)
            file.truncate(0)
            file.write(f"{os.getpid()}\n".encode())
            file.flush()
            yield

    def report(self, event: Event) -> None:
        """Append one event."""
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(event, default=float) + "\n")

    def stop_requested(self) -> bool:
        """Whether the engine asked to stop."""
        return (self.folder / "stop").exists()

    def left(self) -> frozenset[str]:
        """Nodes that have left for good: none is asked, and no answer of theirs is waited for."""
        path = self.folder / "left.json"
        return frozenset(json.loads(path.read_text())) if path.exists() else frozenset()

    def end(self, *, finished: bool, error: Exception | None = None) -> None:
        """Say how the coordinator ended."""
        kind = type(error).__name__ if isinstance(error, FedrecError) else "FederationError"
        text = (
            str(error)
            if isinstance(error, FedrecError)
            else f"the coordinator failed: {error!r}; see the log"
        )
        write_json(
            self.folder / "ended.json",
            {"finished": finished, "error": None if error is None else {"type": kind, "message": text}},
        )


def follow(
    launch: Launch,
    gone: Callable[[], str | None],
    *,
    on_event: Callable[[Event], None],
    stop: Callable[[], bool],
    grace_seconds: float = 10.0,
) -> bool:
    """Report a coordinator's events until it ends; whether it finished all rounds.

    Args:
        launch: of the coordinator's folder, prepared before it was started.
        gone: why it cannot answer any more (its starter ended), or None.
        on_event: called with each event.
        stop: when true, the coordinator is asked to stop at the end of its round.
        grace_seconds: how long the last words may take after the process has gone.

    Raises:
        FedrecError: the error with which the coordinator ended, or FederationError when it died without a word.
    """
    lived, reason, deadline = False, None, 0.0
    while True:
        # In this order: what was reported before the end is not lost.
        ending = launch.ending()
        for event in launch.new_events():
            lived = True  # though it may die before the next look
            on_event(event)
        if ending is not None:
            return _finished(ending)
        if stop():
            launch.request_stop()
        alive = launch.is_alive()
        if reason is None and lived and not alive:
            # It holds the folder until its last word is written: one more look is enough.
            reason, deadline = "the coordinator's process died", time.monotonic()
        elif reason is None:
            reason, deadline = gone(), time.monotonic() + grace_seconds
        elif time.monotonic() > deadline:
            raise FederationError(
                f"{reason} before the run was finished: resume it with the command that started it, or with "
                "`fedrec train --resume RUN`"
            )
        lived = lived or alive
        time.sleep(POLL_SECONDS)


def _finished(ending: dict[str, Any]) -> bool:
    error = ending["error"]
    if error is None:
        return bool(ending["finished"])
    kind = getattr(fedrec.core.errors, error["type"], FederationError)
    raise kind(error["message"])
