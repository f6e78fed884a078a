"""Servers and devices that cheat: each rule of a device and the attack it stops.

Two stories told to two halves of a cohort are in `test_secagg_equivocation`, what a masked vector shows in
`test_secagg_masked`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from secagg_helpers import Cohort, context_of, enrolled

from fedrec.core.errors import AggregationAborted, AggregationRefused
from fedrec.core.refusal_reasons import Reason
from fedrec.secagg import _shamir as shamir
from fedrec.secagg._keys import Pair
from fedrec.secagg.client import Client
from fedrec.secagg.encoding import encoding_for
from fedrec.secagg.messages import ADVERT_BYTES, Arrays, advert_digest, to_places, to_rows
from fedrec.secagg.roster import Identity
from fedrec.secagg.server import Server
from fedrec.secagg.terms import SecaggTerms

#: Changes what the server asks one device: (request, cohort) -> request.
Tamper = Callable[[Arrays, Cohort], Arrays]
VICTIM = 1


def attacked(stage: str, tamper: Tamper, n: int = 6, **fields: Any) -> Cohort:
    """A cohort whose server changes what it asks the victim at one stage."""
    cohort = Cohort.of(n, 8, **fields)
    answer = cohort.answer

    def lying(at: str, place: int, request: Arrays) -> Arrays | None:
        asked = tamper(dict(request), cohort) if (at, place) == (stage, VICTIM) else request
        return answer(at, place, asked)

    cohort.answer = lying  # type: ignore[method-assign]
    with suppress(AggregationAborted):
        cohort.run()
    return cohort


def with_terms(cohort: Cohort, **fields: Any) -> SecaggTerms:
    """The terms as someone else would like them."""
    return SecaggTerms.model_validate(cohort.terms.model_dump() | fields)


def check_refused(cohort: Cohort, reason: Reason) -> None:
    """The victim refused for this reason and has forgotten its secrets."""
    assert VICTIM in cohort.refused, "the victim went along"
    assert cohort.refused[VICTIM].reason == reason
    client = cohort.clients[VICTIM]
    assert client.state.wiped
    left = json.loads(client.state.dump())
    assert not any(left[name] for name in ("c_key", "s_key", "seed", "held", "incoming", "answer", "asked"))
    # Nothing brings it back, not even the question that it would have answered.
    assert refusal(lambda: client.confirm({"survivors": to_places(range(6))})) == Reason.FORGOTTEN


def refusal(act: Callable[[], Any]) -> Reason:
    with pytest.raises(AggregationRefused) as refused:
        act()
    return Reason(refused.value.reason)


# What the server may change in the adverts --------------------------------------------------------------


def forged(cohort: Cohort, place: int, signer: Identity) -> bytes:
    """An advert for someone else's place, with keys that the server knows."""
    public = Pair(b"c" * 32).public + Pair(b"s" * 32).public + bytes(32)
    signed = cohort.context.bind("advert", place.to_bytes(4, "big"), public)
    return public + signer.sign(signed)


def with_advert(request: Arrays, place: int, advert: bytes, cohort: Cohort) -> Arrays:
    """The request with an advert, and its digest, in the place of another's."""
    members = request["cohort"].tolist()
    digests, adverts = request["digests"].copy(), request["adverts"].copy()
    digests[members.index(place)] = np.frombuffer(advert_digest(place, advert), dtype=np.uint8)
    near = [member for member in members if member != VICTIM]
    adverts[near.index(place)] = np.frombuffer(advert, dtype=np.uint8)
    return request | {"digests": digests, "adverts": adverts}


def test_keys_swapped_by_a_man_in_the_middle_are_refused() -> None:
    stranger = Identity.create()
    cohort = attacked("share", lambda q, c: with_advert(q, 0, forged(c, 0, stranger), c))
    check_refused(cohort, Reason.SIGNATURE)


def test_an_advert_of_another_member_in_ones_place_is_refused() -> None:
    cohort = attacked("share", lambda q, c: with_advert(q, 0, forged(c, 0, c.identities[3]), c))
    check_refused(cohort, Reason.SIGNATURE)


