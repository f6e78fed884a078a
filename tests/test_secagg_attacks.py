"""Servers and devices that cheat: each rule, the attack it stops, and what a masked vector gives away."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from secagg_helpers import STAGES, Cohort, context_of, enrolled

from fedrec.errors import AggregationAborted, AggregationRefused
from fedrec.secagg import shamir
from fedrec.secagg.client import Client
from fedrec.secagg.encoding import encoding_for
from fedrec.secagg.keys import Pair
from fedrec.secagg.masks import mask
from fedrec.secagg.messages import ADVERT_BYTES, Arrays, advert_digest, to_bytes_row, to_places, to_rows
from fedrec.secagg.reasons import Reason
from fedrec.secagg.roster import Identity

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


def check_refused(cohort: Cohort, reason: Reason) -> None:
    """The victim refused for this reason and has forgotten its secrets."""
    assert VICTIM in cohort.refused, "the victim went along"
    assert cohort.refused[VICTIM].reason == reason
    state = cohort.clients[VICTIM].state
    assert state.wiped and not (state.c_key or state.s_key or state.seed or state.held or state.incoming)


def refusal(act: Callable[[], Any]) -> Reason:
    with pytest.raises(AggregationRefused) as refused:
        act()
    return Reason(refused.value.reason)


# What the server may change in the adverts --------------------------------------------------------------


def forged(cohort: Cohort, place: int, signer: Identity) -> bytes:
    """An advert for somebody else's place, with keys that the server knows."""
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


@pytest.mark.parametrize("what", ["round", "attempt", "phase", "kind", "model"])
def test_an_advert_of_another_time_is_refused(what: str) -> None:
    def old(request: Arrays, cohort: Cohort) -> Arrays:
        fields = {"round": 9, "attempt": 9, "phase": "select", "kind": "evaluate", "model": "11" * 32}
        context = context_of(cohort.terms, 8, **{what: fields[what]})
        advert = Client.begin(cohort.terms, cohort.identities[0], context).advertise()["advert"].tobytes()
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
    looser, _ = enrolled([1] * 5, threshold=0.51, min_nodes=3)
    context = context_of(looser, 20)
    assert refusal(lambda: Client.begin(cohort.terms, cohort.identities[0], context)) == Reason.CONTEXT


def test_a_threshold_that_two_groups_could_reach_is_refused() -> None:
    cohort = attacked("share", lambda q, c: q, corrupted=40)
    assert isinstance(cohort.server.refused, dict) and "unmask" not in cohort.sent
    terms, _ = enrolled([1] * 5, corrupted=40)
    assert refusal(lambda: terms.shares_needed(4)) == Reason.THRESHOLD
    assert refusal(lambda: shamir.split(bytes(32), range(1, 4), 4)) == Reason.THRESHOLD


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
    everybody = Cohort.of(6, min_users=6.0)
    np.testing.assert_array_equal(everybody.run(), everybody.expected())
    with pytest.raises(AggregationAborted):
        Cohort.of(6, min_users=6.0).run({"mask": {3}})


def test_two_lists_of_survivors_never_both_find_enough_signatures() -> None:
    """The equivocation matrix: any list for one half of the cohort beside any other list for the other half."""
    n = 6
    lists = [s for size in (4, 5, 6) for s in itertools.combinations(range(n), size)]
    for one, other in itertools.product(lists, repeat=2):
        if one == other:
            continue
        opened = equivocated(n, one, other)
        for owner in range(n):
            kinds = {kind for place in opened for who, kind in opened[place].items() if who == owner}
            holders = [sum(opened[p].get(owner) == kind for p in opened) for kind in ("seed", "key")]
            # Shares of both kinds may be out, but never enough of both to open the device's vector.
            assert len(kinds) < 2 or min(holders) < cohort_threshold(n)


def equivocated(n: int, one: tuple[int, ...], other: tuple[int, ...]) -> dict[int, dict[int, str]]:
    """What each device opened, when the server shows half of them another list of survivors."""
    cohort = EQUIVOCATION[n]
    opened: dict[int, dict[int, str]] = {}
    signatures: dict[int, tuple[tuple[int, ...], bytes]] = {}
    clients = {}
    for place, client in cohort.clients.items():
        clients[place] = Client(
            cohort.terms, cohort.identities[place], client.state.load(client.state.dump())
        )
        listed = one if place < n // 2 else other
        try:
            reply = clients[place].confirm({"survivors": to_places(listed)})
        except AggregationRefused:
            continue
        signatures[place] = (listed, reply["signature"].tobytes())
    for place, (listed, _) in signatures.items():
        # The best the server can do: every signature that it has under this device's own list.
        fitting = {
            p: s for p, (named, s) in signatures.items() if named == listed and p != place and p in listed
        }
        request = {
            "signers": to_places(fitting),
            "signatures": to_rows([fitting[p] for p in sorted(fitting)], 64),
        }
        try:
            clients[place].unmask(request)
        except AggregationRefused as error:
            assert error.reason == Reason.CONSENT
            continue
        opened[place] = {owner: "seed" if owner in listed else "key" for owner in range(n)}
    return opened


def masked_cohort(n: int) -> Cohort:
    """A cohort whose vectors have been sent."""
    cohort = Cohort.of(n, 4)
    requests: Any = {place: {} for place in cohort.clients}
    for stage, step in zip(
        STAGES, (cohort.server.adverts, cohort.server.shares, cohort.server.masked), strict=False
    ):
        requests = step(cohort.replies(stage, requests, (), None))
    return cohort


EQUIVOCATION = {6: masked_cohort(6)}


