"""What belongs to one person's device and screen: its pretended state, the app's limits, what is looked at."""

from __future__ import annotations

from dataclasses import dataclass

from fedrec.ranking.diversity import Mmr
from fedrec_client import Conditions, Policy
from fedrec_client.terms.platform import SystemPlatform
from films.catalogue import Film

#: Of the example: people come and go within minutes. A real app leaves both as they are.
CONDITIONS = Conditions(min_events=3, min_period_seconds=0.0)
#: So few people cannot hide among each other; `Policy()` is what a real app begins with, and it refuses this.
DEMONSTRATION = Policy(min_cohort=3, dishonest=0.0, max_epsilon_period=2_000.0, max_epsilon_lifetime=10_000.0)
CAREFUL = Policy()
SHOWN = 8
MORE = 24
VARIETY = {"off": None, "some": Mmr(0.3), "much": Mmr(0.6)}
TABS = ("list", "search", "rated", "privacy", "device")


class PretendPlatform(SystemPlatform):
    """A device whose state the page sets."""

    def __init__(self) -> None:
        self.states = {"charging": True, "idle": True, "unmetered": True}

    def charging(self) -> bool:
        """See `Platform`."""
        return self.states["charging"]

    def idle(self) -> bool:
        """See `Platform`."""
        return self.states["idle"]

    def unmetered(self) -> bool:
        """See `Platform`."""
        return self.states["unmetered"]


@dataclass
class Screen:
    """What a person looks at.

    Attributes:
        tab: one of `TABS`.
        only, without: genres; empty: all, none.
        variety: key of `VARIETY`.
        explores: now and then something else.
        length: of the list.
        query: of the search.
        like: a film whose likes are shown in the place of the list.
    """

    tab: str = "list"
    only: str = ""
    without: str = ""
    variety: str = "off"
    explores: bool = False
    length: int = SHOWN
    query: str = ""
    like: str = ""


@dataclass(frozen=True)
class Change:
    """Why a list is another than before, and what stood there."""

    cause: str = ""
    before: tuple[str, ...] = ()


@dataclass(frozen=True)
class Opinion:
    """A person's last word on a film: stars from 1 to 5, or 0 for "hide"."""

    film: Film
    stars: int
    time: float