@pytest.mark.parametrize("what", ["run", "round", "attempt", "phase", "kind", "model"])
def test_an_advert_of_another_time_is_refused(what: str) -> None:
    """Signed by its real owner, who said it on another occasion."""

    def old(request: Arrays, cohort: Cohort) -> Arrays:
        fields = {"round": 9, "attempt": 9, "phase": "tuning", "kind": "evaluate", "model": "11" * 32}
        terms = with_terms(cohort, run="another") if what == "run" else cohort.terms
        context = context_of(terms, 8, **({} if what == "run" else {what: fields[what]}))
        advert = Client.begin(terms, cohort.identities[0], context).advertise()["advert"].tobytes()
        return with_advert(request, 0, advert, cohort)

    check_refused(attacked("share", old), Reason.SIGNATURE)


def test_an_advert_that_is_not_the_announced_one_is_refused() -> None:
    def other(request: Arrays, cohort: Cohort) -> Arrays:
        adverts = request["adverts"].copy()
        adverts[0, 0] ^= 1
        return request | {"adverts": adverts}

    check_refused(attacked("share", other), Reason.ADVERT)


def test_ones_own_keys_changed_in_what_others_are_told_are_refused() -> None:
    def own(request: Arrays, cohort: Cohort) -> Arrays:
        digests = request["digests"].copy()
        digests[request["cohort"].tolist().index(VICTIM), 0] ^= 1
        return request | {"digests": digests}

    check_refused(attacked("share", own), Reason.ADVERT)


def test_a_cohort_below_the_minimum_is_refused() -> None:
    def small(request: Arrays, cohort: Cohort) -> Arrays:
        adverts = cohort.server._adverts
        members = (0, VICTIM)
        digests = [advert_digest(place, adverts[place]) for place in members]
        return {
            "cohort": to_places(members),
            "digests": to_rows(digests, 32),
            "adverts": to_rows([adverts[0]], ADVERT_BYTES),
        }

    check_refused(attacked("share", small), Reason.COHORT)


@pytest.mark.parametrize("listed", [[0, 0, 1], [2, 1, 0], [0, 1, 99]])
def test_a_list_with_strangers_or_doubles_is_refused(listed: list[int]) -> None:
    def strange(request: Arrays, cohort: Cohort) -> Arrays:
        return request | {
            "cohort": np.array(listed, dtype=np.uint32),
            "digests": request["digests"][:3],
            "adverts": request["adverts"][:2],
        }

    check_refused(attacked("share", strange), Reason.COHORT)


def test_a_sybil_who_is_not_in_the_roster_finds_no_place() -> None:
    terms, _ = enrolled([1] * 4)
    context = context_of(terms, 8)
    assert refusal(lambda: Client.begin(terms, Identity.create(), context)) == Reason.IDENTITY
    assert refusal(lambda: terms.roster.verify(9, bytes(64), b"")) == Reason.IDENTITY


def test_terms_that_the_server_would_like_better_are_refused() -> None:
    cohort = Cohort.of(5)
    looser, _ = enrolled([1] * 5, threshold=0.75, min_nodes=3)
    context = context_of(looser, 20)
    assert refusal(lambda: Client.begin(cohort.terms, cohort.identities[0], context)) == Reason.CONTEXT


def test_a_threshold_that_two_groups_could_reach_is_refused() -> None:
    """A server that goes on with a threshold of its own; devices know that none is safe for so few of them."""
    cohort = Cohort.of(6, 8, corrupted=40)
    cohort.server = Server(with_terms(cohort, corrupted=0), cohort.context)
    with pytest.raises(AggregationAborted) as aborted:
        cohort.run()
    assert not aborted.value.revealed and set(cohort.refused) == set(range(6))
    check_refused(cohort, Reason.THRESHOLD)
    assert refusal(lambda: shamir.split(bytes(32), range(1, 4), 4)) == Reason.THRESHOLD


