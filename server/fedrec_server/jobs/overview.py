"""What an operator is shown of a job: where it stands, which devices are here now, what it has cost, what went wrong.

Out of scope: how it looks (`cli.job`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

from fedrec.core.errors import FedrecError
from fedrec.privacy.plan import PrivacyPlan
from fedrec_server.devices.state import cohorts, stages
from fedrec_server.devices.state.database import State
from fedrec_server.jobs.events import read_events
from fedrec_server.jobs.job import Job
from fedrec_server.jobs.preparation import PAYLOAD
from fedrec_server.jobs.publication import rounds_of


def overview(job: Job, state: State | None = None, clock: Callable[[], float] = time.time) -> dict[str, Any]:
    """All of it, as plain values.

    Args:
        job: which.
        state: the database, for the devices that are here; None: they are not shown.
        clock: seconds since 1970.

    Raises:
        RunError: its record cannot be read.
    """
    record = job.record()
    found: dict[str, Any] = {
        "job": job.id,
        "population": record.population,
        "state": record.state,
        "since": record.since,
        "worked_on": job.is_worked,
        "run": record.run,
        "version": record.version,
        "next_start": record.next_start,
        "error": record.error,
        "rounds": {"done": 0, "of": job.specification.rounds, "failed": 0},
        "cohort": None,
        "epsilon": None,
        "last_round": None,
    }
    folder = job.run(record.run)
    if record.run and (folder / PAYLOAD).exists():
        payload = json.loads((folder / PAYLOAD).read_text())
        rounds = rounds_of(folder)
        events = [each for each in read_events(job.folder) if each.get("run") == record.run]
        found["rounds"] |= {
            "done": len(rounds),
            "failed": sum(each["what"] == "round failed" for each in events),
        }
        found["epsilon"] = _epsilon(payload, len(rounds))
        found["last_round"] = next((e for e in reversed(events) if e["what"].startswith("round")), None)
        if state is not None:
            found["cohort"] = _cohort(state, job.offer(record.run), clock())
    return found


def _epsilon(payload: dict[str, Any], rounds: int) -> dict[str, float] | None:
    """What one device has spent at most after so many rounds, and after all of them."""
    privacy = payload["node"]["privacy"]
    if privacy is None:
        return None
    try:
        plan = PrivacyPlan.model_validate(privacy["plan"])
        spent = plan.epsilon(rounds) if rounds else 0.0
        return {"spent": spent, "planned": plan.epsilon(), "delta": plan.delta}
    except (FedrecError, ValueError):
        return {"spent": math.inf, "planned": math.inf, "delta": 1.0}


def _cohort(state: State, offer: str, now: float) -> dict[str, Any] | None:
    """The cohort at work or forming, its stage and who has answered."""
    with state.read() as connection:
        live = sorted(cohorts.live(connection, offer), key=lambda row: row.state != cohorts.RUNNING)
        if not live:
            return None
        row = live[0]
        here = cohorts.count(connection, row.id)
        stage = stages.latest(connection, [row.id]).get(row.id)
        found = {
            "state": row.state,
            "round": row.round,
            "devices": here,
            "target": row.target,
            "least": row.least,
            "forming_too": len(live) > 1,
            "stage": None,
            "answered": 0,
            "seconds_left": max(row.deadline - now, 0.0),
        }
        if stage is not None:
            answered = len(stages.answered(connection, row.id, stage.number, range(row.joined)))
            found |= {
                "stage": stage.kind,
                "answered": answered,
                "seconds_left": max(stage.deadline - now, 0.0),
            }
        return found
