"""A device's part of secure aggregation: five steps, taken once each and in order, or not at all.

The protocol is SecAgg (Bonawitz et al. 2017, CCS, the variant with a consistency check against a cheating server)
over a random regular graph (Bell et al. 2020, "Secure single-server aggregation with (poly)logarithmic overhead",
CCS). The device adds to its vector a mask of its own and one mask per neighbour; the latter cancel in the sum. Shares
of the secrets behind the masks lie with its neighbours, who give out one share per device: of the own mask's seed if
the device's vector is in the sum, of its key if it vanished. No one gives out both, so no single vector is opened.

A step that breaks a rule is refused with a typed reason and wipes all secrets: the attempt is over for this device.
Out of scope: transport, the server's part (`server`), how a vector becomes integers (`encoding`).
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import AggregationRefused
from fedrec.core.interruption import check as check_interrupted
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg import _shamir as shamir
from fedrec.secagg._cohort import Cohort, check_survivors
from fedrec.secagg._keys import (
    KEY_BYTES,
    Pair,
    commitment,
    derive,
    open_sealed,
    own_mask_key,
    pair_mask_key,
    seal,
)
from fedrec.secagg._masks import Sign, add_masks
from fedrec.secagg.context import Context
from fedrec.secagg.messages import (
    ADVERT_BYTES,
    SEALED_BYTES,
    Arrays,
    advert_digest,
    check,
    places,
    to_bytes_row,
    to_rows,
)
from fedrec.secagg.roster import SIGNATURE_BYTES, Identity
from fedrec.secagg.state import ClientState, Stage
from fedrec.secagg.terms import SecaggTerms

Random = Callable[[int], bytes]


class Client:
    """One device in one attempt; made by `begin`, or by `resume` where steps are taken in different processes.

    Args:
        terms: pinned on this device.
        identity: its signing key.
        state: where it stands.
        random: source of secrets, the operating system's generator; test vectors give another.
    """

    def __init__(
        self, terms: SecaggTerms, identity: Identity, state: ClientState, random: Random = os.urandom
    ) -> None:
        self.state = state
        self._terms = terms
        self._identity = identity
        self._random = random
        self._place = terms.roster.index(identity.public)

    @classmethod
    def begin(
        cls, terms: SecaggTerms, identity: Identity, context: Context, random: Random = os.urandom
    ) -> Client:
        """A device that is asked to join an attempt, with fresh keys.

        Raises:
            AggregationRefused: the terms are not its own, or it is not in the roster.
        """
        if context.terms != terms.digest.hex():
            raise AggregationRefused(
                "the server's terms are not those of this device: prepare both from one configuration",
                Reason.CONTEXT,
            )
        state = ClientState(context, c_key=random(KEY_BYTES), s_key=random(KEY_BYTES), seed=random(KEY_BYTES))
        return cls(terms, identity, state, random)

    # The five steps ------------------------------------------------------------------------------------

    def advertise(self) -> Arrays:
        """Public keys of this attempt, signed."""
        return self._step(Stage.ADVERTISE, {}, self._advertise)

    def share(self, arrays: Arrays) -> Arrays:
        """Shares of its secrets, sealed for each neighbour; from the cohort's adverts.

        Raises:
            AggregationRefused: the cohort is too small, or an advert is not what its owner signed.
        """
        return self._step(Stage.SHARE, arrays, self._share)

    def mask(self, arrays: Arrays, vector: NDArray[np.unsignedinteger]) -> Arrays:
        """The vector under masks; from the shares that neighbours made for it.

        Args:
            arrays: of the stage.
            vector: [m] residues; not changed.

        Raises:
            AggregationRefused: a share does not open, shares are missing, or the vector is not as announced.
        """
        return self._step(Stage.MASK, arrays, lambda given: self._mask(given, vector))

    def confirm(self, arrays: Arrays) -> Arrays:
        """Its signature under the one list of survivors that it accepts.

        Raises:
            AggregationRefused: the list breaks a rule.
        """
        return self._step(Stage.CONFIRM, arrays, self._confirm)

    def unmask(self, arrays: Arrays) -> Arrays:
        """One share per neighbour, once enough of them have signed the same list; then all secrets are wiped.

        Raises:
            AggregationRefused: too few signatures, or one that does not fit the list.
        """
        return self._step(Stage.UNMASK, arrays, self._unmask)

    # What they do --------------------------------------------------------------------------------------

    def _advertise(self, arrays: Arrays) -> Arrays:
        advert = self._public_part()
        return {"advert": to_bytes_row(advert + self._identity.sign(self._to_sign(self._place, advert)))}

    def _share(self, arrays: Arrays) -> Arrays:
        state, terms = self.state, self._terms
        cohort = self._read_cohort(arrays)
        near = cohort.neighbours(self._place)
        check(
            arrays,
            {
                "cohort": ("uint32", (None,)),
                "digests": ("uint8", (len(cohort.members), KEY_BYTES)),
                "adverts": ("uint8", (len(near), ADVERT_BYTES)),
            },
        )
        digests = dict(zip(cohort.members, cohort.digests, strict=True))
        for place, row in zip(near, arrays["adverts"], strict=True):
            check_interrupted()
            advert = row.tobytes()
            if advert_digest(place, advert) != digests[place]:
                raise AggregationRefused(
                    f"the advert of device {place} is not the one that everyone was told of", Reason.ADVERT
                )
            public, signature = advert[:-SIGNATURE_BYTES], advert[-SIGNATURE_BYTES:]
            terms.roster.verify(place, signature, self._to_sign(place, public))
            state.c_publics[place], state.s_publics[place] = (
                public[:KEY_BYTES],
                public[KEY_BYTES : 2 * KEY_BYTES],
            )
        holders = cohort.holders(self._place)
        xs = range(1, len(holders) + 1)
        seeds = shamir.split(state.seed, xs, cohort.threshold, self._random)
        keys = shamir.split(state.s_key, xs, cohort.threshold, self._random)
        pairs = {holder: seeds[i] + keys[i] for i, holder in enumerate(holders)}
        state.held[self._place] = pairs.pop(self._place)
        state.members, state.digests = cohort.members, cohort.digests
        channel = Pair(state.c_key)
        sealed = []
        for place in near:
            check_interrupted()
            secret = channel.agree(state.c_publics[place])
            out = derive(secret, state.context, "share", self._place, place)
            state.incoming[place] = derive(secret, state.context, "share", place, self._place)
            sealed.append(seal(out, pairs[place], cohort.transcript))
        state.c_key, state.c_publics = b"", {}
        return {"shares": to_rows(sealed, SEALED_BYTES)}

    def _mask(self, arrays: Arrays, vector: NDArray[np.unsignedinteger]) -> Arrays:
        state, cohort = self.state, self._cohort()
        check(arrays, {"sharers": ("uint32", (None,)), "shares": ("uint8", (None, SEALED_BYTES))})
        sharers = places(arrays["sharers"], len(self._terms.roster), "sharers", Reason.SHARERS)
        near = [place for place in cohort.neighbours(self._place) if place in set(sharers)]
        if not set(sharers) <= set(cohort.members) or self._place not in sharers:
            raise AggregationRefused(
                "the list of sharers names devices that did not advertise, or leaves this one out",
                Reason.SHARERS,
            )
        if len(near) + 1 < cohort.threshold or len(sharers) < self._terms.min_nodes:
            raise AggregationRefused(
                f"{len(sharers)} devices shared, {len(near)} of them around this one: expected at least "
                f"{self._terms.min_nodes} and {cohort.threshold - 1}",
                Reason.SHARERS,
            )
        if len(arrays["shares"]) != len(near):
            raise AggregationRefused(
                f"{len(arrays['shares'])} shares came: expected one from each of {len(near)} neighbours",
                Reason.SHARERS,
            )
        if vector.dtype != np.dtype(f"<u{self._terms.bits // 8}") or vector.shape != (state.context.length,):
            raise AggregationRefused(
                f"vector is {vector.dtype}{vector.shape}: expected uint{self._terms.bits}"
                f"({state.context.length},); the model is not the one that was announced",
                Reason.FORMAT,
            )
        for place, row in zip(near, arrays["shares"], strict=True):
            state.held[place] = open_sealed(state.incoming[place], row.tobytes(), cohort.transcript)
        state.sharers, state.incoming = sharers, {}
        return {"masked": self._masked(vector, near)}

    def _masked(self, vector: NDArray[np.unsignedinteger], near: list[int]) -> NDArray[np.unsignedinteger]:
        state, pair = self.state, Pair(self.state.s_key)
        total = vector.copy()
        masks: list[tuple[bytes, Sign]] = [(own_mask_key(state.seed, state.context, self._place), 1)]
        for place in near:
            key = pair_mask_key(pair, state.s_publics[place], state.context, self._place, place)
            masks.append((key, 1 if self._place < place else -1))
        add_masks(total, masks)
        state.s_key, state.seed, state.s_publics = b"", b"", {}
        return total

    def _confirm(self, arrays: Arrays) -> Arrays:
        state, cohort = self.state, self._cohort()
        check(arrays, {"survivors": ("uint32", (None,))})
        survivors = places(arrays["survivors"], len(self._terms.roster), "survivors", Reason.SURVIVORS)
        check_survivors(cohort, self._terms, state.sharers, survivors, self._place)
        state.survivors = survivors
        return {"signature": to_bytes_row(self._identity.sign(cohort.consent(state.sharers, survivors)))}

    def _unmask(self, arrays: Arrays) -> Arrays:
        state, cohort = self.state, self._cohort()
        check(arrays, {"signers": ("uint32", (None,)), "signatures": ("uint8", (None, SIGNATURE_BYTES))})
        signers = places(arrays["signers"], len(self._terms.roster), "signers", Reason.CONSENT)
        around = set(cohort.holders(self._place)) & set(state.survivors)
        if len(arrays["signatures"]) != len(signers) or not set(signers) <= around:
            raise AggregationRefused(
                "signatures are of devices that are not surviving neighbours, or too many", Reason.CONSENT
            )
        # A device's own word counts; it gave it in the step before.
        if len({*signers, self._place}) < cohort.threshold:
            raise AggregationRefused(
                f"{len(signers)} devices around this one signed the list of survivors: expected at least "
                f"{cohort.threshold}",
                Reason.CONSENT,
            )
        consent = cohort.consent(state.sharers, state.survivors)
        for place, row in zip(signers, arrays["signatures"], strict=True):
            self._terms.roster.verify(place, row.tobytes(), consent)
        survived, half = set(state.survivors), shamir.ELEMENT_BYTES
        opened = [
            state.held[place][:half] if place in survived else state.held[place][half:]
            for place in sorted(state.held)
        ]
        return {"opened": to_rows(opened, half)}

    # Parts ---------------------------------------------------------------------------------------------

    def _step(self, stage: Stage, arrays: Arrays, act: Callable[[Arrays], Arrays]) -> Arrays:
        """Take a step once; the same question again gets the same bytes, any other ends the attempt."""
        earlier = self.state.earlier(stage, arrays)
        if earlier is not None:
            return earlier
        try:
            self.state.expect(stage)
            reply = act(arrays)
        except AggregationRefused:
            self.state.wipe()
            raise
        self.state.took(stage, arrays, reply)
        return reply

    def _read_cohort(self, arrays: Arrays) -> Cohort:
        if set(arrays) != {"cohort", "digests", "adverts"}:
            check(arrays, dict.fromkeys(("cohort", "digests", "adverts"), ("uint8", ())))
        check({"cohort": arrays["cohort"]}, {"cohort": ("uint32", (None,))})
        members = places(arrays["cohort"], len(self._terms.roster), "adverts", Reason.COHORT)
        check({"digests": arrays["digests"]}, {"digests": ("uint8", (len(members), KEY_BYTES))})
        digests = tuple(row.tobytes() for row in arrays["digests"])
        own = self._public_part()
        advert = own + self._identity.sign(self._to_sign(self._place, own))
        if (self._place, advert_digest(self._place, advert)) not in zip(members, digests, strict=True):
            raise AggregationRefused(
                "this device's own advert is missing or changed in what everyone was told", Reason.ADVERT
            )
        return Cohort.of(self.state.context, self._terms, members, digests)

    def _cohort(self) -> Cohort:
        return Cohort.of(self.state.context, self._terms, self.state.members, self.state.digests)

    def _public_part(self) -> bytes:
        state = self.state
        return (
            Pair(state.c_key).public
            + Pair(state.s_key).public
            + commitment(state.seed, state.context, self._place)
        )

    def _to_sign(self, place: int, public: bytes) -> bytes:
        return self.state.context.bind("advert", place.to_bytes(4, "big"), public)