def test_a_lower_threshold_of_the_server_gets_it_nothing() -> None:
    """Devices deal with their own: a server that asks for fewer shares has fewer than it needs."""
    cohort = Cohort.of(6, 8, threshold=0.9)
    cohort.server = Server(with_terms(cohort, threshold=2 / 3), cohort.context)
    with pytest.raises(AggregationAborted):
        cohort.run({"confirm": {0, 2}})
    check_refused(cohort, Reason.CONSENT)


# Shares -------------------------------------------------------------------------------------------------


def test_a_tampered_share_is_refused() -> None:
    def tampered(request: Arrays, cohort: Cohort) -> Arrays:
        shares = request["shares"].copy()
        shares[2, 5] ^= 1
        return request | {"shares": shares}

    check_refused(attacked("mask", tampered), Reason.CIPHERTEXT)


def test_a_share_made_for_another_device_is_refused() -> None:
    def rerouted(request: Arrays, cohort: Cohort) -> Arrays:
        shares = request["shares"].copy()
        shares[0] = np.frombuffer(cohort.server._sealed[0][2], dtype=np.uint8)
        return request | {"shares": shares}

    check_refused(attacked("mask", rerouted), Reason.CIPHERTEXT)


def test_a_device_s_own_share_sent_back_to_it_is_refused() -> None:
    def reflected(request: Arrays, cohort: Cohort) -> Arrays:
        shares = request["shares"].copy()
        shares[0] = np.frombuffer(cohort.server._sealed[VICTIM][0], dtype=np.uint8)
        return request | {"shares": shares}

    check_refused(attacked("mask", reflected), Reason.CIPHERTEXT)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_list_of_sharers_around_which_too_few_are_left_is_refused(keep: int) -> None:
    def few(request: Arrays, cohort: Cohort) -> Arrays:
        return {"sharers": to_places([0, VICTIM, 2][: keep + 1]), "shares": request["shares"][:keep]}

    check_refused(attacked("mask", few), Reason.SHARERS)


def test_sharers_without_oneself_or_without_their_shares_are_refused() -> None:
    def without(request: Arrays, cohort: Cohort) -> Arrays:
        return request | {"sharers": to_places([0, 2, 3, 4, 5])}

    def lacking(request: Arrays, cohort: Cohort) -> Arrays:
        return request | {"shares": request["shares"][:-1]}

    check_refused(attacked("mask", without), Reason.SHARERS)
    check_refused(attacked("mask", lacking), Reason.SHARERS)


# Survivors: who is opened -------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [(0, 2, 3, 4, 5), (0, 1), (0, 1, 2)])
def test_a_list_of_survivors_without_oneself_or_too_short_is_refused(listed: tuple[int, ...]) -> None:
    cohort = attacked("confirm", lambda q, c: {"survivors": to_places(listed)})
    check_refused(cohort, Reason.SURVIVORS)


def test_survivors_for_whom_the_noise_is_too_small_are_refused() -> None:
    cohort = attacked("confirm", lambda q, c: {"survivors": to_places([0, 1, 2, 3, 4])}, min_users=6.0)
    check_refused(cohort, Reason.USERS)
    everyone = Cohort.of(6, min_users=6.0)
    np.testing.assert_array_equal(everyone.run(), everyone.expected())
    with pytest.raises(AggregationAborted):
        Cohort.of(6, min_users=6.0).run({"mask": {3}})


def test_signatures_under_another_list_are_refused() -> None:
    def foreign(request: Arrays, cohort: Cohort) -> Arrays:
        consent = cohort.server._cohort.consent(tuple(range(6)), (0, 1, 2, 3, 4))
        others = [0, 2, 3, 4]
        return {
            "signers": to_places(others),
            "signatures": to_rows([cohort.identities[p].sign(consent) for p in others], 64),
        }

    check_refused(attacked("unmask", foreign), Reason.SIGNATURE)


