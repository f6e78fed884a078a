"""The server's part of secure aggregation: carries what devices say to each other, adds up, opens the sum.

It learns public keys, who came how far, sealed shares it cannot open, vectors under masks, and at the end the secrets
that take the masks off the *sum*. Each method takes the replies of one stage, by place in the roster, and gives the
requests of the next. A device whose reply is missing or wrong has dropped out there; `refused` says why. When too few
are left `AggregationAborted` is raised, before any share was given away if that can be foreseen. A sum is only given
back if every secret behind it fits what its owner had published, so it is exact or there is none.

Out of scope: transport, the device's rules (`client`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import AggregationAborted, AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg import _shamir as shamir
from fedrec.secagg._cohort import Cohort
from fedrec.secagg._keys import KEY_BYTES, Pair, commitment, own_mask_key, pair_mask_key
from fedrec.secagg._masks import Sign, add_masks
from fedrec.secagg.context import Context
from fedrec.secagg.messages import (
    ADVERT_BYTES,
    SEALED_BYTES,
    Arrays,
    advert_digest,
    check,
    to_places,
    to_rows,
)
from fedrec.secagg.roster import SIGNATURE_BYTES
from fedrec.secagg.schedule import Group
from fedrec.secagg.terms import SecaggTerms

#: Streams that are open together.
_MASKS_AT_ONCE = 64

Replies = Mapping[int, Arrays]
Requests = dict[int, Arrays]


class Server:
    """One attempt at one sum.

    Args:
        terms: of the run.
        context: of the attempt.
    """

    def __init__(self, terms: SecaggTerms, context: Context) -> None:
        self.refused: dict[int, str] = {}
        self._terms = terms
        self._context = context
        self._adverts: dict[int, bytes] = {}
        self._sealed: dict[int, dict[int, bytes]] = {}
        self._sharers: tuple[int, ...] = ()
        self._survivors: dict[int, None] = {}
        self._total = np.zeros(context.length, dtype=f"<u{terms.bits // 8}")

    @property
    def survivors(self) -> tuple[int, ...]:
        """Whose vectors are in the sum; known from the mask stage on."""
        return tuple(self._survivors)

    def adverts(self, replies: Replies) -> Requests:
        """From adverts to the share requests."""
        for place, arrays in sorted(replies.items()):
            with self._dropping(place):
                check(arrays, {"advert": ("uint8", (ADVERT_BYTES,))})
                advert = arrays["advert"].tobytes()
                public, signature = advert[:-SIGNATURE_BYTES], advert[-SIGNATURE_BYTES:]
                signed = self._context.bind("advert", place.to_bytes(4, "big"), public)
                self._terms.roster.verify(place, signature, signed)
                self._adverts[place] = advert
        members = tuple(sorted(self._adverts))
        digests = tuple(advert_digest(place, self._adverts[place]) for place in members)
        try:
            self._cohort = Cohort.of(self._context, self._terms, members, digests)
        except AggregationRefused as error:
            raise self._abort(str(error)) from error
        everyone: Arrays = {"cohort": to_places(members), "digests": to_rows(digests, KEY_BYTES)}
        return {
            place: everyone
            | {"adverts": to_rows((self._adverts[n] for n in self._cohort.neighbours(place)), ADVERT_BYTES)}
            for place in members
        }

    def shares(self, replies: Replies) -> Requests:
        """From sealed shares to the mask requests."""
        for place, arrays in sorted(replies.items()):
            with self._dropping(place):
                self._must_be_in(place, self._adverts)
                near = self._cohort.neighbours(place)
                check(arrays, {"shares": ("uint8", (len(near), SEALED_BYTES))})
                rows = (row.tobytes() for row in arrays["shares"])
                self._sealed[place] = dict(zip(near, rows, strict=True))
        self._sharers = self._with_enough_around(self._sealed)
        self._enough(len(self._sharers), "shared")
        sharers, listed = set(self._sharers), to_places(self._sharers)
        return {
            place: {
                "sharers": listed,
                "shares": to_rows(
                    (self._sealed[n][place] for n in self._cohort.neighbours(place) if n in sharers),
                    SEALED_BYTES,
                ),
            }
            for place in self._sharers
        }

    @property
    def sharers(self) -> tuple[int, ...]:
        """Who shared; known from the share stage on."""
        return self._sharers

    def masked(self, replies: Replies, group: Group | None = None) -> Requests:
        """From masked vectors, which are added up here, to the confirm requests.

        Args:
            replies: of the mask stage.
            group: of a guarded sum, who took part in earlier ones; devices beside whom others would not stand are
                left out of this one (`Group.choose`).
        """
        asked, came = set(self._sharers), dict[int, NDArray[np.unsignedinteger]]()
        for place, arrays in sorted(replies.items()):
            with self._dropping(place):
                self._must_be_in(place, asked)
                check(arrays, {"masked": (self._total.dtype.name, self._total.shape)})
                came[place] = arrays["masked"]
        chosen, why = (tuple(came), "") if group is None else group.choose(came, self._terms.min_nodes)
        if why:
            raise self._abort(why)
        self.refused |= dict.fromkeys(set(came) - set(chosen), "left out beside devices that are missing")
        for place in chosen:
            np.add(self._total, came[place], out=self._total)
        return self._confirm(chosen)

    def summed(self, total: NDArray[np.unsignedinteger], places: Collection[int]) -> Requests:
        """From masked vectors that were added up where they came in to the confirm requests.

        Args:
            total: [m] their sum, residues.
            places: whose vectors are in it.

        Raises:
            AggregationAborted: the sum is of another form, holds a vector that was not asked for, or of too few.
        """
        given = (total.dtype.name, total.shape)
        asked = set(places) <= set(self._sharers) and len(set(places)) == len(places)
        if given != (self._total.dtype.name, self._total.shape) or not asked:
            raise self._abort(
                f"a sum of {given} over {len(places)} devices came, some of them not asked or twice"
            )
        np.add(self._total, total, out=self._total)
        return self._confirm(sorted(places))

    def _confirm(self, survivors: Collection[int]) -> Requests:
        self._survivors = dict.fromkeys(survivors)
        self._sealed = {}
        self._enough(len(self._survivors), "sent a vector")
        self._all_can_be_opened(self._survivors)
        listed = to_places(self._survivors)
        return {place: {"survivors": listed} for place in self._survivors}

    def signatures(self, replies: Replies) -> Requests:
        """From signatures under the list of survivors to the unmask requests."""
        consent = self._cohort.consent(self._sharers, self.survivors)
        signed: dict[int, bytes] = {}
        for place, arrays in sorted(replies.items()):
            with self._dropping(place):
                self._must_be_in(place, self._survivors)
                check(arrays, {"signature": ("uint8", (SIGNATURE_BYTES,))})
                signature = arrays["signature"].tobytes()
                self._terms.roster.verify(place, signature, consent)
                signed[place] = signature
        # Refused here costs nothing; refused after the first share was given away costs the round.
        self._all_can_be_opened(signed)
        requests: Requests = {}
        for place in signed:
            others = [n for n in self._cohort.neighbours(place) if n in signed][: self._cohort.threshold - 1]
            if len(others) + 1 >= self._cohort.threshold:
                requests[place] = {
                    "signers": to_places(others),
                    "signatures": to_rows((signed[n] for n in others), SIGNATURE_BYTES),
                }
        self._all_can_be_opened(requests)
        return requests

    def unmask(self, replies: Replies) -> NDArray[np.unsignedinteger]:
        """From opened shares to the sum, [m] residues.

        Raises:
            AggregationAborted: too few shares, or shares that do not fit; nothing was learned.
        """
        shared, opened = set(self._sharers), dict[int, dict[int, bytes]]()
        for place, arrays in sorted(replies.items()):
            with self._dropping(place):
                self._must_be_in(place, self._survivors)
                owners = [n for n in self._cohort.holders(place) if n in shared]
                check(arrays, {"opened": ("uint8", (len(owners), shamir.ELEMENT_BYTES))})
                for owner, row in zip(owners, arrays["opened"], strict=True):
                    opened.setdefault(owner, {})[self._cohort.x(owner, place)] = row.tobytes()
        masks: list[tuple[bytes, Sign]] = []
        for owner in self._sharers:
            shares = opened.get(owner, {})
            if owner in self._survivors:
                masks.append((own_mask_key(self._seed(owner, shares), self._context, owner), -1))
            else:
                masks += self._pair_masks(owner, shares)
        # Nothing is taken off before every secret was found to fit.
        total = self._total.copy()
        for start in range(0, len(masks), _MASKS_AT_ONCE):
            add_masks(total, masks[start : start + _MASKS_AT_ONCE])
        return total

    # Parts ---------------------------------------------------------------------------------------------

    def _seed(self, owner: int, shares: Mapping[int, bytes]) -> bytes:
        published = self._adverts[owner][2 * KEY_BYTES : 3 * KEY_BYTES]
        return self._combine(
            owner, shares, lambda seed: commitment(seed, self._context, owner) == published, "seed"
        )

    def _pair_masks(self, gone: int, shares: Mapping[int, bytes]) -> list[tuple[bytes, Sign]]:
        """What takes off the masks that survivors added for a neighbour that vanished."""
        published = self._adverts[gone][KEY_BYTES : 2 * KEY_BYTES]
        pair = Pair(self._combine(gone, shares, lambda key: Pair(key).public == published, "key"))
        masks: list[tuple[bytes, Sign]] = []
        for place in self._cohort.neighbours(gone):
            if place in self._survivors:
                public = self._adverts[place][KEY_BYTES : 2 * KEY_BYTES]
                key = pair_mask_key(pair, public, self._context, gone, place)
                masks.append((key, -1 if place < gone else 1))
        return masks

    def _combine(
        self, owner: int, shares: Mapping[int, bytes], fits: Callable[[bytes], bool], what: str
    ) -> bytes:
        threshold = self._cohort.threshold
        if len(shares) < threshold:
            raise self._abort(
                f"{len(shares)} shares of the {what} of device {owner} came: expected at least {threshold}; start "
                "the run's next round, with fewer drop-outs or more neighbours for them",
                revealed=True,
            )
        secret = shamir.combine_checked(shares, threshold, fits)
        if secret is None:
            raise self._abort(
                f"{len(shares)} shares of the {what} of device {owner} came and none of {threshold} of them fits: "
                "start the run's next round",
                revealed=True,
            )
        return secret

    def _must_be_in(self, place: int, expected: Collection[int]) -> None:
        if place not in expected:
            raise AggregationRefused(f"device {place} was not asked", Reason.STAGE)

    def _with_enough_around(self, places: Collection[int]) -> tuple[int, ...]:
        """Those of whom enough holders are left, again and again until no one has to go."""
        left = set(places)
        while True:
            lonely = {n for n in left if self._cohort.left(n, left) < self._cohort.threshold}
            if not lonely:
                return tuple(sorted(left))
            self.refused |= dict.fromkeys(lonely, "too few of its neighbours are left")
            left -= lonely

    def _all_can_be_opened(self, left: Collection[int]) -> None:
        """Every secret that will be needed has enough holders among those left."""
        there = set(left)
        for owner in self._sharers:
            holders = self._cohort.left(owner, there)
            if holders < self._cohort.threshold:
                raise self._abort(
                    f"{holders} of the holders of device {owner}'s shares are left: expected at least "
                    f"{self._cohort.threshold}"
                )

    def _enough(self, count: int, did: str) -> None:
        if count < self._terms.min_nodes:
            raise self._abort(f"{count} devices {did}: expected at least {self._terms.min_nodes}")

    def _abort(self, why: str, *, revealed: bool = False) -> AggregationAborted:
        reasons = "; ".join(f"{place}: {text}" for place, text in sorted(self.refused.items())[:5])
        return AggregationAborted(why + (f" ({reasons})" if reasons else ""), revealed=revealed)

    @contextmanager
    def _dropping(self, place: int) -> Iterator[None]:
        """A device whose reply is refused has dropped out; the others go on."""
        try:
            yield
        except AggregationRefused as error:
            self.refused[place] = str(error)
