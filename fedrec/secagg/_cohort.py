"""The cohort of an attempt: who advertised, who neighbours whom, how many shares open a secret.

Both sides compute it from the list of adverts alone, so a server has no say in the graph beyond whom it leaves out.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property

from fedrec.core.errors import AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg.context import Context
from fedrec.secagg.graph import neighbours
from fedrec.secagg.messages import list_bytes
from fedrec.secagg.terms import SecaggTerms


@dataclass(frozen=True)
class Cohort:
    """See the module's text.

    Attributes:
        context: of the attempt.
        members: [n] places in the roster, rising.
        digests: [n] of their adverts.
        degree: k.
        threshold: t.
    """

    context: Context
    members: tuple[int, ...]
    digests: tuple[bytes, ...]
    degree: int
    threshold: int

    @classmethod
    def of(
        cls, context: Context, terms: SecaggTerms, members: tuple[int, ...], digests: tuple[bytes, ...]
    ) -> Cohort:
        """The cohort of a list of adverts.

        Raises:
            AggregationRefused: fewer devices than the terms allow, or no threshold is safe for them.
        """
        if len(members) < terms.min_nodes:
            raise AggregationRefused(
                f"a cohort of {len(members)} devices: expected at least {terms.min_nodes}, since a smaller sum tells "
                "too much of each; wait for more devices",
                Reason.COHORT,
            )
        degree = terms.degree(len(members))
        return cls(context, members, digests, degree, terms.shares_needed(degree))

    @cached_property
    def transcript(self) -> bytes:
        """[32] digest of context, members and adverts."""
        return self.context.bind("cohort", list_bytes(self.members), b"".join(self.digests))

    @cached_property
    def _position(self) -> dict[int, int]:
        return {place: position for position, place in enumerate(self.members)}

    @cached_property
    def _near(self) -> dict[int, tuple[int, ...]]:
        return {}

    @cached_property
    def _held(self) -> dict[int, dict[int, int]]:
        return {}

    def neighbours(self, place: int) -> tuple[int, ...]:
        """Places of a member's neighbours, rising; the relation is symmetric."""
        if place not in self._near:
            near = neighbours(self._position[place], len(self.members), self.degree, self.transcript)
            self._near[place] = tuple(self.members[position] for position in near)
        return self._near[place]

    def holders(self, owner: int) -> tuple[int, ...]:
        """Who holds shares of an owner's secrets: its neighbours and itself, rising."""
        return tuple(self._xs(owner))

    def x(self, owner: int, holder: int) -> int:
        """Where a holder's share of an owner's secret lies on the polynomial, from 1."""
        return self._xs(owner)[holder]

    def left(self, owner: int, there: Set[int]) -> int:
        """How many of an owner's holders are among those there."""
        return len(self._xs(owner).keys() & there)

    def _xs(self, owner: int) -> dict[int, int]:
        """Place on the polynomial by holder, rising."""
        if owner not in self._held:
            around = sorted((*self.neighbours(owner), owner))
            self._held[owner] = {holder: x for x, holder in enumerate(around, start=1)}
        return self._held[owner]

    def sharers_transcript(self, sharers: tuple[int, ...]) -> bytes:
        """[32] digest that also says who shared; it binds the shares on their way."""
        return self.context.bind("sharers", self.transcript, list_bytes(sharers))

    def consent(self, sharers: tuple[int, ...], survivors: tuple[int, ...]) -> bytes:
        """[32] what a device signs: this list of survivors and no other."""
        return self.context.bind("survivors", self.sharers_transcript(sharers), list_bytes(survivors))


def check_survivors(
    cohort: Cohort, terms: SecaggTerms, sharers: tuple[int, ...], survivors: tuple[int, ...], place: int
) -> None:
    """A device's rules for a list of survivors.

    Raises:
        AggregationRefused: it breaks one of them.
    """
    if not set(survivors) <= set(sharers) or place not in survivors:
        raise AggregationRefused(
            "the list of survivors names devices that did not share, or leaves this one out", Reason.SURVIVORS
        )
    if len(survivors) < terms.min_nodes:
        raise AggregationRefused(
            f"{len(survivors)} devices survived: expected at least {terms.min_nodes}", Reason.SURVIVORS
        )
    near = cohort.left(place, set(survivors))
    if near < cohort.threshold:
        raise AggregationRefused(
            f"{near} devices around this one survived: expected at least {cohort.threshold}", Reason.SURVIVORS
        )
    users = sum(terms.roster.members[member].users for member in survivors)
    if users < terms.min_users * (1.0 - 1e-12):
        raise AggregationRefused(
            f"the devices left speak for {users} users: expected at least {terms.min_users:g}, for whom the "
            "privacy plan's noise was sized",
            Reason.USERS,
        )