def test_too_few_signatures_or_those_of_strangers_are_refused() -> None:
    def few(request: Arrays, cohort: Cohort) -> Arrays:
        return {"signers": request["signers"][:2], "signatures": request["signatures"][:2]}

    def own(request: Arrays, cohort: Cohort) -> Arrays:
        signers = request["signers"].copy()
        signers[-1] = 77
        return request | {"signers": signers}

    check_refused(attacked("unmask", few), Reason.CONSENT)
    check_refused(attacked("unmask", own), Reason.CONSENT)


def test_active_and_dead_cannot_overlap_because_a_device_decides_by_itself() -> None:
    """The request to unmask names no one: what is opened follows from the list the device has signed."""
    cohort = Cohort.of(6)
    cohort.run({"mask": {4}})
    for place, reply in cohort.sent["unmask"].items():
        assert set(reply) == {"opened"} and len(reply["opened"]) == 6
        assert set(cohort.clients[place].state.survivors) == {0, 1, 2, 3, 5}


# Order and repetition -----------------------------------------------------------------------------------


def test_a_second_unmasking_is_refused() -> None:
    cohort = Cohort.of(6)
    cohort.run()
    again = {"signers": to_places([0]), "signatures": np.zeros((1, 64), dtype=np.uint8)}
    assert refusal(lambda: cohort.clients[VICTIM].unmask(again)) == Reason.FORGOTTEN


@pytest.mark.parametrize("stage", ["share", "confirm"])
def test_a_stage_asked_again_with_other_content_is_refused_and_ends_the_attempt(stage: str) -> None:
    cohort = Cohort.of(6)
    answer = cohort.answer
    reasons: list[Reason] = []

    def again(at: str, place: int, request: Arrays) -> Arrays | None:
        reply = answer(at, place, request)
        if (at, place) == (stage, VICTIM):
            other = dict(request)
            name = "digests" if stage == "share" else "survivors"
            other[name] = other[name][:-1]
            reasons.append(refusal(lambda: getattr(cohort.clients[place], stage)(other)))
        return reply

    cohort.answer = again  # type: ignore[method-assign]
    cohort.run()
    assert reasons == [Reason.ANSWERED]
    assert cohort.refused[VICTIM].reason == Reason.FORGOTTEN


def test_stages_out_of_order_are_refused() -> None:
    cohort = Cohort.of(6)
    client = cohort.clients[VICTIM]
    client.advertise()
    assert refusal(lambda: client.confirm({"survivors": to_places(range(6))})) == Reason.STAGE


def test_a_vector_of_another_size_than_announced_is_refused() -> None:
    cohort = Cohort.of(6)
    cohort.vectors = cohort.vectors[:, :-1]
    with pytest.raises(AggregationAborted):
        cohort.run()
    assert {error.reason for error in cohort.refused.values()} == {Reason.FORMAT}


def test_parts_that_are_missing_or_of_another_type_are_refused() -> None:
    wrong: list[tuple[str, Tamper]] = [
        ("share", lambda q, c: {"cohort": q["cohort"]}),
        ("share", lambda q, c: q | {"cohort": q["cohort"].astype(np.int64)}),
        ("mask", lambda q, c: q | {"shares": q["shares"][:, :-1]}),
        ("confirm", lambda q, c: q | {"more": q["survivors"]}),
        ("unmask", lambda q, c: q | {"signatures": q["signatures"].astype(np.float32)}),
    ]
    for stage, tamper in wrong:
        check_refused(attacked(stage, tamper), Reason.FORMAT)


def test_a_device_that_was_told_of_another_model_is_in_no_sum() -> None:
    """Its keys and signatures are bound to that model, so they are worth nothing to the others."""
    cohort = Cohort.of(6)
    other = context_of(cohort.terms, 20, model="22" * 32)
    cohort.clients[VICTIM] = Client.begin(cohort.terms, cohort.identities[VICTIM], other)
    np.testing.assert_array_equal(cohort.run(), cohort.expected())
    assert VICTIM not in cohort.server.survivors


