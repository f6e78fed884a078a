"""The same client for asynchronous apps: each call of `Client` runs in a thread of its own and is awaited.

Waiting for a call that is cancelled ends the waiting; a training session is ended with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedrec.ranking.pipeline import RecommendationRequest
from fedrec_client.app._privacy_report import PrivacyReport
from fedrec_client.app.client import Client
from fedrec_client.store.base import Receipt
from fedrec_client.store.events import Event, EventType, Scalar
from fedrec_client.terms.consent import Consent
from fedrec_client.terms.eligibility import Conditions
from fedrec_client.terms.results import (
    Eligibility,
    ModelInfo,
    Reasons,
    Recommendation,
    Similar,
    Status,
    TrainingReport,
)


class AsyncClient:
    """See `Client`, call by call."""

    def __init__(self, client: Client) -> None:
        self._client = client

    @classmethod
    async def open(cls, folder: str | Path, **settings: Any) -> Self:
        """See `Client.open`."""
        return cls(await asyncio.to_thread(Client.open, folder, **settings))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def consent(self) -> Consent:
        """See `Client`."""
        return self._client.consent

    async def close(self) -> None:
        """See `Client`."""
        await asyncio.to_thread(self._client.close)

    async def set_consent(self, consent: Consent) -> None:
        """See `Client`."""
        await asyncio.to_thread(self._client.set_consent, consent)

    async def recommend(
        self, n: int = 20, request: RecommendationRequest | None = None, **constraints: Any
    ) -> Recommendation:
        """See `Client`."""
        return await asyncio.to_thread(self._client.recommend, n, request, **constraints)

    async def similar(self, item: str, n: int = 10) -> tuple[Similar, ...]:
        """See `Client`."""
        return await asyncio.to_thread(self._client.similar, item, n)

    async def explain(self, item: str, rec: Recommendation | None = None) -> Reasons:
        """See `Client`."""
        return await asyncio.to_thread(self._client.explain, item, rec)

    async def log_event(
        self,
        type: str | EventType,
        item: str,
        *,
        value: float | None = None,
        rec: str | None = None,
        time: float | None = None,
        event_id: str | None = None,
        name: str | None = None,
        context: Mapping[str, Scalar] | None = None,
    ) -> str:
        """See `Client`."""
        return await asyncio.to_thread(
            self._client.log_event,
            type,
            item,
            value=value,
            rec=rec,
            time=time,
            event_id=event_id,
            name=name,
            context=context,
        )

    async def events(self, types: Collection[EventType] | None = None) -> list[Event]:
        """See `Client`."""
        return await asyncio.to_thread(self._client.events, types)

    async def check_for_update(self) -> ModelInfo | None:
        """See `Client`."""
        return await asyncio.to_thread(self._client.check_for_update)

    async def eligible(self, conditions: Conditions | None = None) -> Eligibility:
        """See `Client`."""
        return await asyncio.to_thread(self._client.eligible, conditions)

    async def train_if_eligible(
        self,
        conditions: Conditions | None = None,
        deadline_seconds: float = 60.0,
        token: str = "",
        on_step: Callable[[str], None] | None = None,
    ) -> TrainingReport:
        """See `Client`."""
        try:
            return await asyncio.to_thread(
                self._client.train_if_eligible, conditions, deadline_seconds, token, on_step
            )
        except asyncio.CancelledError:
            self._client.stop_training()
            raise

    def stop_training(self) -> None:
        """See `Client`."""
        self._client.stop_training()

    async def privacy_report(self) -> PrivacyReport:
        """See `Client`."""
        return await asyncio.to_thread(self._client.privacy_report)

    async def export_data(self, path: str | Path) -> int:
        """See `Client`."""
        return await asyncio.to_thread(self._client.export_data, path)

    async def delete_data(self, since: float | None = None, item: str | None = None) -> Receipt:
        """See `Client`."""
        return await asyncio.to_thread(self._client.delete_data, since, item)

    async def status(self) -> Status:
        """See `Client`."""
        return await asyncio.to_thread(self._client.status)
