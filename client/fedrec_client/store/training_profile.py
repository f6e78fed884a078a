"""A user's history as models need it, kept up event by event so that the last click counts at once.

The last word on an item decides: what was hidden or disliked is not history and is never shown; a like after that
brings it back. Impressions and custom events say nothing.

Which word is the last is told by `fedrec_client.store.timeline.in_order`, not by clocks alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from fedrec.ranking.items import Items
from fedrec.ranking.model import History
from fedrec_client.store.events import Event


class Profile:
    """Items a user wants and does not want, in the order in which they were last spoken of.

    Attributes:
        revision: grows with every change.
    """

    def __init__(self, events: Iterable[Event] = ()) -> None:
        self._liked: dict[str, float] = {}
        self._against: set[str] = set()
        self.revision = 0
        for event in events:
            self.add(event)

    def add(self, event: Event) -> None:
        """Take an event in; events come in the order of their times."""
        weight = event.weight
        if weight == 0:
            return
        self._liked.pop(event.item, None)
        self._against.discard(event.item)
        if weight > 0:
            self._liked[event.item] = weight
        else:
            self._against.add(event.item)
        self.revision += 1

    def __len__(self) -> int:
        return len(self._liked)

    @property
    def liked(self) -> tuple[str, ...]:
        """Items that count, the latest last."""
        return tuple(self._liked)

    @property
    def against(self) -> frozenset[str]:
        """Items never to show."""
        return frozenset(self._against)

    def history(self, items: Items) -> History:
        """For a model; items that it does not know are left out and counted again once one does."""
        return History.of(items, list(self._liked), list(self._liked.values()))