def test_more_users_than_the_integers_hold_are_no_terms() -> None:
    """Bounds are checked of terms, on both sides: no value that a device computes can lead to a refusal."""
    full = refusal(lambda: encoding_for(3, 32, users=2**31, clip_norm=1.0, numbers=1, rotation_seed=None))
    assert full == Reason.RANGE
    for bad in ({"range_users": 2**31}, {"range_users": 3}):
        with pytest.raises(ValidationError):
            enrolled([1] * 4, **bad)


def test_every_reason_has_an_attack_here_or_over_requests() -> None:
    """REPLAY and MODEL are rules of a node over requests, the others of what a run may ask for."""
    tests = Path(__file__).parents[1]
    elsewhere = dict.fromkeys((Reason.REPLAY, Reason.MODEL), "test_secure_rounds.py")
    elsewhere |= dict.fromkeys((Reason.SCHEDULE, Reason.DIFFERENCE, Reason.PROMISES), "test_differences.py")
    for reason in Reason:
        (path,) = tests.rglob(elsewhere.get(reason, "test_secagg_attacks.py"))
        text = path.read_text()
        assert re.search(rf"(check_refused\(.*, |== |== [\[{{])Reason\.{reason.name}\b", text), reason


# Devices that lie ---------------------------------------------------------------------------------------


def test_a_wrong_share_at_the_end_is_put_right_or_aborts() -> None:
    def liar(stage: str, place: int, reply: Arrays) -> Arrays:
        if (stage, place) == ("unmask", VICTIM):
            return {"opened": np.full_like(reply["opened"], 1)}
        return reply

    cohort = Cohort.of(9)
    np.testing.assert_array_equal(cohort.run(meddle=liar), cohort.expected())
    with pytest.raises(AggregationAborted) as aborted:
        Cohort.of(9).run({"unmask": {2, 3, 4}}, liar)
    assert aborted.value.revealed


def test_shares_that_are_not_of_one_secret_cost_the_sum_and_never_make_it_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A device that deals wrong shares is found out when the server puts its seed together, or its key."""
    cohort, split, calls = Cohort.of(6), shamir.split, itertools.count()

    def wrong(secret: bytes, xs: Sequence[int], threshold: int, random: Any) -> list[bytes]:
        # The first device to share is the one at place 0: first its seed, then its key.
        return split(bytes(32) if next(calls) < 2 else secret, xs, threshold, random)

    monkeypatch.setattr(shamir, "split", wrong)
    with pytest.raises(AggregationAborted, match="the seed of device 0") as aborted:
        cohort.run()
    assert aborted.value.revealed
    calls, vanishing = itertools.count(), Cohort.of(6)
    with pytest.raises(AggregationAborted, match="the key of device 0"):
        vanishing.run({"mask": {0}})


@pytest.mark.parametrize("start", [0, 32], ids=["c key", "s key"])
def test_keys_of_small_order_are_refused(start: int) -> None:
    """They would give everyone the same secret, which the server knows; their owner signed them itself."""
    cohort = Cohort.of(6)
    liar = cohort.clients[0]
    honest = liar._public_part()
    liar._public_part = lambda: honest[:start] + bytes(32) + honest[start + 32 :]  # type: ignore[method-assign]
    with pytest.raises(AggregationAborted) as aborted:
        cohort.run()
    assert not aborted.value.revealed and set(cohort.refused) >= set(range(1, 6))
    check_refused(cohort, Reason.ADVERT)


@pytest.mark.parametrize("stage", ["advertise", "share", "confirm", "unmask"])
def test_one_device_s_reply_in_the_name_of_another_counts_for_neither(stage: str) -> None:
    """Copies of device 0's reply arrive as device 1's; a copied vector would be a lie about device 1's own input."""

    def copied(at: str, place: int, reply: Arrays) -> Arrays:
        if at == stage and place == 0:
            kept.append(reply)
        return kept[0] if (at, place) == (stage, 1) and kept else reply

    kept: list[Arrays] = []
    cohort = Cohort.of(9)
    try:
        total = cohort.run(meddle=copied)
    except AggregationAborted:
        return
    np.testing.assert_array_equal(total, cohort.expected())
