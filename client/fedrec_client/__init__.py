"""What runs where the data is: the SDK that apps embed, and the node that takes part in rounds.

Importing this package loads neither torch nor Flower nor gRPC; the names below are loaded when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedrec.core.facade import lazy

if TYPE_CHECKING:
    from fedrec.ranking.diversity import Dpp, Mmr
    from fedrec.ranking.exploration import EpsilonGreedy, LinUcb, Thompson
    from fedrec.ranking.filters import Apart, AtMost, Boost, Pin
    from fedrec.ranking.pipeline import RecommendationRequest
    from fedrec_client.app.aio import AsyncClient
    from fedrec_client.app.client import Client
    from fedrec_client.store.base import Retention, Store
    from fedrec_client.store.events import Event, EventType
    from fedrec_client.store.in_memory import MemoryStore
    from fedrec_client.terms.consent import Consent
    from fedrec_client.terms.eligibility import Conditions
    from fedrec_client.terms.platform import Platform, SystemPlatform
    from fedrec_client.terms.policy import Policy
    from fedrec_client.updates.transport import Transport

_HOMES = {
    "Apart": "fedrec.ranking.filters",
    "AsyncClient": "fedrec_client.app.aio",
    "AtMost": "fedrec.ranking.filters",
    "Boost": "fedrec.ranking.filters",
    "Client": "fedrec_client.app.client",
    "Conditions": "fedrec_client.terms.eligibility",
    "Consent": "fedrec_client.terms.consent",
    "Dpp": "fedrec.ranking.diversity",
    "EpsilonGreedy": "fedrec.ranking.exploration",
    "Event": "fedrec_client.store.events",
    "EventType": "fedrec_client.store.events",
    "LinUcb": "fedrec.ranking.exploration",
    "MemoryStore": "fedrec_client.store.in_memory",
    "Mmr": "fedrec.ranking.diversity",
    "Pin": "fedrec.ranking.filters",
    "Platform": "fedrec_client.terms.platform",
    "Policy": "fedrec_client.terms.policy",
    "Retention": "fedrec_client.store.base",
    "Store": "fedrec_client.store.base",
    "SystemPlatform": "fedrec_client.terms.platform",
    "Thompson": "fedrec.ranking.exploration",
    "Transport": "fedrec_client.updates.transport",
    "RecommendationRequest": "fedrec.ranking.pipeline",
}

__all__ = [
    "Apart",
    "AsyncClient",
    "AtMost",
    "Boost",
    "Client",
    "Conditions",
    "Consent",
    "Dpp",
    "EpsilonGreedy",
    "Event",
    "EventType",
    "LinUcb",
    "MemoryStore",
    "Mmr",
    "Pin",
    "Platform",
    "Policy",
    "RecommendationRequest",
    "Retention",
    "Store",
    "SystemPlatform",
    "Thompson",
    "Transport",
]


__getattr__, __dir__ = lazy(__name__, _HOMES)
