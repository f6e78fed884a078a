"""The coordinator and what it needs to be deployed.

The names below are loaded when they are first used; all other modules may change without notice.
"""

from __future__ import annotations

from fedrec.core.facade import lazy

_HOMES = {
    "Coordinator": "fedrec_server.rounds.coordinator",
    "Federation": "fedrec_server.federation.federation",
    "Outcome": "fedrec_server.rounds.coordinator",
    "Registry": "fedrec_server.registry.registry",
    "Task": "fedrec_server.rounds.task",
    "open_coordinator": "fedrec_server.rounds.coordinator",
}

__all__ = ["Coordinator", "Federation", "Outcome", "Registry", "Task", "open_coordinator"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