def cohort_threshold(n: int) -> int:
    return EQUIVOCATION[n].server._cohort.threshold


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
    """The request to unmask names nobody: what is opened follows from the list the device has signed."""
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


def test_updates_that_are_not_finite_or_out_of_range_never_become_a_vector() -> None:
    encoding = encoding_for(3, 32, users=2, clip_norm=1.0, numbers=1, rotation_seed=None)
    bad, fine = np.array([0.0, np.nan, 0.0]), np.zeros(3)
    assert refusal(lambda: encoding.encode(bad, np.zeros(1), np.zeros)) == Reason.NOT_FINITE
    assert refusal(lambda: encoding.encode(fine, np.array([2.0**50]), np.zeros)) == Reason.RANGE


def test_every_reason_has_an_attack_here_or_over_requests() -> None:
    """REPLAY and MODEL are rules of a node over requests: tests/test_secure_rounds.py."""
    here = Path(__file__)
    text, rounds = here.read_text(), (here.parent / "test_secure_rounds.py").read_text()
    for reason in Reason:
        assert f"Reason.{reason.name}" in (rounds if reason in (Reason.REPLAY, Reason.MODEL) else text)


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


# What a masked vector gives away ------------------------------------------------------------------------


def one_masked(values: NDArray[Any], bits: int, n: int = 4) -> NDArray[Any]:
    """What the server sees of a device that sends these values."""
    cohort = Cohort.of(n, len(values), bits=bits)
    cohort.vectors[VICTIM] = values
    cohort.run()
    seen: NDArray[Any] = cohort.sent["mask"][VICTIM]["masked"]
    return seen


def bits_of(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.unpackbits(values.view(np.uint8))


def chi_square(values: NDArray[Any]) -> float:
    """Of bytes; 255 degrees of freedom, standard deviation 22.6."""
    counts = np.bincount(values.view(np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("bits", [16, 32])
def test_a_masked_vector_of_zeros_looks_like_chance(bits: int) -> None:
    seen = one_masked(np.zeros(1 << 16, dtype=f"<u{bits // 8}"), bits)
    ones = bits_of(seen)
    assert abs(ones.mean() - 0.5) < 5 * 0.5 / np.sqrt(len(ones))
    assert chi_square(seen) < 255 + 6 * 22.6
    assert chi_square(np.zeros(1 << 16, dtype=np.uint32)) > 1e6


def test_which_rows_of_an_update_are_touched_does_not_show() -> None:
    """One device's sparse update under masks: rows that are zero and rows that are not look alike."""
    rows, width = 2000, 32
    touched = np.random.default_rng(1).random(rows) < 0.05
    values = np.zeros((rows, width), dtype="<u4")
    values[touched] = np.random.default_rng(2).integers(1, 1000, size=(int(touched.sum()), width))
    seen = one_masked(values.reshape(-1), 32).reshape(rows, width)
    for score in (lambda x: x.mean(axis=1), lambda x: np.unpackbits(x.view(np.uint8), axis=1).mean(axis=1)):
        assert abs(auc(score(seen), touched) - 0.5) < 0.12
        assert auc(score(values), touched) > 0.99


def auc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    hits = int(positive.sum())
    return float((ranks[positive].sum() - hits * (hits + 1) / 2) / (hits * (len(scores) - hits)))


def linear_complexity(bits: NDArray[np.uint8]) -> int:
    """Length of the shortest linear recurrence over GF(2) (Berlekamp and Massey), bits as Python integers."""
    current, before, length, gap = 1, 1, 0, 1
    history = 0
    for position, bit in enumerate(bits.tolist()):
        history = history << 1 | bit
        if (current & history).bit_count() & 1:
            kept = current
            current ^= before << gap
            if 2 * length <= position:
                length, before, gap = position + 1 - length, kept, 0
        gap += 1
    return length


def low_bits_of_twister(size: int, streams: int) -> NDArray[np.uint8]:
    """The lowest bit of sums of Mersenne twisters, which obeys one recurrence of length 19937."""
    total = np.zeros(size, dtype=np.uint32)
    for seed in range(streams):
        total += np.random.RandomState(seed).randint(0, 2**32, size=size, dtype=np.uint32)
    return (total & 1).astype(np.uint8)


def test_no_linear_recurrence_runs_through_a_masked_vector() -> None:
    """Masks of generators that are linear over GF(2) can be seen through; the test finds those, and not ours."""
    size = 42_000
    ours = (one_masked(np.zeros(size, dtype="<u4"), 32) & 1).astype(np.uint8)
    assert abs(linear_complexity(ours) - size / 2) < 40
    assert linear_complexity(low_bits_of_twister(size, 3)) == 19937


def test_the_low_bits_of_one_mask_stream_are_no_short_recurrence_either() -> None:
    stream = (mask(4000, 16, bytes(range(32))) & 1).astype(np.uint8)
    assert abs(linear_complexity(stream) - 2000) < 40
    taps = np.zeros(4000, dtype=np.uint8)
    taps[:31] = 1
    for i in range(31, 4000):
        taps[i] = taps[i - 3] ^ taps[i - 31]
    assert linear_complexity(taps) <= 31


def test_a_masked_vector_tells_nothing_of_its_input() -> None:
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2**32, size=1 << 15, dtype=np.uint64).astype("<u4")
    seen = one_masked(values, 32)
    corr = np.corrcoef(bits_of(values).astype(float), bits_of(seen).astype(float))[0, 1]
    assert abs(corr) < 5 / np.sqrt(len(bits_of(seen)))
    assert to_bytes_row(values.tobytes()).size == seen.nbytes
